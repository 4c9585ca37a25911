//! Verification that the target holds what the source held.
//!
//! Rule: a mismatch is never only reported: its blocks become pending, so that the next pass copies them
//! again. And it is never hidden: the result is saved and journaled before any other step.

mod done;
mod part;
mod shown;

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed};

use warmd_cbt::{
    ledger::Ledger,
    stop::StopSignal,
    store::DiskId,
    units::{Extent, Length, Offset},
    verify::{VerifyJob, VerifyOutcome, VerifyProgress},
};
use warmd_core::{
    clock, format,
    model::{
        event_kind::EventKind,
        plan::VerifyMode,
        state::State,
        verify::{VerifyOrder, VerifyScope},
        view::{DiskVerifyResult, PassKind, VerifyResult},
    },
    sources::Snapshot,
};
use warmd_store::{DiskRow, VerifyCursor};
use warmd_transfer::verify::{VerifyKeeper, verify_disk};

pub use self::shown::show;
use self::{part::VerifyParts, shown::VerificationProgress};
use super::{
    admission, audit,
    context::Context,
    conversion,
    failure::WorkError,
    pass::{self, OnDrained, PassEnd},
    retry::Retry,
};

/// Mismatched extents that a result lists.
const LISTED: usize = 100;
/// Retries to make mismatched blocks pending.
const DISTRUST_RETRIES: u32 = 4;

/// The verification required before the VM may be created: the plan's; and a full compare with the source, if
/// the source has a tracking fault.
pub async fn owed(context: &Context) -> Result<VerifyOrder, WorkError> {
    let plan = context.plan();
    let rows = context.store.disks(context.id).await?;
    if rows.iter().any(|row| row.tracking_fault.is_some()) {
        return Ok(VerifyOrder { mode: VerifyMode::Compare, ..VerifyOrder::default() });
    }
    Ok(VerifyOrder { mode: plan.verify.mode, scope: plan.verify.scope, ..VerifyOrder::default() })
}

/// A verification that was requested alone. `Ok(None)` if it was stopped.
pub async fn alone(
    context: &Context,
    order: &VerifyOrder,
    stop: &StopSignal,
) -> Result<Option<VerifyResult>, WorkError> {
    if order.mode != VerifyMode::Compare {
        return run_readback(context, order, stop).await;
    }
    // It includes a pass, which writes to the target.
    if context.state() != State::Synced {
        return Err(WorkError::operator("a comparison needs a migration that is synced".to_owned()));
    }
    let compare = CompareSnapshot::new(context, order, stop, true);
    match admission::pass(context, PassKind::Delta, stop, Some(&compare)).await? {
        PassEnd::Drained => Ok(compare.into_result()),
        PassEnd::Stopped => Ok(None),
    }
}

/// Reads the target again and compares it with the manifest. `Ok(None)` if it was stopped.
pub async fn run_readback(
    context: &Context,
    order: &VerifyOrder,
    stop: &StopSignal,
) -> Result<Option<VerifyResult>, WorkError> {
    done::check(context, order).await?;
    run_verification(context, order, None, stop, false).await
}

/// Compares an open snapshot with the target, and saves the result.
#[derive(Debug)]
pub struct CompareSnapshot<'a> {
    context: &'a Context,
    order: &'a VerifyOrder,
    stop: StopSignal,
    /// Whether a loaded source is read more slowly; a source that is off is not spared.
    spares_source: bool,
    result: Mutex<Option<VerifyResult>>,
}

impl<'a> CompareSnapshot<'a> {
    /// To be run when the snapshot is drained. Spares a loaded source, unless it is off.
    pub fn new(context: &'a Context, order: &'a VerifyOrder, stop: &StopSignal, spares_source: bool) -> Self {
        Self { context, order, stop: stop.clone(), spares_source, result: Mutex::default() }
    }

