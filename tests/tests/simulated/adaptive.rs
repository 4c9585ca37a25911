//! Passes at intervals from learned change rates, over simulated endpoints on a virtual clock.

use std::{num::NonZeroU64, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    control::Control,
    model::{
        limit::LimitChange,
        plan::{Plan, VerifyMode},
        view::PassView,
    },
};
use warmd_tests::simulated::{Rig, SimulatedWorld, on_a_clock};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;
const SIZE: u64 = 32 * MIB;
const NOON: &str = "2026-11-22T12:00:00Z";

fn plan(adaptive: &str) -> Plan {
    let mut plan = Rig::plan(VerifyMode::None);
    plan.schedule = toml::from_str(&format!("adaptive = {{ {adaptive} }}")).expect("the test's own schedule");
    plan
}

/// A guest that changes a block every `pause`, one after the other, for as long as the test runs.
fn write(world: SimulatedWorld, pause: Duration) {
    tokio::spawn(async move {
        for number in 0_u64.. {
            let at = number * BLOCK % SIZE;
            world.guest_writes("vda", at, &vec![number as u8; BLOCK as usize]);
            tokio::time::sleep(pause).await;
        }
    });
}

async fn passes(rig: &Rig) -> Vec<PassView> {
    let id = rig.view().await.id;
    rig.store().passes(id).await.unwrap().into_iter().map(|pass| pass.view).collect()
}

/// A rig whose passes read a MiB in a second.
async fn rig(adaptive: &str, pause: Duration) -> Rig {
    let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", SIZE)])).await;
    let rate = LimitChange::To { rate: Some(NonZeroU64::new(MIB)), requests: None };
    rig.manager.set_limit("global", rate, "test").await.unwrap();
    write(rig.world.clone(), pause);
    rig.seed(plan(adaptive)).await;
    rig
}

/// The greatest age of the copy before each pass's end, in seconds: from the previous snapshot to the end.
fn ages(passes: &[PassView]) -> Vec<i64> {
    let age = |pair: &[PassView]| (pair[1].ended.unwrap() - pair[0].started).num_seconds();
    passes.windows(2).map(age).collect()
}

fn since(passes: &[PassView], at: DateTime<Utc>) -> &[PassView] {
    let first = passes.iter().position(|pass| pass.started >= at).expect("passes since");
    &passes[first..]
}

#[test]
fn a_target_rpo_holds_at_few_passes_also_over_a_restart() {
    on_a_clock(NOON, async {
        // A tenth of what a pass copies in the same time.
        let mut rig = rig("rpo = \"20m\", shortest = \"30s\"", Duration::from_millis(625)).await;
        let begun: DateTime<Utc> = NOON.parse().unwrap();
        tokio::time::sleep(Duration::from_hours(4)).await;
        let all = passes(&rig).await;
        let settled = since(&all, begun + TimeDelta::hours(1));
        let told = ages(settled);
        assert!(told.iter().all(|age| (840..=1200).contains(age)), "{told:?}");
        let why = rig.view().await.next_pass_why.unwrap_or_default();
        assert!(why.contains("RPO 20m") && why.contains("will have changed"), "{why}");
        let learned = rig.store().change_rates(rig.view().await.id).await.unwrap().expect("it is kept");
        assert_eq!((learned.zone.as_str(), learned.passes), ("UTC", all.last().unwrap().number));

        rig.restart().await;
        let after = rig.until("waits again", |view| view.next_pass_why.is_some()).await;
        assert!(after.next_pass_why.unwrap().contains("RPO 20m"), "nothing is forgotten");
        assert_eq!(
            rig.store().change_rates(after.id).await.unwrap().as_ref(),
            Some(&learned),
            "nor counted twice"
        );
        tokio::time::sleep(Duration::from_hours(2)).await;
        let all = passes(&rig).await;
        let told = ages(since(&all, begun + TimeDelta::hours(3)));
        assert!(told.iter().all(|age| (840..=1200).contains(age)), "{told:?}");
    });
}

#[test]
fn final_delta_target_holds_and_a_busier_guest_syncs_more() {
    on_a_clock(NOON, async {
        let rig = rig("final_delta = \"4MiB\", shortest = \"10s\"", Duration::from_secs(10)).await;
        let begun: DateTime<Utc> = NOON.parse().unwrap();
        tokio::time::sleep(Duration::from_hours(4)).await;
        let quiet = passes(&rig).await;
        let changed = |passes: &[PassView]| -> Vec<u64> {
            passes[1..].iter().map(|pass| pass.disks[0].changed / BLOCK).collect()
        };
        let told = changed(since(&quiet, begun + TimeDelta::hours(1)));
        assert!(told.iter().all(|blocks| (45..=64).contains(blocks)), "{told:?}");
        // Three times as much.
        write(rig.world.clone(), Duration::from_secs(5));
        tokio::time::sleep(Duration::from_hours(4)).await;
        let all = passes(&rig).await;
        let busy = since(&all, begun + TimeDelta::hours(7));
        let spacing = (busy[1].started - busy[0].started).num_seconds();
        let before = (quiet[quiet.len() - 1].started - quiet[quiet.len() - 2].started).num_seconds();
        assert!(spacing * 2 < before, "{spacing} s after {before} s");
        let told = changed(busy);
        // The change rate of quiet days fades slowly: too much changes at first, and less with each pass.
        let last = *told.last().unwrap();
        assert!(last <= 66 && told.iter().all(|blocks| *blocks <= 96), "{told:?}");
    });
}
