//! A VM whose disks the test writes to, and a source that reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use warmd_cbt::buffer::Buffer;
use warmd_cbt::disk::ReadDisk;
use warmd_cbt::mark::{ChangeMark, Changed};
use warmd_cbt::units::{Extent, Length, Offset};
use warmd_core::model::id::{DiskKey, MigrationId, VmId};
use warmd_core::sources::{Snapshot, SnapshotRequest, Source, SourceError};
use warmd_endpoint_libvirt::source::{LibvirtSource, LibvirtSourceSettings};
pub(crate) use warmd_tests::contract::source::assert_error;
use warmd_tests::tool::{call, outcome};
use warmd_tests::{Libvirtd, TestDir, run, wait_until};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SOON: Duration = Duration::from_mins(2);
pub(crate) const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// The grain of QEMU's bitmaps.
const GRAIN: u64 = 64 << 10;

/// Runs an asynchronous test body in its own directory.
pub(crate) fn block_on(body: impl AsyncFnOnce(&TestDir) -> Result<()>) {
    run(|dir| tokio::runtime::Runtime::new()?.block_on(body(dir)));
}

pub(crate) struct DiskModel {
    pub(crate) key: DiskKey,
    pub(crate) path: PathBuf,
    /// The expected content.
    pub(crate) bytes: Vec<u8>,
}

/// A private libvirtd with one VM `--help` and a source on it.
pub(crate) struct Bench {
    pub(crate) libvirt: Libvirtd,
    pub(crate) source: LibvirtSource,
    pub(crate) dir: PathBuf,
    pub(crate) vm: VmId,
    pub(crate) owner: MigrationId,
    pub(crate) disks: Vec<DiskModel>,
}

