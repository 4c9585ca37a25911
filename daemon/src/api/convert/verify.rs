//! Cutovers and verifications.

use warmd_proto::v1;

use super::{enums, seconds, timestamp};
use crate::model::view::{CutoverView, DiskVerdict, PhaseView, Verdict, VerificationView};

pub(super) fn cutover(cutover: CutoverView) -> v1::Cutover {
    v1::Cutover {
        started: Some(timestamp(cutover.started)),
        ended: cutover.ended.map(timestamp),
        phases: cutover.phases.into_iter().map(phase).collect(),
        failure: cutover.failure,
        downtime: cutover.downtime.and_then(seconds),
    }
}

fn phase(phase: PhaseView) -> v1::PhaseRun {
    v1::PhaseRun {
        phase: enums::phase(phase.phase).into(),
        started: Some(timestamp(phase.started)),
        ended: phase.ended.map(timestamp),
        outcome: phase.outcome,
    }
}

pub(super) fn verification(verification: VerificationView) -> v1::Verification {
    v1::Verification {
        mode: enums::verify_mode(verification.mode).into(),
        started: Some(timestamp(verification.started)),
        ended: verification.ended.map(timestamp),
        total_bytes: verification.total,
        checked_bytes: verification.checked,
        error: verification.error,
        verdict: verification.verdict.map(verdict),
    }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    v1::Verdict {
        mode: enums::verify_mode(verdict.mode).into(),
        at: Some(timestamp(verdict.at)),
        passed: verdict.passed(),
        disks: verdict.disks.into_iter().map(disk).collect(),
    }
}

fn disk(disk: DiskVerdict) -> v1::DiskVerdict {
    let extent = |(offset_bytes, length_bytes)| v1::Extent { offset_bytes, length_bytes };
    v1::DiskVerdict {
        key: disk.key.0,
        checked_bytes: disk.checked,
        mismatched_bytes: disk.mismatched_bytes,
        mismatches: disk.mismatches.into_iter().map(extent).collect(),
        root: disk.root,
    }
}
