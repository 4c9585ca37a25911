//! Missing prerequisites of the phases after the stop are reported before it; marks that cannot be removed do
//! no harm.

use anyhow::{Context as _, ensure};
use warmd_core::model::machine::PowerState;
use warmd_core::model::rule::Rule;
use warmd_core::sources::{HoldOff, MigratedMark, Source, SourceErrorKind};

use super::bench::{
    Bench, MIB, Marks, UUID, assert_changed, assert_error, assert_unknown, block_on, marks, qemu_img,
};

const DISK: [(&str, u64); 1] = [("qcow2", 8)];

/// Defines the VM with a part of its XML replaced.
fn define_with(bench: &Bench, extra: &str, replaced: &[(String, String)]) -> anyhow::Result<()> {
    let mut text = bench.xml(extra);
    for (from, to) in replaced {
        ensure!(text.contains(from.as_str()), "{from} is not in {text}");
        text = text.replace(from.as_str(), to);
    }
    let path = bench.dir.join("domain.xml");
    std::fs::write(&path, text)?;
    bench.virsh(["define", &path.to_string_lossy()]).map(drop)
}

fn keys(bench: &Bench) -> Vec<warmd_core::model::id::DiskKey> {
    bench.disks.iter().map(|disk| disk.key.clone()).collect()
}

#[test]
fn pool_volume_is_copied_with_the_vm_running_and_off() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &DISK)?;
        bench.virsh(["pool-define-as", "p", "dir", "--target", &dir.path().to_string_lossy()])?;
        bench.virsh(["pool-start", "p"])?;
        let file = format!("<source file='{}'/>", bench.disks[0].path.display());
        let replaced = [
            ("<disk type='file' device='disk'>".to_owned(), "<disk type='volume' device='disk'>".to_owned()),
            (file, "<source pool='p' volume='a.qcow2'/>".to_owned()),
        ];
        define_with(&bench, "", &replaced)?;
        let size = |machine: warmd_core::model::machine::Machine| machine.disks[0].size.0;
        ensure!(size(bench.source.describe(UUID).await?) == 8 * MIB);
        ensure!(bench.source.objections(&bench.vm).await?.is_empty());

        bench.virsh(["start", UUID])?;
        ensure!(size(bench.source.describe(UUID).await?) == 8 * MIB);
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, MIB, 512)?;
        bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await?;
        bench.virsh(["destroy", UUID])?;
        ensure!(bench.source.disk_keys(&bench.vm).await? == keys(&bench));
        let last = bench.final_snapshot(&first).await?;
        assert_changed(&*last, &bench.disks[0].key, &[(MIB, 512)]).await?;
        bench.assert_contents(&*last).await?;
        last.release().await?;
        let left = bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(left.is_empty(), "{left:?}");
        bench.assert_no_trace()?;

        bench.virsh(["start", UUID])?;
        bench.virsh(["pool-destroy", "p"])?;
        let refused = bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await;
        assert_error(refused, SourceErrorKind::Refused, "not active")
    });
}

#[test]
fn autostart_missing_in_the_record_is_found_in_the_mark() {
    block_on(async |dir| {
        // It runs: the mark is only in its persistent definition.
        let bench = Bench::started(dir, &DISK)?;
        bench.virsh(["autostart", UUID])?;
        let autostart = || -> anyhow::Result<bool> {
            Ok(bench
                .virsh(["dominfo", UUID])?
                .lines()
                .any(|line| line.starts_with("Autostart:") && line.ends_with("enable")))
        };
        let (vm, owner) = (&bench.vm, bench.owner);
        let was = bench.source.starters(vm, owner).await?;
        ensure!(was.autostart);
        let moved = MigratedMark { owner, target: "there".to_owned() };
        bench.source.hold_off(vm, &moved, &was).await?;
        ensure!(!autostart()?);
        // Its record was lost, and is made again from the mark.
        ensure!(bench.source.starters(vm, owner).await?.autostart, "the mark was not read");
        let none = HoldOff { autostart: false };
        bench.source.hold_off(vm, &moved, &none).await?;
        ensure!(
            bench.virsh(["dumpxml", "--inactive", UUID])?.replace('"', "'").contains("autostart='yes'"),
            "the mark lost it"
        );
        // The autostart is restored from the mark alone, which is then removed.
        bench.source.let_go(vm, owner, &none).await?;
        ensure!(autostart()?, "it is not given back");
        ensure!(
            !bench.virsh(["dumpxml", "--inactive", UUID])?.contains("urn:warmd:moved"),
            "the mark is left"
        );
        Ok(())
    });
}