impl Bench {
    /// Its disks as (format, MiB), named from vda on; defined, off.
    pub(crate) fn new(dir: &TestDir, disks: &[(&str, u64)]) -> Result<Self> {
        let libvirt = Libvirtd::start(dir)?;
        let settings = LibvirtSourceSettings {
            uri: libvirt.uri().to_owned(),
            runtime_dir: dir.join("run"),
            scratch_dir: dir.join("scratch"),
            scratch_reserve_mib: 1,
            ..LibvirtSourceSettings::default()
        };
        let disks = disks
            .iter()
            .zip('a'..)
            .map(|((format, mib), letter)| {
                let path = dir.join(format!("{letter}.{format}"));
                let size = format!("{mib}M");
                call(
                    "qemu-img",
                    [Path::new("create"), "-f".as_ref(), format.as_ref(), &path, size.as_ref()],
                )?;
                Ok(DiskModel {
                    key: DiskKey(format!("vd{letter}")),
                    path,
                    bytes: vec![0; (mib * MIB) as usize],
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let bench = Self {
            source: LibvirtSource::new(&settings)?,
            libvirt,
            dir: dir.path().to_owned(),
            vm: VmId(UUID.to_owned()),
            owner: MigrationId::generate(),
            disks,
        };
        bench.define("")?;
        Ok(bench)
    }

    /// The same, running.
    pub(crate) fn started(dir: &TestDir, disks: &[(&str, u64)]) -> Result<Self> {
        let bench = Self::new(dir, disks)?;
        bench.virsh(["start", UUID])?;
        Ok(bench)
    }

    /// Another source on the same libvirtd, with other settings.
    pub(crate) fn source_with(
        &self,
        change: impl FnOnce(&mut LibvirtSourceSettings),
    ) -> Result<LibvirtSource> {
        let mut settings = LibvirtSourceSettings {
            uri: self.libvirt.uri().to_owned(),
            runtime_dir: self.dir.join("run"),
            scratch_dir: self.dir.join("scratch"),
            scratch_reserve_mib: 1,
            ..LibvirtSourceSettings::default()
        };
        change(&mut settings);
        Ok(LibvirtSource::new(&settings)?)
    }

    pub(crate) fn xml(&self, extra: &str) -> String {
        let mut devices = String::new();
        for disk in &self.disks {
            let format = disk.path.extension().unwrap_or_default().to_string_lossy();
            let _ = write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/>\
                 <source file='{}'/><target dev='{}' bus='virtio'/></disk>",
                disk.path.display(),
                disk.key
            );
        }
        format!(
            "<domain type='qemu'><name>--help</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>\
             <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>\
             <features><acpi/></features><devices>{devices}\
             <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
             <controller type='usb' model='none'/>{extra}</devices></domain>"
        )
    }

    pub(crate) fn define(&self, extra: &str) -> Result<()> {
        let path = self.dir.join("domain.xml");
        std::fs::write(&path, self.xml(extra))?;
        self.virsh(["define", &path.to_string_lossy()]).map(drop)
    }

    pub(crate) fn virsh<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        self.libvirt.virsh(args)
    }

    /// Writes `byte` over a range, as the guest would.
    pub(crate) fn write(&mut self, disk: usize, byte: u8, offset: u64, len: u64) -> Result<()> {
        self.io(disk, &format!("write -P {byte} {offset} {len}"))?;
        let model = self.disks.get_mut(disk).context("no such disk")?;
        model.bytes[offset as usize..(offset + len) as usize].fill(byte);
        Ok(())
    }

    /// Flushes a disk, as the guest would.
    pub(crate) fn flush(&self, disk: usize) -> Result<()> {
        self.io(disk, "flush")
    }

    fn io(&self, disk: usize, command: &str) -> Result<()> {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let command = format!("qemu-io -d {device} \"{command}\"");
        let said = self.virsh(["qemu-monitor-command", UUID, "--hmp", &command])?;
        ensure!(said.is_empty(), "{command}: {said}");
        Ok(())
    }

    pub(crate) async fn snapshot(&self, anchors: &Marks) -> Result<Box<dyn Snapshot>, SourceError> {
        self.source.snapshot(&self.request(anchors, false)).await
    }

    pub(crate) async fn final_snapshot(&self, anchors: &Marks) -> Result<Box<dyn Snapshot>, SourceError> {
        self.source.snapshot(&self.request(anchors, true)).await
    }

    pub(crate) fn request(&self, anchors: &Marks, is_final: bool) -> SnapshotRequest {
        let disks =
            self.disks.iter().map(|disk| (disk.key.clone(), anchors.get(&disk.key).cloned())).collect();
        SnapshotRequest { owner: self.owner, vm: self.vm.clone(), disks, is_final }
    }

    /// A pass: every disk of the snapshot must read as the model has it now.
    pub(crate) async fn assert_contents(&self, snapshot: &dyn Snapshot) -> Result<()> {
        for disk in &self.disks {
            let bytes = read_all(snapshot.open(&disk.key).await?).await?;
            ensure!(bytes == disk.bytes, "{} does not read as written", disk.key);
        }
        Ok(())
    }

    /// Takes a snapshot, reads it, releases it, and deletes all older marks: what a driver does for a pass.
    pub(crate) async fn pass(&self, anchors: &Marks) -> Result<Marks> {
        let snapshot = self.snapshot(anchors).await?;
        self.assert_contents(&*snapshot).await?;
        let marks = marks(&*snapshot);
        snapshot.release().await?;
        self.keep(&marks).await?;
        Ok(marks)
    }

    pub(crate) async fn keep(&self, marks: &Marks) -> Result<()> {
        let keep: Vec<_> = marks.values().cloned().collect();
        let left = self.source.delete_marks(&self.vm, self.owner, &keep).await?;
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    }

    pub(crate) fn checkpoints(&self) -> Result<Vec<String>> {
        let list = self.virsh(["checkpoint-list", UUID, "--name", "--topological"])?;
        Ok(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Bitmaps in the image; it must be closed.
    pub(crate) fn bitmaps(&self, disk: usize) -> Result<Vec<String>> {
        let path = &self.disks.get(disk).context("no such disk")?.path;
        let info = call("qemu-img", [Path::new("info"), "--output=json".as_ref(), path])?;
        let info: serde_json::Value = serde_json::from_str(&info)?;
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
        Ok(bitmaps.iter().filter_map(|bitmap| bitmap["name"].as_str().map(str::to_owned)).collect())
    }

    /// Checks that no job and no file of a snapshot is left.
    pub(crate) fn assert_nothing_runs(&self) -> Result<()> {
        let job = self.libvirt.try_virsh(["backup-dumpxml", UUID])?;
        ensure!(job.code != Some(0), "a backup job is left: {}", job.stdout);
        for name in ["run", "scratch"] {
            let Ok(entries) = std::fs::read_dir(self.dir.join(name)) else { continue };
            let left: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            ensure!(left.is_empty(), "left: {left:?}");
        }
        Ok(())
    }

    /// Checks that nothing of warmd is left; the VM must be off.
    pub(crate) fn assert_no_trace(&self) -> Result<()> {
        self.assert_nothing_runs()?;
        ensure!(self.checkpoints()?.is_empty(), "left: {:?}", self.checkpoints()?);
        for (number, disk) in self.disks.iter().enumerate() {
            if disk.path.extension().is_some_and(|format| format == "qcow2") {
                let bitmaps = self.bitmaps(number)?;
                ensure!(bitmaps.is_empty(), "left in {}: {bitmaps:?}", disk.path.display());
            }
        }
        let xml = self.virsh(["dumpxml", UUID])?;
        ensure!(!xml.contains("warmd:"), "left in the definition: {xml}");
        Ok(())
    }

    /// Kills QEMU as a failed host would.
    pub(crate) fn kill_qemu(&self) -> Result<()> {
        let disk = self.disks.first().context("no disk")?.path.to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line);
            if line.starts_with("/usr/bin/qemu-system") && line.contains(&disk) {
                kill_process(Pid::from_raw(pid).context("pid 0")?, Signal::KILL)?;
                return wait_until("libvirt to notice", SOON, || {
                    Ok((self.virsh(["domstate", UUID])? == "shut off").then_some(()))
                });
            }
        }
        bail!("no QEMU has {disk}")
    }
}

pub(crate) type Marks = BTreeMap<DiskKey, ChangeMark>;

pub(crate) fn marks(snapshot: &dyn Snapshot) -> Marks {
    snapshot.disks().iter().map(|disk| (disk.key.clone(), disk.mark.clone())).collect()
}

pub(crate) async fn read_all(disk: Arc<dyn ReadDisk>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let whole = Extent::whole(disk.size()).context("an empty disk")?;
    for piece in whole.split(MIB) {
        let buffer = disk.read(piece.start(), Buffer::unpooled(piece.len().0 as usize)).await?;
        bytes.extend_from_slice(&buffer);
    }
    Ok(bytes)
}

/// Checks that exactly these ranges of the disk changed, at the grain of the bitmap.
pub(crate) async fn assert_changed(
    snapshot: &dyn Snapshot,
    disk: &DiskKey,
    ranges: &[(u64, u64)],
) -> Result<()> {
    let Changed::Known(changed) = snapshot.changed(disk).await? else {
        bail!("what changed on {disk} is unknown: {:?}", snapshot.changed(disk).await?);
    };
    let size = snapshot.disks().iter().find(|known| known.key == *disk).context("not there")?.size;
    let wanted: Vec<_> = ranges
        .iter()
        .filter_map(|(start, len)| Extent::new(Offset(*start), Length(*len))?.align_out(GRAIN, size))
        .collect();
    let changed: Vec<_> = changed.extents().collect();
    ensure!(changed == wanted, "{disk}: changed {changed:?}, wanted {wanted:?}");
    Ok(())
}

/// Checks that the source cannot report the changes, with this word in the reason.
pub(crate) async fn assert_unknown(snapshot: &dyn Snapshot, disk: &DiskKey, word: &str) -> Result<()> {
    match snapshot.changed(disk).await? {
        Changed::Unknown(reason) if reason.contains(word) => Ok(()),
        other => bail!("{disk}: not Unknown because of {word:?}: {other:?}"),
    }
}

/// Runs qemu-img, for changes of images without libvirt.
pub(crate) fn qemu_img<const N: usize>(args: [&str; N]) -> Result<()> {
    let mut command = std::process::Command::new("qemu-img");
    command.args(args);
    let done = outcome(&mut command, SOON)?;
    ensure!(done.code == Some(0), "{command:?}: {}", done.stderr);
    Ok(())
}
