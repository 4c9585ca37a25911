//! warmd's time rules: what is due, when, and how much of it at a time.
//!
//! Rule: pure. The caller passes the time in; nothing here reads a clock, a file or the network, and the same
//! facts give the same answer. Every answer can say why in words.
//!
//! | module | job |
//! | --- | --- |
//! | [`schedule`] | a plan's `[schedule]` as an operator writes it, and what is wrong with it |
//! | [`schedule_override`] | what one VM's schedule has in place of its plan's |
//! | [`rules`] | may a pass start now, and if not, when? |
//! | [`adaptive`], [`change_rate`] | spacing passes by the change rates that were learned |
//! | [`cron`], [`window`], [`calendar`], [`zone`], [`when`] | times of the wall clock, also when clocks are put forward or back |
//! | [`quota`] | how much may be done, by the time of day |
//! | [`admission_queue`] | whose pass is next where many wait |
//! | [`forecast`] | how long a VM will be down, and whether that fits |
//! | [`explain`] | the next decisions and their reasons |
#![forbid(unsafe_code)]

pub mod adaptive;
pub mod admission_queue;
pub mod calendar;
pub mod change_rate;
pub mod cron;
pub mod error;
pub mod explain;
pub mod forecast;
pub mod quota;
pub mod rules;
pub mod schedule;
pub mod schedule_override;
pub mod text;
pub mod when;
pub mod window;
pub mod zone;

pub use chrono_tz::Tz;
pub use schedule::Schedule;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// When the next pass is due: `interval` after the last one ended, never before `now`, at once if there was
/// none.
///
/// A clock that was set back does not delay the next pass for longer than one interval.
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