#[test]
fn missing_medium_or_network_is_reported_before_the_stop() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISK)?;
        let medium = dir.join("seed.iso");
        std::fs::write(&medium, vec![0; 4096])?;
        let drive = format!(
            "<disk type='file' device='cdrom'><source file='{}'/><target dev='sdb' bus='sata'/><readonly/></disk>",
            medium.display()
        );
        bench.define(&drive)?;
        bench.virsh(["start", UUID])?;
        bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await?;
        std::fs::remove_file(&medium)?;
        let word = medium.to_string_lossy().into_owned();
        let refused = bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await;
        assert_error(refused, SourceErrorKind::Refused, &word)?;
        let found = bench.source.objections(&bench.vm).await?;
        ensure!(
            found.iter().any(|one| one.rule == Rule::StartBlocked && one.found.contains(&word)),
            "{found:?}"
        );
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running);
        // While the VM is off, the sizes of its disks can still be read.
        bench.virsh(["destroy", UUID])?;
        ensure!(bench.source.describe(UUID).await?.disks[0].size.0 == 8 * MIB);

        bench.define("<interface type='network'><source network='gone'/></interface>")?;
        let refused = bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await;
        assert_error(refused, SourceErrorKind::Refused, "gone")
    });
}

#[test]
fn marks_of_an_encrypted_image_fail_nothing_and_go_at_the_end() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &DISK)?;
        let path = bench.disks[0].path.to_string_lossy().into_owned();
        let key = "secret,id=k,data=abc";
        let luks = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
        qemu_img(["create", "-q", "-f", "qcow2", "--object", key, "-o", luks, &path, "8M"])?;
        let uuid = "99999999-2222-3333-4444-555555555555";
        let secret = dir.join("secret.xml");
        std::fs::write(&secret, format!("<secret ephemeral='yes'><uuid>{uuid}</uuid></secret>"))?;
        bench.virsh(["secret-define", &secret.to_string_lossy()])?;
        let source = format!("<source file='{path}'/>");
        let encrypted = format!(
            "<source file='{path}'><encryption format='luks'><secret type='passphrase' uuid='{uuid}'/>\
             </encryption></source>"
        );
        define_with(&bench, "", &[(source, encrypted)])?;
        let refused = bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await;
        assert_error(refused, SourceErrorKind::Refused, "value")?;
        bench.virsh(["secret-set-value", uuid, "--base64", "YWJj"])?;
        bench.source.can_finish(&bench.vm, bench.owner, &keys(&bench)).await?;

        bench.virsh(["start", UUID])?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, MIB, 512)?;
        bench.virsh(["destroy", UUID])?;
        let last = bench.final_snapshot(&first).await?;
        assert_changed(&*last, &bench.disks[0].key, &[(MIB, 512)]).await?;
        let second = marks(&*last);
        last.release().await?;
        // The older one cannot be removed now: that is reported, and is no failure.
        let keep: Vec<_> = second.values().cloned().collect();
        let left = bench.source.delete_marks(&bench.vm, bench.owner, &keep).await?;
        ensure!(left.len() == 1 && left[0].remedy.contains("--object secret"), "{left:?}");
        ensure!(bench.bitmaps(0)?.len() == 2, "{:?}", bench.bitmaps(0)?);
        let listed = bench.source.leftovers(&[]).await?;
        ensure!(listed.iter().filter(|one| one.what.contains(&path)).count() == 2, "{listed:?}");
        ensure!(bench.source.leftovers(&[bench.owner]).await?.is_empty());

        // A VM that was moved away is not powered on, not even to remove marks.
        let (moved, was) =
            (MigratedMark { owner: bench.owner, target: "there".to_owned() }, HoldOff::default());
        bench.source.hold_off(&bench.vm, &moved, &was).await?;
        let left = bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(left.len() == 2 && left.iter().all(|one| one.what.contains(&path)), "{left:?}");
        ensure!(bench.bitmaps(0)?.len() == 2 && bench.checkpoints()?.len() == 2);
        bench.source.let_go(&bench.vm, bench.owner, &was).await?;

        let left = bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(left.is_empty(), "{left:?}");
        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        bench.assert_no_trace()
    });
}

