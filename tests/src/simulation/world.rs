//! The truth of a simulation, of both sides and of the daemon's durable state, and the gate that every call
//! passes.
//!
//! Rule: it outlives the daemon. The effect of a call happens at one moment, and only while the daemon lives:
//! once it is dead, its calls have no effect and do not return.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use warmd_core::{
    clock,
    model::{id::MigrationId, phase::Phase, state::State},
    targets::LastWriter,
};

use super::{chance::Chance, groups::GroupSeen, pages::Pages, power::Starters, target, trace::Trace};

/// The granule of the simulated change tracking, in bytes.
pub(super) const TRACKED: u64 = 4096;

/// The fate of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It succeeds.
    Done,
    /// It succeeds, and then reports a failure.
    Lost,
    /// It fails; the callee draws how.
    Failed,
    /// It hangs until its deadline and then reports a failure; in every second case it has succeeded.
    Hung,
}

/// A snapshot that is open this long while nothing is copied was forgotten.
const FORGOTTEN: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

/// One VM, its source's and its targets' side.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) name: String,
    pub(super) runs: bool,
    pub(super) heeds_shutdown: bool,
    /// It was asked to shut down, and is off from then on.
    pub(super) goes_off: Option<DateTime<Utc>>,
    pub(super) disks: BTreeMap<String, Pages>,
    pub(super) marks: BTreeMap<u64, SimulatedMark>,
    pub(super) marks_made: u64,
    pub(super) snapshot: Option<Open>,
    /// Contents of all snapshots, by mark.
    pub(super) images: BTreeMap<u64, BTreeMap<String, Pages>>,
    /// Whether the operators want it to run, on one side or the other. Unknown for a while after the state
    /// was restored from a copy.
    pub(super) wanted: Option<bool>,
    /// The causes of its start beside the daemon.
    pub(super) starters: Starters,
    /// The phase of its cutover, if one runs.
    pub(super) phase: Option<Phase>,
    /// Since when it is in this phase.
    pub(super) phase_since: Option<DateTime<Utc>>,
    /// A user starts it at this time.
    pub(super) comes_on: Option<DateTime<Utc>>,
    /// Since when its migration is paused or has failed, if it is.
    pub(super) rests: Option<DateTime<Utc>>,
}

/// A point in time since which changes are kept.
#[derive(Debug)]
pub(super) struct SimulatedMark {
    pub(super) owner: MigrationId,
    pub(super) changed: BTreeSet<(String, u64)>,
}

/// A snapshot that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) owner: MigrationId,
    pub(super) mark: u64,
    pub(super) is_final: bool,
    /// The VM ran while its final state was read.
    pub(super) spoiled: bool,
}

/// The objects of a migration on the target.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Of which VM the machine was created.
    pub(super) vm: Option<String>,
    pub(super) exists: bool,
    pub(super) runs: bool,
    /// Since it was created.
    pub(super) ran: bool,
    /// It went off without a request after its last start.
    pub(super) died: bool,
    pub(super) comes_up: Option<DateTime<Utc>>,
    /// When the source was seen off for the last time before its creation or its start was requested.
    pub(super) seen_off: Option<DateTime<Utc>>,
    /// When a start that reported a failure happens.
    pub(super) starts: Option<DateTime<Utc>>,
    /// It starts together with its host.
    pub(super) autostart: bool,
    /// It existed when the state was restored from a copy, which may not know of it.
    pub(super) forgotten: bool,
    pub(super) dies: Option<DateTime<Utc>>,
    pub(super) noted: Option<LastWriter>,
    pub(super) disks: BTreeMap<String, TargetDisk>,
}

