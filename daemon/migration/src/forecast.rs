//! The downtime: measured after a cutover, forecast before.
//!
//! Rule: a forecast uses measured passes of this migration and measured cutovers of all; before the first
//! delta there is none. Where nothing was measured, the plan's deadline bounds the assumption, and the
//! forecast says so.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    clock,
    model::{
        conversion::Conversion,
        cutover_record::CutoverRecord,
        forecast::{ForecastRange, ForecastView},
        plan::{Plan, VerifyMode},
    },
};
use warmd_schedules::{
    forecast::{self as model, CutoverStep, Delta, GoNoGo, MeasuredStep, Prior, blame, go_or_no_go},
    rules::{PassHistory, Rules},
};
use warmd_store::{MeasuredCutovers, StoreError};

use super::{
    context::Context,
    pass_history::{Known, known},
};

/// The assumed rate of a readback of a target, in bytes per second.
const VERIFY_RATE: f64 = 500e6;
/// The age of the snapshot of a pass that is pulled forward, when the window opens.
const FRESH: TimeDelta = TimeDelta::minutes(1);

/// A forecast, and what is saved of it when the cutover begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeptForecast {
    pub(super) view: ForecastView,
    /// The downtime without correction by earlier forecasts' errors, in seconds.
    pub(super) raw: ForecastRange,
}

/// The forecast of a cutover; `None` before a delta has been measured.
///
/// A catch-up delta comes first, so the final delta copies what the guest changes during it.
pub(super) async fn current_forecast(context: &Context) -> Result<Option<KeptForecast>, StoreError> {
    let (plan, now) = (context.plan(), clock::now());
    let Ok(rules) = context.rules() else { return Ok(None) };
    let Known { facts, learned, throughputs, .. } =
        known(&context.store, context.id, rules.zone, None).await?;
    let Some(throughput) = facts.drained_per_second.filter(|_| facts.change.known) else { return Ok(None) };
    let measured = context.store.measured_cutovers(context.id).await?;
    let bytes = context.machine.disks.iter().map(|disk| disk.size.0).sum::<u64>() as f64;

    let at = rules.cutover.next_open(now).map_or(now, |open| open.at);
    let live = live_delta(&facts, at, now, throughput);
    let change = facts.change.between(at, at + TimeDelta::milliseconds((live * 1e3) as i64));
    let delta = Delta {
        pending: 0.0,
        change,
        change_ratios: &learned.ratios,
        throughput,
        throughputs: &throughputs,
        deadline: plan.cutover.delta_deadline.as_secs_f64(),
    };
    let steps = steps((&plan, &context.conversion()), &measured, bytes);
    let Some(forecast) = model::forecast(&delta, &steps, &measured.past) else { return Ok(None) };
    let GoNoGo { against, remarks } = judged(&forecast, live, &plan, &rules, at);
    let overhead = facts.overhead.as_secs_f64();
    let blame = blame(facts.change.rate(now), throughput, overhead, &context.ceilings());
    let range = |range: model::PredictedRange| ForecastRange {
        low: range.low,
        expected: range.expected,
        high: range.high,
    };
    let view = ForecastView {
        at,
        final_delta: range(forecast.final_delta),
        downtime: range(forecast.downtime),
        against,
        remarks,
        converges: blame.settles_at.is_some(),
        convergence: blame.words,
    };
    Ok(Some(KeptForecast { view, raw: range(forecast.raw) }))
}

/// Seconds of the catch-up delta, while the VM still runs.
fn live_delta(facts: &PassHistory, at: DateTime<Utc>, now: DateTime<Utc>, throughput: f64) -> f64 {
    if at <= now {
        return facts.pass_takes(now);
    }
    facts.overhead.as_secs_f64() + facts.change.between(at - FRESH, at) / throughput
}

fn judged(forecast: &model::Forecast, live: f64, plan: &Plan, rules: &Rules, at: DateTime<Utc>) -> GoNoGo {
    let most = plan.cutover.max_downtime.map(|most| most.as_secs_f64());
    let ends = rules.cutover.next_close(at).map(|close| close.at);
    go_or_no_go(forecast, live, most, ends, at, rules.zone)
}

