//! The state of all migrations at one moment, as metrics show it.
//!
//! Rule: plain values, made when a client asks for the metrics.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use warmd_cbt::telemetry::HistogramCounts;

use crate::model::{quota::QuotaView, view::MigrationView};

/// The other figures, at the time of the scrape.
#[derive(Clone, Debug)]
pub struct CurrentFigures {
    pub at: DateTime<Utc>,
    /// Of those that are under way, and of some finished ones.
    pub views: Vec<MigrationView>,
    /// How many are finished, by plan and state.
    pub finished: Vec<(String, &'static str, u64)>,
    /// How many source VMs run beside their target VMs, as last seen, by plan.
    pub sources_run: Vec<(String, u64)>,
    /// What quotas allow, and what of it is in use.
    pub quotas: Vec<QuotaView>,
    /// Of the plans of those that are under way.
    pub windows: Vec<WindowView>,
    pub promises: Vec<SloView>,
    /// Of the VMs with an RPO.
    pub overdue: Vec<OverdueView>,
    /// How long the store's durable commits took.
    pub commits: HistogramCounts,
}

/// Gives the present figures for a scrape.
pub type Present = Arc<dyn Fn() -> BoxFuture<'static, CurrentFigures> + Send + Sync>;

/// The windows of a plan for one of the two, at the moment of asking.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowView {
    pub plan: String,
    /// If they are the windows of this VM alone.
    pub vm: Option<String>,
    /// `copy` or `cutover`.
    pub kind: &'static str,
    pub is_open: bool,
    /// Seconds until it closes if it is open, or opens if it is not; `None` if that does not come within ten
    /// years.
    pub changes_in: Option<f64>,
}

/// The SLO of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct SloView {
    pub plan: String,
    /// Set if it is for this VM alone.
    pub vm: Option<String>,
    /// How old a target may be, in seconds.
    pub rpo: Option<f64>,
    /// How long a VM may be down, in seconds.
    pub max_downtime: Option<f64>,
}

/// Whether a target is older than its RPO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverdueView {
    pub plan: String,
    pub vm: String,
    pub is_overdue: bool,
}
