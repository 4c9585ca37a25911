//! The length of the final delta, and whether another pass would make it shorter.
//!
//! Rule: pure. Measurements come in, a decision comes out; it reads no data and no clock.
//!
//! Each pass copies what changed during the last one and the pause after it. With the guest changing `c`
//! bytes a second and passes moving `t`, a pass right after another has `c / t` times its bytes: below 1
//! deltas shrink, and the final one is as small as the guest's writing during one short pass; at 1 or above
//! they never do, and copying again only costs.

use std::time::Duration;

/// A pass as it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredPass {
    /// Bytes that were pending when it began.
    pub pending: u64,
    /// Its time, from its first read to its last commit.
    pub took: Duration,
    /// From the snapshot before to its own; `None` for the first pass.
    pub since_last: Option<Duration>,
}

/// The forecast of the final delta if the cutover began now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes that the final delta will have to copy.
    pub bytes: u64,
    /// How long that takes.
    pub copy: Duration,
    /// Bytes that the guest changes in a second, counted in whole blocks; each block once for each pass.
    pub change_rate: f64,
    /// Bytes of pending disk drained in a second.
    pub throughput: f64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The final delta fits the limit.
    CutOver,
    /// It does not fit, but another pass makes it shorter.
    CopyAgain,
    /// It does not fit, and another pass does not help: the guest changes about as fast as passes copy.
    WillNotFit,
}

/// Passes that count: the guest's load changes, old ones mislead.
const RECENT: usize = 3;
/// A next delta that is not at least this much shorter is not worth a pass.
const WORTHWHILE: f64 = 0.9;

/// The final delta if the source were stopped now: the `pending` bytes, plus the guest's changes in the time
/// `since_snapshot`, at the rates of the last passes. `None` before any pass has measured a rate.
pub fn forecast(passes: &[MeasuredPass], pending: u64, since_snapshot: Duration) -> Option<Forecast> {
    let recent = &passes[passes.len().saturating_sub(RECENT)..];
    let moved = recent.iter().filter(|pass| !pass.took.is_zero());
    let (bytes, seconds) =
        moved.fold((0.0, 0.0), |(b, s), pass| (b + pass.pending as f64, s + pass.took.as_secs_f64()));
    if bytes <= 0.0 {
        return None;
    }
    let throughput = bytes / seconds;
    let deltas = recent.iter().filter_map(|pass| Some((pass.pending as f64, pass.since_last?.as_secs_f64())));
    let (changed, elapsed) = deltas.fold((0.0, 0.0), |(b, s), (bytes, seconds)| (b + bytes, s + seconds));
    let change_rate = if elapsed > 0.0 { changed / elapsed } else { 0.0 };
    let bytes = pending as f64 + change_rate * since_snapshot.as_secs_f64();
    let copy = Duration::try_from_secs_f64(bytes / throughput).unwrap_or(Duration::MAX);
    Some(Forecast { bytes: bytes as u64, copy, change_rate, throughput })
}

/// Copy again or cut over. The criteria, in order:
/// 1. The final delta, copied now, fits `limit`: cut over.
/// 2. A pass now would leave the guest's changes during the pass as the next delta. If that is more than a
///    tenth shorter: copy again.
/// 3. Otherwise the guest changes about as fast as passes copy, or faster, and no pass helps.
pub fn advise(forecast: &Forecast, limit: Duration) -> Advice {
    let ratio = forecast.change_rate / forecast.throughput;
    if forecast.copy <= limit {
        Advice::CutOver
    } else if ratio < WORTHWHILE {
        Advice::CopyAgain
    } else {
        Advice::WillNotFit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pass(mib: u64, took: u64, since_last: Option<u64>) -> MeasuredPass {
        MeasuredPass {
            pending: mib * MIB,
            took: Duration::from_secs(took),
            since_last: since_last.map(Duration::from_secs),
        }
    }

    #[test]
    fn nothing_measured_is_no_forecast() {
        assert_eq!(forecast(&[], 5, Duration::from_secs(1)), None);
        assert_eq!(forecast(&[pass(0, 0, None)], 5, Duration::from_secs(1)), None);
    }

    #[test]
    fn the_delta_is_what_is_pending_and_what_changed_since() {
        let passes = [pass(1000, 10, None), pass(100, 1, Some(50))];
        let forecast = forecast(&passes, 20 * MIB, Duration::from_secs(40)).unwrap();
        assert!((forecast.throughput - (100 * MIB) as f64).abs() < 1.0, "{forecast:?}");
        assert!((forecast.change_rate - (2 * MIB) as f64).abs() < 1.0, "{forecast:?}");
        assert_eq!(forecast.bytes, 100 * MIB);
        assert_eq!(forecast.copy, Duration::from_secs(1));
    }

    #[test]
    fn old_passes_do_not_count() {
        let passes =
            [pass(9000, 1, None), pass(10, 1, Some(10)), pass(10, 1, Some(10)), pass(10, 1, Some(10))];
        let forecast = forecast(&passes, 10 * MIB, Duration::ZERO).unwrap();
        assert_eq!(forecast.copy, Duration::from_secs(1));
    }

    #[test]
    fn advice_follows_its_criteria() {
        let forecast = |copy, change_rate| Forecast {
            bytes: 0,
            copy: Duration::from_secs(copy),
            change_rate,
            throughput: 100.0,
        };
        let limit = Duration::from_secs(30);
        assert_eq!(advise(&forecast(30, 500.0), limit), Advice::CutOver);
        assert_eq!(advise(&forecast(31, 50.0), limit), Advice::CopyAgain);
        assert_eq!(advise(&forecast(31, 95.0), limit), Advice::WillNotFit);
        assert_eq!(advise(&forecast(31, 100.0), limit), Advice::WillNotFit);
    }
}
