//! The deterministic simulation: the real driver, ledger, engine and store on a virtual clock, between a
//! simulated source and target, with everything that can go wrong drawn from a seed.
//!
//! Rule: a seed means one run. It does not depend on the machine, its clock or its threads; two runs of a
//! seed have the same trace. Violations are checked for at every step, not at the end.
//!
//! ```text
//! users ──▶ Manager ─▶ Driver ─▶ pass, cutover, verify ─▶ gate ─▶ world: VMs, marks, target disks
//!                        │                                 │ is slow, fails, loses the answer, hangs, dies
//!                        ▼                                 ▼
//!                      Store ─▶ commit ─▶ durable: is the ledger true? the step legal? the journal complete?
//! ```

#![allow(clippy::expect_used, reason = "how a test fails")]

mod afterwards;
mod chance;
mod durable;
mod groups;
mod guests;
mod legal;
mod life;
mod pages;
mod panics;
mod people;
mod power;
mod restored;
mod scenario;
mod source;
mod target;
mod trace;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use warmd_core::model::phase::Phase;

pub use self::world::SimulationCounts;
use self::{
    chance::Chance,
    durable::Durable,
    groups::GroupSeen,
    life::{End, SimulatedLife},
    pages::Pages,
    scenario::Scenario,
    trace::Trace,
    world::{SimulationWorld, Truth, Vm},
};

/// The result of a seed.
#[derive(Clone, Debug)]
pub struct SimulationOutcome {
    pub seed: u64,
    /// Hash of the trace.
    pub hash: u64,
    pub steps: u64,
    /// Real time.
    pub took: Duration,
    pub counts: SimulationCounts,
    /// The violations that happened.
    pub violations: Vec<String>,
}

/// Runs a simulation; with `tells` every event is printed.
pub fn run(seed: u64, tells: bool) -> SimulationOutcome {
    static DATABASES: AtomicU64 = AtomicU64::new(0);
    panics::watch();
    let begun = Instant::now();
    let mut chance = Chance::new(seed);
    // A separate stream: without groups a seed means the same run as before groups existed.
    let mut together = Chance::new(seed ^ 0x0067_726f_7570_7364);
    let scenario = Scenario::new(&mut chance, &mut together);
    let database = format!("file:/simulation-{}?vfs=memdb", DATABASES.fetch_add(1, Relaxed));
    let mut now = DateTime::<Utc>::UNIX_EPOCH;
    let mut crashes = chance.split();
    let people = chance.split();
    // Likewise for autostart.
    let mut holding = Chance::new(seed ^ 0x0068_6f6c_6469_6e67);
    let truth = truth(&scenario, &mut chance, &mut holding, tells);
    let stage = SimulatedLife {
        calm_from: now + world::delta(scenario.chaos),
        world: SimulationWorld::new(truth),
        durable: Arc::new(Mutex::new(Durable::new(database).expect("a database in memory"))),
        people: Mutex::new(people),
        together: Mutex::new(together),
        // Likewise for settings of the clock.
        clocks: Mutex::new(Chance::new(seed ^ 0x0063_6c6f_636b_7321)),
        holding: Mutex::new(holding),
        scenario,
    };
    let mut left = stage.scenario.crashes;
    loop {
        {
            let mut truth = stage.world.between_lives();
            truth.dead = false;
            truth.close_barrier();
            if stage.scenario.meddling && now < stage.calm_from && crashes.happens(900) {
                life::between(now, || people::run_unwatched(&mut truth, &mut crashes));
            }
            if stage.scenario.meddling && now < stage.calm_from && crashes.happens(300) {
                life::between(now, || people::start_unwatched(&mut truth, &mut crashes));
            }
            if stage.scenario.restores && now < stage.calm_from && crashes.happens(800) {
                let mut durable = stage.durable.lock().unwrap_or_else(PoisonError::into_inner);
                life::between(now, || durable.restore(&mut truth).expect("the copy is whole"));
            }
            (truth.dies_at, truth.dies_in, truth.copy_at) = (None, None, None);
            if left > 0 && now < stage.calm_from {
                if crashes.happens(400) {
                    truth.dies_in = Some(crashes.one_of(&Phase::ALL));
                } else {
                    truth.dies_at = Some(truth.steps + crashes.magnitude(1500));
                }
            }
            if stage.scenario.restores {
                truth.copy_at = Some(truth.steps + crashes.magnitude(600));
            }
            left = left.saturating_sub(1);
        }
        let (end, then) = life::run(&stage, now);
        now = then;
        if end == End::Over || !stage.world.between_lives().violations.is_empty() {
            break;
        }
    }
    let mut truth = stage.world.between_lives();
    truth.violations.extend(panics::taken());
    SimulationOutcome {
        seed,
        hash: truth.trace.hash(),
        steps: truth.steps,
        took: begun.elapsed(),
        counts: truth.counts.clone(),
        violations: std::mem::take(&mut truth.violations),
    }
}

fn truth(scenario: &Scenario, chance: &mut Chance, holding: &mut Chance, tells: bool) -> Truth {
    let vms = scenario.vms.iter().map(|scene| {
        let disks = scene.disks.iter().map(|(key, size)| {
            let mut pages = Pages::filled(*size, 0);
            for _ in 0..chance.below(12) {
                let len = chance.magnitude((512 << 10).min(*size));
                let at = chance.below(size - len + 1);
                pages.fill(at, len, chance.between(0, 3) as u8);
            }
            (key.clone(), pages)
        });
        let vm = Vm {
            name: scene.name.clone(),
            runs: true,
            heeds_shutdown: scene.heeds_shutdown,
            goes_off: None,
            disks: disks.collect(),
            marks: BTreeMap::new(),
            marks_made: 0,
            snapshot: None,
            images: BTreeMap::new(),
            wanted: Some(true),
            starters: power::starters(holding),
            phase: None,
            phase_since: None,
            comes_on: None,
            rests: None,
        };
        (scene.name.clone(), vm)
    });
    let vms = vms.collect();
    Truth {
        chance: chance.split(),
        faults: scenario.faults,
        store_faults: scenario.store_faults,
        steps: 0,
        dies_at: None,
        dies_in: None,
        copy_at: None,
        stale: [].into(),
        meddling: scenario.meddling,
        dead: false,
        reads_zero: scenario.reads_zero,
        vms,
        targets: BTreeMap::new(),
        ledgers: BTreeMap::new(),
        told: [].into(),
        group: scenario.plan.is_grouped().then(GroupSeen::default),
        states: BTreeMap::new(),
        counts: SimulationCounts::default(),
        trace: Trace::new(tells),
        violations: Vec::new(),
    }
}
