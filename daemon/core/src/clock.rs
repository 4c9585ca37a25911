//! What time it is.
//!
//! Rule: the daemon asks nobody else for the time of day, so that a simulation can put its own clock in for a thread: then the
//! time of day goes with tokio's clock, which stands still while there is work and leaps to the next timer.

use std::time::Duration;

use chrono::{DateTime, Utc};

pub use self::kind::*;

/// How long ago `moment` was, that was written down by the time of day. Of the clock on the wall and the time that has
/// passed since the daemon began the smaller answer counts that can be: a clock that is set by days, forward or back,
/// makes nothing old that is not, and nothing young. What is to come by both was written down before the clock was set back,
/// and counts from now.
pub fn age(moment: DateTime<Utc>) -> Duration {
    age_at(moment, [now(), steady()])
}

fn age_at(moment: DateTime<Utc>, clocks: [DateTime<Utc>; 2]) -> Duration {
    let ages = clocks.map(|now| (now - moment).to_std().ok());
    ages.into_iter().flatten().min().unwrap_or_default()
}

#[cfg(not(all(feature = "simulation", debug_assertions)))]
mod kind {
    use std::{sync::LazyLock, time::Instant};

    use chrono::{DateTime, TimeDelta, Utc};

    static BEGUN: LazyLock<(DateTime<Utc>, Instant)> = LazyLock::new(|| (Utc::now(), Instant::now()));

    /// The time of day.
    pub fn now() -> DateTime<Utc> {
        // The first one to ask is early in the daemon's life.
        LazyLock::force(&BEGUN);
        Utc::now()
    }

    /// The time that it would be if the clock on the wall had not been set since the daemon began.
    pub fn steady() -> DateTime<Utc> {
        let (then, at) = *BEGUN;
        TimeDelta::from_std(at.elapsed())
            .ok()
            .and_then(|passed| then.checked_add_signed(passed))
            .unwrap_or(then)
    }
}

#[cfg(all(feature = "simulation", debug_assertions))]
mod kind {
    use std::cell::Cell;

    use chrono::{DateTime, TimeDelta, Utc};
    use tokio::time::Instant;

    thread_local! {
        static SET: Cell<Option<(DateTime<Utc>, Instant)>> = const { Cell::new(None) };
        /// By how much the clock on the wall was set since then.
        static OFF: Cell<TimeDelta> = const { Cell::new(TimeDelta::zero()) };
    }

    /// The time of day.
    pub fn now() -> DateTime<Utc> {
        steady() + OFF.get()
    }

    /// The time that it would be had nobody set the clock on the wall.
    pub fn steady() -> DateTime<Utc> {
        SET.get()
            .map_or_else(Utc::now, |(then, at)| then + TimeDelta::from_std(at.elapsed()).unwrap_or_default())
    }

    /// The clock on the wall is set forward, or back, by `span`; the monotonic one goes on.
    pub fn turn(span: TimeDelta) {
        OFF.set(OFF.get() + span);
    }

    /// Lets it be `then` now for this thread, which runs one runtime; `None` gives the system's time back.
    pub fn set(then: Option<DateTime<Utc>>) {
        OFF.set(TimeDelta::zero());
        SET.set(then.map(|then| (then, Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_clocks_the_one_counts_by_which_it_can_be() {
        let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap_or_default();
        let day = 86_400;
        for (wall, steady, age) in [
            (60, 60, 60),
            // Set forward, or back, after it was written down.
            (60 + 2 * day, 60, 60),
            (60 - 2 * day, 60, 60),
            // And before: then the time since the start of the daemon is another.
            (60, 60 - 2 * day, 60),
            (60, 60 + 2 * day, 60),
            (-60, -day, 0),
        ] {
            assert_eq!(age_at(at(0), [at(wall), at(steady)]), Duration::from_secs(age), "{wall} {steady}");
        }
        assert!((now() - steady()).abs() < chrono::TimeDelta::seconds(5));
    }
}
