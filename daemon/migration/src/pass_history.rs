//! The pass history of a migration, the input of its schedule.
//!
//! Rule: everything comes from passes in the store. Their disks' changes are learnt once, in order, and saved
//! with the resulting state: a restart loses nothing, and counts nothing twice.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_core::model::{id::MigrationId, view::PassKind};
use warmd_schedules::{
    Tz,
    change_rate::ExpectedChange,
    rules::{LastPass, PassHistory},
};
use warmd_store::{ChangeRates, PassFacts, Store, StoreError};

/// Passes from which the copy rate is computed.
const RECENT: u32 = 16;
/// The maximum number of passes to learn from at first, if they are of an older warmd, or the zone has
/// changed.
const FAR: u32 = 500;
/// Deltas whose ratio is kept.
const RATIOS: usize = 32;
/// Expected bytes below which a delta's ratio is ignored.
const TELLING: f64 = 65_536.0;
/// The limit of ratios: one pass without changes does not mean that there never are any.
const FAR_OFF: f64 = 10.0;
/// The weight of a pass's rate relative to the next one.
const FADING: f64 = 0.8;

/// The pass history of a migration.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) facts: PassHistory,
    pub(super) learned: ChangeRates,
    /// Of single passes, bytes per second; the oldest first.
    pub(super) throughputs: Vec<f64>,
    /// Whether it has more than the store.
    pub(super) is_new: bool,
}

/// The pass history of the migration, in `zone`, with a cutover requested at `cutover_at`.
pub(super) async fn known(
    store: &Store,
    id: MigrationId,
    zone: Tz,
    cutover_at: Option<DateTime<Utc>>,
) -> Result<Known, StoreError> {
    let stored = store.change_rates(id).await?.filter(|learned| learned.zone == zone.name());
    let mut learned =
        stored.unwrap_or_else(|| ChangeRates { zone: zone.name().to_owned(), ..ChangeRates::default() });
    let before = learned.passes;
    let mut passes = store.recent_passes(id, RECENT).await?;
    if passes.first().is_some_and(|first| first.number > learned.passes.max(1)) {
        passes = store.recent_passes(id, FAR).await?;
    }
    learn(&mut learned, &passes, zone);
    let recent = &passes[passes.len().saturating_sub(RECENT as usize)..];
    let CopyRate { drained_per_second, overhead, throughputs } = speed(recent);
    // A pass that was cut off has no end: it counts from its start, so that it is not repeated at once.
    let last = passes
        .last()
        .map(|pass| LastPass { snapshot: pass.started, ended: pass.ended.unwrap_or(pass.started) });
    let change = ExpectedChange::of(learned.disks.values(), zone);
    let facts = PassHistory { last, change, drained_per_second, overhead, cutover_at };
    Ok(Known { facts, is_new: learned.passes > before, learned, throughputs })
}

/// Learns what changed from one snapshot to the next. Changes that the source could not report do not count.
fn learn(learned: &mut ChangeRates, passes: &[PassFacts], zone: Tz) {
    for pair in passes.windows(2) {
        let [before, pass] = pair else { continue };
        if pass.number <= learned.passes {
            continue;
        }
        if let Some(ratio) = ratio(learned, before, pass, zone) {
            learned.ratios.push(ratio);
            let over = learned.ratios.len().saturating_sub(RATIOS);
            learned.ratios.drain(..over);
        }
        for disk in &pass.disks {
            let Some(changed) = disk.changed else { continue };
            let rhythm = learned.disks.entry(disk.key.clone()).or_default();
            rhythm.observe(changed, before.started, pass.started, zone);
        }
        learned.passes = pass.number;
    }
}

/// The changed bytes of a delta ÷ those expected from all earlier passes.
fn ratio(learned: &ChangeRates, before: &PassFacts, pass: &PassFacts, zone: Tz) -> Option<f64> {
    let told = || pass.disks.iter().filter(|disk| disk.changed.is_some());
    let rhythms: Option<Vec<_>> =
        told().map(|disk| learned.disks.get(&disk.key).filter(|rhythm| rhythm.knows())).collect();
    let expected = ExpectedChange::of(rhythms?, zone).between(before.started, pass.started);
    let changed: u64 = told().filter_map(|disk| disk.changed).sum();
    (expected >= TELLING).then(|| (changed as f64 / expected).clamp(1.0 / FAR_OFF, FAR_OFF))
}