#[test]
fn images_that_changed_places_are_compared() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("qcow2", 8)])?;
        bench.write(0, 1, 0, MIB)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.virsh(["destroy", UUID])?;
        let [a, b] = [0, 1].map(|disk: usize| bench.disks[disk].path.clone());
        let aside = dir.join("aside");
        std::fs::rename(&a, &aside)?;
        std::fs::rename(&b, &a)?;
        std::fs::rename(&aside, &b)?;
        let swapped = bench.disks[0].bytes.clone();
        bench.disks[0].bytes = std::mem::replace(&mut bench.disks[1].bytes, swapped);
        bench.virsh(["start", UUID])?;
        let snapshot = bench.snapshot(&first).await?;
        for disk in &bench.disks {
            assert_unknown(&*snapshot, &disk.key, "another file").await?;
        }
        bench.assert_contents(&*snapshot).await?;
        Ok(snapshot.release().await?)
    });
}

#[test]
fn bitmaps_below_overlays_and_of_removed_disks_are_deleted() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("qcow2", 8)])?;
        bench.pass(&Marks::new()).await?;
        bench.virsh(["destroy", UUID])?;
        bench.virsh(["detach-disk", UUID, "vdb", "--config"])?;
        // What an operator may do while the VM is off: the old image becomes the backing file of a new one.
        let path = bench.disks[0].path.clone();
        let below = dir.join("below.qcow2");
        std::fs::rename(&path, &below)?;
        let (text, under) = (path.to_string_lossy(), below.to_string_lossy());
        qemu_img(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &under, &text])?;
        let left = bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(left.is_empty(), "{left:?}");
        bench.disks[0].path = below;
        bench.assert_no_trace()
    });
}

#[test]
fn images_of_odd_kinds_are_known_before_the_first_snapshot() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &[("qcow2", 8), ("raw", 1)])?;
        let old = bench.disks[0].path.to_string_lossy().into_owned();
        qemu_img(["create", "-q", "-f", "qcow2", "-o", "compat=0.10", &old, "8M"])?;
        // Not a multiple of a sector: QEMU fills the last one with zeroes.
        std::fs::write(&bench.disks[1].path, vec![7; 1_000_001])?;
        bench.disks[1].bytes = vec![7; 1_000_001];
        bench.disks[1].bytes.resize(1_000_448, 0);
        let machine = bench.source.describe(UUID).await?;
        let reason = machine.disks[0].untracked.clone().context("it is taken for tracked")?;
        ensure!(reason.contains("qemu-img amend") && reason.contains(&old), "{reason}");
        ensure!(machine.disks[1].size.0 == 1_000_448, "{}", machine.disks[1].size);
        let first = bench.pass(&Marks::new()).await?;
        bench.virsh(["start", UUID])?;
        ensure!(bench.source.describe(UUID).await?.disks[1].size.0 == 1_000_448);
        bench.pass(&first).await?;
        bench.virsh(["destroy", UUID])?;
        bench.assert_no_trace()?;

        std::fs::write(&bench.disks[1].path, "")?;
        ensure!(bench.source.describe(UUID).await?.disks[1].size.0 == 0, "preflight refuses it as empty");
        std::fs::remove_file(&bench.disks[1].path)?;
        assert_error(bench.source.describe(UUID).await, SourceErrorKind::Failed, "b.raw")
    });
}