/// A disk on the target.
#[derive(Debug)]
pub(super) struct TargetDisk {
    pub(super) seen: Pages,
    /// The content after a power cut.
    pub(super) durable: Pages,
    /// Counts the power cuts.
    pub(super) generation: u64,
    /// Blocks that others wrote to.
    pub(super) tainted: BTreeSet<usize>,
    /// Blocks of a version that a failed flush has lost: no later flush makes it durable.
    pub(super) ended_early: BTreeMap<usize, u64>,
    /// Blocks that the target's own guest wrote to.
    pub(super) used: BTreeSet<usize>,
    pub(super) fresh: bool,
}

impl TargetDisk {
    /// A new disk with the content `pages`.
    pub(super) fn of(pages: Pages) -> Self {
        let (tainted, ended_early, used) = Default::default();
        Self { durable: pages.clone(), seen: pages, generation: 0, tainted, ended_early, used, fresh: true }
    }

    /// Power fails: of unflushed writes some are kept, some are lost, and some are kept in part.
    pub(super) fn cut(&mut self, chance: &mut Chance) {
        for (block, _) in self.seen.newer_than(&self.durable) {
            match chance.below(3) {
                0 => {}
                1 => self.durable.take(&self.seen, block),
                _ => self.durable.take_some(&self.seen, block, 512 * chance.between(1, 127)),
            }
        }
        self.seen = self.durable.clone();
        self.generation += 1;
    }
}

/// The ledger of a disk in the durable state.
#[derive(Clone, Debug, Default)]
pub(super) struct LedgerSeen {
    pub(super) vm: String,
    pub(super) anchor: Option<String>,
    pub(super) pending: BTreeSet<usize>,
    pub(super) trusted: BTreeSet<usize>,
}

/// Counts of events.
#[derive(Clone, Debug, Default)]
pub struct SimulationCounts(pub BTreeMap<&'static str, u64>);

impl SimulationCounts {
    /// Counts one more.
    pub(super) fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// How often it happened so far.
    pub(super) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }
}

/// The truth.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) chance: Chance,
    /// How often calls fail, in 1000.
    pub(super) faults: u64,
    pub(super) store_faults: u64,
    pub(super) steps: u64,
    /// The step at which the daemon dies.
    pub(super) dies_at: Option<u64>,
    /// The phase of a cutover in which it dies.
    pub(super) dies_in: Option<Phase>,
    /// The step from which on the durable state may be copied.
    pub(super) copy_at: Option<u64>,
    /// Ledgers of a restored state, which need not be true before the next pass.
    pub(super) stale: BTreeSet<(MigrationId, String)>,
    pub(super) dead: bool,
    /// Others change what they should not.
    pub(super) meddling: bool,
    pub(super) reads_zero: bool,
    pub(super) vms: BTreeMap<String, Vm>,
    pub(super) targets: BTreeMap<MigrationId, Made>,
    pub(super) ledgers: BTreeMap<(MigrationId, String), LedgerSeen>,
    /// The group that runs, where VMs move together.
    pub(super) group: Option<GroupSeen>,
    /// Migrations whose source runs after the cutover, by the durable state.
    pub(super) told: BTreeSet<MigrationId>,
    /// Names of the migrations' states in the durable state.
    pub(super) states: BTreeMap<MigrationId, State>,
    pub(super) counts: SimulationCounts,
    pub(super) trace: Trace,
    /// The violations that happened.
    pub(super) violations: Vec<String>,
}

/// The world, shared by all parts.
#[derive(Debug)]
pub(super) struct SimulationWorld {
    truth: Mutex<Truth>,
    pub(super) died: Notify,
}

impl SimulationWorld {
    /// A world in which `truth` is true.
    pub(super) fn new(truth: Truth) -> Arc<Self> {
        Arc::new(Self { truth: Mutex::new(truth), died: Notify::new() })
    }

