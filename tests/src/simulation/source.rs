//! The simulated source.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, ErrorKind, Operation, ReadDisk},
    extents::ExtentSet,
    mark::{ChangeMark, Changed},
    units::{BLOCK, Extent, Length, Offset},
};
use warmd_core::{
    clock,
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{Machine, PowerState, VmSummary},
    },
    sources::{
        HoldOff, HowStopped, Leftover, MigratedMark, ShutdownPolicy, Snapshot, SnapshotDisk, SnapshotRequest,
        Source, SourceError, SourceErrorKind,
    },
};

use super::{
    pages::Pages,
    power,
    world::{Fate, Open, SimulatedMark, SimulationWorld, TRACKED, Truth, Vm, delta},
};
use crate::endpoints::machine;

/// A source of the world's VMs; a VM's id is its name.
#[derive(Clone, Debug)]
pub(super) struct SimulatedSource(pub Arc<SimulationWorld>);

fn failed(call: &'static str, kind: SourceErrorKind) -> SourceError {
    SourceError::new(kind, call, "a fault of the simulation")
}

impl SimulatedSource {
    /// Passes the gate; returns whether the answer must be lost.
    async fn begin(&self, call: &'static str) -> Result<bool, SourceError> {
        use SourceErrorKind as K;
        let kinds = [(4, K::Failed), (4, K::Unreachable), (1, K::Refused)];
        self.0.call(call, K::Timeout, &kinds).await.map_err(|kind| failed(call, kind))
    }

    async fn end<T>(&self, call: &'static str, lost: bool, answer: T) -> Result<T, SourceError> {
        self.0.leave().await;
        if lost { Err(failed(call, SourceErrorKind::Timeout)) } else { Ok(answer) }
    }
}

fn find<'a>(truth: &'a mut Truth, vm: &str) -> Result<&'a mut Vm, SourceError> {
    let none = || SourceError::new(SourceErrorKind::NotFound, format!("VM {vm}"), "there is none");
    truth.vms.get_mut(vm).ok_or_else(none)
}

#[async_trait]
impl Source for SimulatedSource {
    async fn check(&self) -> Result<String, SourceError> {
        // Called when a plan is applied; draws no random number, so that the runs of known seeds do not
        // change.
        Ok("simulated".to_owned())
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        let lost = self.begin("source.vms").await?;
        self.end("source.vms", lost, Vec::new()).await
    }

