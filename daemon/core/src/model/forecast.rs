//! The forecast of a cutover.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A predicted figure: exceeded as often as not at `expected`, and in nine of ten cases between `low` and
/// `high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastRange {
    pub low: f64,
    pub expected: f64,
    pub high: f64,
}

/// The forecast of a migration's cutover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastView {
    /// When it would begin: now, or when its window opens.
    pub at: DateTime<Utc>,
    /// Bytes.
    pub final_delta: ForecastRange,
    /// Seconds.
    pub downtime: ForecastRange,
    /// Why the plan's `max_downtime`, or the window, would not be kept; empty if both are kept.
    pub against: Vec<String>,
    pub remarks: Vec<String>,
    /// Whether back-to-back passes become shorter.
    pub converges: bool,
    /// The length they converge to, or why they do not and which limit is the cause.
    pub convergence: String,
}
