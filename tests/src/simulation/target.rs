//! The simulated target.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, ErrorKind, Operation, ReadDisk, WriteDisk},
    units::{BLOCK, Extent, Length, Offset},
};
use warmd_core::{
    clock,
    model::{id::MigrationId, state::State},
    targets::{
        CreateMachine, DiskSpec, LastWriter, MachineState, PreparedDisk, Target, TargetError, TargetErrorKind,
    },
};

use super::{
    pages::Pages,
    world::{SimulationWorld, TargetDisk, Truth, delta},
};

/// A target in the world.
#[derive(Clone, Debug)]
pub(super) struct SimulatedTarget(pub Arc<SimulationWorld>);

fn failed(call: &'static str, kind: TargetErrorKind) -> TargetError {
    TargetError::new(kind, call, "a fault of the simulation")
}

impl SimulatedTarget {
    /// Passes the gate; returns whether the answer must be lost.
    async fn begin(&self, call: &'static str) -> Result<bool, TargetError> {
        use TargetErrorKind as K;
        let kinds = [(4, K::Failed), (4, K::Unreachable), (1, K::Refused), (1, K::NoSpace)];
        self.0.call(call, K::Timeout, &kinds).await.map_err(|kind| failed(call, kind))
    }

    async fn end<T>(&self, call: &'static str, lost: bool, answer: T) -> Result<T, TargetError> {
        self.0.leave().await;
        if lost { Err(failed(call, TargetErrorKind::Timeout)) } else { Ok(answer) }
    }
}

#[async_trait]
impl Target for SimulatedTarget {
    async fn check(&self) -> Result<String, TargetError> {
        let lost = self.begin("target.check").await?;
        self.end("target.check", lost, "simulated".to_owned()).await
    }