    async fn describe(&self, vm: &str) -> Result<Machine, SourceError> {
        let lost = self.begin("source.describe").await?;
        let machine = {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, vm)?;
            machine(&vm.name, &vm.name, vm.disks.iter().map(|(key, pages)| (key.clone(), pages.size())))
        };
        self.end("source.describe", lost, machine).await
    }

    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError> {
        let lost = self.begin("source.power").await?;
        let runs = {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, &vm.0)?;
            if !vm.runs {
                vm.starters.seen_off = Some(clock::steady());
            }
            vm.runs
        };
        self.end("source.power", lost, if runs { PowerState::Running } else { PowerState::Off }).await
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        let lost = self.begin("source.snapshot").await?;
        let snapshot = self.take(request)?;
        self.end("source.snapshot", lost, ()).await?;
        Ok(Box::new(snapshot))
    }

    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError> {
        let lost = self.begin("source.end-snapshot").await?;
        {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, &vm.0)?;
            if vm.snapshot.as_ref().is_some_and(|open| open.owner == owner) {
                vm.snapshot = None;
                let name = vm.name.clone();
                truth.note(format_args!("{name}: snapshot ended"));
            }
        }
        self.end("source.end-snapshot", lost, ()).await
    }

    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        let lost = self.begin("source.release-marks").await?;
        {
            let mut truth = self.0.truth();
            let keep: BTreeSet<u64> = keep.iter().filter_map(|mark| mark.0.parse().ok()).collect();
            truth.check_release(owner, &keep);
            let vm = find(&mut truth, &vm.0)?;
            vm.marks.retain(|mark, state| state.owner != owner || keep.contains(mark));
            let name = vm.name.clone();
            truth.note(format_args!("{name}: marks released but {keep:?}"));
        }
        self.end("source.release-marks", lost, Vec::new()).await
    }

    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        let call = "source.shut-down";
        let lost = self.begin(call).await?;
        if !find(&mut self.0.truth(), &vm.0)?.runs {
            return self.end(call, lost, HowStopped::WasOff).await;
        }
        {
            let mut truth = self.0.truth();
            // A slow guest goes off after the deadline, unseen.
            let span = truth.chance.magnitude(2 * policy.graceful.as_millis() as u64 - 100);
            let vm = find(&mut truth, &vm.0)?;
            if vm.heeds_shutdown {
                let at = clock::steady() + delta(std::time::Duration::from_millis(span));
                vm.goes_off = Some(vm.goes_off.map_or(at, |already| already.min(at)));
            }
            let name = vm.name.clone();
            truth.note(format_args!("{name} is asked to shut down"));
        }
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < policy.graceful {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if !find(&mut self.0.truth(), &vm.0)?.runs {
                return self.end(call, lost, HowStopped::Gracefully).await;
            }
        }
        if !policy.force {
            return Err(failed(call, SourceErrorKind::StillRunning));
        }
        // The last moment at which a dead daemon can have done it.
        self.0.leave().await;
        {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, &vm.0)?;
            vm.obeys(false);
            vm.goes_off = None;
            let name = vm.name.clone();
            truth.note(format_args!("{name} is cut off"));
        }
        self.end(call, lost, HowStopped::Forced).await
    }

    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError> {
        let lost = self.begin("source.power-on").await?;
        {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, &vm.0)?;
            vm.obeys(true);
            let name = vm.name.clone();
            truth.note(format_args!("{name} is powered on"));
            truth.check_power_on(&name);
        }
        self.end("source.power-on", lost, ()).await
    }

    async fn starters(&self, vm: &VmId, owner: MigrationId) -> Result<HoldOff, SourceError> {
        let lost = self.begin("source.starters").await?;
        let was = {
            let mut truth = self.0.truth();
            let starters = &find(&mut truth, &vm.0)?.starters;
            // Turned off already, by a call whose answer or record was lost.
            let taken = starters.moved.is_some_and(|moved| moved.owner == owner && moved.autostart);
            HoldOff { autostart: starters.autostart || taken }
        };
        self.end("source.starters", lost, was).await
    }

    async fn hold_off(&self, vm: &VmId, moved: &MigratedMark, was: &HoldOff) -> Result<(), SourceError> {
        let lost = self.begin("source.hold-off").await?;
        {
            let mut truth = self.0.truth();
            let mark = power::Moved { owner: moved.owner, autostart: was.autostart };
            let vm = find(&mut truth, &vm.0)?;
            (vm.starters.autostart, vm.starters.moved) = (false, Some(mark));
            let name = vm.name.clone();
            truth.note(format_args!("{name} is held off, its autostart was {}", was.autostart));
        }
        self.end("source.hold-off", lost, ()).await
    }

    async fn let_go(&self, vm: &VmId, owner: MigrationId, was: &HoldOff) -> Result<(), SourceError> {
        let lost = self.begin("source.let-go").await?;
        {
            let mut truth = self.0.truth();
            let vm = find(&mut truth, &vm.0)?;
            // The autostart that the mark records counts, too.
            let mark = vm.starters.moved.take_if(|moved| moved.owner == owner);
            vm.starters.autostart |= was.autostart || mark.is_some_and(|mark| mark.autostart);
            let name = vm.name.clone();
            truth.note(format_args!("{name} is let go, its autostart was {}", was.autostart));
        }
        self.end("source.let-go", lost, ()).await
    }
}

