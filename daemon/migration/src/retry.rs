//! The number and the pauses of retries.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);

/// Pauses that double from a second to a minute, until there have been enough.
#[derive(Debug)]
pub struct Retry {
    next: Duration,
    left: Option<u32>,
    until: Option<Instant>,
}

impl Retry {
    /// Until it succeeds.
    pub fn forever() -> Self {
        Self { next: FIRST, left: None, until: None }
    }

    /// At most `count` times.
    pub fn times(count: u32) -> Self {
        Self { next: FIRST, left: Some(count), until: None }
    }

    /// For `span` from now.
    pub fn until(span: Duration) -> Self {
        Self { next: FIRST, left: None, until: Some(Instant::now() + span) }
    }

    /// How long to wait before the next try, decided once; `None` if there is none left.
    pub fn next_pause(&mut self) -> Option<Duration> {
        if self.left == Some(0) || self.until.is_some_and(|until| Instant::now() + self.next > until) {
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        let next = self.next;
        self.next = (self.next * 2).min(LONGEST);
        Some(next)
    }

    /// Waits before the next try; false, at once, if there is none left.
    pub async fn pause(&mut self) -> bool {
        let Some(next) = self.next_pause() else { return false };
        tokio::time::sleep(next).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_end() {
        let begun = Instant::now();
        let mut retry = Retry::times(3);
        let mut tries = 0;
        while retry.pause().await {
            tries += 1;
        }
        assert_eq!((tries, begun.elapsed().as_secs()), (3, 1 + 2 + 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_span_is_not_overrun() {
        let begun = Instant::now();
        let mut retry = Retry::until(Duration::from_secs(10));
        while retry.pause().await {}
        assert_eq!(begun.elapsed().as_secs(), 1 + 2 + 4);
        let mut endless = Retry::forever();
        for _ in 0..100 {
            assert!(endless.pause().await);
        }
    }
}
