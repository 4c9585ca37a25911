//! Cutovers and verifications.

use warmd_core::model::view::{
    AuditView, CutoverView, DiskVerifyResult, PhaseView, VerificationView, VerifyResult,
};
use warmd_proto::v1;

use super::{enums, seconds, timestamp};

pub(super) fn cutover(cutover: CutoverView) -> v1::Cutover {
    v1::Cutover {
        started: Some(timestamp(cutover.started)),
        ended: cutover.ended.map(timestamp),
        phases: cutover.phases.into_iter().map(phase).collect(),
        failure: cutover.failure,
        downtime: cutover.downtime.and_then(seconds),
        progress: cutover.progress,
    }
}

fn phase(phase: PhaseView) -> v1::PhaseRun {
    v1::PhaseRun {
        phase: enums::phase(phase.phase).into(),
        started: Some(timestamp(phase.started)),
        ended: phase.ended.map(timestamp),
        outcome: phase.outcome.map(String::from),
    }
}

pub(super) fn verification(verification: VerificationView) -> v1::Verification {
    v1::Verification {
        id: verification.id,
        mode: enums::verify_mode(verification.mode).into(),
        started: Some(timestamp(verification.started)),
        ended: verification.ended.map(timestamp),
        total_bytes: verification.total,
        checked_bytes: verification.checked,
        error: verification.error,
        result: verification.result.map(result),
        scope: verification.scope.to_string(),
        seed: verification.seed,
    }
}

fn result(result: VerifyResult) -> v1::VerifyResult {
    v1::VerifyResult {
        mode: enums::verify_mode(result.mode).into(),
        at: Some(timestamp(result.at)),
        passed: result.passed(),
        disks: result.disks.into_iter().map(disk).collect(),
        scope: result.scope.to_string(),
        seed: result.seed,
        miss_probabilities: result
            .miss_probabilities
            .into_iter()
            .map(|miss| v1::MissProbability { blocks: miss.blocks, probability: miss.probability })
            .collect(),
    }
}

pub(super) fn audit(audit: AuditView) -> v1::Audit {
    v1::Audit {
        checked_bytes: audit.checked,
        hole_bytes: audit.holes,
        mismatched_bytes: audit.mismatched_bytes,
        mismatches: audit.mismatches.into_iter().map(extent).collect(),
        error: audit.error,
    }
}

fn extent((offset_bytes, length_bytes): (u64, u64)) -> v1::Extent {
    v1::Extent { offset_bytes, length_bytes }
}

fn disk(disk: DiskVerifyResult) -> v1::DiskVerifyResult {
    v1::DiskVerifyResult {
        key: disk.key.0,
        checked_bytes: disk.checked,
        mismatched_bytes: disk.mismatched_bytes,
        mismatches: disk.mismatches.into_iter().map(extent).collect(),
        root: disk.root,
        image: disk.image,
    }
}
