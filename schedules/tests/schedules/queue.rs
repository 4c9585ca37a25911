//! The admission queue's promises, checked under random work.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use crate::common::Random;
use warmd_schedules::{
    admission_queue::{AdmissionJob, AdmissionQueue, JobClass, PATIENCE, QuotaKind, QuotaScope},
    quota::Allowance,
};

fn limit(passes: u32, disks: u32, snapshots: u32) -> Allowance {
    let [passes, disks, snapshots] = [passes, disks, snapshots].map(NonZeroU32::new);
    Allowance { bytes_per_second: None, disks, snapshots, passes }
}

fn endpoint(name: &str) -> QuotaScope {
    QuotaScope::Source(name.to_owned())
}

#[test]
fn limits_hold_in_every_scope() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(3, 0, 0));
    queue.set_limit(&endpoint("old"), limit(0, 4, 0));
    for id in 0..5 {
        assert!(queue.submit(AdmissionJob::pass(id, "shop", 2).on(&endpoint("old"), 2)));
    }
    assert!(!queue.submit(AdmissionJob::pass(0, "shop", 2)), "it waits already");
    assert_eq!(queue.admit(), [0, 1]);
    assert_eq!(queue.why(2).as_deref(), Some("source old: 4 of 4 disks are in use"));
    assert!(queue.submit(AdmissionJob::pass(9, "mail", 7)));
    assert_eq!(queue.admit(), [9], "it needs nothing of what is full");
    assert_eq!(queue.why(2).as_deref(), Some("all of warmd: 3 of 3 passes are in use"));
    assert!(queue.remove(0) && !queue.remove(0) && !queue.submit(AdmissionJob::pass(1, "shop", 2)));
    assert_eq!(queue.admit(), [2]);
    assert!(queue.remove(3), "one that waits");
    assert!(queue.remove(1));
    assert_eq!((queue.admit(), queue.why(4)), (vec![4], None));
}

#[test]
fn a_vm_with_more_disks_than_the_limit_runs_alone() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(0, 4, 0));
    queue.submit(AdmissionJob::pass(1, "shop", 1));
    queue.submit(AdmissionJob::pass(2, "shop", 9));
    assert_eq!(queue.admit(), [1]);
    assert_eq!(
        queue.why(2).as_deref(),
        Some("all of warmd: 1 of 4 disks are in use, and it needs all as it has 9")
    );
    queue.remove(1);
    assert_eq!(queue.admit(), [2]);
    queue.submit(AdmissionJob::pass(3, "shop", 1));
    assert!(queue.admit().is_empty());
}

#[test]
fn a_large_vm_is_not_passed_by_for_ever() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(0, 4, 0));
    let mut next = 100;
    for _ in 0..4 {
        queue.submit(AdmissionJob::pass(next, "small", 1));
        next += 1;
    }
    let mut running: Vec<_> = queue.admit();
    queue.submit(AdmissionJob::pass(1, "large", 8));
    // Small ones without end, of other plans: one ends, two come.
    let mut others = 0;
    loop {
        queue.remove(running.remove(0));
        for plan in ["small", "tiny"] {
            queue.submit(AdmissionJob::pass(next, plan, 1));
            next += 1;
        }
        let admitted = queue.admit();
        if admitted.contains(&1) {
            break;
        }
        others += admitted.len() as u64;
        running.extend(admitted);
        assert!(others <= PATIENCE + 4, "{others} went past");
    }
    assert!(others >= PATIENCE, "others may use what it cannot: {others}");
}

#[test]
fn cutovers_go_first_and_are_waited_for() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(2, 0, 0));
    queue.set_limit(&endpoint("old"), limit(0, 2, 0));
    for id in 0..4 {
        queue.submit(AdmissionJob::pass(id, "a", 1).on(&endpoint("old"), 1));
    }
    assert_eq!(queue.admit(), [0, 1]);
    queue.submit(AdmissionJob::pass(9, "z", 2).on(&endpoint("old"), 2).of_cutover());
    queue.remove(0);
    assert!(queue.admit().is_empty(), "what is free is kept for the cutover");
    queue.remove(1);
    assert_eq!(queue.admit(), [9]);
    queue.remove(9);
    assert_eq!(queue.admit(), [2, 3]);
}

