//! Changes that a server may still make for an abandoned connection, by export, for the whole process.
//!
//! Rule: nothing newer is written to an export while its server owes an answer to an older change. A write
//! where an older change may have been lost is read back before it counts. NBD cannot withdraw a request, and
//! the end of a connection does not show that the server dropped its requests (QEMU closes the connection
//! first): only an answer does.
//!
//! | a change | since | until | what that means |
//! | --- | --- | --- | --- |
//! | owed | its connection was abandoned | its answer | no disk is opened for writing |
//! | lost | the connection ended without the answer | an hour later | what is written there is read back |

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use warmd_cbt::units::{Extent, Length, Offset};

use super::{
    error::{NbdCause, NbdError},
    options::NbdOptions,
};

/// How long a lost change is given to land before a disk is opened for writing.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
/// How long the place of a lost change is suspect.
pub(super) const SUSPECT: Duration = Duration::from_hours(1);
/// Lost changes that are counted apart; beyond that they count as one, from the first to the last.
const MOST: usize = 1024;

/// The changes of one export.
#[derive(Debug, Default)]
pub(super) struct LateChanges {
    inner: Mutex<Inner>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// This process has tracked all that was sent to it.
    known: bool,
    next: u64,
    owed: BTreeMap<u64, Extent>,
    lost: Vec<(Extent, Instant)>,
}

/// Changes that a server owes answers to. The rest counts as lost when this value is dropped.
#[derive(Debug)]
pub(super) struct OwedAnswers {
    late_changes: Arc<LateChanges>,
    owed: Vec<u64>,
}

impl LateChanges {
    /// Those of the export that `options` name, the same for all disks of this process that do.
    pub(super) fn of(options: &NbdOptions) -> Arc<Self> {
        static EXPORTS: Mutex<BTreeMap<String, Arc<LateChanges>>> = Mutex::new(BTreeMap::new());
        let name = format!("{} {}", options.address, options.export);
        let mut exports = EXPORTS.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(exports.entry(name).or_default())
    }

    /// A disk of `size` bytes is opened for writing. If `unknown`, an earlier process may have written there,
    /// and its requests in flight are lost.
    pub(super) fn begin(&self, size: u64, unknown: bool) {
        let mut inner = self.inner();
        if unknown
            && !inner.known
            && let Some(whole) = Extent::whole(Length(size))
        {
            inner.lost.push((whole, Instant::now()));
        }
        inner.known = true;
    }

    /// Changes whose connection is abandoned, before their callers learn of it.
    pub(super) fn owe(self: &Arc<Self>, changes: impl Iterator<Item = (u64, u64)>) -> OwedAnswers {
        let mut inner = self.inner();
        let mut owed = Vec::new();
        for (offset, length) in changes {
            let id = inner.next;
            inner.next += 1;
            if let Some(extent) = Extent::new(Offset(offset), Length(length)) {
                inner.owed.insert(id, extent);
            }
            owed.push(id);
        }
        drop(inner);
        OwedAnswers { late_changes: Arc::clone(self), owed }
    }

    /// Waits until the server owes nothing and lost changes have had time to be applied.
    pub(super) async fn settled(&self, within: Duration) -> Result<(), NbdError> {
        let until = Instant::now() + within;
        let waiting = "waiting for the server's answer to writes of an earlier connection, which may land \
                       still (nothing newer is written before; restart the server if it hangs)";
        loop {
            let answered = self.answered.notified();
            let wait = {
                let inner = self.inner();
                let last = inner.lost.iter().map(|(_, since)| *since + SETTLE).max();
                match (inner.owed.is_empty(), last.filter(|at| *at > Instant::now())) {
                    (true, None) => return Ok(()),
                    (true, Some(at)) => at,
                    (false, _) if Instant::now() >= until => {
                        return Err(NbdError::of(NbdCause::Timeout { waiting, after: within }));
                    }
                    (false, _) => until,
                }
            };
            // It checks again, woken or not; a passed deadline is reported above.
            tokio::time::timeout_at(wait, answered).await.ok();
        }
    }

    /// Where a lost change may still be applied.
    pub(super) fn suspects(&self) -> Vec<Extent> {
        let mut inner = self.inner();
        inner.lost.retain(|(_, since)| since.elapsed() < SUSPECT);
        inner.lost.iter().map(|(extent, _)| *extent).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwedAnswers {
    /// The server has answered the change that was named as the `index`th: it is finished.
    pub(super) fn answered(&self, index: usize) {
        if let Some(id) = self.owed.get(index) {
            self.late_changes.inner().owed.remove(id);
        }
        self.late_changes.answered.notify_waiters();
    }
}

impl Drop for OwedAnswers {
    fn drop(&mut self) {
        let mut inner = self.late_changes.inner();
        for id in &self.owed {
            if let Some(extent) = inner.owed.remove(id) {
                inner.lost.push((extent, Instant::now()));
            }
        }
        inner.fold();
        drop(inner);
        self.late_changes.answered.notify_waiters();
    }
}

impl Inner {
    /// Keeps the list short: the suspect ranges may be too large then, never too small.
    fn fold(&mut self) {
        if self.lost.len() <= MOST {
            return;
        }
        let start = self.lost.iter().map(|(extent, _)| extent.start()).min();
        let end = self.lost.iter().map(|(extent, _)| extent.end()).max();
        if let (Some(start), Some(end)) = (start, end)
            && let Some(all) = Extent::new(start, Length(end.0 - start.0))
        {
            self.lost = vec![(all, Instant::now())];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(Offset(offset), Length(length)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_opened_while_an_answer_is_owed() {
        let late_changes = Arc::new(LateChanges::default());
        let debt = late_changes.owe([(0, 512), (4096, 512)].into_iter());
        debt.answered(0);
        let error = late_changes.settled(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(error.kind(), warmd_cbt::disk::ErrorKind::Timeout, "{error}");
        debt.answered(1);
        drop(debt);
        let before = Instant::now();
        late_changes.settled(Duration::from_secs(30)).await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO, "all was answered");
        assert!(late_changes.suspects().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_answered_is_suspect_for_an_hour() {
        let late_changes = Arc::new(LateChanges::default());
        let debt = late_changes.owe([(0, 512), (4096, 512)].into_iter());
        debt.answered(0);
        drop(debt);
        let before = Instant::now();
        late_changes.settled(Duration::from_secs(30)).await.unwrap();
        assert_eq!(before.elapsed(), SETTLE);
        assert_eq!(late_changes.suspects(), [extent(4096, 512)]);
        tokio::time::advance(SUSPECT).await;
        assert!(late_changes.suspects().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_process_may_have_sent_is_suspect_once() {
        let late_changes = Arc::new(LateChanges::default());
        late_changes.begin(1 << 20, true);
        late_changes.begin(1 << 20, true);
        assert_eq!(late_changes.suspects(), [extent(0, 1 << 20)]);
        let fresh = Arc::new(LateChanges::default());
        fresh.begin(1 << 20, false);
        fresh.begin(1 << 20, true);
        assert!(fresh.suspects().is_empty(), "this process has prepared it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_of_lost_changes_stays_short() {
        let late_changes = Arc::new(LateChanges::default());
        drop(late_changes.owe((0..=MOST as u64).map(|n| (n * 8192, 512))));
        assert_eq!(late_changes.suspects(), [extent(0, MOST as u64 * 8192 + 512)]);
    }
}
