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
    }

    /// The time of day.
    pub fn now() -> DateTime<Utc> {
        SET.get()
            .map_or_else(Utc::now, |(then, at)| then + TimeDelta::from_std(at.elapsed()).unwrap_or_default())
    }

    /// Lets it be `then` now for this thread, which runs one runtime; `None` gives the system's time back.
    pub fn set(then: Option<DateTime<Utc>>) {
        SET.set(then.map(|then| (then, Instant::now())));
    }
}
