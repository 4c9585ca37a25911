//! The contract of sources, checked on a real VM from its description to its last pass.
//!
//! Rule: the functions here know sources only by their trait; [`SourceBench`] has the differences between
//! kinds.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use warmd_cbt::{
    buffer::Buffer,
    disk::ReadDisk,
    mark::{ChangeMark, Changed},
    units::{Extent, Length},
};
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::PowerState,
    },
    sources::{HowStopped, ShutdownPolicy, Snapshot, SnapshotRequest, Source, SourceError, SourceErrorKind},
};

const MIB: u64 = 1 << 20;
/// A guest need not listen: then its power is cut.
const STOP: ShutdownPolicy = ShutdownPolicy { graceful: Duration::from_secs(2), force: true };

/// A running VM with at least two tracked disks of at least 4 MiB, and a source that has it.
pub trait SourceBench {
    fn source(&self) -> &dyn Source;
    /// The VM's name.
    fn name(&self) -> &str;
    /// The guest writes other bytes over a range of the disk with this number.
    fn write(&mut self, disk: usize, mark: u8, offset: u64, length: u64) -> Result<()>;
    /// What the disk has now.
    fn contents(&self, disk: usize) -> Result<Vec<u8>>;
    /// Fails if anything is there that exists for a pass only.
    fn assert_clean(&self) -> Result<()>;
}

struct DiskCopy {
    key: DiskKey,
    bytes: Vec<u8>,
    anchor: Option<ChangeMark>,
}

/// A copy of the VM's disks that is kept by the source's answers alone.
struct Replica {
    owner: MigrationId,
    vm: VmId,
    disks: Vec<DiskCopy>,
}

/// What a pass found.
#[derive(Default)]
struct PassResult {
    unknown: usize,
    read: u64,
}

impl Replica {
    fn request(&self, is_final: bool) -> SnapshotRequest {
        let disks = self.disks.iter().map(|disk| (disk.key.clone(), disk.anchor.clone())).collect();
        SnapshotRequest { owner: self.owner, vm: self.vm.clone(), disks, is_final }
    }

    /// Reads what changed, or all where that is unknown.
    async fn copy(&mut self, snapshot: &dyn Snapshot) -> Result<PassResult> {
        let mut found = PassResult::default();
        for copy in &mut self.disks {
            let disk = snapshot.open(&copy.key).await?;
            ensure!(disk.size().0 == copy.bytes.len() as u64, "{}: another size", copy.key);
            let extents: Vec<Extent> = match snapshot.changed(&copy.key).await? {
                Changed::Known(changed) => changed.extents().collect(),
                Changed::Unknown(why) => {
                    ensure!(!why.is_empty(), "unknown without a reason");
                    found.unknown += 1;
                    Extent::whole(disk.size()).into_iter().collect()
                }
            };
            found.read += read_extents(&disk, &extents, &mut copy.bytes).await?;
            let taken = snapshot.disks().iter().find(|taken| taken.key == copy.key);
            copy.anchor = Some(taken.context("a disk is not in the snapshot")?.mark.clone());
        }
        Ok(found)
    }

    /// What a driver does for a pass; the copy equals the disks afterwards.
    async fn pass(&mut self, bench: &dyn SourceBench, is_final: bool) -> Result<PassResult> {
        let snapshot = bench.source().snapshot(&self.request(is_final)).await?;
        let found = self.copy(&*snapshot).await?;
        snapshot.release().await?;
        let keep: Vec<_> = self.disks.iter().filter_map(|disk| disk.anchor.clone()).collect();
        let left = bench.source().delete_marks(&self.vm, self.owner, &keep).await?;
        ensure!(left.is_empty(), "left: {left:?}");
        self.assert_equal(bench)?;
        bench.assert_clean()?;
        Ok(found)
    }

    fn assert_equal(&self, bench: &dyn SourceBench) -> Result<()> {
        for (number, disk) in self.disks.iter().enumerate() {
            ensure!(disk.bytes == bench.contents(number)?, "the copy of disk {number} differs");
        }
        Ok(())
    }
}

/// Reads the extents into their places; returns their bytes.
pub async fn read_extents(disk: &Arc<dyn ReadDisk>, extents: &[Extent], into: &mut [u8]) -> Result<u64> {
    let mut bytes = 0;
    for piece in extents.iter().flat_map(|extent| extent.split(MIB)) {
        let buffer = disk.read(piece.start(), Buffer::unpooled(piece.len().0 as usize)).await?;
        let range = piece.start().0 as usize..piece.end().0 as usize;
        into.get_mut(range).context("past the end")?.copy_from_slice(&buffer);
        bytes += piece.len().0;
    }
    Ok(bytes)
}

/// Checks that the source refused, for this kind of reason and with this word.
pub fn assert_error<T>(result: Result<T, SourceError>, kind: SourceErrorKind, word: &str) -> Result<()> {
    match result {
        Err(error) if error.kind == kind && error.to_string().contains(word) => Ok(()),
        Err(error) => bail!("not {kind:?} with {word:?}: {:?} {error}", error.kind),
        Ok(_) => bail!("no error, where {kind:?} with {word:?} was due"),
    }
}