    /// The result; `None` if it was stopped.
    pub fn into_result(self) -> Option<VerifyResult> {
        self.result.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl OnDrained for CompareSnapshot<'_> {
    async fn run(&self, snapshot: &dyn Snapshot) -> Result<(), WorkError> {
        let result =
            run_verification(self.context, self.order, Some(snapshot), &self.stop, self.spares_source)
                .await?;
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        Ok(())
    }
}

async fn run_verification(
    context: &Context,
    order: &VerifyOrder,
    snapshot: Option<&dyn Snapshot>,
    stop: &StopSignal,
    spares_source: bool,
) -> Result<Option<VerifyResult>, WorkError> {
    let mut rows = Vec::new();
    for row in done::disks(context, order).await? {
        let ledger = context.ledger(row.id).await?;
        rows.push((row, ledger));
    }
    let parts = VerifyParts::load(context, order, &rows).await?;
    let shown = VerificationProgress::start(context, order, parts.seed);
    let mut jobs = Vec::new();
    let mut total = 0;
    for (row, ledger) in rows {
        let (part, cursor) = parts.of(context, order, &row, &ledger).await?;
        total += part.only.as_ref().map_or(row.size, |only| only.bytes()).0;
        shown.total(total);
        jobs.push((row, ledger, part, cursor));
    }
    let mut disks = Vec::new();
    let mut found: Vec<(DiskId, VerifyOutcome)> = Vec::new();
    let mut detectors = Vec::new();
    let sizes: Vec<Length> = jobs.iter().map(|(row, ..)| row.size).collect();
    for (row, ledger, part, cursor) in jobs {
        let progress = Arc::new(VerifyProgress::default());
        let job = VerifyJob {
            ledger: Arc::clone(&ledger),
            part,
            pool: context.pool(context.is_cutting_over()),
            chunk: context.engine.settings.chunk,
            in_flight: context.engine.settings.reads_in_flight,
            read_latency_factor: context.engine.settings.read_latency_factor.filter(|_| spares_source),
            baseline: context.baseline(row.id).await,
            // A source with a tracking fault is not trusted at all, its holes included.
            trust_holes: snapshot.is_none() || row.tracking_fault.is_none(),
            round: parts.round(),
            progress: Arc::clone(&progress),
            limits: context.shares(&row.key),
            stop: stop.clone(),
        };
        let (target, detector) = done::open_image(context, order, &row).await?.into_parts();
        detectors.extend(detector);
        shown.disk(&progress);
        let source = match snapshot {
            Some(snapshot) => Some(snapshot.open(&row.key).await?),
            None => None,
        };
        let is_compared = source.is_some();
        let keeper = DiskKeeper { context, parts: &parts, cursor: &cursor, row: &row, ledger: &ledger };
        let outcome = verify_disk(job, target, source, &keeper).await?;
        if is_compared && spares_source {
            context.keep_baseline(row.id).await;
            pass::tell_strain(context, &row.key, progress.held_back.load(Relaxed)).await;
        }
        if !outcome.finished {
            return Ok(None);
        }
        let mismatches = outcome.mismatched.iter().take(LISTED);
        disks.push(DiskVerifyResult {
            image: order.images.get(&row.key.0).cloned(),
            key: row.key,
            checked: outcome.checked.0,
            mismatched_bytes: outcome.mismatched_bytes.0,
            mismatches: mismatches.map(|extent| (extent.start().0, extent.len().0)).collect(),
            root: outcome.root.clone(),
        });
        found.push((ledger.disk(), outcome));
    }
    if context.state() == State::Done {
        done::check_again(context, order, &detectors).await?;
    }
    let result = VerifyResult {
        mode: order.mode,
        at: clock::now(),
        disks,
        scope: order.scope,
        seed: parts.seed,
        miss_probabilities: parts.miss_probabilities(order, &sizes),
    };
    keep(context, order, &parts, &result, &found).await?;
    shown.end(&result);
    Ok(Some(result))
}

/// Keeps the findings of the verification of one disk in the state.
struct DiskKeeper<'a> {
    context: &'a Context,
    parts: &'a VerifyParts,
    cursor: &'a VerifyCursor,
    row: &'a DiskRow,
    ledger: &'a Ledger,
}