#[test]
fn pre_copies_are_recalled_for_a_cutover_and_none_in_vain() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(3, 0, 0));
    queue.set_limit(&endpoint("old"), limit(0, 2, 0));
    queue.submit(AdmissionJob::pass(1, "a", 1).on(&endpoint("old"), 1));
    queue.submit(AdmissionJob::pass(2, "a", 1).on(&endpoint("old"), 1));
    queue.submit(AdmissionJob::pass(3, "a", 1).that_stays());
    assert_eq!(queue.admit(), [1, 2, 3]);
    assert!(!queue.keeps_cutovers_waiting() && queue.preemptible(&BTreeSet::new()).is_empty());
    queue.submit(AdmissionJob::pass(9, "b", 1).on(&endpoint("old"), 1).of_cutover());
    assert!(queue.admit().is_empty() && queue.keeps_cutovers_waiting());
    assert_eq!(queue.preemptible(&BTreeSet::new()), [2], "the youngest that is of use, and no more");
    assert!(queue.preemptible(&BTreeSet::from([2])).is_empty(), "it is ending");
    queue.submit(AdmissionJob::pass(10, "b", 1).on(&endpoint("old"), 1).of_cutover());
    assert_eq!(queue.preemptible(&BTreeSet::from([2])), [1]);
    queue.submit(AdmissionJob::pass(11, "b", 1).of_cutover());
    assert_eq!(queue.preemptible(&BTreeSet::from([1, 2])), [0_u64; 0], "what stays, stays");
    queue.remove(2);
    assert_eq!(queue.admit(), [9]);
    assert!(queue.preemptible(&BTreeSet::from([1])).is_empty());
}

#[test]
fn what_cannot_wait_runs_at_once_and_counts() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(1, 0, 0));
    queue.submit(AdmissionJob::pass(1, "a", 1));
    assert_eq!(queue.admit(), [1]);
    assert!(queue.start_at_once(AdmissionJob::pass(2, "a", 3).of_cutover()));
    assert!(!queue.start_at_once(AdmissionJob::pass(2, "a", 3).of_cutover()), "it runs already");
    assert_eq!(
        (
            queue.used(&QuotaScope::Global, QuotaKind::Passes),
            queue.used(&QuotaScope::Global, QuotaKind::Disks)
        ),
        (2, 4)
    );
    queue.submit(AdmissionJob::pass(3, "a", 1));
    queue.remove(1);
    assert!(queue.admit().is_empty(), "the other one counts");
    assert_eq!(queue.waiting_in(&QuotaScope::Global), 1);
    queue.remove(2);
    assert_eq!(queue.admit(), [3]);
}

#[test]
fn plans_share_by_their_priorities() {
    for (priorities, wanted) in [([1, 1], 1.0), ([3, 1], 3.0), ([10, 1], 10.0)] {
        let mut queue = AdmissionQueue::new();
        queue.set_limit(&QuotaScope::Global, limit(2, 0, 0));
        let mut next = 0;
        let mut plan_of = BTreeMap::new();
        let mut had = [0_u32; 2];
        let mut running = Vec::new();
        for _ in 0..2000 {
            for (plan, name) in ["big", "small"].iter().enumerate() {
                // Jobs of the one cost three times as much.
                let disks = [3, 1][plan];
                while plan_of.values().filter(|(of, _)| *of == plan).count() < 4 {
                    queue.submit(AdmissionJob::pass(next, name, disks).with_priority(priorities[plan]));
                    plan_of.insert(next, (plan, disks));
                    next += 1;
                }
            }
            running.extend(queue.admit());
            let id = running.remove(0);
            queue.remove(id);
            let (plan, disks) = plan_of.remove(&id).unwrap();
            had[plan] += disks;
        }
        let share = f64::from(had[0]) / f64::from(had[1]) / wanted;
        assert!((0.95..1.05).contains(&share), "{priorities:?}: {had:?}");
    }
}

