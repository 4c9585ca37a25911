//! What is expected of a cutover.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What something will be: `expected` as often exceeded as not, and in nine of ten times between `low` and `high`.
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
    /// Why the downtime that the plan allows, or the window, would not be kept; empty if nothing speaks against it.
    pub against: Vec<String>,
    pub remarks: Vec<String>,
    /// Whether passes right after each other become shorter.
    pub converges: bool,
    /// To what, or why not and which limit is to blame, in words.
    pub convergence: String,
}