#[async_trait::async_trait]
impl VerifyKeeper for DiskKeeper<'_> {
    type Error = WorkError;

    /// The next pass copies mismatched blocks again; a source with unreported changes is no longer trusted.
    /// After the hand-over there is no pass: the disks belong to the target.
    async fn found(&self, wrong: Vec<Extent>, unreported: Vec<Extent>) -> Result<(), WorkError> {
        let (context, row) = (self.context, self.row);
        if wrong.is_empty() || context.state() == State::Done {
            return Ok(());
        }
        let mut retry = Retry::times(DISTRUST_RETRIES);
        loop {
            let noted = async {
                if !unreported.is_empty() {
                    audit::found_out(context, row, &unreported).await?;
                }
                Ok::<_, WorkError>(self.ledger.distrust(&wrong).await?)
            };
            let Err(error) = noted.await else { break };
            tracing::error!(migration = %context.id, %error, "what differs is not noted");
            if !retry.pause().await {
                return Err(error);
            }
        }
        if !unreported.is_empty() {
            audit::count(context, row, 0, unreported.iter().map(|extent| extent.len().0).sum());
        }
        Ok(())
    }

    async fn reached(&self, at: Offset) -> Result<(), WorkError> {
        self.parts.keep(self.context, self.cursor, at).await
    }

    fn not_kept(&self, error: WorkError) {
        tracing::warn!(migration = %self.context.id, %error, "how far the verification is was not kept");
    }
}

/// Saves the result, with the blocks that it verified, and writes it to the journal.
async fn keep(
    context: &Context,
    order: &VerifyOrder,
    parts: &VerifyParts,
    result: &VerifyResult,
    found: &[(DiskId, VerifyOutcome)],
) -> Result<(), WorkError> {
    let equal = found.iter().filter(|(_, outcome)| outcome.is_equal()).map(|(disk, _)| *disk);
    let proven = if part::proves_changes(order) { equal.collect() } else { Vec::new() };
    context.store.end_verification(context.id, &parts.what, result, proven).await?;
    let checked: u64 = result.disks.iter().map(|disk| disk.checked).sum();
    let what = words(result);
    let text = if result.passed() {
        format!("{what} passed: {} on the target are right{}", format::bytes(checked), miss(result))
    } else if context.state() == State::Done {
        let converted = if conversion::in_force(context).await?.is_some() {
            "; an image that was taken after the conversion differs where that changed it"
        } else {
            ""
        };
        let wrong = mismatches(result);
        format!("{what} FAILED: {wrong}; it was done already, so nothing is copied again{converted}")
    } else {
        format!("{what} FAILED: {}; these extents will be copied again", mismatches(result))
    };
    context.log_event(EventKind::Verification, text).await;
    Ok(())
}

/// Mode and scope: `readback`, `readback (sample=1%, seed 7)`.
fn words(result: &VerifyResult) -> String {
    match (result.scope, result.seed) {
        (VerifyScope::Full, _) => result.mode.to_string(),
        (scope, None) => format!("{} ({scope})", result.mode),
        (scope, Some(seed)) => format!("{} ({scope}, seed {seed})", result.mode),
    }
}

fn miss(result: &VerifyResult) -> String {
    let of = |miss: &warmd_core::model::verify::MissProbability| {
        format!("{} by {}", miss.blocks, format::probability(miss.probability))
    };
    match result.miss_probabilities.as_slice() {
        [] => String::new(),
        all => {
            let all: Vec<_> = all.iter().map(of).collect();
            format!("; so many bad blocks are missed with a chance of at most: {}", all.join(", "))
        }
    }
}

/// The text of a passed result: no more than was checked.
pub fn describe_success(result: &VerifyResult) -> String {
    let what = words(result);
    match result.scope {
        VerifyScope::Full => format!("{what}: every byte is right"),
        VerifyScope::Changed => format!("{what}: every byte that was copied again is right"),
        VerifyScope::Sample(_) => format!("{what}: every block of the sample is right"),
    }
}

/// The mismatches in words, a few of each disk.
pub fn mismatches(result: &VerifyResult) -> String {
    let disks = result.disks.iter().filter(|disk| disk.mismatched_bytes > 0).map(|disk| {
        let first: Vec<_> = disk.mismatches.iter().take(8).map(|(at, len)| format!("{at}+{len}")).collect();
        let more = if disk.mismatches.len() > first.len() { ", …" } else { "" };
        format!("disk {}: {} bytes differ at {}{more}", disk.key, disk.mismatched_bytes, first.join(", "))
    });
    disks.collect::<Vec<_>>().join("; ")
}
