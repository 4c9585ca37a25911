//! Limits.

use std::num::{NonZeroU32, NonZeroU64};

use warmd_core::model::limit::LimitView;
use warmd_proto::v1;

use super::timestamp;

/// A limit, and its present traffic.
pub(crate) fn limit(view: LimitView) -> v1::LimitState {
    let (set_by, set_at) = view.set.map(|set| (set.by, timestamp(set.at))).unzip();
    v1::LimitState {
        scope: view.scope.to_string(),
        vm_name: view.vm_name,
        rate_bytes_per_second: view.limit.rate.map(NonZeroU64::get),
        requests: view.limit.requests.map(NonZeroU32::get),
        set_by,
        set_at,
        now_bytes_per_second: view.load.rate,
        in_flight: view.load.in_flight,
        waiting: view.load.waiting,
    }
}
