//! The time since the last pass, independent of changes of the wall clock.
//!
//! Rule: an interval is counted by the monotonic clock from the moment at which its beginning was first seen.
//! The wall clock may only lengthen it (a host that slept, a daemon that was down), never shorten it: no
//! decision is delayed because the time of day was set back.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use warmd_schedules::rules::LastPass;

/// Records when the last pass was first seen.
#[derive(Debug, Default)]
pub(super) struct MonotonicPass(Mutex<Option<Anchor>>);

#[derive(Clone, Copy, Debug)]
struct Anchor {
    /// The recorded end of the pass: distinguishes passes.
    ended: DateTime<Utc>,
    seen: Instant,
    /// The time since the pass when it was seen.
    before: TimeDelta,
    /// By how much the wall clock was set back since that record, as last found.
    back: TimeDelta,
}

/// The difference of two clocks read one after the other that does not mean a set clock.
pub(super) const SLEW: TimeDelta = TimeDelta::seconds(1);

impl MonotonicPass {
    /// The same pass, at times relative to the wall clock at `now`.
    pub(super) fn at_wall_clock(&self, last: LastPass, now: DateTime<Utc>) -> LastPass {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut anchor = match *kept {
            Some(anchor) if anchor.ended == last.ended => anchor,
            // A future end was recorded before the clock was set back: counted from now, once.
            _ => Anchor {
                ended: last.ended,
                seen: Instant::now(),
                before: (now - last.ended).max(TimeDelta::zero()),
                back: TimeDelta::zero(),
            },
        };
        let elapsed = TimeDelta::from_std(anchor.seen.elapsed()).unwrap_or_default();
        let past = anchor.before.checked_add(&elapsed).unwrap_or(anchor.before);
        let monotonic_pass = now.checked_sub_signed(past).unwrap_or(last.ended);
        let back = (last.ended - monotonic_pass).max(TimeDelta::zero());
        // Found once, and kept: else each call would give times that differ by microseconds.
        if (back - anchor.back).abs() >= SLEW {
            anchor.back = back;
        }
        *kept = Some(anchor);
        let ended = last.ended.checked_sub_signed(anchor.back).unwrap_or(monotonic_pass);
        let took = (last.ended - last.snapshot).max(TimeDelta::zero());
        LastPass { snapshot: ended.checked_sub_signed(took).unwrap_or(ended), ended }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_makes_no_interval_longer_to_wait_for() {
        let (monotonic_pass, last) = (MonotonicPass::default(), LastPass { snapshot: at(-2), ended: at(0) });
        let minutes = |minutes| tokio::time::sleep(Duration::from_mins(minutes));
        assert_eq!(monotonic_pass.at_wall_clock(last, at(1)), last);
        minutes(9).await;
        assert_eq!(monotonic_pass.at_wall_clock(last, at(10)), last, "nothing was set");
        // Two days back: ten minutes ago stays ten minutes ago, and the count continues.
        let day = 24 * 60;
        let told = monotonic_pass.at_wall_clock(last, at(10 - 2 * day));
        assert_eq!(told, LastPass { snapshot: at(-2 - 2 * day), ended: at(-2 * day) });
        minutes(5).await;
        assert_eq!(monotonic_pass.at_wall_clock(last, at(15 - 2 * day)).ended, at(-2 * day));
        // And forward again; further than it was, as after a sleep of the host, the pass is as old as the
        // clock says.
        assert_eq!(monotonic_pass.at_wall_clock(last, at(15)), last);
        assert_eq!(monotonic_pass.at_wall_clock(last, at(day)), last);
        // After a restart the clock's changes are unknown: the wait begins once, and is not extended.
        let anew = MonotonicPass::default();
        assert_eq!(anew.at_wall_clock(last, at(-day)).ended, at(-day));
        minutes(3).await;
        assert_eq!(anew.at_wall_clock(last, at(3 - day)).ended, at(-day));
        // Another pass starts a new count.
        let next = LastPass { snapshot: at(3 - day), ended: at(4 - day) };
        assert_eq!(anew.at_wall_clock(next, at(4 - day)), next);
    }
}
