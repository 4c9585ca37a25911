//! Verification: the proof that the target holds what the source held.
//!
//! Rule: a mismatch is never only reported: its blocks become pending, so that the next pass copies them again. And it
//! is never hidden: the verdict is saved and journaled before anything else is done.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use warmd_cbt::{
    ledger::Ledger,
    stop::StopSignal,
    units::{Extent, Length},
    verify::{VerifyJob, VerifyOutcome, VerifyProgress, compare, readback},
};

use super::{
    context::{Context, spec},
    failure::WorkError,
    pass::OnDrained,
};
use crate::{
    clock, human,
    model::{
        plan::VerifyMode,
        view::{DiskVerdict, Verdict, VerificationView},
    },
    sources::Snapshot,
};

/// Mismatched extents that a verdict lists.
const LISTED: usize = 100;

/// Reads the target again and compares it with the manifest. `Ok(None)` if it was stopped.
pub async fn run_readback(context: &Context, stop: &StopSignal) -> Result<Option<Verdict>, WorkError> {
    run(context, VerifyMode::Readback, None, stop, false).await
}

/// Compares an open snapshot with the target, whole, and keeps the verdict.
#[derive(Debug)]
pub struct CompareSnapshot<'a> {
    pub context: &'a Context,
    pub stop: StopSignal,
    /// Whether to read less at once while the source is strained; a source that is off need not be spared.
    pub spares_source: bool,
    pub verdict: Mutex<Option<Verdict>>,
}

#[async_trait::async_trait]
impl OnDrained for CompareSnapshot<'_> {
    async fn run(&self, snapshot: &dyn Snapshot) -> Result<(), WorkError> {
        let verdict =
            run(self.context, VerifyMode::Compare, Some(snapshot), &self.stop, self.spares_source).await?;
        *self.verdict.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = verdict;
        Ok(())
    }
}

async fn run(
    context: &Context,
    mode: VerifyMode,
    snapshot: Option<&dyn Snapshot>,
    stop: &StopSignal,
    spares_source: bool,
) -> Result<Option<Verdict>, WorkError> {
    let rows = context.store.disks(context.id).await?;
    let total = rows.iter().map(|row| row.size.0).sum();
    let progress = Arc::new(VerifyProgress::default());
    let checked = Arc::new(AtomicU64::new(0));
    let follower = follow(context, mode, total, Arc::clone(&checked), Arc::clone(&progress));
    let mut disks = Vec::new();
    let mut found: Vec<(Arc<Ledger>, VerifyOutcome)> = Vec::new();
    for row in rows {
        let ledger = context.ledger(row.id).await?;
        let target = context.target.open(context.id, &spec(&row)).await?;
        let job = VerifyJob {
            ledger: Arc::clone(&ledger),
            pool: context.engine.pool.clone(),
            chunk: context.engine.settings.chunk,
            in_flight: context.engine.settings.reads_in_flight,
            read_latency_factor: context.engine.settings.read_latency_factor.filter(|_| spares_source),
            baseline: context.baseline(row.id).await,
            // A comparison is asked for where nothing shall be taken on trust.
            trust_holes: snapshot.is_none(),
            progress: Arc::clone(&progress),
            limits: context.shares(&row.key),
            stop: stop.clone(),
        };
        let outcome = match snapshot {
            None => readback(job, target).await?,
            Some(snapshot) => {
                let outcome = compare(job, snapshot.open(&row.key).await?, target).await?;
                context.keep_baseline(row.id).await;
                outcome
            }
        };
        checked.fetch_add(outcome.checked.0, Relaxed);
        progress.checked.store(0, Relaxed);
        if !outcome.finished {
            follower.abort();
            return Ok(None);
        }
        let mismatches = outcome.mismatched.iter().take(LISTED);
        disks.push(DiskVerdict {
            key: row.key,
            checked: outcome.checked.0,
            mismatched_bytes: outcome.mismatched_bytes.0,
            mismatches: mismatches.map(|extent| (extent.start().0, extent.len().0)).collect(),
            root: outcome.root.clone(),
        });
        found.push((ledger, outcome));
    }
    follower.abort();
    let verdict = Verdict { mode, at: clock::now(), disks };
    keep(context, &verdict, total).await?;
    for (ledger, outcome) in found {
        let listed: Length = outcome.mismatched.iter().map(Extent::len).sum();
        if listed == outcome.mismatched_bytes {
            ledger.distrust(&outcome.mismatched).await?;
        } else {
            // More than the engine lists: nothing of this disk is trusted any more.
            ledger.distrust(&Extent::whole(ledger.size()).into_iter().collect::<Vec<_>>()).await?;
        }
    }
    Ok(Some(verdict))
}

/// Saves the verdict, shows it and writes it into the journal.
async fn keep(context: &Context, verdict: &Verdict, total: u64) -> Result<(), WorkError> {
    context.store.put_verdict(context.id, verdict).await?;
    context.live.update(|view| {
        if let Some(verification) = &mut view.verification {
            verification.ended = Some(verdict.at);
            verification.checked = total;
            verification.verdict = Some(verdict.clone());
        }
    });
    let text = if verdict.passed() {
        format!("{} passed: {} on the target are right", verdict.mode, human::bytes(total))
    } else {
        format!("{} FAILED: {}; these extents will be copied again", verdict.mode, mismatches(verdict))
    };
    context.note("verification", text).await;
    Ok(())
}

/// The mismatches in words, a few of each disk.
pub fn mismatches(verdict: &Verdict) -> String {
    let disks = verdict.disks.iter().filter(|disk| disk.mismatched_bytes > 0).map(|disk| {
        let first: Vec<_> = disk.mismatches.iter().take(8).map(|(at, len)| format!("{at}+{len}")).collect();
        let more = if disk.mismatches.len() > first.len() { ", …" } else { "" };
        format!("disk {}: {} bytes differ at {}{more}", disk.key, disk.mismatched_bytes, first.join(", "))
    });
    disks.collect::<Vec<_>>().join("; ")
}

/// Shows how far it is, until aborted.
fn follow(
    context: &Context,
    mode: VerifyMode,
    total: u64,
    before: Arc<AtomicU64>,
    progress: Arc<VerifyProgress>,
) -> AbortOnDrop {
    let live = Arc::clone(&context.live);
    let started = clock::now();
    AbortOnDrop(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            let checked = (before.load(Relaxed) + progress.checked.load(Relaxed)).min(total);
            live.update(|view| {
                view.verification = Some(VerificationView {
                    mode,
                    started,
                    ended: None,
                    total,
                    checked,
                    error: None,
                    verdict: None,
                });
            });
        }
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    fn abort(self) {
        drop(self);
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
