//! What an operator can do about a migration's state.

use warmd_proto::v1::{Migration, MigrationState, Phase, ResumePoint};

use super::super::labels;

/// The command to give next, if the state leaves one to the operator. A failure that cannot be resumed, and
/// a decision between two VMs, have it in their reason.
pub(super) fn advice(migration: &Migration) -> Option<String> {
    if let Some(waiting) = &migration.waiting {
        return Some(waiting.advice.clone()).filter(|advice| !advice.is_empty());
    }
    // The VM's name may have blanks, or mean another migration by now.
    let command = |verb: &str| format!("`warmctl migration {verb} {}`", labels::short(&migration.id));
    let past_no_return = matches!(migration.resumes_at(), ResumePoint::BootCheck | ResumePoint::Cleanup);
    let resume = command("resume");
    let is_against = migration.forecast.as_ref().is_some_and(|forecast| !forecast.against.is_empty());
    Some(match migration.state() {
        MigrationState::Failed if !migration.resumable => return None,
        MigrationState::Failed if migration.resumes_at() == ResumePoint::StaleState => return None,
        MigrationState::Failed if past_no_return => format!(
            "remove the cause, then {resume}; or go back to the source VM, which loses what the target VM wrote: {}",
            command("rollback")
        ),
        MigrationState::Failed => {
            format!("remove the cause, then {resume}; or end it: {}", command("cancel"))
        }
        MigrationState::Paused => format!("{resume} when it is to go on"),
        MigrationState::Synced if migration.scheduled_cutover.is_none() && !is_against => {
            format!("{} moves the VM", command("cutover"))
        }
        MigrationState::CuttingOver if may_be_aborted(migration.phase()) => {
            format!("nothing; {} stops it, and the VM stays on the source", command("cutover --abort"))
        }
        MigrationState::Done if !migration.left_behind.is_empty() => {
            "remove what is left behind, listed below".to_owned()
        }
        _ => return None,
    })
}

fn may_be_aborted(phase: Phase) -> bool {
    match phase {
        Phase::CatchUpDelta
        | Phase::StopSource
        | Phase::FinalDelta
        | Phase::Verify
        | Phase::Convert
        | Phase::CreateVm => true,
        Phase::Unspecified | Phase::StartVm | Phase::BootCheck | Phase::Cleanup => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(resumable: bool, resumes_at: ResumePoint) -> Migration {
        Migration {
            id: "0193-5eed0001".to_owned(),
            state: MigrationState::Failed.into(),
            resumable,
            resumes_at: resumes_at.into(),
            ..Migration::default()
        }
    }

    #[test]
    fn what_is_advised_is_what_the_state_accepts() {
        let told = |migration: &Migration| advice(migration).unwrap_or_default();
        assert!(told(&failed(true, ResumePoint::Synced)).contains("`warmctl migration cancel 5eed0001`"));
        let late = told(&failed(true, ResumePoint::BootCheck));
        assert!(late.contains("rollback 5eed0001") && !late.contains("cancel"), "{late}");
        assert_eq!(advice(&failed(false, ResumePoint::Synced)), None);
        assert_eq!(advice(&failed(true, ResumePoint::StaleState)), None);
        let cutting = |phase: Phase| Migration {
            state: MigrationState::CuttingOver.into(),
            phase: phase.into(),
            ..failed(false, ResumePoint::Unspecified)
        };
        assert!(told(&cutting(Phase::CreateVm)).contains("--abort 5eed0001"));
        assert_eq!(advice(&cutting(Phase::StartVm)), None, "it is refused then");
    }
}