impl SimulatedSource {
    fn take(&self, request: &SnapshotRequest) -> Result<SimulatedSnapshot, SourceError> {
        let mut truth = self.0.truth();
        let forgets = truth.chance.happens(20);
        let vm = find(&mut truth, &request.vm.0)?;
        if request.is_final && vm.runs {
            return Err(SourceError::new(SourceErrorKind::Refused, "final snapshot", "the VM runs"));
        }
        if vm.snapshot.as_ref().is_some_and(|open| open.owner != request.owner) {
            return Err(SourceError::new(SourceErrorKind::Refused, "snapshot", "another one is open"));
        }
        let anchors: BTreeSet<u64> =
            request.disks.iter().filter_map(|(_, anchor)| anchor.as_ref()?.0.parse().ok()).collect();
        // Marks need not be merged: each has all changes since it was made.
        vm.marks.retain(|mark, state| state.owner != request.owner || anchors.contains(mark));
        vm.marks_made += 1;
        let mark = vm.marks_made;
        let mut disks = Vec::new();
        for (key, anchor) in &request.disks {
            let Some(pages) = vm.disks.get(&key.0) else { continue };
            let size = Length(pages.size());
            let since = anchor.as_ref().and_then(|anchor| vm.marks.get(&anchor.0.parse().ok()?));
            let changed = match since {
                Some(since) if !forgets => {
                    let granules = since.changed.iter().filter(|(disk, _)| *disk == key.0);
                    let extents = granules.filter_map(|(_, granule)| {
                        let start = granule * TRACKED;
                        Extent::new(Offset(start), Length(TRACKED.min(size.0 - start)))
                    });
                    Changed::Known(ExtentSet::of(size, extents))
                }
                _ => Changed::Unknown("no such mark".to_owned()),
            };
            let disk = SnapshotDisk { key: key.clone(), size, mark: ChangeMark(mark.to_string()) };
            disks.push((disk, pages.clone(), changed));
        }
        vm.marks.insert(mark, SimulatedMark { owner: request.owner, changed: BTreeSet::new() });
        vm.images.insert(mark, vm.disks.clone());
        vm.snapshot = Some(Open { owner: request.owner, mark, is_final: request.is_final, spoiled: false });
        let name = vm.name.clone();
        let unknown = disks.iter().filter(|(.., changed)| matches!(changed, Changed::Unknown(_))).count();
        if unknown > 0 && !anchors.is_empty() {
            truth.counts.add("unknown changes");
        }
        truth.note(format_args!("{name}: snapshot {mark} since {anchors:?}, {unknown} unknown"));
        let (world, vm, owner) = (Arc::clone(&self.0), request.vm.0.clone(), request.owner);
        let (views, parts): (Vec<_>, Vec<_>) =
            disks.into_iter().map(|(disk, pages, changed)| (disk, (pages, changed))).unzip();
        Ok(SimulatedSnapshot { world, vm, owner, mark, disks: views, parts })
    }
}

struct SimulatedSnapshot {
    world: Arc<SimulationWorld>,
    vm: String,
    owner: MigrationId,
    mark: u64,
    disks: Vec<SnapshotDisk>,
    parts: Vec<(Pages, Changed)>,
}

impl SimulatedSnapshot {
    fn at(&self, key: &DiskKey) -> Result<usize, SourceError> {
        let none = || SourceError::new(SourceErrorKind::NotFound, format!("disk {key}"), "there is none");
        self.disks.iter().position(|disk| disk.key == *key).ok_or_else(none)
    }

    fn source(&self) -> SimulatedSource {
        SimulatedSource(Arc::clone(&self.world))
    }
}

#[async_trait]
impl Snapshot for SimulatedSnapshot {
    fn disks(&self) -> &[SnapshotDisk] {
        &self.disks
    }

    async fn changed(&self, disk: &DiskKey) -> Result<Changed, SourceError> {
        let lost = self.source().begin("snapshot.changed").await?;
        let changed = self.parts[self.at(disk)?].1.clone();
        self.source().end("snapshot.changed", lost, changed).await
    }