#[test]
fn a_plan_that_was_idle_saves_nothing_up() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(1, 0, 0));
    let mut next = 0;
    for _ in 0..100 {
        queue.submit(AdmissionJob::pass(next, "busy", 1));
        assert_eq!(queue.admit(), [next]);
        queue.remove(next);
        next += 1;
    }
    for _ in 0..20 {
        queue.submit(AdmissionJob::pass(next, "busy", 1));
        queue.submit(AdmissionJob::pass(1000 + next, "idle", 1));
        next += 1;
    }
    let mut order = Vec::new();
    while let [id] = queue.admit()[..] {
        order.push(id >= 1000);
        queue.remove(id);
    }
    let first = order[..10].iter().filter(|idle| **idle).count();
    assert!((4..=6).contains(&first), "they take turns: {order:?}");
}

/// A job in the test's model.
#[derive(Clone)]
struct Known {
    class: JobClass,
    needs: Vec<(QuotaScope, QuotaKind, u32)>,
    since: u64,
}

#[test]
fn the_promises_hold_under_random_work() {
    let mut random = Random::seeded();
    for round in 0..25 {
        let mut queue = AdmissionQueue::new();
        let mut twin;
        let scopes = [
            endpoint("old"),
            endpoint("new"),
            QuotaScope::Host("h1".into()),
            QuotaScope::Datastore("d1".into()),
        ];
        let mut limits = BTreeMap::new();
        let mut jobs: BTreeMap<u64, Known> = BTreeMap::new();
        let mut running: BTreeSet<u64> = BTreeSet::new();
        let (mut next, mut admissions, mut longest) = (0, 0, 0);
        for step in 0..400 {
            if step % 50 == 0 {
                for scope in scopes.iter().chain([&QuotaScope::Global]) {
                    let [passes, disks, snapshots] = [8, 12, 6].map(|most| random.below(most) as u32);
                    queue.set_limit(scope, limit(passes, disks, snapshots));
                    for (kind, most) in [
                        (QuotaKind::Passes, passes),
                        (QuotaKind::Disks, disks),
                        (QuotaKind::Snapshots, snapshots),
                    ] {
                        limits.insert((scope.clone(), kind), most);
                    }
                }
            }
            // No new ones at the end: every job must get a turn.
            for _ in 0..if step < 250 { random.below(4) } else { 0 } {
                let plan = *random.pick(&["a", "b", "c"]);
                let most = if random.below(10) == 0 { 20 } else { 3 };
                let disks = 1 + random.below(most) as u32;
                let mut job =
                    AdmissionJob::pass(next, plan, disks).with_priority(1 + random.below(10) as u32);
                let mut needs = vec![(QuotaScope::Global, disks), (QuotaScope::Plan(plan.to_owned()), disks)];
                for scope in &scopes {
                    if random.below(2) == 0 {
                        job = job.on(scope, disks);
                        needs.push((scope.clone(), disks));
                    }
                }
                let cutover = random.below(12) == 0;
                if cutover {
                    job = job.of_cutover();
                }
                let needs = needs.into_iter().flat_map(|(scope, disks)| {
                    [(QuotaKind::Passes, 1), (QuotaKind::Snapshots, 1), (QuotaKind::Disks, disks)]
                        .map(|(kind, n)| (scope.clone(), kind, n))
                });
                let class = if cutover { JobClass::Cutover } else { JobClass::PreCopy };
                jobs.insert(next, Known { class, needs: needs.collect(), since: admissions });
                assert!(queue.submit(job));
                next += 1;
            }
            for id in running.clone() {
                if random.below(6) == 0 {
                    assert!(queue.remove(id));
                    running.remove(&id);
                    jobs.remove(&id);
                }
            }
            let used_before: BTreeMap<_, _> = limits
                .keys()
                .map(|(scope, kind)| ((scope.clone(), *kind), queue.used(scope, *kind)))
                .collect();
            twin = queue.clone();
            let admitted = queue.admit();
            assert_eq!(twin.admit(), admitted, "round {round}: the same twice");
            let what = format!("round {round}, step {step}: {admitted:?}");
            // 1. No limit is exceeded by what is admitted, except by a job that runs alone.
            for ((scope, kind), most) in limits.iter().filter(|(_, most)| **most > 0) {
                let newly: Vec<_> = admitted
                    .iter()
                    .flat_map(|id| &jobs[id].needs)
                    .filter(|(s, k, _)| (s, k) == (scope, kind))
                    .collect();
                let used = queue.used(scope, *kind);
                let alone = newly.len() == 1 && used_before[&(scope.clone(), *kind)] == 0;
                assert!(
                    newly.is_empty() || used <= *most || alone,
                    "{what}: {scope} {kind}: {used} of {most}"
                );
            }
            admissions += admitted.len() as u64;
            for id in &admitted {
                longest = longest.max(admissions - jobs[id].since);
                running.insert(*id);
            }
            let fits = |known: &Known| {
                known.needs.iter().all(|(scope, kind, amount)| {
                    let most = limits.get(&(scope.clone(), *kind)).copied().unwrap_or(0);
                    most == 0 || queue.used(scope, *kind) + (*amount).min(most) <= most
                })
            };
            let waiting: Vec<_> = queue.waiting().collect();
            assert_eq!(queue.running(), running, "{what}");
            assert_eq!(waiting.len() + running.len(), jobs.len(), "{what}");
            // 2. A cutover waits for running jobs, or for other cutovers, never for waiting pre-copies.
            for id in waiting.iter().filter(|id| jobs[id].class == JobClass::Cutover) {
                assert!(
                    !fits(&jobs[id])
                        || waiting.iter().any(|other| other != id && jobs[other].class == JobClass::Cutover),
                    "{what}: cutover {id} waits for nothing"
                );
            }
            // 3. If no job has lost patience, no capacity is left idle.
            let patient = waiting
                .iter()
                .all(|id| jobs[id].class == JobClass::PreCopy && admissions - jobs[id].since < PATIENCE);
            for id in waiting.iter().filter(|_| patient) {
                assert!(!fits(&jobs[id]), "{what}: {id} could run");
            }
            assert!(waiting.iter().all(|id| queue.why(*id).is_some()), "{what}");
        }
        // 4. When no new ones come, all get their turn.
        for _ in 0..2000 {
            if queue.waiting().next().is_none() {
                break;
            }
            for id in std::mem::take(&mut running) {
                queue.remove(id);
            }
            running.extend(queue.admit());
        }
        assert_eq!(queue.waiting().count(), 0, "round {round}");
    }
}

