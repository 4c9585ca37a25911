//! The waiting jobs, and the order in which they are checked.
//!
//! Rule: a plan's virtual time is what it had, divided by its priority. The plan with the least is next; its
//! time moves on only when a job of it starts. A plan that comes, or comes back, begins at the time of the
//! one served last.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use super::job::JobClass;

/// Divisible by every priority.
const SCALE: u64 = 2520;

/// A job that waits.
#[derive(Clone, Debug)]
pub(super) struct QueuedJob {
    pub(super) id: u64,
    pub(super) needs: Vec<(usize, u32)>,
    pub(super) cost: u32,
    pub(super) stays: bool,
    /// How many had been admitted when it first did not fit.
    pub(super) refused: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    time: u64,
    priority: u32,
    cutovers: VecDeque<QueuedJob>,
    pre_copies: VecDeque<QueuedJob>,
}

impl Queue {
    fn all(&self, class: JobClass) -> &VecDeque<QueuedJob> {
        match class {
            JobClass::Cutover => &self.cutovers,
            JobClass::PreCopy => &self.pre_copies,
        }
    }

    fn of(&mut self, class: JobClass) -> &mut VecDeque<QueuedJob> {
        match class {
            JobClass::Cutover => &mut self.cutovers,
            JobClass::PreCopy => &mut self.pre_copies,
        }
    }

    fn is_empty(&self) -> bool {
        self.cutovers.is_empty() && self.pre_copies.is_empty()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Queues {
    plans: BTreeMap<String, Queue>,
    /// The virtual time of the plan served last, before it was.
    clock: u64,
}

/// One round over all waiting jobs of a class.
#[derive(Debug)]
pub(super) struct QueueRound {
    class: JobClass,
    /// By virtual time, then by name: the same every time.
    order: BinaryHeap<Reverse<(u64, String)>>,
    /// Of each plan: the checked jobs that do not fit, to be put back in front.
    refused: BTreeMap<String, VecDeque<QueuedJob>>,
}

/// The job that is checked.
#[derive(Debug)]
pub(super) struct Candidate {
    plan: String,
    pub(super) job: QueuedJob,
}

impl Queues {
    pub(super) fn push(&mut self, plan: &str, priority: u32, class: JobClass, job: QueuedJob) {
        let clock = self.clock;
        let queue = self.plans.entry(plan.to_owned()).or_default();
        if queue.is_empty() {
            queue.time = queue.time.max(clock);
        }
        queue.priority = priority;
        queue.of(class).push_back(job);
    }

    pub(super) fn get(&self, plan: &str, class: JobClass, id: u64) -> Option<&QueuedJob> {
        self.plans.get(plan)?.all(class).iter().find(|job| job.id == id)
    }

    pub(super) fn remove(&mut self, plan: &str, class: JobClass, id: u64) -> Option<QueuedJob> {
        let jobs = self.plans.get_mut(plan)?.of(class);
        let at = jobs.iter().position(|job| job.id == id)?;
        let job = jobs.remove(at);
        self.tidy();
        job
    }

    /// Whether a job waits in a class.
    pub(super) fn has(&self, class: JobClass) -> bool {
        self.plans.values().any(|queue| !queue.all(class).is_empty())
    }

    /// All of a class, in the order in which their turn would come.
    pub(super) fn in_order(&self, class: JobClass) -> Vec<&QueuedJob> {
        let mut queues: Vec<_> =
            self.plans.iter().filter(|(_, queue)| !queue.all(class).is_empty()).collect();
        queues.sort_by_key(|(name, queue)| (queue.time, *name));
        queues.into_iter().flat_map(|(_, queue)| queue.all(class)).collect()
    }

    pub(super) fn round(&self, class: JobClass) -> QueueRound {
        let plans = self.plans.iter().filter(|(_, queue)| !queue.all(class).is_empty());
        let order = plans.map(|(name, queue)| Reverse((queue.time, name.clone()))).collect();
        QueueRound { class, order, refused: BTreeMap::new() }
    }

    pub(super) fn next(&mut self, round: &mut QueueRound) -> Option<Candidate> {
        loop {
            let Reverse((_, plan)) = round.order.pop()?;
            if let Some(job) = self.plans.get_mut(&plan).and_then(|queue| queue.of(round.class).pop_front()) {
                return Some(Candidate { plan, job });
            }
        }
    }

    pub(super) fn admitted(&mut self, round: &mut QueueRound, turn: Candidate) {
        if let Some(queue) = self.plans.get_mut(&turn.plan) {
            self.clock = self.clock.max(queue.time);
            let price = u64::from(turn.job.cost) * SCALE / u64::from(queue.priority.max(1));
            queue.time = queue.time.saturating_add(price);
            round.order.push(Reverse((queue.time, turn.plan)));
        }
    }

    pub(super) fn refused(&mut self, round: &mut QueueRound, turn: Candidate) {
        if let Some(queue) = self.plans.get(&turn.plan) {
            round.order.push(Reverse((queue.time, turn.plan.clone())));
            round.refused.entry(turn.plan).or_default().push_back(turn.job);
        }
    }

    pub(super) fn end(&mut self, round: QueueRound) {
        for (plan, mut jobs) in round.refused {
            if let Some(queue) = self.plans.get_mut(&plan) {
                jobs.append(queue.of(round.class));
                *queue.of(round.class) = jobs;
            }
        }
        self.tidy();
    }

    /// Forgets plans without waiting jobs that would begin at the clock's time anyway.
    fn tidy(&mut self) {
        let clock = self.clock;
        self.plans.retain(|_, queue| !queue.is_empty() || queue.time > clock);
    }
}
