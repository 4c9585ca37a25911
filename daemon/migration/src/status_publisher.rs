//! The view of a migration, kept for readers and sent to watchers.
//!
//! Rule: a view is for display only. Nothing is decided from it, and losing it loses nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::broadcast, time::Instant};
use warmd_cbt::transfer::ProgressView;
use warmd_core::{
    model::{
        id::DiskKey,
        view::{DiskView, MigrationView},
    },
    pass::LiveFigures,
};

/// The time span of the shown rate.
const RATE_WINDOW: Duration = Duration::from_secs(4);

/// One migration's view and the channel of its changes.
#[derive(Debug)]
pub struct StatusPublisher {
    view: Mutex<MigrationView>,
    changes: broadcast::Sender<MigrationView>,
}

impl StatusPublisher {
    /// Begins with `view`; changes go to `changes`, which all migrations share.
    pub fn new(view: MigrationView, changes: broadcast::Sender<MigrationView>) -> Arc<Self> {
        Arc::new(Self { view: Mutex::new(view), changes })
    }

    /// The view now.
    pub fn view(&self) -> MigrationView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the view and notifies the watchers.
    pub fn update(&self, change: impl FnOnce(&mut MigrationView)) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut view);
        // Within the lock: watchers must not end with an older view. Having no watchers is fine.
        self.changes.send(view.clone()).ok();
    }

    /// Changes the view without notifying the watchers.
    pub fn edit(&self, change: impl FnOnce(&mut MigrationView)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes one disk of the view, without notifying the watchers.
    fn edit_disk(&self, key: &DiskKey, change: impl FnOnce(&mut DiskView)) {
        self.edit(|view| {
            if let Some(disk) = view.disks.iter_mut().find(|disk| disk.key == *key) {
                change(disk);
            }
        });
    }
}

/// Follows the progress of one pass's disks and updates the view until dropped.
#[derive(Debug)]
pub struct Follower {
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// Begins to follow. `totals` is pending when the pass began, in bytes.
    pub fn start(
        live: Arc<StatusPublisher>,
        totals: Vec<(DiskKey, u64)>,
        figures: Arc<dyn LiveFigures>,
    ) -> Self {
        let task = tokio::spawn(async move {
            let mut rates: BTreeMap<DiskKey, Rate> = BTreeMap::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                let progress = figures.progress();
                for (key, total) in &totals {
                    if let Some((_, progress)) = progress.iter().find(|(of, _)| of == key) {
                        show(&live, (key, *total), progress, rates.entry(key.clone()).or_default());
                    }
                }
                live.update(|_| {});
            }
        });
        Self { task }
    }
}

fn show(live: &StatusPublisher, (key, total): (&DiskKey, u64), progress: &ProgressView, rate: &mut Rate) {
    let drained = progress.drained.min(total);
    let per_second = rate.add(Instant::now(), drained);
    let left = total - drained;
    live.edit_disk(key, |view| {
        view.pass_total = total;
        view.pass_drained = drained;
        view.pending = left;
        view.rate = per_second;
        view.eta = match left {
            0 => Some(0.0),
            _ if per_second > 0.0 => Some(left as f64 / per_second),
            _ => None,
        };
    });
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes per second over the last [`RATE_WINDOW`].
#[derive(Debug, Default)]
struct Rate {
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    fn add(&mut self, now: Instant, bytes: u64) -> f64 {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > RATE_WINDOW {
            self.samples.pop_front();
        }
        let (then, before) = self.samples[0];
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds > 0.0 { bytes.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

/// An initial view of a migration that rests.
#[cfg(test)]
pub(super) fn resting() -> MigrationView {
    MigrationView {
        id: warmd_core::model::id::MigrationId::generate(),
        plan: "plan".to_owned(),
        vm: warmd_core::model::id::VmId("1".to_owned()),
        vm_name: "web".to_owned(),
        target_name: "web".to_owned(),
        state: warmd_core::model::state::State::Synced,
        since: warmd_core::clock::now(),
        disks: Vec::new(),
        pass: None,
        next_pass: None,
        next_pass_why: None,
        scheduled_cutover: None,
        downtime_forecast: None,
        forecast: None,
        warnings: Vec::new(),
        cutover: None,
        verification: None,
        waiting: None,
        left_behind: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_always_get_the_newest_view() {
        let (changes, mut seen) = broadcast::channel(1 << 16);
        let live = StatusPublisher::new(resting(), changes);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        live.update(|view| {
                            view.downtime_forecast = Some(view.downtime_forecast.unwrap_or(0.0) + 1.0);
                        });
                    }
                });
            }
        });
        let mut last = 0.0;
        while let Ok(view) = seen.try_recv() {
            let now = view.downtime_forecast.unwrap();
            assert!(now > last, "{now} was told after {last}");
            last = now;
        }
        assert!((last - 20_000.0).abs() < 0.5, "{last}");
    }

    #[test]
    fn the_rate_forgets_what_is_long_past() {
        let mut rate = Rate::default();
        let start = Instant::now();
        assert!(rate.add(start, 0).abs() < f64::EPSILON);
        let mut last = 0.0;
        for second in 1..=20_u64 {
            let bytes = if second <= 10 { second * 1000 } else { 10_000 };
            last = rate.add(start + Duration::from_secs(second), bytes);
            if second == 10 {
                assert!((last - 1000.0).abs() < 1.0, "{last}");
            }
        }
        assert!(last.abs() < f64::EPSILON, "stalled for ten seconds, and still {last} B/s");
    }
}
