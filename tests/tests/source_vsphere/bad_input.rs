//! Settings and privileges that are wrong in the middle of a migration: each with its reason, and nothing
//! left behind.

use anyhow::{Context as _, ensure};
use serde_json::json;
use warmd_core::sources::{Source, SourceErrorKind};
use warmd_vsphere::Settings;

use super::bench::{Bench, assert_error, block_on};

/// A change of the source's settings.
type Change<'a> = Box<dyn Fn(&mut Settings) + 'a>;

#[test]
fn bad_input_ends_a_pass_with_its_reason_and_leaves_nothing() {
    block_on(async |dir| {
        let bench = Bench::copied(dir, &[]).await?;
        let old = dir.join("old-nbdkit");
        std::fs::write(&old, "#!/bin/sh\necho nbdkit 1.20.4\n")?;
        std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let empty = dir.join("empty");
        std::fs::create_dir_all(empty.join("lib64"))?;
        let wrong = dir.join("wrong");
        std::fs::write(&wrong, "wrong-password\n")?;
        let too_old = bench.source_with(|settings| settings.reader.nbdkit.clone_from(&old))?;
        assert_error(too_old.check().await, SourceErrorKind::Refused, "1.32")?;
        let changes: [(&str, Change<'_>); 6] = [
            ("password", Box::new(|it| it.password_file.clone_from(&wrong))),
            ("domain", Box::new(|it| "administrator".clone_into(&mut it.user))),
            ("thumbprint", Box::new(|it| it.thumbprint = Some("00".repeat(20)))),
            ("libvixDiskLib", Box::new(|it| it.reader.libdir = Some(empty.clone()))),
            ("no-nbdkit", Box::new(|it| it.reader.nbdkit = dir.join("no-nbdkit"))),
            ("nbdkit ended at once", Box::new(|it| it.reader.nbdkit.clone_from(&old))),
        ];
        for (word, change) in changes {
            let source = bench.source_with(change)?;
            let error = match source.snapshot(&bench.request(false)).await {
                Err(error) => error,
                Ok(snapshot) => {
                    let opened = snapshot.open(&bench.disks[0].key).await.map(drop);
                    snapshot.release().await?;
                    opened.err().with_context(|| format!("a disk is read with a wrong {word}"))?
                }
            };
            ensure!(error.to_string().contains(word), "{word}: {error}");
            ensure!(bench.rig.snapshots()? == 0, "{word}: a snapshot is left");
        }
        let before = bench.rig.machine()?["snapshots_made"].clone();
        for privilege in [
            "VirtualMachine.State.CreateSnapshot",
            "VirtualMachine.State.RemoveSnapshot",
            "VirtualMachine.Provisioning.DiskRandomRead",
            "VirtualMachine.Provisioning.GetVmFiles",
        ] {
            let deny = |on: bool| bench.rig.order("deny", &json!({"privilege": privilege, "on": on}));
            deny(true)?;
            assert_error(bench.snapshot().await, SourceErrorKind::Refused, privilege)?;
            deny(false)?;
        }
        ensure!(
            bench.rig.machine()?["snapshots_made"] == before,
            "a snapshot was made that cannot be removed"
        );
        bench.rig.assert_clean()
    });
}
