//! The order of passes, where many wait and few may run at a time.
//!
//! Rule, in this order:
//! 1. No job is admitted beyond a limit, in any scope that it touches. A job that needs more than a whole
//!    limit (a VM with more disks than may be copied at a time) counts as needing all of it: it runs alone.
//! 2. Cutovers go before pre-copies. One that has to wait reserves what it needs.
//! 3. Plans share by their priorities: the next job is of the plan that had the least for its priority so far
//!    (start-time fair queueing; a job costs its disks). An idle plan earns no credit.
//! 4. Within a plan, first come first served.
//! 5. A job that does not fit lets [`PATIENCE`] others pass. Then it reserves its needs, so that freed
//!    capacity is kept for it. So every job is admitted in the end, if jobs end and cutovers are finite.
//! 6. A job that cannot wait (a final delta whose VM is off already) starts at once, beyond any limit, and
//!    is counted.
//! 7. Where running pre-copies alone keep a cutover waiting, [`AdmissionQueue::preemptible`] names those
//!    whose end lets it start, the youngest first.
//!
//! The same calls give the same answers. An admission round costs a step for each need of each waiting job
//! that is checked; where a limit is full that all waiting jobs need, none is checked
//! ([`AdmissionQueue::steps`] counts).

mod job;
mod preemption;
mod queue;

use std::collections::{BTreeMap, BTreeSet};

pub use self::job::{AdmissionJob, JobClass, Need, PRIORITIES, QuotaKind, QuotaScope};
use self::queue::{QueuedJob, Queues};
use crate::quota::Allowance;

/// How many admissions of others a job that does not fit lets pass.
pub const PATIENCE: u64 = 16;

/// Waiting and running jobs, and their limits.
#[derive(Clone, Debug, Default)]
pub struct AdmissionQueue {
    names: BTreeMap<(QuotaScope, QuotaKind), usize>,
    slots: Vec<Slot>,
    queues: Queues,
    waiting: BTreeMap<u64, (String, JobClass)>,
    running: BTreeMap<u64, Running>,
    admitted: u64,
    steps: u64,
}

/// A job that runs.
#[derive(Clone, Debug)]
struct Running {
    class: JobClass,
    stays: bool,
    /// Higher than those of all that were admitted before.
    number: u64,
    needs: Vec<(usize, u32)>,
}

/// What one kind of work may use in one scope.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    limit: Option<u32>,
    used: u32,
    /// In this round, for jobs that have lost patience.
    reserved: u32,
    /// How many waiting jobs need it.
    wanted_by: usize,
}

impl Slot {
    /// Of `amount`, what is needed at most.
    fn share(&self, amount: u32) -> u32 {
        self.limit.map_or(amount, |limit| amount.min(limit))
    }

    fn free(&self) -> u32 {
        self.limit.map_or(u32::MAX, |limit| limit.saturating_sub(self.used.saturating_add(self.reserved)))
    }
}

impl AdmissionQueue {
    /// No job waits or runs, and there are no limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The limit of `scope` from now on. Running jobs continue, also above it.
    pub fn set_limit(&mut self, scope: &QuotaScope, allowance: Allowance) {
        let kinds = [
            (QuotaKind::Passes, allowance.passes),
            (QuotaKind::Snapshots, allowance.snapshots),
            (QuotaKind::Disks, allowance.disks),
        ];
        for (kind, limit) in kinds {
            let slot = self.slot(scope, kind);
            self.slots[slot].limit = limit.map(std::num::NonZeroU32::get);
        }
    }

    /// Lets a job wait; `false` if one of its number waits or runs already.
    pub fn submit(&mut self, job: AdmissionJob) -> bool {
        if self.waiting.contains_key(&job.id) || self.running.contains_key(&job.id) {
            return false;
        }
        let cost = job.cost();
        let AdmissionJob { id, plan, priority, class, needs, stays, .. } = job;
        let needs = self.summed(needs);
        for (slot, _) in &needs {
            self.slots[*slot].wanted_by += 1;
        }
        self.queues.push(&plan, priority, class, QueuedJob { id, needs, cost, stays, refused: None });
        self.waiting.insert(id, (plan, class));
        true
    }

    /// Lets a job run at once, whatever the limits say; `false` if one of its number waits or runs already.
    pub fn start_at_once(&mut self, job: AdmissionJob) -> bool {
        if self.waiting.contains_key(&job.id) || self.running.contains_key(&job.id) {
            return false;
        }
        let (id, class, stays) = (job.id, job.class, job.stays);
        let needs = self.summed(job.needs);
        self.run(id, class, stays, needs);
        true
    }

    /// A job is withdrawn, or has ended; `false` if it is not known.
    pub fn remove(&mut self, id: u64) -> bool {
        if let Some(used) = self.running.remove(&id) {
            for (slot, amount) in used.needs {
                let slot = &mut self.slots[slot];
                slot.used = slot.used.saturating_sub(amount);
            }
            return true;
        }
        let Some((plan, class)) = self.waiting.remove(&id) else { return false };
        for (slot, _) in self.queues.remove(&plan, class, id).map_or_else(Vec::new, |waiting| waiting.needs) {
            self.slots[slot].wanted_by -= 1;
        }
        true
    }