/// The steps between the source's stop and the target's start, without the final delta's copying.
fn steps<'a>(
    (plan, conversion): (&Plan, &Conversion),
    measured: &'a MeasuredCutovers,
    bytes: f64,
) -> Vec<MeasuredStep<'a>> {
    let policy = &plan.cutover;
    let until = |typical, worst, most: Duration| Prior::until(typical, worst, most.as_secs_f64());
    let mut steps = vec![
        MeasuredStep {
            step: CutoverStep::Shutdown,
            seconds: &measured.shutdown,
            prior: until(3.0, 30.0, policy.graceful_shutdown),
        },
        MeasuredStep {
            step: CutoverStep::Snapshot,
            seconds: &measured.snapshot,
            prior: until(1.0, 10.0, policy.delta_deadline),
        },
        MeasuredStep {
            step: CutoverStep::Create,
            seconds: &measured.create,
            prior: until(1.0, 10.0, policy.create_deadline),
        },
        MeasuredStep {
            step: CutoverStep::Boot,
            seconds: &measured.start,
            prior: until(1.0, 10.0, policy.create_deadline),
        },
    ];
    if plan.verify.mode != VerifyMode::None {
        let typical = bytes / VERIFY_RATE;
        let prior = until(typical, 4.0 * typical, policy.verify_deadline);
        steps.push(MeasuredStep { step: CutoverStep::Verify, seconds: &measured.verify, prior });
    }
    if let Some(timeout) = conversion.timeout() {
        // The command's duration is unknown until measured: only the plan's deadline bounds it.
        let prior = until(60.0, timeout.as_secs_f64(), timeout);
        steps.push(MeasuredStep { step: CutoverStep::Convert, seconds: &measured.convert, prior });
    }
    let down = plan.hooks.iter().filter(|hook| hook.phase.is_downtime());
    let longest: f64 =
        down.clone().map(|hook| hook.timeout.as_secs_f64() * f64::from(hook.retries + 1)).sum();
    let count = down.count() as f64;
    if count > 0.0 {
        let prior = Prior::until(count, 10.0 * count, longest);
        steps.push(MeasuredStep { step: CutoverStep::Hooks, seconds: &measured.hooks, prior });
    }
    steps
}

/// Why no cutover may begin now, if the forecast exceeds the plan's limits.
pub(super) async fn veto(context: &Context) -> Option<String> {
    let (plan, now) = (context.plan(), clock::now());
    let most = plan.cutover.max_downtime;
    if most.is_none() && context.rules().is_ok_and(|rules| rules.cutover.next_close(now).is_none()) {
        return None;
    }
    match current_forecast(context).await {
        Ok(Some(told)) if told.view.against.is_empty() => None,
        Ok(Some(told)) => Some(told.view.against.join("; ")),
        Ok(None) => most.map(|most| {
            let most = humantime::format_duration(most);
            format!(
                "no delta has been measured yet, so it is not known whether the VM is down for less than {most}"
            )
        }),
        Err(error) => {
            tracing::error!(migration = %context.id, %error, "no forecast");
            most.map(|_| format!("the downtime cannot be foretold: {error}"))
        }
    }
}

/// Seconds from the source stopped to the target running; `None` until both have happened.
pub fn measured_downtime(cutover: &CutoverRecord) -> Option<f64> {
    Some((cutover.target_running? - cutover.source_stopped?).as_seconds_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_downtime_runs_from_stop_to_start() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        let mut cutover = CutoverRecord { source_stopped: at(10), ..CutoverRecord::default() };
        assert_eq!(measured_downtime(&cutover), None);
        cutover.target_running = at(17);
        assert_eq!(measured_downtime(&cutover), Some(7.0));
    }

    #[test]
    fn hooks_verification_and_conversion_count_if_there_are_any() {
        let text = "name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]\n[verify]\nmode = \"none\"\n";
        let hook = "[[hooks]]\nphase = \"verify\"\nwhen = \"after\"\ncommand = [\"/x\"]\n";
        let early = hook.replace("verify", "catch-up-delta");
        let of = |text: &str| {
            let plan: Plan = toml::from_str(text).unwrap();
            let told: Vec<_> = steps((&plan, &plan.conversion), &MeasuredCutovers::default(), 1e9)
                .iter()
                .map(|each| each.step)
                .collect();
            told
        };
        let always =
            vec![CutoverStep::Shutdown, CutoverStep::Snapshot, CutoverStep::Create, CutoverStep::Boot];
        assert_eq!(of(&format!("{text}{early}")), always);
        assert_eq!(of(&format!("{text}{hook}")), [always.clone(), vec![CutoverStep::Hooks]].concat());
        assert_eq!(
            of(&text.replace("none", "readback")),
            [always.clone(), vec![CutoverStep::Verify]].concat()
        );
        let converted = format!("{text}[conversion]\ncommand = [\"/x\"]\n");
        assert_eq!(of(&converted), [always, vec![CutoverStep::Convert]].concat());
    }
}
