//! How long the last pass is past, whatever happens to the clock on the wall meanwhile.
//!
//! Rule: an interval is counted by the monotonic clock from the moment at which its beginning was first seen. The clock on
//! the wall may only make it longer (a host that slept, a daemon that was down), never shorter: no decision recedes
//! because the time of day was set back.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use warmd_schedules::rules::LastPass;

/// Keeps of the last pass when it was first seen.
#[derive(Debug, Default)]
pub(super) struct Steady(Mutex<Option<Anchor>>);

#[derive(Clone, Copy, Debug)]
struct Anchor {
    /// The end of the pass, as it was written down: tells one pass from another.
    ended: DateTime<Utc>,
    seen: Instant,
    /// How long it was past when it was seen.
    before: TimeDelta,
    /// By how much the clock on the wall was set back since it was written down, as last found.
    back: TimeDelta,
}

/// What two clocks that are looked at one after the other may differ by, and neither was set.
pub(super) const SLEW: TimeDelta = TimeDelta::seconds(1);

impl Steady {
    /// The same pass, at times that are right by the clock on the wall as it stands at `now`.
    pub(super) fn told(&self, last: LastPass, now: DateTime<Utc>) -> LastPass {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut anchor = match *kept {
            Some(anchor) if anchor.ended == last.ended => anchor,
            // One that is still to come was written down before the clock was set back: counted from now, once.
            _ => Anchor {
                ended: last.ended,
                seen: Instant::now(),
                before: (now - last.ended).max(TimeDelta::zero()),
                back: TimeDelta::zero(),
            },
        };
        let elapsed = TimeDelta::from_std(anchor.seen.elapsed()).unwrap_or_default();
        let past = anchor.before.checked_add(&elapsed).unwrap_or(anchor.before);
        let steady = now.checked_sub_signed(past).unwrap_or(last.ended);
        let back = (last.ended - steady).max(TimeDelta::zero());
        // Found once, and kept: else each look would tell another moment by some microseconds.
        if (back - anchor.back).abs() >= SLEW {
            anchor.back = back;
        }
        *kept = Some(anchor);
        let ended = last.ended.checked_sub_signed(anchor.back).unwrap_or(steady);
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
        let (steady, last) = (Steady::default(), LastPass { snapshot: at(-2), ended: at(0) });
        let minutes = |minutes| tokio::time::sleep(Duration::from_mins(minutes));
        assert_eq!(steady.told(last, at(1)), last);
        minutes(9).await;
        assert_eq!(steady.told(last, at(10)), last, "nothing was set");
        // Two days back: ten minutes ago stays ten minutes ago, and it goes on.
        let day = 24 * 60;
        let told = steady.told(last, at(10 - 2 * day));
        assert_eq!(told, LastPass { snapshot: at(-2 - 2 * day), ended: at(-2 * day) });
        minutes(5).await;
        assert_eq!(steady.told(last, at(15 - 2 * day)).ended, at(-2 * day));
        // And forward again; further than it was, as after a sleep of the host, the pass is as old as the clock says.
        assert_eq!(steady.told(last, at(15)), last);
        assert_eq!(steady.told(last, at(day)), last);
        // After a restart nothing is known of the clock: the wait begins once, and does not recede.
        let anew = Steady::default();
        assert_eq!(anew.told(last, at(-day)).ended, at(-day));
        minutes(3).await;
        assert_eq!(anew.told(last, at(3 - day)).ended, at(-day));
        // Another pass is another beginning.
        let next = LastPass { snapshot: at(3 - day), ended: at(4 - day) };
        assert_eq!(anew.told(next, at(4 - day)), next);
    }
}