/// The copy rate of passes.
#[derive(Debug, Default, PartialEq)]
struct CopyRate {
    drained_per_second: Option<f64>,
    overhead: Duration,
    throughputs: Vec<f64>,
}

/// The bytes per second that passes drain, and their overhead. Large passes show the rate, and small ones the
/// overhead, the least time of any pass.
///
/// The rate of a single pass is used if at least half of its time was copying.
fn speed(passes: &[PassFacts]) -> CopyRate {
    let ended = passes.iter().rev().filter(|pass| !pass.failed && pass.kind != PassKind::Final);
    let measured: Vec<_> = ended
        .filter_map(|pass| {
            let took = (pass.ended? - pass.started).as_seconds_f64();
            let bytes: u64 = pass.disks.iter().map(|disk| disk.pending).sum();
            (took > 0.0).then_some((bytes as f64, took))
        })
        .collect();
    let (mut rates, mut weights, mut age) = (0.0, 0.0, 1.0);
    for (bytes, took) in &measured {
        rates += age * bytes * bytes / took;
        weights += age * bytes;
        age *= FADING;
    }
    if weights <= 0.0 {
        return CopyRate::default();
    }
    let rate = rates / weights;
    let extra: f64 = measured.iter().map(|(bytes, took)| (took - bytes / rate).max(0.0)).sum();
    let extra = extra / measured.len() as f64;
    let overhead = Duration::try_from_secs_f64(extra).unwrap_or_default();
    let copying = measured.iter().rev().filter(|(bytes, took)| bytes / rate >= extra && *took > extra);
    let throughputs = copying.map(|(bytes, took)| bytes / (took - extra)).collect();
    CopyRate { drained_per_second: Some(rate), overhead, throughputs }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use warmd_core::model::id::DiskKey;
    use warmd_store::DiskFacts;

    const MIB: u64 = 1 << 20;

    fn pass(number: u32, minute: i64, took: i64, pending: u64, unknown: bool) -> PassFacts {
        let started = DateTime::from_timestamp(minute * 60, 0).unwrap();
        let changed = (!unknown).then_some(pending);
        PassFacts {
            number,
            kind: if number == 1 { PassKind::Full } else { PassKind::Delta },
            started,
            ended: Some(started + TimeDelta::seconds(took)),
            failed: false,
            disks: vec![DiskFacts { key: DiskKey("vda".to_owned()), pending, changed }],
        }
    }

    #[test]
    fn what_changed_is_learnt_once_and_what_is_not_known_is_not() {
        let passes = [
            pass(1, 0, 100, 6000 * MIB, true),
            pass(2, 10, 1, 600 * MIB, false),
            pass(3, 20, 100, 6000 * MIB, true),
            pass(4, 30, 1, 600 * MIB, false),
        ];
        let mut learned = ChangeRates::default();
        learn(&mut learned, &passes[..2], Tz::UTC);
        let once = learned.clone();
        learn(&mut learned, &passes[..2], Tz::UTC);
        assert_eq!(learned, once);
        learn(&mut learned, &passes, Tz::UTC);
        assert_eq!(learned.passes, 4);
        // The second pass checks the prediction of the first: the third, of which nothing is known, is left
        // out.
        let [ratio] = learned.ratios[..] else { panic!("{:?}", learned.ratios) };
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        let change = ExpectedChange::of(learned.disks.values(), Tz::UTC);
        let rate = change.rate(passes[3].started) / MIB as f64;
        assert!((0.99..1.01).contains(&rate), "{rate} MiB/s");
    }

    #[test]
    fn large_passes_tell_the_rate_and_small_ones_what_comes_beside() {
        let passes =
            [pass(1, 0, 100, 10_000 * MIB, true), pass(2, 10, 2, MIB, false), pass(3, 20, 2, 2 * MIB, false)];
        let CopyRate { drained_per_second, overhead, throughputs } = speed(&passes);
        let rate = drained_per_second.unwrap() / MIB as f64;
        assert!((95.0..101.0).contains(&rate), "{rate}");
        assert!((1.0..2.0).contains(&overhead.as_secs_f64()), "{overhead:?}");
        // The small ones do not show it.
        let [full] = throughputs[..] else { panic!("{throughputs:?}") };
        assert!((95.0..105.0).contains(&(full / MIB as f64)), "{full}");
        assert_eq!(speed(&[]), CopyRate::default());
    }
}