    /// Reads or changes the truth.
    pub(super) fn truth(&self) -> MutexGuard<'_, Truth> {
        let mut truth = self.between_lives();
        truth.settle();
        truth
    }

    /// Reads the truth while no clock runs.
    pub(super) fn between_lives(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning of a call: it waits, and then its fate is known. Never returns once the daemon is dead.
    pub(super) async fn gate(&self, call: &'static str) -> Fate {
        let (fate, span) = {
            let mut truth = self.truth();
            let faults = truth.faults;
            let chance = &mut truth.chance;
            let mut span = match chance.below(100) {
                0..60 => Duration::ZERO,
                60..97 => chance.millis(1, 20),
                _ => chance.millis(20, 400),
            };
            let fate = if chance.happens(faults) {
                chance.weighted(&[(5, Fate::Failed), (3, Fate::Lost), (2, Fate::Hung)])
            } else {
                Fate::Done
            };
            if fate == Fate::Hung {
                // Sometimes longer than the deadline of a phase, or of work that was asked to stop.
                span = if chance.happens(150) {
                    chance.millis(20_000, 150_000)
                } else {
                    chance.millis(1000, 8000)
                };
            }
            (fate, span)
        };
        if !span.is_zero() {
            tokio::time::sleep(span).await;
        }
        if self.step() {
            std::future::pending::<()>().await;
        }
        if fate != Fate::Done {
            let mut truth = self.truth();
            truth.counts.add("faults");
            truth.note(format_args!("{call}: {fate:?}"));
        }
        fate
    }

    /// The same for a call whose effect is still to come: returns whether its answer must be lost, or else
    /// the kind of its failure, `late` if that is its deadline.
    pub(super) async fn call<K: Copy>(
        &self,
        call: &'static str,
        late: K,
        kinds: &[(u64, K)],
    ) -> Result<bool, K> {
        match self.gate(call).await {
            Fate::Done => Ok(false),
            Fate::Lost => Ok(true),
            Fate::Hung if self.truth().chance.happens(500) => Ok(true),
            Fate::Hung => Err(late),
            Fate::Failed => Err(self.truth().chance.weighted(kinds)),
        }
    }

    /// The end of a call, after its effect.
    pub(super) async fn leave(&self) {
        if self.step() {
            std::future::pending::<()>().await;
        }
    }

    /// One step of the daemon; true if it is dead now.
    pub(super) fn step(&self) -> bool {
        let mut truth = self.truth();
        truth.steps += 1;
        if !truth.dead && truth.dies_at.is_some_and(|at| truth.steps >= at) {
            truth.die();
            self.died.notify_one();
        }
        truth.dead
    }
}

impl Vm {
    /// Its migration is in this state, durably.
    pub(super) fn is_in(&mut self, state: &State) {
        self.phase = match state {
            State::CuttingOver { phase } | State::Undoing { phase, .. } => Some(*phase),
            _ => None,
        };
        self.phase_since = self.phase.map(|_| clock::steady());
        self.rests = matches!(state, State::Paused { .. } | State::Failed { .. }).then(clock::steady);
    }

    /// It runs while its final state is read, if it is.
    pub(super) fn spoil(&mut self) {
        if let Some(open) = &mut self.snapshot {
            open.spoiled = true;
        }
    }
}

impl Truth {
    /// The daemon dies.
    pub(super) fn die(&mut self) {
        self.dead = true;
        self.dies_at = None;
        self.counts.add("crashes");
        self.note(format_args!("==== the daemon dies"));
    }

    /// The daemon did not start; only a store failure excuses that; `faults` is their number before.
    pub(super) fn not_started(&mut self, faults: u64, why: &impl std::fmt::Display) {
        if self.counts.of("store faults") == faults {
            self.violated(format!("the daemon does not start: {why}"));
        }
    }

    /// A line of the trace.
    pub(super) fn note(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.note(clock::steady(), line);
    }

    /// Records a violation.
    pub(super) fn violated(&mut self, what: String) {
        self.note(format_args!("VIOLATED: {what}"));
        self.violations.push(what);
    }

