//! The view of a running verification.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use chrono::{DateTime, Utc};
use warmd_cbt::verify::VerifyProgress;
use warmd_core::{
    clock,
    model::{
        verify::VerifyOrder,
        view::{VerificationView, VerifyResult},
    },
};

use super::super::{context::Context, status_publisher::StatusPublisher};

/// Shows, before any other step, that it begins.
pub fn show(context: &Context, order: &VerifyOrder) {
    let view = begun(order, clock::now());
    context.live.update(|live| live.verification = Some(view));
}

fn begun(order: &VerifyOrder, started: DateTime<Utc>) -> VerificationView {
    VerificationView {
        id: order.id.clone(),
        mode: order.mode,
        scope: order.scope,
        seed: order.seed,
        started,
        ended: None,
        total: 0,
        checked: 0,
        error: None,
        result: None,
    }
}

/// A running verification; its last figures stay when it is dropped.
pub(super) struct VerificationProgress {
    shared: Arc<Shared>,
    ticker: tokio::task::JoinHandle<()>,
}

struct Shared {
    live: Arc<StatusPublisher>,
    now: Mutex<Now>,
}

struct Now {
    view: VerificationView,
    /// Bytes checked on finished disks, and the unfinished one.
    before: u64,
    progress: Arc<VerifyProgress>,
    /// From then on others change the view.
    over: bool,
}

impl VerificationProgress {
    pub(super) fn start(context: &Context, order: &VerifyOrder, seed: Option<u64>) -> Self {
        let shown = context.live.view().verification;
        // A requested one is shown already.
        let shown = shown.filter(|shown| !order.id.is_empty() && shown.id == order.id);
        let started = shown.map_or_else(clock::now, |shown| shown.started);
        let view = VerificationView { seed, ..begun(order, started) };
        let now = Now { view, before: 0, progress: Arc::default(), over: false };
        let shared = Arc::new(Shared { live: Arc::clone(&context.live), now: Mutex::new(now) });
        // At once: so a failure before the first tick has a seed, too.
        shared.tick();
        let ticker = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(500));
                loop {
                    ticks.tick().await;
                    shared.tick();
                }
            }
        });
        Self { shared, ticker }
    }

    /// Sets the number of bytes to check.
    pub(super) fn total(&self, bytes: u64) {
        self.shared.now().view.total = bytes;
    }

    /// The next disk begins, with this progress.
    pub(super) fn disk(&self, progress: &Arc<VerifyProgress>) {
        let mut now = self.shared.now();
        now.before += now.progress.checked.load(Relaxed);
        now.progress = Arc::clone(progress);
    }

    pub(super) fn end(self, result: &VerifyResult) {
        self.shared.end(result);
    }
}

impl Shared {
    /// Both ways of showing keep the lock until they have shown: a tick after the end would show a running
    /// verification for ever.
    fn tick(&self) {
        let mut now = self.now();
        if !now.over {
            let checked = now.before + now.progress.checked.load(Relaxed);
            now.view.checked = checked.min(now.view.total);
            let view = now.view.clone();
            self.live.update(|live| live.verification = Some(view));
        }
    }

    fn end(&self, result: &VerifyResult) {
        let mut now = self.now();
        now.over = true;
        let mut view = now.view.clone();
        (view.ended, view.checked, view.result) = (Some(result.at), view.total, Some(result.clone()));
        self.live.update(|live| live.verification = Some(view));
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VerificationProgress {
    fn drop(&mut self) {
        self.shared.now().over = true;
        self.ticker.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::status_publisher::resting;

    fn shared() -> Shared {
        let live = StatusPublisher::new(resting(), broadcast::Sender::new(16));
        let view = VerificationView { total: 10, ..begun(&VerifyOrder::default(), clock::now()) };
        Shared { live, now: Mutex::new(Now { view, before: 0, progress: Arc::default(), over: false }) }
    }

    #[test]
    fn a_tick_that_comes_after_the_end_changes_nothing() {
        let shared = shared();
        shared.tick();
        assert!(shared.live.view().verification.is_some_and(|run| run.ended.is_none()));
        let order = VerifyOrder::default();
        let result = VerifyResult {
            mode: order.mode,
            at: clock::now(),
            disks: Vec::new(),
            scope: order.scope,
            seed: None,
            miss_probabilities: Vec::new(),
        };
        shared.end(&result);
        shared.tick();
        let run = shared.live.view().verification.unwrap();
        assert_eq!((run.ended, run.result, run.checked), (Some(result.at), Some(result), 10));
    }

    #[tokio::test]
    async fn nor_does_one_that_comes_after_it_was_given_up() {
        let shared = Arc::new(shared());
        drop(VerificationProgress { shared: Arc::clone(&shared), ticker: tokio::spawn(async {}) });
        shared.live.update(|view| view.verification = None);
        shared.tick();
        assert_eq!(shared.live.view().verification, None);
    }
}