    /// The jobs that start now, in order. To be called after jobs came, ended, or limits changed.
    pub fn admit(&mut self) -> Vec<u64> {
        // All that the remaining jobs of this round need, at any time in it.
        let mut needed_by_all = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            slot.reserved = 0;
            if slot.wanted_by == self.waiting.len() {
                needed_by_all.push(at);
            }
        }
        self.steps += self.slots.len() as u64;
        let mut admitted = Vec::new();
        for class in [JobClass::Cutover, JobClass::PreCopy] {
            let mut round = self.queues.round(class);
            while needed_by_all.iter().all(|slot| self.slots[*slot].free() > 0) {
                self.steps += 1 + needed_by_all.len() as u64;
                let Some(mut turn) = self.queues.next(&mut round) else { break };
                if self.fits(&turn.job.needs) {
                    self.start(class, &turn.job);
                    admitted.push(turn.job.id);
                    self.queues.admitted(&mut round, turn);
                } else {
                    let refused = *turn.job.refused.get_or_insert(self.admitted);
                    if class == JobClass::Cutover || self.admitted - refused >= PATIENCE {
                        self.reserve(&turn.job.needs);
                    }
                    self.queues.refused(&mut round, turn);
                }
            }
            self.queues.end(round);
        }
        admitted
    }

    /// Why a job waits, in words; `None` if it does not wait.
    pub fn why(&self, id: u64) -> Option<String> {
        let (plan, class) = self.waiting.get(&id)?;
        let waiting = self.queues.get(plan, *class, id)?;
        let full = waiting.needs.iter().find_map(|(slot, amount)| {
            let Slot { limit, used, .. } = self.slots[*slot];
            let limit = limit.filter(|limit| used.saturating_add(*amount.min(limit)) > *limit)?;
            let (scope, kind) = self.names.iter().find(|(_, at)| *at == slot)?.0;
            let alone = if *amount > limit {
                format!(", and it needs all as it has {amount}")
            } else {
                String::new()
            };
            Some(format!("{scope}: {used} of {limit} {kind} are in use{alone}"))
        });
        Some(full.unwrap_or_else(|| "others come before it".to_owned()))
    }

    /// What is in use of a kind in a scope.
    pub fn used(&self, scope: &QuotaScope, kind: QuotaKind) -> u32 {
        self.names.get(&(scope.clone(), kind)).map_or(0, |slot| self.slots[*slot].used)
    }

    /// Jobs that wait and need something of `scope`.
    pub fn waiting_in(&self, scope: &QuotaScope) -> usize {
        self.names.get(&(scope.clone(), QuotaKind::Passes)).map_or(0, |slot| self.slots[*slot].wanted_by)
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> impl Iterator<Item = u64> {
        self.waiting.keys().copied()
    }

    /// Jobs that run.
    pub fn running(&self) -> BTreeSet<u64> {
        self.running.keys().copied().collect()
    }

    /// The cost of all rounds so far: needs, jobs and limits that were checked.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn slot(&mut self, scope: &QuotaScope, kind: QuotaKind) -> usize {
        let next = self.slots.len();
        let slot = *self.names.entry((scope.clone(), kind)).or_insert(next);
        if slot == next {
            self.slots.push(Slot::default());
        }
        slot
    }

    fn fits(&mut self, needs: &[(usize, u32)]) -> bool {
        for (slot, amount) in needs {
            self.steps += 1;
            let slot = &self.slots[*slot];
            if slot.share(*amount) > slot.free() {
                return false;
            }
        }
        true
    }

    fn start(&mut self, class: JobClass, job: &QueuedJob) {
        for (slot, _) in &job.needs {
            self.slots[*slot].wanted_by -= 1;
        }
        self.waiting.remove(&job.id);
        self.run(job.id, class, job.stays, job.needs.clone());
    }

    fn run(&mut self, id: u64, class: JobClass, stays: bool, needs: Vec<(usize, u32)>) {
        for (slot, amount) in &needs {
            self.steps += 1;
            let slot = &mut self.slots[*slot];
            slot.used = slot.used.saturating_add(*amount);
        }
        self.admitted += 1;
        self.running.insert(id, Running { class, stays, number: self.admitted, needs });
    }

    /// The need of each slot.
    fn summed(&mut self, named: Vec<Need>) -> Vec<(usize, u32)> {
        let mut needs = BTreeMap::<usize, u32>::new();
        for Need { scope, kind, amount } in named {
            let slot = self.slot(&scope, kind);
            let sum = needs.entry(slot).or_default();
            *sum = sum.saturating_add(amount);
        }
        needs.into_iter().filter(|(_, amount)| *amount > 0).collect()
    }

    fn reserve(&mut self, needs: &[(usize, u32)]) {
        for (slot, amount) in needs {
            self.steps += 1;
            let slot = &mut self.slots[*slot];
            slot.reserved = slot.reserved.saturating_add(slot.share(*amount));
        }
    }
}
