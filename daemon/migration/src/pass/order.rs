//! The order of a recorded pass.

use std::{num::NonZeroU64, sync::PoisonError};

use warmd_cbt::mark::ChangeMark;
use warmd_core::{
    model::view::{PassKind, PassView},
    pass::{DiskOrder, PassLabels, PassOrder, RateCeiling},
};

use super::PassDisk;
use crate::{audit, context::Context};

/// The order for this process, which has the ledgers themselves. Audits are ordered if `is_audited`.
pub(super) async fn of(
    context: &Context,
    pass: &PassView,
    disks: &[PassDisk],
    is_audited: bool,
) -> PassOrder {
    let mut settings = context.engine.settings;
    if pass.kind == PassKind::Final {
        // The source is off: a backoff would only prolong the downtime.
        settings.read_latency_factor = None;
    }
    let mut orders = Vec::with_capacity(disks.len());
    for (disk, view) in disks.iter().zip(&pass.disks) {
        let audit = if is_audited { audit::order(context, pass.kind, disk).await } else { None };
        let baseline = disk.baseline.lock().unwrap_or_else(PoisonError::into_inner).clone();
        orders.push(DiskOrder {
            key: disk.row.key.clone(),
            disk: disk.row.id,
            record: disk.record,
            size: disk.row.size,
            mark: ChangeMark(view.mark.clone()),
            location: disk.row.location.clone(),
            pending: view.pending,
            blocks: None,
            audit,
            latencies: baseline.known().collect(),
        });
    }
    let name = PassLabels {
        migration: context.id,
        plan: context.plan().name.clone(),
        vm: context.machine.name.clone(),
        kind: pass.kind,
    };
    let ceilings = context.ceilings().into_iter().filter_map(|ceiling| {
        let bytes_per_second = NonZeroU64::new(ceiling.bytes_per_second as u64)?;
        Some(RateCeiling { scope: ceiling.name, bytes_per_second })
    });
    PassOrder {
        pass: name,
        number: pass.number,
        generation: 0,
        started: pass.started,
        settings,
        ceilings: ceilings.collect(),
        disks: orders,
    }
}
