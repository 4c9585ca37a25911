//! What a verification shows of itself while it runs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use warmd_cbt::verify::VerifyProgress;

use super::super::{context::Context, live::Live};
use crate::{
    clock,
    model::{
        verify::VerifyOrder,
        view::{Verdict, VerificationView},
    },
};

/// Shows, before anything else is done, that it begins.
pub fn show(context: &Context, order: &VerifyOrder) {
    let view = begun(order, clock::now());
    context.live.update(|live| live.verification = Some(view));
}

fn begun(order: &VerifyOrder, started: DateTime<Utc>) -> VerificationView {
    VerificationView {
        mode: order.mode,
        scope: order.scope,
        seed: order.seed,
        started,
        ended: None,
        total: 0,
        checked: 0,
        error: None,
        verdict: None,
    }
}

/// A verification that runs; its last figures stay when it is dropped.
pub(super) struct Shown {
    view: Arc<Mutex<VerificationView>>,
    /// Bytes checked on disks that are finished, and the one that is not.
    before: Arc<AtomicU64>,
    now: Arc<Mutex<Arc<VerifyProgress>>>,
    live: Arc<Live>,
    ticker: tokio::task::JoinHandle<()>,
}

impl Shown {
    pub(super) fn start(context: &Context, order: &VerifyOrder, seed: Option<u64>) -> Self {
        let mut view = begun(order, clock::now());
        view.seed = seed;
        let view = Arc::new(Mutex::new(view));
        let before = Arc::new(AtomicU64::new(0));
        let now = Arc::new(Mutex::new(Arc::new(VerifyProgress::default())));
        let live = Arc::clone(&context.live);
        let ticker = tokio::spawn({
            let (view, before, now, live) =
                (Arc::clone(&view), Arc::clone(&before), Arc::clone(&now), Arc::clone(&live));
            async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(500));
                loop {
                    ticks.tick().await;
                    let mut shown = locked(&view).clone();
                    let checked = before.load(Relaxed) + locked(&now).checked.load(Relaxed);
                    shown.checked = checked.min(shown.total);
                    live.update(|live| live.verification = Some(shown));
                }
            }
        });
        Self { view, before, now, live, ticker }
    }

    /// So many bytes are to be checked in all.
    pub(super) fn total(&self, bytes: u64) {
        locked(&self.view).total = bytes;
    }

    /// The next disk begins, and has this progress.
    pub(super) fn disk(&self, progress: &Arc<VerifyProgress>) {
        let mut now = locked(&self.now);
        self.before.fetch_add(now.checked.load(Relaxed), Relaxed);
        *now = Arc::clone(progress);
    }

    pub(super) fn end(self, verdict: &Verdict) {
        self.ticker.abort();
        let mut view = locked(&self.view).clone();
        view.ended = Some(verdict.at);
        view.checked = view.total;
        view.verdict = Some(verdict.clone());
        self.live.update(|live| live.verification = Some(view));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
