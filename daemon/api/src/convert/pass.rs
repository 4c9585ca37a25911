//! Passes.

use warmd_core::model::view::{DiskPassView, PassView};
use warmd_proto::v1;

use super::{enums, seconds, telemetry::telemetry, timestamp, verify};

pub(super) fn pass(pass: PassView) -> v1::Pass {
    v1::Pass {
        number: pass.number,
        kind: enums::pass_kind(pass.kind).into(),
        started: Some(timestamp(pass.started)),
        ended: pass.ended.map(timestamp),
        error: pass.error.map(String::from),
        disks: pass.disks.into_iter().map(disk_pass).collect(),
        daemon_cpu: pass.cpu.and_then(seconds),
        snapshot_made: pass.snapshot.and_then(|cost| seconds(cost.made)),
        snapshot_removed: pass.snapshot.and_then(|cost| cost.removed).and_then(seconds),
    }
}

fn disk_pass(disk: DiskPassView) -> v1::DiskPass {
    v1::DiskPass {
        key: disk.key.0,
        pending_bytes: disk.pending,
        changed_bytes: disk.changed,
        extents: disk.extents,
        unknown: disk.unknown,
        mark: disk.mark,
        read_bytes: disk.figures.read,
        written_bytes: disk.figures.written,
        zeroed_bytes: disk.figures.zeroed,
        skipped_bytes: disk.figures.skipped,
        drained_bytes: disk.figures.drained,
        requests: disk.figures.requests,
        batches: disk.figures.batches,
        telemetry: disk.telemetry.as_ref().map(telemetry),
        audit: disk.audit.map(verify::audit),
    }
}
