//! The time of day.
//!
//! Rule: the daemon reads the time of day only here, so that a simulation can give a thread its own clock:
//! the time of day then follows tokio's clock, which stands still during work and jumps to the next timer.
//! The daemon itself sets no clock.

use std::{
    cell::Cell,
    sync::LazyLock,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};

static BEGUN: LazyLock<(DateTime<Utc>, Instant)> = LazyLock::new(|| (Utc::now(), Instant::now()));

/// How long ago `moment`, a recorded time of day, was. Of two answers the smaller possible one counts: by the
/// wall clock, and by the time since the daemon's start. So a clock that is set by days, forward or back,
/// makes no moment older or younger. A moment that is in the future by both was recorded before the clock was
/// set back, and counts from now.
pub fn age(moment: DateTime<Utc>) -> Duration {
    age_at(moment, [now(), steady()])
}

fn age_at(moment: DateTime<Utc>, clocks: [DateTime<Utc>; 2]) -> Duration {
    let ages = clocks.map(|now| (now - moment).to_std().ok());
    ages.into_iter().flatten().min().unwrap_or_default()
}

thread_local! {
    /// The simulated time of day of this thread, and when it was set; of the product's threads none has one.
    static SET: Cell<Option<(DateTime<Utc>, tokio::time::Instant)>> = const { Cell::new(None) };
    /// By how much the simulated wall clock was set since then.
    static OFF: Cell<TimeDelta> = const { Cell::new(TimeDelta::zero()) };
}

/// The time of day.
pub fn now() -> DateTime<Utc> {
    // The first call is early in the daemon's life.
    LazyLock::force(&BEGUN);
    simulated().map_or_else(Utc::now, |steady| steady + OFF.get())
}

/// The time of day if the wall clock had not been set since the daemon's start.
pub fn steady() -> DateTime<Utc> {
    simulated().unwrap_or_else(|| {
        let (then, at) = *BEGUN;
        TimeDelta::from_std(at.elapsed())
            .ok()
            .and_then(|passed| then.checked_add_signed(passed))
            .unwrap_or(then)
    })
}

fn simulated() -> Option<DateTime<Utc>> {
    SET.get().map(|(then, at)| then + TimeDelta::from_std(at.elapsed()).unwrap_or_default())
}

/// For a simulation: sets the time of this thread, which runs one runtime, to `then`; from there on it
/// follows tokio's clock. `None` restores the system's time.
pub fn set(then: Option<DateTime<Utc>>) {
    OFF.set(TimeDelta::zero());
    SET.set(then.map(|then| (then, tokio::time::Instant::now())));
}

/// Sets a simulated wall clock forward or back by `span`; the monotonic clock is unchanged.
pub fn turn(span: TimeDelta) {
    OFF.set(OFF.get() + span);
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
            // Set forward, or back, after the moment was recorded.
            (60 + 2 * day, 60, 60),
            (60 - 2 * day, 60, 60),
            // And before: then the time since the start of the daemon differs.
            (60, 60 - 2 * day, 60),
            (60, 60 + 2 * day, 60),
            (-60, -day, 0),
        ] {
            assert_eq!(age_at(at(0), [at(wall), at(steady)]), Duration::from_secs(age), "{wall} {steady}");
        }
        assert!((now() - steady()).abs() < chrono::TimeDelta::seconds(5));
    }
}
