//! The next value of a quantity, predicted from earlier ones.
//!
//! Method: its logarithm is taken as normal, with unknown mean and variance (durations and rates are skewed,
//! and are never negative). The expectation before the first measurement counts as one observation of the
//! mean and [`PRIOR_WEIGHT`] of the variance (the conjugate normal-inverse-gamma prior); the next value then
//! follows Student's t distribution, of which the middle nine tenths are the range. See Gelman et al.,
//! Bayesian Data Analysis, section 3.3. Where measurements contradict the expectation by more than its own
//! spread, it counts as if it were at that spread.

/// The expectation before the first measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    /// The median.
    pub typical: f64,
    /// Exceeded once in twenty times.
    pub worst: f64,
    /// Never exceeded: a deadline that ends the step. Infinite if there is none.
    pub most: f64,
}

impl Prior {
    /// For a quantity without a deadline.
    pub const fn new(typical: f64, worst: f64) -> Self {
        Self { typical, worst, most: f64::INFINITY }
    }

    /// For a step with a deadline, in seconds.
    pub const fn until(typical: f64, worst: f64, most: f64) -> Self {
        Self { typical, worst, most }
    }
}

/// The prediction: `expected` is the median, and nine of ten values lie between `low` and `high`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PredictedRange {
    pub low: f64,
    pub expected: f64,
    pub high: f64,
}

impl PredictedRange {
    /// A quantity that is known exactly.
    pub const fn exact(value: f64) -> Self {
        Self { low: value, expected: value, high: value }
    }

    /// Whether it contains `value`.
    pub fn has(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// The sum of independent quantities: their errors add up as squares.
    pub fn sum(ranges: impl IntoIterator<Item = Self>) -> Self {
        let (mut expected, mut below, mut above) = (0.0, 0.0, 0.0);
        for range in ranges {
            expected += range.expected;
            below += (range.expected - range.low).powi(2);
            above += (range.high - range.expected).powi(2);
        }
        Self { low: (expected - f64::sqrt(below)).max(0.0), expected, high: expected + f64::sqrt(above) }
    }

    /// The sum of quantities whose errors share this part of their variance.
    pub fn partly(ranges: impl IntoIterator<Item = Self>, common: f64) -> Self {
        let (mut apart, mut along) = (Vec::new(), Self::default());
        for range in ranges {
            along = Self::along([along, range]);
            apart.push(range);
        }
        let apart = Self::sum(apart);
        let between =
            |apart: f64, along: f64| f64::sqrt((1.0 - common) * apart.powi(2) + common * along.powi(2));
        let expected = along.expected;
        Self {
            low: (expected - between(expected - apart.low, expected - along.low)).max(0.0),
            expected,
            high: expected + between(apart.high - expected, along.high - expected),
        }
    }

    /// The sum of quantities whose errors are equal.
    pub fn along(ranges: impl IntoIterator<Item = Self>) -> Self {
        ranges.into_iter().fold(Self::default(), |sum, range| Self {
            low: sum.low + range.low,
            expected: sum.expected + range.expected,
            high: sum.high + range.high,
        })
    }
}

/// Measurements that count; older ones mislead.
pub const RECENT: usize = 32;
/// Observations that the prior's variance is worth.
const PRIOR_WEIGHT: f64 = 4.0;
/// The 95th percentile of the normal distribution.
const Z95: f64 = 1.645;
/// Smaller values are not distinguished, in seconds, bytes or the quantity's unit.
const LEAST: f64 = 1e-3;

/// The prediction of the next value. Values that are not finite are left out; the oldest comes first.
pub fn predict(measured: &[f64], prior: Prior) -> PredictedRange {
    let typical = prior.typical.max(LEAST).ln();
    let sigma = ((prior.worst.max(LEAST).ln() - typical) / Z95).max(0.02);
    let usable = measured.iter().filter(|value| value.is_finite());
    let logs: Vec<_> = usable.rev().take(RECENT).map(|value| value.max(LEAST).ln()).collect();
    let range = |centre: f64, half: f64| PredictedRange {
        low: (centre - half).exp().min(prior.most),
        expected: centre.exp().min(prior.most),
        high: (centre + half).exp().min(prior.most),
    };
    if logs.is_empty() {
        return range(typical, Z95 * sigma);
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
    let off = (typical - mean).clamp(-sigma, sigma);
    let centre = mean + off / (count + 1.0);
    let freedom = PRIOR_WEIGHT + count;
    // Half of the prior's variance is that of its mean, half that from one time to the next.
    let spread = PRIOR_WEIGHT * sigma.powi(2) / 2.0 + squares + count / (count + 1.0) * off.powi(2);
    let scale = (spread / freedom * (count + 2.0) / (count + 1.0)).sqrt();
    range(centre, t95(freedom) * scale)
}

/// The 95th percentile of Student's t distribution (Cornish and Fisher's expansion, right to 1 % from four
/// degrees on).
fn t95(freedom: f64) -> f64 {
    let z = Z95;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, table) in [(4.0, 2.132), (5.0, 2.015), (10.0, 1.812), (30.0, 1.697)] {
            assert!((t95(freedom) / table - 1.0).abs() < 0.01, "{freedom}: {}", t95(freedom));
        }
    }

    #[test]
    fn nothing_measured_is_what_was_expected() {
        let range = predict(&[], Prior::new(4.0, 16.0));
        assert!((range.low - 1.0).abs() < 1e-9 && (range.expected - 4.0).abs() < 1e-9, "{range:?}");
        assert!((range.high - 16.0).abs() < 1e-9, "{range:?}");
        assert_eq!(predict(&[f64::NAN], Prior::new(4.0, 16.0)), range);
        let capped = predict(&[], Prior::until(4.0, 16.0, 10.0));
        assert!((capped.high - 10.0).abs() < 1e-9 && capped.expected < capped.high);
    }

    #[test]
    fn measurements_take_the_place_of_expectations() {
        let prior = Prior::new(5.0, 50.0);
        let mut before = f64::INFINITY;
        for count in [1, 3, 10, 30] {
            let range = predict(&vec![1.0; count], prior);
            assert!(range.has(1.0) && range.high < before, "{count}: {range:?}");
            before = range.high;
        }
        let range = predict(&[1.0; 30], prior);
        assert!((0.9..1.1).contains(&range.expected) && range.high < 2.5, "{range:?}");
        let forgotten: Vec<_> =
            std::iter::repeat_n(100.0, 50).chain(std::iter::repeat_n(1.0, RECENT)).collect();
        assert_eq!(predict(&forgotten, prior), predict(&[1.0; RECENT], prior));
        // A wrong expectation does not spoil what was measured.
        let wrong = predict(&[100.0; 10], prior);
        assert!(wrong.has(100.0) && wrong.expected > 75.0, "{wrong:?}");
    }

    #[test]
    fn sums_are_narrower_than_all_at_their_worst() {
        let one = PredictedRange { low: 1.0, expected: 2.0, high: 5.0 };
        let sum = PredictedRange::sum([one, one, PredictedRange::exact(3.0)]);
        assert!((sum.expected - 7.0).abs() < 1e-9 && sum.high < 13.0 && sum.low > 5.0, "{sum:?}");
        assert_eq!(PredictedRange::sum([]), PredictedRange::default());
    }
}
