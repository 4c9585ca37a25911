//! The time of the next request under a rate.
//!
//! Rule: pure. Times are nanoseconds since the rate limiter began. A limit is just the moment from which on
//! it is `open`: before it earlier requests are still being paid for, after it up to a burst is saved.

use std::num::NonZeroU64;

use super::BURST;

const BURST_NANOS: u64 = BURST.as_nanos() as u64;

/// The earliest moment that an idle limit counts as open since.
fn earliest(now: u64) -> u64 {
    now.saturating_sub(BURST_NANOS)
}

fn nanos(bytes: u64, rate: NonZeroU64) -> u64 {
    scaled(bytes, 1_000_000_000, rate.get())
}

/// `value` · `by` / `over`, limited so that the sum of two still fits.
fn scaled(value: u64, by: u64, over: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(by) / u128::from(over);
    u64::try_from(scaled).map_or(u64::MAX / 4, |scaled| scaled.min(u64::MAX / 4))
}

/// The next open moment after `bytes` have gone now.
pub(super) fn after(open: u64, now: u64, bytes: u64, rate: NonZeroU64) -> u64 {
    open.max(earliest(now)).saturating_add(nanos(bytes, rate))
}

/// The next open moment after `bytes` that were paid for did not go.
pub(super) fn back(open: u64, bytes: u64, rate: NonZeroU64) -> u64 {
    open.saturating_sub(nanos(bytes, rate))
}

/// The next open moment after the rate was changed: a debt in bytes stays the same, and no credit comes from
/// the time without a rate.
pub(super) fn changed(open: u64, now: u64, from: Option<NonZeroU64>, to: Option<NonZeroU64>) -> u64 {
    match (from, to) {
        (Some(from), Some(to)) if open > now => now.saturating_add(scaled(open - now, from.get(), to.get())),
        (Some(_), Some(_)) => open.max(earliest(now)),
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[test]
    fn idling_saves_a_burst_and_no_more() {
        let now = 100 * SECOND;
        assert_eq!(after(0, now, 0, rate(1)), now - BURST_NANOS);
        assert_eq!(after(now, now, 5, rate(5)), now + SECOND);
        assert_eq!(after(now + SECOND, now, 5, rate(5)), now + 2 * SECOND);
    }

    #[test]
    fn a_debt_is_paid_at_the_new_rate() {
        let now = 100 * SECOND;
        assert_eq!(changed(now + 8 * SECOND, now, Some(rate(1)), Some(rate(4))), now + 2 * SECOND);
        assert_eq!(changed(now + 2 * SECOND, now, Some(rate(4)), Some(rate(1))), now + 8 * SECOND);
        assert_eq!(changed(0, now, None, Some(rate(1))), now, "nothing was saved without a rate");
        assert_eq!(changed(now + SECOND, now, Some(rate(1)), None), now);
    }

    #[test]
    fn the_slowest_rate_and_the_largest_request_do_not_overflow() {
        let open = after(0, 0, u64::MAX, rate(1));
        assert!(open >= u64::MAX / 4);
        assert!(changed(open, 0, Some(rate(u64::MAX)), Some(rate(1))) <= u64::MAX / 2);
    }
}
