//! The running pre-copies that keep cutovers waiting.
//!
//! Rule: none is named in vain: only where the end of pre-copies is enough for a cutover to start, and with
//! those that are named already counted as ended.

use std::collections::BTreeSet;

use super::{AdmissionQueue, JobClass, Running};

impl AdmissionQueue {
    /// Whether a cutover waits.
    pub fn keeps_cutovers_waiting(&self) -> bool {
        self.queues.has(JobClass::Cutover)
    }

    /// The running pre-copies that are to end so that cutovers may start; without those of `preempted`, which
    /// are ending already.
    pub fn preemptible(&self, preempted: &BTreeSet<u64>) -> Vec<u64> {
        let mut free: Vec<i64> = self
            .slots
            .iter()
            .map(|slot| slot.limit.map_or(i64::MAX / 2, |limit| i64::from(limit) - i64::from(slot.used)))
            .collect();
        let mut running: Vec<(u64, &Running)> = self.running.iter().map(|(id, job)| (*id, job)).collect();
        running.retain(|(id, job)| {
            let ends = preempted.contains(id);
            if ends {
                give_back(&mut free, job);
            }
            !ends && job.class == JobClass::PreCopy && !job.stays
        });
        running.sort_by_key(|(_, job)| std::cmp::Reverse(job.number));
        let mut named = Vec::new();
        for cutover in self.queues.in_order(JobClass::Cutover) {
            let needed: Vec<_> = cutover
                .needs
                .iter()
                .map(|(slot, amount)| (*slot, self.slots[*slot].share(*amount)))
                .collect();
            let lacks = |free: &[i64], slot: usize| {
                needed.iter().any(|(at, amount)| *at == slot && i64::from(*amount) > free[slot])
            };
            let (mut then, mut ending) = (free.clone(), BTreeSet::new());
            for (id, job) in &running {
                if job.needs.iter().any(|(slot, _)| lacks(&then, *slot)) {
                    give_back(&mut then, job);
                    ending.insert(*id);
                }
            }
            if !needed.iter().any(|(slot, _)| lacks(&then, *slot)) {
                free = then;
                running.retain(|(id, _)| !ending.contains(id));
                named.extend(ending);
            }
            for (slot, amount) in needed {
                free[slot] -= i64::from(amount);
            }
        }
        named
    }
}

fn give_back(free: &mut [i64], job: &Running) {
    for (slot, amount) in &job.needs {
        free[*slot] += i64::from(*amount);
    }
}