    async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        let lost = self.begin("target.prepare").await?;
        let made = {
            let mut truth = self.0.truth();
            let zero = truth.reads_zero;
            let known = &mut truth.targets.entry(owner).or_default().disks;
            let made = disks.iter().map(|disk| {
                let found = known.entry(disk.key.0.clone()).or_insert_with(|| {
                    // A disk that is not known to read as zeroes has old content.
                    let pages = Pages::filled(disk.size.0, if zero { 0 } else { 2 });
                    TargetDisk::of(pages)
                });
                let reads_zero = zero && found.fresh;
                PreparedDisk { key: disk.key.clone(), location: format!("memory:{}", disk.key), reads_zero }
            });
            let made: Vec<_> = made.collect();
            truth.note(format_args!("{} disks are prepared", made.len()));
            made
        };
        self.end("target.prepare", lost, made).await
    }

    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        let lost = self.begin("target.open").await?;
        let generation = {
            let truth = self.0.truth();
            let found = truth.targets.get(&owner).and_then(|made| made.disks.get(&disk.key.0));
            found.ok_or_else(|| failed("target.open", TargetErrorKind::NotFound))?.generation
        };
        let generation = Mutex::new(generation);
        let writer = DiskHandle {
            world: Arc::clone(&self.0),
            owner,
            key: disk.key.0.clone(),
            size: disk.size,
            generation,
        };
        self.end("target.open", lost, Arc::new(writer) as _).await
    }

    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError> {
        let lost = self.begin("target.create").await?;
        {
            let mut truth = self.0.truth();
            let made = truth.targets.entry(request.owner).or_default();
            let missing = request.disks.iter().any(|disk| !made.disks.contains_key(&disk.key.0));
            if !made.exists {
                (made.ran, made.starts, made.autostart) = (false, None, false);
            }
            made.forgotten = false;
            (made.exists, made.vm) = (true, Some(request.machine.id.0.clone()));
            let source = truth.vms.get(&request.machine.id.0);
            let seen_off = source.and_then(|vm| vm.starters.seen_off);
            truth.targets.entry(request.owner).or_default().seen_off = seen_off;
            if missing {
                truth.violated("the machine is created without all of its disks".to_owned());
            }
            truth.note(format_args!("{} is created on the target", request.name));
        }
        self.end("target.create", lost, ()).await
    }

    async fn start(&self, owner: MigrationId) -> Result<(), TargetError> {
        self.0.truth().check_start(owner);
        let begun = self.begin("target.start").await;
        let often = match &begun {
            Ok(_) => 80,
            Err(error) if error.kind == TargetErrorKind::Timeout => 500,
            Err(_) => 0,
        };
        if self.0.truth().comes_late(owner, often) {
            return self.end("target.start", true, ()).await;
        }
        let lost = begun?;
        start(&mut self.0.truth(), owner)?;
        self.end("target.start", lost, ()).await
    }

    fn keeps_autostart(&self) -> bool {
        true
    }

    async fn set_autostart(&self, owner: MigrationId, on: bool) -> Result<(), TargetError> {
        let lost = self.begin("target.set-autostart").await?;
        {
            let mut truth = self.0.truth();
            let made = truth.targets.get_mut(&owner).filter(|made| made.exists);
            made.ok_or_else(|| failed("target.set-autostart", TargetErrorKind::NotFound))?.autostart = on;
            truth.note(format_args!("the autostart of a target VM is set: {on}"));
        }
        self.end("target.set-autostart", lost, ()).await
    }

    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError> {
        let lost = self.begin("target.look").await?;
        let state = {
            let truth = self.0.truth();
            match truth.targets.get(&owner) {
                None => MachineState::Absent,
                Some(made) if !made.exists => MachineState::Absent,
                Some(made) if !made.runs => MachineState::Stopped,
                Some(made) if made.comes_up.is_some_and(|at| at > clock::steady()) => MachineState::Starting,
                Some(_) => MachineState::Running,
            }
        };
        self.end("target.look", lost, state).await
    }

    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError> {
        let lost = self.begin("target.discard-machine").await?;
        if self.0.truth().is_lied_to() {
            return self.end("target.discard-machine", lost, ()).await;
        }
        {
            let mut truth = self.0.truth();
            let goes_back = truth.states.get(&owner) == Some(&State::RollingBack);
            let mut is_its_own = false;
            if let Some(made) = truth.targets.get_mut(&owner) {
                is_its_own = made.exists
                    && matches!(made.noted, Some(LastWriter::Machine { confirmed_running: true, .. }));
                (made.exists, made.runs, made.died, made.dies) = (false, false, false, None);
                (made.seen_off, made.starts, made.autostart) = (None, None, false);
                made.forgotten = false;
                if std::mem::take(&mut made.ran) {
                    // Its writes become visible when it is stopped.
                    for disk in made.disks.values_mut() {
                        disk.seen.fill(0, 100, 0xee);
                        disk.durable.fill(0, 100, 0xee);
                    }
                }
            }
            if is_its_own && !goes_back {
                truth.violated(
                    "a target VM is removed that was handed over, and nobody wants to go back".to_owned(),
                );
            }
            truth.note(format_args!("the machine is discarded"));
        }
        self.end("target.discard-machine", lost, ()).await
    }

    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        let lost = self.begin("target.discard-disks").await?;
        {
            let mut truth = self.0.truth();
            if let Some(made) = truth.targets.get_mut(&owner) {
                if made.exists {
                    return Err(failed("target.discard-disks", TargetErrorKind::Refused));
                }
                made.disks.retain(|key, _| !disks.iter().any(|disk| disk.key.0 == *key));
                made.noted = None;
            }
            truth.note(format_args!("the disks are discarded"));
        }
        self.end("target.discard-disks", lost, ()).await
    }

    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError> {
        let lost = self.begin("target.note-writer").await?;
        self.0.truth().targets.entry(owner).or_default().noted = writer;
        self.end("target.note-writer", lost, ()).await
    }

    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        let lost = self.begin("target.noted-writer").await?;
        let noted = self.0.truth().targets.get(&owner).and_then(|made| made.noted);
        self.end("target.noted-writer", lost, noted).await
    }
}

impl Truth {
    /// Whether a start is abandoned, and still happens later; `often` in 1000.
    fn comes_late(&mut self, owner: MigrationId, often: u64) -> bool {
        let (comes, span) = (self.chance.happens(often), self.chance.millis(0, 20_000));
        let comes = comes && self.faults > 0;
        let Some(made) = self.targets.get_mut(&owner).filter(|made| made.exists && comes) else {
            return false;
        };
        made.starts = Some(clock::steady() + delta(span));
        self.note(format_args!("the start of a target VM is given up"));
        true
    }