    async fn open(&self, disk: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError> {
        let lost = self.source().begin("snapshot.open").await?;
        let pages = self.parts[self.at(disk)?].0.clone();
        let (world, vm, owner) = (Arc::clone(&self.world), self.vm.clone(), self.owner);
        let reader = Arc::new(Reader { world, vm, owner, mark: self.mark, key: disk.0.clone(), pages });
        self.source().end("snapshot.open", lost, reader as _).await
    }

    async fn release(self: Box<Self>) -> Result<(), SourceError> {
        let lost = self.source().begin("snapshot.release").await?;
        {
            let mut truth = self.world.truth();
            let vm = find(&mut truth, &self.vm)?;
            if let Some(open) = vm.snapshot.as_ref().filter(|open| open.mark == self.mark) {
                if open.is_final && open.spoiled {
                    return Err(SourceError::new(
                        SourceErrorKind::Refused,
                        "release",
                        "the VM ran meanwhile",
                    ));
                }
                vm.snapshot = None;
            }
            truth.note(format_args!("{}: snapshot {} released", self.vm, self.mark));
        }
        self.source().end("snapshot.release", lost, ()).await
    }
}

/// A disk of a snapshot.
struct Reader {
    world: Arc<SimulationWorld>,
    vm: String,
    owner: MigrationId,
    mark: u64,
    key: String,
    pages: Pages,
}

impl Reader {
    async fn begin(&self, operation: Operation, extent: Option<Extent>) -> Result<(), DiskError> {
        let fate = self.world.gate("source.read").await;
        let mut truth = self.world.truth();
        let fail =
            |kind| Err(DiskError::new(kind, operation, &self.key, extent, "a fault of the simulation"));
        match fate {
            Fate::Done => {}
            Fate::Failed => {
                use ErrorKind as K;
                let kinds = [(4, K::Connection), (4, K::Media), (2, K::Protocol), (1, K::Refused)];
                return fail(truth.chance.weighted(&kinds));
            }
            Fate::Lost | Fate::Hung => return fail(ErrorKind::Timeout),
        }
        let open = truth.vms.get(&self.vm).and_then(|vm| vm.snapshot.as_ref());
        if open.is_none_or(|open| open.mark != self.mark) {
            return fail(ErrorKind::Connection);
        }
        let ledger = truth.ledgers.get(&(self.owner, self.key.clone()));
        if ledger.and_then(|ledger| ledger.anchor.as_deref()) != Some(&self.mark.to_string()) {
            truth.violated(format!(
                "{} of mark {} is read before its advance is committed",
                self.key, self.mark
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl ReadDisk for Reader {
    fn size(&self) -> Length {
        Length(self.pages.size())
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        self.begin(Operation::Read, Extent::new(at, Length(buffer.len() as u64))).await?;
        self.pages.read(at.0, &mut buffer);
        self.world.leave().await;
        Ok(buffer)
    }

    /// Answers for a part of the extent, in pieces of any size.
    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        self.begin(Operation::Allocation, Some(extent)).await?;
        let mut answer = Vec::new();
        {
            let chance = &mut self.world.truth().chance;
            let mut at = extent.start().0;
            while at < extent.end().0 && (answer.is_empty() || chance.happens(800)) {
                let block = (at / BLOCK) as usize;
                let mut end = ((at / BLOCK + 1) * BLOCK).min(extent.end().0);
                if chance.happens(100) {
                    end = (at + 512 * chance.between(1, 64)).min(end);
                }
                let zero = self.pages.is_zero(block) && chance.happens(900);
                answer.extend(
                    Extent::new(Offset(at), Length(end - at)).map(|extent| Allocation { extent, zero }),
                );
                at = end;
            }
        }
        self.world.leave().await;
        Ok(answer)
    }
}

impl Truth {
    /// The ledgers' anchors must not be deleted before the ledgers have advanced.
    fn check_release(&mut self, owner: MigrationId, keep: &BTreeSet<u64>) {
        use warmd_core::model::{phase::Phase, state::State};
        let state = self.states.get(&owner);
        // A requested deletion may happen late, and after a rollback everything is copied anyway.
        let gone = matches!(
            state,
            Some(State::CuttingOver { phase: Phase::Cleanup } | State::Cancelling | State::RollingBack)
        );
        let needed = self.ledgers.iter().filter(|((theirs, _), _)| *theirs == owner);
        let needed = needed.filter_map(|(_, ledger)| ledger.anchor.as_ref()?.parse::<u64>().ok());
        let released: BTreeSet<_> = needed.filter(|anchor| !keep.contains(anchor)).collect();
        if !gone && !released.is_empty() {
            self.violated(format!("marks {released:?} are released, and ledgers are anchored there"));
        }
    }
}
