//! warmd's time rules: what is due, and when.
//!
//! Rule: pure. The caller passes the time in; nothing here reads a clock.
#![forbid(unsafe_code)]

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// When the next pass is due: `interval` after the last one ended, never before `now`, at once if there was none.
///
/// A clock that was set back does not hold the next pass up for longer than one interval.
pub fn next_due(last_end: Option<DateTime<Utc>>, interval: Duration, now: DateTime<Utc>) -> DateTime<Utc> {
    let Some(last_end) = last_end else { return now };
    let span = TimeDelta::from_std(interval).unwrap_or(TimeDelta::MAX);
    let due = last_end.min(now).checked_add_signed(span).unwrap_or(DateTime::<Utc>::MAX_UTC);
    due.max(now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn an_interval_after_the_last_pass() {
        let minute = Duration::from_mins(1);
        assert_eq!(next_due(None, minute, at(1000)), at(1000));
        assert_eq!(next_due(Some(at(990)), minute, at(1000)), at(1050));
        assert_eq!(next_due(Some(at(10)), minute, at(1000)), at(1000), "overdue is due now");
        assert_eq!(next_due(Some(at(5000)), minute, at(1000)), at(1060), "the clock was set back");
        assert_eq!(next_due(Some(at(0)), Duration::MAX, at(1000)), DateTime::<Utc>::MAX_UTC);
    }

    proptest! {
        #[test]
        fn due_lies_between_now_and_one_interval_on(last in 0_i64..1 << 33, now in 0_i64..1 << 33, secs in 0_u32..1 << 20) {
            let due = next_due(Some(at(last)), Duration::from_secs(u64::from(secs)), at(now));
            prop_assert!(due >= at(now) && due <= at(now + i64::from(secs)));
        }
    }
}