/// All of the contract.
pub async fn source_contract(bench: &mut dyn SourceBench) -> Result<()> {
    let mut replica = described(bench).await.context("describing the VM")?;
    passes(bench, &mut replica).await.context("passes")?;
    leftovers(bench, &mut replica).await.context("what a killed daemon leaves")?;
    stopped(bench, &mut replica).await.context("the final pass")?;
    let left = bench.source().delete_marks(&replica.vm, replica.owner, &[]).await?;
    ensure!(left.is_empty(), "left at the end: {left:?}");
    ensure!(bench.source().leftovers(&[]).await?.is_empty(), "leftovers at the end");
    bench.assert_clean()
}

async fn described(bench: &dyn SourceBench) -> Result<Replica> {
    let source = bench.source();
    ensure!(!source.check().await?.is_empty(), "the endpoint says nothing of itself");
    let machine = source.describe(bench.name()).await?;
    ensure!(machine == source.describe(&machine.id.0).await?, "by its name it is another VM than by its id");
    let line = source.vms().await?.into_iter().find(|vm| vm.id == machine.id);
    let line = line.context("it is not in the list")?;
    ensure!(line.name == machine.name && line.disks as usize == machine.disks.len(), "{line:?}");
    ensure!(source.names().await?.contains(&(machine.id.clone(), machine.name.clone())), "no name");
    ensure!(source.power(&machine.id).await? == PowerState::Running, "it does not run");
    match source.describe("no-such-vm").await {
        Err(error) if error.kind == SourceErrorKind::NotFound => {}
        other => bail!("a VM that is not there: {other:?}"),
    }
    let keys: Vec<_> = machine.disks.iter().map(|disk| disk.key.clone()).collect();
    source.can_finish(&machine.id, MigrationId::generate(), &keys).await?;
    let disks = machine.disks.iter().map(|disk| DiskCopy {
        key: disk.key.clone(),
        // Not zeroes: what was never copied differs.
        bytes: vec![0xee; disk.size.0 as usize],
        anchor: None,
    });
    Ok(Replica { owner: MigrationId::generate(), vm: machine.id, disks: disks.collect() })
}

async fn passes(bench: &mut dyn SourceBench, replica: &mut Replica) -> Result<()> {
    let count = replica.disks.len();
    let snapshot = bench.source().snapshot(&replica.request(false)).await?;
    let then: Vec<_> = (0..count).map(|disk| bench.contents(disk)).collect::<Result<_>>()?;
    // The guest goes on, and the snapshot does not see it.
    bench.write(0, 21, MIB, 200_704)?;
    bench.write(1, 22, 0, 4096)?;
    let found = replica.copy(&*snapshot).await?;
    ensure!(found.unknown == count, "a first pass knows what changed");
    for (disk, then) in replica.disks.iter().zip(then) {
        ensure!(disk.bytes == then, "{} is not as in the snapshot's moment", disk.key);
    }
    snapshot.release().await?;
    bench.assert_clean()?;
    bench.write(0, 23, 3 * MIB, 4096)?;
    let found = replica.pass(bench, false).await?;
    let whole: u64 = replica.disks.iter().map(|disk| Length(disk.bytes.len() as u64).0).sum();
    ensure!(found.unknown == 0 && found.read < whole / 2, "{} of {whole} bytes in a delta", found.read);
    let found = replica.pass(bench, false).await?;
    ensure!(found.unknown == 0 && found.read == 0, "{} bytes without a change", found.read);
    Ok(())
}

async fn leftovers(bench: &mut dyn SourceBench, replica: &mut Replica) -> Result<()> {
    // Dropped, not released, and its marks are not committed.
    bench.write(0, 31, 2 * MIB, 8192)?;
    drop(bench.source().snapshot(&replica.request(false)).await?);
    let source = bench.source();
    source.end_snapshot(&replica.vm, MigrationId::generate()).await?;
    ensure!(source.leftovers(&[replica.owner]).await?.is_empty(), "a known migration's is a leftover");
    for _ in 0..2 {
        source.end_snapshot(&replica.vm, replica.owner).await?;
    }
    bench.assert_clean()?;
    bench.write(1, 32, MIB, 4096)?;
    let found = replica.pass(bench, false).await?;
    ensure!(found.unknown == 0, "a snapshot that was dropped costs the tracking");
    Ok(())
}

async fn stopped(bench: &mut dyn SourceBench, replica: &mut Replica) -> Result<()> {
    let running = bench.source().snapshot(&replica.request(true)).await;
    ensure!(running.is_err(), "a final snapshot of a VM that runs");
    ensure!(bench.source().power(&replica.vm).await? == PowerState::Running, "it was stopped");
    bench.assert_clean()?;
    bench.write(0, 41, 0, 4096)?;
    let source = bench.source();
    source.shut_down(&replica.vm, STOP).await?;
    ensure!(source.shut_down(&replica.vm, STOP).await? == HowStopped::WasOff, "it was off");
    ensure!(source.power(&replica.vm).await? == PowerState::Off, "it is not off");
    let found = replica.pass(bench, true).await?;
    ensure!(found.unknown == 0, "a stop costs the tracking");
    let source = bench.source();
    for _ in 0..2 {
        source.power_on(&replica.vm).await?;
    }
    ensure!(source.power(&replica.vm).await? == PowerState::Running, "it is not on again");
    Ok(())
}
