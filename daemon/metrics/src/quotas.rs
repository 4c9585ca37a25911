//! Quotas as metrics.

use std::fmt;

use warmd_core::model::quota::QuotaView;

use super::exposition::{Labels, Sink};

/// What quotas allow now, how much is in use, and how many wait.
pub(super) fn encode(quotas: &[QuotaView], to: &mut Sink) -> fmt::Result {
    let labels = |quota: &QuotaView| -> Labels { vec![("scope", quota.scope.path())] };
    let counts = |quota: &QuotaView| {
        [
            ("passes", quota.allowance.passes, quota.passes),
            ("snapshots", quota.allowance.snapshots, quota.snapshots),
            ("disks", quota.allowance.disks, quota.disks),
        ]
    };
    let of = |quota: &QuotaView, kind: &str| [labels(quota), vec![("kind", kind.to_owned())]].concat();
    to.gauge(
        "warmd_quota_allowed",
        "What the quotas of a scope allow now; absent where they do not limit it.",
        quotas.iter().flat_map(|quota| {
            let limited = counts(quota).into_iter();
            limited.filter_map(move |(kind, most, _)| Some((of(quota, kind), f64::from(most?.get()))))
        }),
    )?;
    to.gauge(
        "warmd_quota_used",
        "What is in use of what the quotas of a scope count.",
        quotas.iter().flat_map(|quota| {
            counts(quota).into_iter().map(move |(kind, _, used)| (of(quota, kind), f64::from(used)))
        }),
    )?;
    to.gauge(
        "warmd_quota_allowed_bytes_per_second",
        "The rate that the quotas of a scope allow now; absent where they do not limit it.",
        quotas.iter().filter_map(|quota| {
            let rate = quota.allowance.bytes_per_second?;
            Some((labels(quota), rate.get() as f64))
        }),
    )?;
    to.gauge(
        "warmd_quota_used_bytes_per_second",
        "What went through a scope with quotas, over the last five seconds.",
        quotas.iter().map(|quota| (labels(quota), quota.rate)),
    )?;
    to.gauge(
        "warmd_quota_waiting_passes",
        "Passes that wait for their turn and need something of a scope with quotas.",
        quotas.iter().map(|quota| (labels(quota), quota.waiting as f64)),
    )
}
