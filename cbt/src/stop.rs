//! A request to stop cleanly, with any number of senders and waiters.
//!
//! Rule: a stop is never withdrawn. A task that sees it finishes its begun work, commits it, and returns.

use std::sync::Arc;

use tokio::sync::watch;

/// Clones are handles on the same signal.
#[derive(Clone, Debug)]
pub struct StopSignal(Arc<watch::Sender<bool>>);

impl StopSignal {
    /// A signal that is not yet given.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Gives the signal; again does nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was given.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is given. Dropping the wait loses nothing.
    pub async fn stopped(&self) {
        let mut seen = self.0.subscribe();
        // Cannot fail: `self` keeps the sender alive.
        let _ = seen.wait_for(|stopped| *stopped).await;
    }
}

impl Default for StopSignal {
    fn default() -> Self {
        Self::new()
    }
}
