//! What time it is.
//!
//! Rule: the daemon asks nobody else for the time of day, so that a simulation can put its own clock in for a thread: then the
//! time of day goes with tokio's clock, which stands still while there is work and leaps to the next timer.

pub use self::kind::*;

#[cfg(not(all(feature = "simulation", debug_assertions)))]
mod kind {
    use chrono::{DateTime, Utc};

    /// The time of day.
    pub fn now() -> DateTime<Utc> {
        Utc::now()
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
