//! Quotas.

use std::num::{NonZeroU32, NonZeroU64};

use warmd_core::model::quota::QuotaView;
use warmd_proto::v1;

use super::timestamp;

/// The quotas of a scope, and their use.
pub(crate) fn quota(view: QuotaView) -> v1::QuotaState {
    v1::QuotaState {
        scope: view.scope.path(),
        rate_bytes_per_second: view.allowance.bytes_per_second.map(NonZeroU64::get),
        passes: view.allowance.passes.map(NonZeroU32::get),
        snapshots: view.allowance.snapshots.map(NonZeroU32::get),
        disks: view.allowance.disks.map(NonZeroU32::get),
        why: view.why,
        next_change: view.next_change.map(timestamp),
        now_bytes_per_second: view.rate,
        passes_used: view.passes,
        snapshots_used: view.snapshots,
        disks_used: view.disks,
        waiting: view.waiting,
    }
}