    /// Executes the events that are due by now.
    fn settle(&mut self) {
        let now = clock::steady();
        let (mut forgotten, mut started) = (Vec::new(), Vec::new());
        for vm in self.vms.values_mut() {
            if vm.snapshot.is_some() && vm.rests.is_some_and(|since| now - since > FORGOTTEN) {
                // Once is enough.
                vm.rests = None;
                forgotten.push(vm.name.clone());
            }
            if vm.goes_off.is_some_and(|at| at <= now) {
                vm.goes_off = None;
                vm.obeys(false);
                self.trace.note(now, format_args!("{} went off", vm.name));
            }
            if vm.comes_on.is_some_and(|at| at <= now) {
                vm.comes_on = None;
                if self.meddling && !vm.runs && vm.goes_off.is_none() {
                    started.push(vm.name.clone());
                }
            }
        }
        for name in started {
            if !self.may_be_moved(&name) {
                self.counts.add("starts in a cutover");
            }
            self.others_start(&name, "high availability");
        }
        for name in forgotten {
            self.violated(format!("{name} lives on a snapshot while its migration rests"));
        }
        let mut late = Vec::new();
        for (id, made) in &mut self.targets {
            late.extend(made.starts.take_if(|at| *at <= now).map(|_| *id));
        }
        for id in late {
            self.note(format_args!("a start that was given up comes about"));
            self.counts.add("starts after their end");
            target::start(self, id).ok();
        }
        for made in self.targets.values_mut() {
            if made.dies.is_some_and(|at| at <= now) {
                (made.dies, made.runs, made.died) = (None, false, true);
                self.counts.add("target VMs died");
                self.trace.note(now, format_args!("a target VM died"));
            }
        }
    }

    /// The name of a migration in the trace: by its age, not by its id, which differs from run to run.
    pub(super) fn name(&self, id: MigrationId) -> String {
        let older = self.states.keys().filter(|other| **other < id).count();
        format!("m{older}")
    }

    /// Compares a disk's ledger in the durable state with the target's content, now and after a power cut.
    pub(super) fn check_disk(&mut self, owner: MigrationId, disk: &str) {
        let key = (owner, disk.to_owned());
        let (Some(ledger), Some(made)) = (self.ledgers.get(&key), self.targets.get(&owner)) else { return };
        if self.stale.contains(&key) {
            return;
        }
        let Some(anchor) = ledger.anchor.as_ref().and_then(|anchor| anchor.parse::<u64>().ok()) else {
            return;
        };
        let Some(image) =
            self.vms.get(&ledger.vm).and_then(|vm| vm.images.get(&anchor)).and_then(|image| image.get(disk))
        else {
            self.violated(format!("{disk} is anchored at mark {anchor}, which no snapshot gave"));
            return;
        };
        let Some(target) = made.disks.get(disk) else {
            let is_given_up = matches!(self.states.get(&owner), Some(State::Cancelling | State::Cancelled));
            if !is_given_up && ledger.pending.len() < image.blocks() {
                self.violated(format!(
                    "lost: {disk} is not on the target, and its ledger says that something is"
                ));
            }
            return;
        };
        // The target VM writes freely, until its cutover is undone.
        let is_its = made.ran
            && !matches!(
                self.states.get(&owner),
                Some(State::Synced | State::Syncing | State::Paused { .. })
            );
        let wrong = (0..image.blocks()).find(|block| {
            let excused = target.tainted.contains(block) || (is_its && target.used.contains(block));
            let known = !ledger.pending.contains(block) && !excused;
            known && !(image.same(&target.seen, *block) && image.same(&target.durable, *block))
        });
        if let Some(block) = wrong {
            let durable = image.same(&target.durable, block);
            self.violated(format!(
                "lost: block {block} of {disk} is not pending, and its target does not hold what mark {anchor} had \
                 (durably: {durable})"
            ));
        }
    }
}

/// A span of virtual time.
pub(super) fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or_default()
}
