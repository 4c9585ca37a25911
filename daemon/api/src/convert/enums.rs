//! Enums without data.

use warmd_core::{
    control::PlanChangeKind,
    model::{
        machine::PowerState,
        phase::Phase,
        plan::VerifyMode,
        rule::Severity,
        state::{ResumePoint, State},
        view::PassKind,
    },
};
use warmd_proto::v1;

pub(super) fn state(state: &State) -> v1::MigrationState {
    match state {
        State::Defined => v1::MigrationState::Defined,
        State::Preparing => v1::MigrationState::Preparing,
        State::Seeding => v1::MigrationState::Seeding,
        State::Synced => v1::MigrationState::Synced,
        State::Syncing => v1::MigrationState::Syncing,
        State::CuttingOver { .. } => v1::MigrationState::CuttingOver,
        State::Undoing { .. } => v1::MigrationState::Undoing,
        State::RollingBack => v1::MigrationState::RollingBack,
        State::Paused { .. } => v1::MigrationState::Paused,
        State::Failed { .. } => v1::MigrationState::Failed,
        State::Cancelling => v1::MigrationState::Cancelling,
        State::Done => v1::MigrationState::Done,
        State::Cancelled => v1::MigrationState::Cancelled,
    }
}

pub(super) fn resting(resting: ResumePoint) -> v1::ResumePoint {
    match resting {
        ResumePoint::Preparing => v1::ResumePoint::Preparing,
        ResumePoint::Seeding => v1::ResumePoint::Seeding,
        ResumePoint::Synced => v1::ResumePoint::Synced,
        ResumePoint::BootCheck => v1::ResumePoint::BootCheck,
        ResumePoint::Cleanup => v1::ResumePoint::Cleanup,
        ResumePoint::StaleState => v1::ResumePoint::StaleState,
    }
}

pub(super) fn phase(phase: Phase) -> v1::Phase {
    match phase {
        Phase::CatchUpDelta => v1::Phase::CatchUpDelta,
        Phase::StopSource => v1::Phase::StopSource,
        Phase::FinalDelta => v1::Phase::FinalDelta,
        Phase::Verify => v1::Phase::Verify,
        Phase::Convert => v1::Phase::Convert,
        Phase::CreateVm => v1::Phase::CreateVm,
        Phase::StartVm => v1::Phase::StartVm,
        Phase::BootCheck => v1::Phase::BootCheck,
        Phase::Cleanup => v1::Phase::Cleanup,
    }
}

pub(super) fn pass_kind(kind: PassKind) -> v1::PassKind {
    match kind {
        PassKind::Full => v1::PassKind::Full,
        PassKind::Delta => v1::PassKind::Delta,
        PassKind::Final => v1::PassKind::Final,
    }
}

pub(super) fn verify_mode(mode: VerifyMode) -> v1::VerifyMode {
    match mode {
        VerifyMode::None => v1::VerifyMode::None,
        VerifyMode::Readback => v1::VerifyMode::Readback,
        VerifyMode::Compare => v1::VerifyMode::Compare,
    }
}

pub(super) fn power(power: PowerState) -> v1::PowerState {
    match power {
        PowerState::Running => v1::PowerState::Running,
        PowerState::Paused => v1::PowerState::Paused,
        PowerState::Off => v1::PowerState::Off,
    }
}

pub(super) fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    }
}

pub(super) fn plan_change_kind(kind: PlanChangeKind) -> v1::PlanChangeKind {
    match kind {
        PlanChangeKind::New => v1::PlanChangeKind::New,
        PlanChangeKind::Setting => v1::PlanChangeKind::Setting,
        PlanChangeKind::Start => v1::PlanChangeKind::Start,
        PlanChangeKind::Keep => v1::PlanChangeKind::Keep,
        PlanChangeKind::Leave => v1::PlanChangeKind::Leave,
    }
}