    /// Whether the target reports that it removed the machine, without doing so.
    fn is_lied_to(&mut self) -> bool {
        let lies = self.faults > 0 && self.chance.happens(150);
        if lies {
            self.counts.add("false discards");
            self.note(format_args!("the machine is said to be discarded"));
        }
        lies
    }
}

/// Starts the machine for the daemon or for an operator.
pub(super) fn start(truth: &mut Truth, owner: MigrationId) -> Result<(), TargetError> {
    let (up, dies) = (truth.chance.millis(0, 3000), truth.chance.millis(0, 20_000));
    let dies = (truth.faults > 0 && truth.chance.happens(50)).then_some(dies);
    let now = clock::steady();
    let made = truth.targets.get_mut(&owner).filter(|made| made.exists);
    let made = made.ok_or_else(|| failed("target.start", TargetErrorKind::NotFound))?;
    if !made.runs {
        let again = made.ran;
        (made.runs, made.ran, made.died) = (true, true, false);
        made.comes_up = Some(now + delta(up));
        made.dies = dies.map(|span| now + delta(span));
        truth.note(format_args!("a target VM starts"));
        if !again {
            if !truth.strayed_into(owner) {
                truth.check_copy(owner, "starts");
            }
            truth.check_barrier(owner);
        }
    }
    Ok(())
}

/// A handle on a target's disk.
struct DiskHandle {
    world: Arc<SimulationWorld>,
    owner: MigrationId,
    key: String,
    size: Length,
    /// The number of the power cut before which all writes of this handle are known to be flushed.
    generation: Mutex<u64>,
}

impl DiskHandle {
    fn fail<T>(&self, kind: ErrorKind, operation: Operation, extent: Option<Extent>) -> Result<T, DiskError> {
        Err(DiskError::new(kind, operation, &self.key, extent, "a fault of the simulation"))
    }

    async fn begin(&self, operation: Operation, extent: Option<Extent>) -> Result<bool, DiskError> {
        use ErrorKind as K;
        let call = match operation {
            Operation::Write | Operation::WriteZeroes => "target.write",
            Operation::Flush => "target.flush",
            _ => "target.read",
        };
        let kinds = [(4, K::Connection), (4, K::Media), (1, K::Protocol), (1, K::Refused), (1, K::NoSpace)];
        match self.world.call(call, K::Timeout, &kinds).await {
            Ok(lost) => Ok(lost),
            Err(kind) => self.fail(kind, operation, extent),
        }
    }

    /// Changes the disk, if it exists and may be written.
    fn write_now(
        &self,
        operation: Operation,
        extent: Extent,
        change: impl FnOnce(&mut Pages),
    ) -> Result<(), DiskError> {
        let mut truth = self.world.truth();
        // A late write to disks that were discarded reaches nothing, whatever their ledger said.
        let exists = truth.targets.get(&self.owner).is_some_and(|made| made.disks.contains_key(&self.key));
        let key = (self.owner, self.key.clone());
        let wrong = truth.ledgers.get(&key).filter(|_| exists).and_then(|ledger| {
            let blocks = || extent.blocks().map(|block| block as usize);
            let settled = blocks().find(|block| !ledger.pending.contains(block));
            let trusted = blocks().find(|block| ledger.trusted.contains(block));
            settled.map(|block| (block, "not pending")).or(trusted.map(|block| (block, "trusted")))
        });
        if let Some((block, why)) = wrong {
            truth.violated(format!("block {block} of {} is written, and is {why}", self.key));
        }
        let Some(made) = truth.targets.get_mut(&self.owner) else {
            return self.fail(ErrorKind::Connection, operation, Some(extent));
        };
        let is_its = made.exists && made.ran;
        let Some(disk) = made.disks.get_mut(&self.key) else {
            return self.fail(ErrorKind::Connection, operation, Some(extent));
        };
        change(&mut disk.seen);
        disk.fresh = false;
        // A block that is written completely is right again.
        for block in extent.blocks() {
            disk.tainted.remove(&(block as usize));
            disk.used.remove(&(block as usize));
        }
        if is_its {
            truth.violated(format!("{} is written, and it is the target VM's own by now", self.key));
        }
        Ok(())
    }

    /// How many bytes of a write are done: all, or for a failing write any number.
    fn part(&self, begun: &Result<bool, DiskError>, extent: Extent) -> usize {
        let len = extent.len().0;
        match begun {
            Ok(_) => len as usize,
            Err(_) => (self.world.truth().chance.between(0, len / 512) * 512) as usize,
        }
    }

