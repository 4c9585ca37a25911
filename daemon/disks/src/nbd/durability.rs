//! Whether acknowledged writes may have been lost, so that a flush never reports too much as durable.
//!
//! Rule: a server that comes back may have lost all unflushed writes. Every lost connection counts as such a
//! loss, and the next flush reports it, once; the caller then writes everything since the last good flush
//! again.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The writes of one disk, counted over all its connections.
#[derive(Debug, Default)]
pub(super) struct Durability {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Writes acknowledged.
    done: u64,
    /// The first so many of these are durable, or were reported as lost.
    settled: u64,
    /// The first so many may be lost.
    lost: u64,
}

/// Writes may be lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LostWrites;

impl Durability {
    /// A write was acknowledged. To be called before anyone may learn of it, and before a later
    /// [`Durability::connection_lost`].
    pub(super) fn written(&self) {
        self.counts().done += 1;
    }

    /// A connection ended without being closed from this side.
    pub(super) fn connection_lost(&self) {
        let mut counts = self.counts();
        counts.lost = counts.done;
    }

    /// Begins a flush; gives what [`Durability::end_flush`] needs.
    pub(super) fn begin_flush(&self) -> Result<u64, LostWrites> {
        let mut counts = self.counts();
        counts.report()?;
        Ok(counts.done)
    }

    /// Ends a flush that began at `mark` and whose answer was good, if no connection broke in between.
    pub(super) fn end_flush(&self, mark: u64) -> Result<(), LostWrites> {
        let mut counts = self.counts();
        counts.report()?;
        counts.settled = counts.settled.max(mark);
        Ok(())
    }

    /// A flush that began at `mark` failed: its caller knows that everything before it is in doubt.
    pub(super) fn failed_flush(&self, mark: u64) {
        let mut counts = self.counts();
        counts.settled = counts.settled.max(mark);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn report(&mut self) -> Result<(), LostWrites> {
        if self.lost > self.settled {
            self.settled = self.lost;
            return Err(LostWrites);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_after_a_write_is_reported_once() {
        let durability = Durability::default();
        durability.written();
        durability.connection_lost();
        assert_eq!(durability.begin_flush(), Err(LostWrites));
        let mark = durability.begin_flush().unwrap();
        assert_eq!(durability.end_flush(mark), Ok(()));
    }

    #[test]
    fn a_loss_without_unflushed_writes_is_none() {
        let durability = Durability::default();
        durability.connection_lost();
        durability.written();
        let mark = durability.begin_flush().unwrap();
        durability.end_flush(mark).unwrap();
        durability.connection_lost();
        assert!(durability.begin_flush().is_ok());
    }

    #[test]
    fn a_loss_during_a_flush_spoils_it_even_if_the_server_said_yes() {
        let durability = Durability::default();
        durability.written();
        let mark = durability.begin_flush().unwrap();
        durability.connection_lost();
        assert_eq!(durability.end_flush(mark), Err(LostWrites));
    }

    #[test]
    fn failed_flush_reports_earlier_writes_but_not_later_ones() {
        let durability = Durability::default();
        durability.written();
        let mark = durability.begin_flush().unwrap();
        durability.connection_lost();
        durability.failed_flush(mark);
        assert!(durability.begin_flush().is_ok(), "reported by the failure already");

        let mark = durability.begin_flush().unwrap();
        durability.written();
        durability.connection_lost();
        durability.failed_flush(mark);
        assert_eq!(durability.begin_flush(), Err(LostWrites), "no flush has reported the write in between");
    }
}
