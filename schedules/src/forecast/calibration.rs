//! The errors of earlier forecasts, so that the next ones have the right width.
//!
//! Method: conformalised quantile regression (Romano, Patterson, Candès 2019) in logarithms. Each earlier
//! forecast has a score: by how much its range must be widened (or could be narrowed) for what was measured
//! to lie on its edge. The next range is widened by the score that nine of ten do not exceed. For any
//! distribution, and any error of the model, the measured value then lies in it in nine of ten times, as long
//! as the future is as the past was.

use serde::{Deserialize, Serialize};

use super::interval::PredictedRange;

/// A forecast whose end is known. To be kept of all cutovers, also of other plans.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastForecast {
    /// The forecast before calibration, in seconds.
    pub low: f64,
    pub expected: f64,
    pub high: f64,
    pub measured: f64,
}

/// Earlier forecasts from which on their errors count: fewer cannot show what one in ten exceeds.
pub const ENOUGH: usize = 9;
/// At most so many count: older ones mislead.
const RECENT: usize = 100;
/// In seconds; shorter times are not distinguished.
const LEAST: f64 = 1e-3;

/// The range, widened or narrowed by the errors of earlier ones. The oldest comes first.
pub fn calibrate(range: PredictedRange, past: &[PastForecast]) -> PredictedRange {
    let log = |value: f64| value.max(LEAST).ln();
    let score =
        |past: &PastForecast| (log(past.low) - log(past.measured)).max(log(past.measured) - log(past.high));
    let recent = past.iter().rev().take(RECENT).map(score).filter(|score| score.is_finite());
    let mut scores: Vec<_> = recent.collect();
    if scores.len() < ENOUGH {
        return range;
    }
    scores.sort_by(f64::total_cmp);
    let rank = ((scores.len() as f64 + 1.0) * 0.9).ceil() as usize;
    let score = scores[rank.min(scores.len()) - 1];
    // Earlier forecasts had fewer measurements and were wider: not all of their margin exists in this one.
    let by = (if score < 0.0 { score / 2.0 } else { score }).exp();
    let (low, high) = (range.low / by, range.high * by);
    PredictedRange { low: low.min(range.expected), high: high.max(range.expected), ..range }
}

/// How far forecasts are off: the median of measured ÷ expected, and the share that lay in their range.
pub fn error(past: &[PastForecast]) -> Option<(f64, f64)> {
    let mut ratios: Vec<_> =
        past.iter().map(|past| past.measured.max(LEAST) / past.expected.max(LEAST)).collect();
    ratios.sort_by(f64::total_cmp);
    let hits = past.iter().filter(|past| (past.low..=past.high).contains(&past.measured)).count();
    Some((*ratios.get(ratios.len() / 2)?, hits as f64 / past.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(measured: f64) -> PastForecast {
        PastForecast { low: 5.0, expected: 10.0, high: 20.0, measured }
    }

    const RANGE: PredictedRange = PredictedRange { low: 5.0, expected: 10.0, high: 20.0 };

    #[test]
    fn few_forecasts_change_nothing() {
        assert_eq!(calibrate(RANGE, &[past(100.0); ENOUGH - 1]), RANGE);
    }

    #[test]
    fn ranges_that_were_too_narrow_grow_and_too_wide_ones_shrink() {
        let wider = calibrate(RANGE, &[past(40.0); ENOUGH]);
        assert!((wider.high - 40.0).abs() < 1e-9 && (wider.low - 2.5).abs() < 1e-9, "{wider:?}");
        let narrower = calibrate(RANGE, &[past(10.0); ENOUGH]);
        let half = 2_f64.sqrt();
        assert!((narrower.high - 20.0 / half).abs() < 1e-9, "{narrower:?}");
        assert!((narrower.low - 5.0 * half).abs() < 1e-9, "{narrower:?}");
        // One in ten may have any error.
        let mut mixed = vec![past(20.0); 18];
        mixed.push(past(1e6));
        assert!((calibrate(RANGE, &mixed).high - 20.0).abs() < 1e-9);
    }

    #[test]
    fn the_error_is_reported() {
        assert_eq!(error(&[]), None);
        let (ratio, hits) = error(&[past(10.0), past(15.0), past(40.0), past(5.0)]).unwrap();
        assert!((ratio - 1.5).abs() < 1e-9 && (hits - 0.75).abs() < 1e-9);
    }
}
