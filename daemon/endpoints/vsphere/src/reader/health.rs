//! Whether a disk's child reads: its readers say so, and wait for another child when it does not.
//!
//! Rule: children are numbered, so that many reads that fail together replace one child once, and a late
//! failure of an earlier child replaces none.
//!
//! ```text
//! a read fails with EIO ─▶ renew(child) ─▶ the child is ended in order, a pause, another one ─▶ read again
//!                                      └─▶ no restart mends this, or too many: the end, with the reason
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::why::{Complaint, ReaderError};

/// For ending a child, the longest pause, and a new one that is slow.
const RENEWAL: Duration = Duration::from_mins(3);

/// The health of one disk's children. Clones are of the same disk.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: watch::Sender<State>,
    /// The latest child that failed.
    failed: watch::Sender<u64>,
    /// The latest child that has read.
    read: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The present child, from 1 on.
    child: u64,
    gave_up: Option<ReaderError>,
}

impl Health {
    /// The number of the present child.
    pub fn child(&self) -> u64 {
        self.0.state.borrow().child
    }

    /// Records that a child has read.
    pub fn record_read(&self, child: u64) {
        self.0.read.fetch_max(child, Relaxed);
    }

    /// Has a child replaced whose reads fail, and waits for the next one.
    ///
    /// # Errors
    /// The reason, if no other child is started.
    pub async fn renew(&self, failed: u64) -> Result<(), ReaderError> {
        self.0.failed.send_if_modified(|latest| {
            let is_new = *latest < failed;
            *latest = failed.max(*latest);
            is_new
        });
        let mut state = self.0.state.subscribe();
        let late = || ReaderError::new(Complaint::Unknown, "no other nbdkit was started in time");
        match timeout(RENEWAL, state.wait_for(|state| state.gave_up.is_some() || state.child > failed)).await
        {
            Ok(Ok(state)) => state.gave_up.clone().map_or(Ok(()), Err),
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    /// Why no other child is started, if so.
    pub fn gave_up(&self) -> Option<ReaderError> {
        self.0.state.borrow().gave_up.clone()
    }

    /// Waits until no other child is started.
    pub async fn has_ended(&self) {
        // It cannot be closed: the sender is here.
        self.0.state.subscribe().wait_for(|state| state.gave_up.is_some()).await.ok();
    }

    /// Another child serves now; gives its number.
    pub(super) fn started(&self) -> u64 {
        self.0.state.send_modify(|state| state.child += 1);
        self.child()
    }

    pub(super) fn give_up(&self, why: ReaderError) {
        self.0.state.send_modify(|state| {
            state.gave_up.get_or_insert(why);
        });
    }

    pub(super) fn has_read(&self, child: u64) -> bool {
        self.0.read.load(Relaxed) >= child
    }

    /// Waits until reads of this child fail.
    pub(super) async fn failed(&self, child: u64) {
        // It cannot be closed: the sender is here.
        self.0.failed.subscribe().wait_for(|failed| *failed >= child).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_failures_of_a_child_replace_it_once() {
        let health = Health::default();
        assert_eq!(health.started(), 1);
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let health = health.clone();
                tokio::spawn(async move { health.renew(1).await })
            })
            .collect();
        health.failed(1).await;
        assert_eq!(health.started(), 2);
        for one in waiting {
            assert_eq!(one.await.unwrap(), Ok(()));
        }
        // A late failure of the first one is none of the second.
        assert_eq!(health.renew(1).await, Ok(()));
        assert!(timeout(Duration::from_millis(50), health.failed(2)).await.is_err());
        health.record_read(2);
        health.record_read(1);
        assert!(health.has_read(2) && !health.has_read(3));
    }

    #[tokio::test]
    async fn the_first_reason_to_give_up_ends_all_waiting() {
        let health = Health::default();
        health.started();
        health.give_up(ReaderError::new(Complaint::Login, "first"));
        health.give_up(ReaderError::new(Complaint::File, "second"));
        health.has_ended().await;
        assert_eq!(health.renew(1).await.unwrap_err().said, "first");
    }
}
