//! A VM of the rig, a source that reads it, and a replica that is kept by what the source says.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warmd_cbt::{
    mark::{ChangeMark, Changed},
    units::{Extent, Length},
};
use warmd_core::{
    model::id::{DiskKey, MigrationId, VmId},
    sources::{ShutdownPolicy, Snapshot, SnapshotRequest, Source, SourceError},
};
pub(crate) use warmd_tests::contract::source::{assert_error, read_extents};
use warmd_tests::{TestDir, VsphereRig, run, vsphere::NAME};
use warmd_vsphere::{Settings, source::VsphereSource};

pub(crate) const MIB: u64 = 1 << 20;
/// Of the machine's disks; the second ends within a block.
pub(crate) const SIZES: [u64; 2] = [16 * MIB, 6 * MIB + (24 << 10)];
/// A guest that is asked to shut down.
pub(crate) const GRACEFUL: ShutdownPolicy =
    ShutdownPolicy { graceful: Duration::from_secs(20), force: false };

/// Runs an asynchronous test body in a directory of its own.
pub(crate) fn block_on(body: impl AsyncFnOnce(&TestDir) -> Result<()>) {
    run(|dir| tokio::runtime::Runtime::new()?.block_on(body(dir)));
}

pub(crate) struct DiskCopy {
    pub(crate) key: DiskKey,
    pub(crate) bytes: Vec<u8>,
    anchor: Option<ChangeMark>,
}

pub(crate) struct Bench {
    pub(crate) rig: VsphereRig,
    pub(crate) source: VsphereSource,
    pub(crate) vm: VmId,
    pub(crate) owner: MigrationId,
    pub(crate) disks: Vec<DiskCopy>,
}

impl Bench {
    pub(crate) async fn start(dir: &TestDir, more: &[&str]) -> Result<Self> {
        let rig = VsphereRig::start(dir, &SIZES, more)?;
        let source = VsphereSource::new(&rig.settings()?)?;
        let machine = source.describe(NAME).await?;
        let disks = machine.disks.into_iter().map(|disk| DiskCopy {
            key: disk.key,
            // Not zeroes: what was never copied differs.
            bytes: vec![0xee; disk.size.0 as usize],
            anchor: None,
        });
        Ok(Self { rig, source, vm: machine.id, owner: MigrationId::generate(), disks: disks.collect() })
    }

    /// The same, copied once.
    pub(crate) async fn copied(dir: &TestDir, more: &[&str]) -> Result<Self> {
        let mut bench = Self::start(dir, more).await?;
        let unknown = bench.pass(false).await?;
        ensure!(unknown.len() == SIZES.len(), "a first pass knows what changed: {unknown:?}");
        Ok(bench)
    }

    /// Another source on the same vCenter, with other settings.
    pub(crate) fn source_with(&self, change: impl FnOnce(&mut Settings)) -> Result<VsphereSource> {
        let mut settings = self.rig.settings()?;
        change(&mut settings);
        Ok(VsphereSource::new(&settings)?)
    }

    pub(crate) fn request(&self, is_final: bool) -> SnapshotRequest {
        let disks = self.disks.iter().map(|disk| (disk.key.clone(), disk.anchor.clone())).collect();
        SnapshotRequest { owner: self.owner, vm: self.vm.clone(), disks, is_final }
    }

    pub(crate) async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        self.source.snapshot(&self.request(false)).await
    }

    /// What a driver does for a pass. Answers why which disks' changes are unknown.
    pub(crate) async fn pass(&mut self, is_final: bool) -> Result<Vec<String>> {
        let snapshot = self.source.snapshot(&self.request(is_final)).await?;
        let (_, unknown) = self.copy(&*snapshot).await?;
        snapshot.release().await?;
        let keep: Vec<_> = self.disks.iter().filter_map(|disk| disk.anchor.clone()).collect();
        let left = self.source.delete_marks(&self.vm, self.owner, &keep).await?;
        ensure!(left.is_empty(), "left: {left:?}");
        self.assert_equal()?;
        Ok(unknown)
    }

    /// Reads what changed, or all where that is unknown. Answers the bytes read and the reasons.
    pub(crate) async fn copy(&mut self, snapshot: &dyn Snapshot) -> Result<(u64, Vec<String>)> {
        let (mut bytes, mut unknown) = (0, Vec::new());
        for copy in &mut self.disks {
            let disk = snapshot.open(&copy.key).await?;
            copy.bytes.resize(disk.size().0 as usize, 0xee);
            let extents: Vec<Extent> = match snapshot.changed(&copy.key).await? {
                Changed::Known(changed) => changed.extents().collect(),
                Changed::Unknown(why) => {
                    unknown.push(why);
                    Extent::whole(disk.size()).into_iter().collect()
                }
            };
            bytes += read_extents(&disk, &extents, &mut copy.bytes).await?;
            let taken = snapshot.disks().iter().find(|taken| taken.key == copy.key);
            let taken = taken.context("a disk is not in the snapshot")?;
            ensure!(taken.size == Length(copy.bytes.len() as u64), "{}: another size", copy.key);
            copy.anchor = Some(taken.mark.clone());
        }
        Ok((bytes, unknown))
    }

    /// The replica holds what the disks hold now.
    pub(crate) fn assert_equal(&self) -> Result<()> {
        for (number, disk) in self.disks.iter().enumerate() {
            ensure!(disk.bytes == self.rig.contents(number)?, "disk {number} differs");
        }
        Ok(())
    }
}

/// As many reasons, all with this word.
pub(crate) fn assert_unknown(reasons: &[String], count: usize, word: &str) -> Result<()> {
    let all = reasons.iter().all(|why| why.contains(word));
    ensure!(reasons.len() == count && all, "not {count} with {word:?}: {reasons:?}");
    Ok(())
}
