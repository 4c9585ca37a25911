//! How long and how often a call is tried again.
//!
//! Rule: each pause is longer than the one before, up to a bound, and none goes past the deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// The pauses of one call.
#[derive(Debug)]
pub(super) struct Retry {
    deadline: Instant,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline, pause: FIRST }
    }

    /// Waits before the next attempt; false if there is no time for one.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() + self.pause >= self.deadline {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_before_the_deadline() {
        let begun = Instant::now();
        let mut retry = Retry::new(begun + Duration::from_mins(3));
        let mut times = 0;
        while retry.wait().await {
            times += 1;
        }
        assert!((15..=25).contains(&times), "{times}");
        assert!(begun.elapsed() < Duration::from_mins(3));
        assert!(begun.elapsed() > Duration::from_mins(2));
    }
}