#[test]
fn two_thousand_disks_cost_few_steps() {
    let mut queue = AdmissionQueue::new();
    queue.set_limit(&QuotaScope::Global, limit(0, 40, 0));
    let mut disks = 0;
    for id in 0..500 {
        let (plan, host, store) = (format!("p{}", id % 10), format!("h{}", id % 16), format!("d{}", id % 8));
        let job = AdmissionJob::pass(id, &plan, 4)
            .on(&endpoint("old"), 4)
            .on(&endpoint("new"), 4)
            .on(&QuotaScope::Host(host.clone()), 4)
            .on(&QuotaScope::Datastore(store.clone()), 4);
        queue.set_limit(&QuotaScope::Host(host), limit(1, 0, 0));
        queue.set_limit(&QuotaScope::Datastore(store), limit(0, 16, 0));
        queue.submit(job);
        disks += 4;
    }
    assert_eq!(disks, 2000);
    let before = queue.steps();
    let mut running = queue.admit();
    assert_eq!(running.len(), 10);
    let first = queue.steps() - before;
    let (mut looks, mut most) = (0, 0);
    while let Some(id) = running.first().copied() {
        running.remove(0);
        queue.remove(id);
        let before = queue.steps();
        running.extend(queue.admit());
        most = most.max(queue.steps() - before);
        looks += 1;
    }
    println!("steps: first look {first}, most of the {looks} others {most}");
    assert_eq!(looks, 500);
    assert!(first < 12_000 && most < 12_000, "first look {first}, others up to {most}");
    // No change: no job is checked.
    queue.set_limit(&QuotaScope::Global, limit(1, 0, 0));
    for id in 0..500 {
        queue.submit(AdmissionJob::pass(1000 + id, "p", 4));
    }
    queue.admit();
    let before = queue.steps();
    queue.admit();
    assert!(queue.steps() - before < 300, "{}", queue.steps() - before);
}
