//! Quotas as the configuration has them, and as users see them.
//!
//! Rule: a scope that is not named is not limited. The quotas of plans are in the plans.

use chrono::{DateTime, Utc};
use warmd_schedules::{
    Tz,
    admission_queue::QuotaScope,
    quota::{Allowance, Quota},
    window::Holidays,
};

/// The quotas of the configuration: global, of endpoints, of hosts and of datastores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfiguredQuotas {
    /// For windows that name no zone.
    pub zone: Option<Tz>,
    /// The holidays that windows may use.
    pub holidays: Holidays,
    /// Each scope once; scopes without quotas are absent.
    pub scopes: Vec<(QuotaScope, Vec<Quota>)>,
}

/// The name of a host or a datastore in a [`QuotaScope`]: its name alone if it is the same for all sources.
pub fn quota_endpoint_name(source: Option<&str>, name: &str) -> String {
    source.map_or_else(|| name.to_owned(), |source| format!("{source}:{name}"))
}

/// The quotas of a scope now, and their use.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotaView {
    pub scope: QuotaScope,
    /// What is allowed now.
    pub allowance: Allowance,
    /// Which quotas hold, in words.
    pub why: String,
    /// When the allowance changes next; `None` if not within ten years.
    pub next_change: Option<DateTime<Utc>>,
    pub passes: u32,
    pub snapshots: u32,
    pub disks: u32,
    /// Bytes per second in this scope, over the last five seconds.
    pub rate: f64,
    /// Passes that wait for this quota.
    pub waiting: u64,
}
