//! The forecast of a cutover and its uses, over simulated endpoints on a virtual clock.

use std::{num::NonZeroU64, time::Duration};

use warmd_core::{
    control::Control,
    model::{
        forecast::ForecastView,
        limit::LimitChange,
        plan::{CutoverMode, Plan, VerifyMode},
        request::{Request, RequestOutcome},
        scheduled_cutover::{CutoverOrder, ScheduledCutoverMode},
        state::State,
    },
};
use warmd_tests::simulated::{Rig, SimulatedWorld, on_a_clock};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;
const SIZE: u64 = 32 * MIB;
const NOON: &str = "2026-11-22T12:00:00Z";

fn plan(max_downtime: Option<u64>) -> Plan {
    let mut plan = Rig::plan(VerifyMode::None);
    plan.schedule = toml::from_str("every = \"5m\"").unwrap();
    plan.cutover.max_downtime = max_downtime.map(Duration::from_secs);
    plan.cutover.graceful_shutdown = Duration::from_secs(30);
    plan.cutover.delta_deadline = Duration::from_mins(5);
    plan
}

/// A guest that changes a block every `pause`, one after the other, for as long as the test runs.
fn write(world: SimulatedWorld, pause: Duration) {
    tokio::spawn(async move {
        for number in 0_u64.. {
            world.guest_writes("vda", number * BLOCK % SIZE, &vec![number as u8; BLOCK as usize]);
            tokio::time::sleep(pause).await;
        }
    });
}

/// A rig whose passes read a MiB in a second, seeded, of a guest that changes 64 KiB in each `pause`.
async fn rig(plan: Plan, pause: Duration) -> Rig {
    let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", SIZE)])).await;
    let rate = LimitChange::To { rate: Some(NonZeroU64::new(MIB)), requests: None };
    rig.manager.set_limit("global", rate, "test").await.unwrap();
    rig.world.guest_writes("vda", 0, &vec![1; SIZE as usize]);
    write(rig.world.clone(), pause);
    rig.seed(plan).await;
    rig
}

async fn forecast(rig: &Rig) -> ForecastView {
    rig.until("a forecast", |view| view.forecast.is_some()).await.forecast.unwrap()
}

async fn now(rig: &Rig, force: bool) -> RequestOutcome {
    let id = rig.view().await.id;
    rig.manager.cut_over(id, CutoverOrder { force, ..CutoverOrder::default() }, "test").await.unwrap()
}

#[test]
fn it_comes_with_the_first_delta_and_its_error_is_kept() {
    on_a_clock(NOON, async {
        let mut rig = rig(plan(None), Duration::from_secs(1)).await;
        assert_eq!(rig.view().await.forecast, None, "no delta has been measured");
        rig.sync().await;
        let told = forecast(&rig).await;
        let (down, delta) = (told.downtime, told.final_delta);
        assert!(down.low > 0.0 && down.low < down.expected && down.expected < down.high, "{told:?}");
        assert!(down.high < 60.0, "the deadlines bound it: {told:?}");
        assert!(delta.expected < 4e6 && delta.high > delta.expected, "{told:?}");
        assert!(
            told.against.is_empty() && told.converges && told.convergence.contains("deltas shrink"),
            "{told:?}"
        );
        assert!(told.remarks[0].contains("never measured"), "{told:?}");
        assert_eq!(rig.view().await.downtime_forecast, Some(down.expected));
        rig.restart().await;
        assert_eq!(forecast(&rig).await.remarks, told.remarks, "it is there again");
        assert_eq!(rig.cutover().await.state, State::Done);
        let id = rig.view().await.id;
        let measured = rig.store().measured_cutovers(id).await.unwrap();
        assert_eq!((measured.past.len(), measured.shutdown.len(), measured.snapshot.len()), (1, 1, 1));
        let past = measured.past[0];
        assert!(past.low < past.expected && past.expected < past.high, "{past:?}");
        let took = rig.view().await.cutover.unwrap().downtime.unwrap();
        assert!((past.measured - took).abs() < 1e-3, "{past:?} {took}");
    });
}

#[test]
fn what_does_not_converge_is_told_with_the_limit_to_blame() {
    on_a_clock(NOON, async {
        // Twice as much as a pass copies.
        let rig = rig(plan(None), Duration::from_millis(31)).await;
        rig.sync().await;
        let told = forecast(&rig).await;
        assert!(!told.converges, "{told:?}");
        assert!(told.convergence.contains("the limit global is to blame: it allows 1.00 MiB/s"), "{told:?}");
    });
}

#[test]
fn cutover_beyond_the_plans_downtime_is_refused_unless_forced() {
    on_a_clock(NOON, async {
        let rig = rig(plan(Some(5)), Duration::from_secs(1)).await;
        let RequestOutcome::Refused(why) = rig.request(Request::cutover()).await else {
            panic!("it was granted")
        };
        assert!(why.contains("no delta has been measured yet") && why.contains("--force"), "{why}");
        rig.sync().await;
        let told = forecast(&rig).await;
        assert!(told.against[0].contains("exceeds the 5s allowed"), "{told:?}");
        let RequestOutcome::Refused(why) = rig.request(Request::cutover()).await else {
            panic!("it was granted")
        };
        assert!(why.contains("exceeds the 5s allowed; most of it is the shutdown"), "{why}");
        assert_eq!(rig.view().await.state, State::Synced);
        assert_eq!(now(&rig, true).await, RequestOutcome::Accepted);
        rig.until("done", |view| view.state == State::Done).await;
        rig.world.assert_moved();
    });
}

#[test]
fn in_auto_mode_it_goes_as_soon_as_it_fits() {
    on_a_clock(NOON, async {
        let mut small = plan(Some(5));
        small.cutover.mode = CutoverMode::Auto;
        let rig = rig(small, Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_hours(2)).await;
        let view = rig.view().await;
        let waits = view.scheduled_cutover.expect("it waits");
        assert!(
            waits.mode == ScheduledCutoverMode::Auto && waits.why.contains("exceeds the 5s allowed"),
            "{waits:?}"
        );
        assert!(view.cutover.is_none() && rig.passes().await > 10, "it stays synced");
        let mut large = plan(Some(300));
        large.cutover.mode = CutoverMode::Auto;
        rig.manager_applies(large).await;
        rig.until("done", |view| view.state == State::Done).await;
        rig.world.assert_moved();
    });
}
