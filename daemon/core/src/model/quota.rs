//! Quotas as the configuration has them, and as people see them.
//!
//! Rule: what is not named is not limited. The quotas of plans stand in the plans.

use chrono::{DateTime, Utc};
use warmd_schedules::{
    Tz,
    admission_queue::QuotaScope,
    quota::{Allowance, Quota},
    window::Holidays,
};

/// The quotas of the configuration: of all, of endpoints, of hosts and of datastores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfiguredQuotas {
    /// Of windows that name none.
    pub zone: Option<Tz>,
    /// Of which windows may speak.
    pub holidays: Holidays,
    /// Each scope once; one without quotas is not there.
    pub scopes: Vec<(QuotaScope, Vec<Quota>)>,
}

/// How a host or a datastore is called in a [`QuotaScope`]: by its name alone if it is the same for all sources.
pub fn place_name(source: Option<&str>, name: &str) -> String {
    source.map_or_else(|| name.to_owned(), |source| format!("{source}:{name}"))
}

/// The quotas of a scope now, and what is made of them.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotaView {
    pub scope: QuotaScope,
    /// What may be done now.
    pub allowance: Allowance,
    /// Which quotas hold, in words.
    pub why: String,
    /// When something else may be done; `None` if not within ten years.
    pub next_change: Option<DateTime<Utc>>,
    pub passes: u32,
    pub snapshots: u32,
    pub disks: u32,
    /// Bytes a second that go through it, over the last five seconds.
    pub rate: f64,
    /// Passes that wait and need something of it.
    pub waiting: u64,
}
