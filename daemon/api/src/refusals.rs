//! The log of clients that are refused.
//!
//! Rule: a client that comes again and again does not fill the log: there are a few lines a minute, and the
//! next one says how many are missing.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
};

use tokio::time::{Duration, Instant};

/// The lines of one minute.
const LINES: u32 = 20;
const MINUTE: Duration = Duration::from_mins(1);

/// Refusals of a listener.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Option<Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    missing: u32,
}

impl Refusals {
    /// Logs why a client was refused.
    pub(super) fn tell(&self, client: impl Display, why: impl Display) {
        if let Some(missing) = self.may_tell(Instant::now()) {
            tracing::warn!(%client, %why, missing, "a client of the API was refused");
        }
    }

    /// The refusals before this one that were not logged; `None` if this one is not logged either.
    fn may_tell(&self, now: Instant) -> Option<u32> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get_or_insert(Count { since: now, lines: 0, missing: 0 });
        if now.duration_since(count.since) >= MINUTE {
            (count.since, count.lines) = (now, 0);
        }
        if count.lines >= LINES {
            count.missing = count.missing.saturating_add(1);
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_where_they_are_not_logged() {
        let (refusals, begun) = (Refusals::default(), Instant::now());
        let lines = (0..100).filter_map(|_| refusals.may_tell(begun)).count();
        assert_eq!(lines, LINES as usize);
        assert_eq!(refusals.may_tell(begun + MINUTE), Some(100 - LINES));
        assert_eq!(refusals.may_tell(begun + MINUTE), Some(0));
    }
}