    /// A flush failed: what was not durable is durable now or lost, and no later flush tries it again.
    fn lose(&self) {
        let mut truth = self.world.truth();
        let Truth { targets, chance, .. } = &mut *truth;
        let found = targets.get_mut(&self.owner).and_then(|made| made.disks.get_mut(&self.key));
        let Some(disk) = found else { return };
        for (block, version) in disk.seen.newer_than(&disk.durable) {
            if chance.happens(300) {
                disk.durable.take(&disk.seen, block);
            } else {
                disk.ended_early.insert(block, version);
            }
        }
        truth.counts.add("failed flushes");
    }

    async fn end<T>(&self, operation: Operation, lost: bool, answer: T) -> Result<T, DiskError> {
        self.world.leave().await;
        if lost { self.fail(ErrorKind::Timeout, operation, None) } else { Ok(answer) }
    }
}

#[async_trait]
impl ReadDisk for DiskHandle {
    fn size(&self) -> Length {
        self.size
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64));
        let lost = self.begin(Operation::Read, extent).await?;
        {
            let truth = self.world.truth();
            let found = truth.targets.get(&self.owner).and_then(|made| made.disks.get(&self.key));
            let Some(disk) = found else { return self.fail(ErrorKind::Connection, Operation::Read, extent) };
            disk.seen.read(at.0, &mut buffer);
        }
        self.end(Operation::Read, lost, buffer).await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        let lost = self.begin(Operation::Allocation, Some(extent)).await?;
        let answer = {
            let mut truth = self.world.truth();
            let knows = truth.chance.happens(700);
            let found = truth.targets.get(&self.owner).and_then(|made| made.disks.get(&self.key));
            let Some(disk) = found else {
                return self.fail(ErrorKind::Connection, Operation::Allocation, Some(extent));
            };
            let start = extent.start();
            let end = ((start.0 / BLOCK + 1) * BLOCK).min(extent.end().0);
            let zero = knows && disk.seen.is_zero((start.0 / BLOCK) as usize);
            let part = Extent::new(start, Length(end - start.0));
            part.into_iter().map(|extent| Allocation { extent, zero }).collect()
        };
        self.end(Operation::Allocation, lost, answer).await
    }
}

#[async_trait]
impl WriteDisk for DiskHandle {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(range.len() as u64));
        let Some(extent) = extent else { return Ok(buffer) };
        let begun = self.begin(Operation::Write, Some(extent)).await;
        let part = &buffer[range][..self.part(&begun, extent)];
        self.write_now(Operation::Write, extent, |pages| pages.write(at.0, part))?;
        let lost = begun?;
        self.end(Operation::Write, lost, buffer).await
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        let begun = self.begin(Operation::WriteZeroes, Some(extent)).await;
        let part = self.part(&begun, extent);
        self.write_now(Operation::WriteZeroes, extent, |pages| {
            pages.fill(extent.start().0, part as u64, 0);
        })?;
        let lost = begun?;
        self.end(Operation::WriteZeroes, lost, ()).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        // Only what was written before the call is made durable.
        let before = {
            let truth = self.world.truth();
            let found = truth.targets.get(&self.owner).and_then(|made| made.disks.get(&self.key));
            found.map(|disk| (disk.seen.clone(), disk.generation))
        };
        let begun = self.begin(Operation::Flush, None).await;
        if begun.is_err() {
            self.lose();
        }
        let lost = begun?;
        {
            let mut truth = self.world.truth();
            let found = truth.targets.get_mut(&self.owner).and_then(|made| made.disks.get_mut(&self.key));
            let (Some(disk), Some((seen, generation))) = (found, before) else {
                return self.fail(ErrorKind::Connection, Operation::Flush, None);
            };
            let mut known = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
            if *known != disk.generation || generation != disk.generation {
                *known = disk.generation;
                return self.fail(ErrorKind::Connection, Operation::Flush, None);
            }
            let ended_early = &disk.ended_early;
            disk.durable.take_newer(&seen, |block, version| ended_early.get(&block) == Some(&version));
            truth.check_disk(self.owner, &self.key);
        }
        self.end(Operation::Flush, lost, ()).await
    }
}
