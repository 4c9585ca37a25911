//! The meaning of a domain's state for the cutover. Pure.

use warmd_core::targets::MachineState;

use crate::libvirt::{DomainStatus, Reason, RunState};

/// The message about a domain that libvirt itself has moved. It runs, so the source must not be started.
pub(super) const ELSEWHERE: &str =
    "libvirt migrated it to another host, and it runs there: migrate it back first";

/// The message about one that is paused in the middle of that.
pub(super) const MIGRATING: &str = "libvirt is migrating it, and it may run on the other host already: wait for the end of \
                                     that, or abort it (virsh domjobabort)";

/// A domain that ran and is off, or has power and executes nothing, will not start without help.
pub(super) fn machine_state(status: &DomainStatus) -> MachineState {
    match status.state {
        RunState::Running => MachineState::Running,
        RunState::Paused => match status.reason {
            Reason::StartingUp | Reason::Migration => MachineState::Starting,
            // The guest put itself to sleep.
            Reason::GuestSuspended => MachineState::Running,
            _ => MachineState::Failed(status.text.clone()),
        },
        RunState::Off if status.is_elsewhere() => MachineState::Failed(ELSEWHERE.to_owned()),
        RunState::Off if status.reason == Reason::Unknown => MachineState::Stopped,
        RunState::Off => MachineState::Failed(status.text.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_on_another_host_is_not_off() {
        let status = |state, reason| DomainStatus { state, reason, text: "shut off (migrated)".to_owned() };
        let gone = machine_state(&status(RunState::Off, Reason::Migrated));
        assert!(matches!(gone, MachineState::Failed(why) if why.contains("runs there")));
        // It came from there, and runs here.
        assert_eq!(machine_state(&status(RunState::Running, Reason::Migrated)), MachineState::Running);
    }

    #[test]
    fn states_are_told_apart() {
        let state =
            |state, reason, text: &str| machine_state(&DomainStatus { state, reason, text: text.to_owned() });
        let failed = |text: &str| MachineState::Failed(text.to_owned());
        let (on, paused, off) = (RunState::Running, RunState::Paused, RunState::Off);
        assert_eq!(state(on, Reason::Usual, "running (booted)"), MachineState::Running);
        assert_eq!(state(paused, Reason::StartingUp, "paused (starting up)"), MachineState::Starting);
        assert_eq!(state(paused, Reason::Migration, "paused (migrating)"), MachineState::Starting);
        assert_eq!(state(paused, Reason::GuestSuspended, "pmsuspended"), MachineState::Running);
        assert_eq!(state(off, Reason::Unknown, "shut off (unknown)"), MachineState::Stopped);
        for (reason, text) in [
            (Reason::IoError, "paused (I/O error)"),
            (Reason::User, "paused (user)"),
            (Reason::Crashed, "crashed (panicked)"),
        ] {
            assert_eq!(state(paused, reason, text), failed(text));
        }
        for (reason, text) in [
            (Reason::Shutdown, "shut off (shutdown)"),
            (Reason::Failed, "shut off (failed)"),
            (Reason::Crashed, "shut off (crashed)"),
            (Reason::Destroyed, "shut off (destroyed)"),
        ] {
            assert_eq!(state(off, reason, text), failed(text));
        }
    }
}
