//! A domain's state, and its reason. Pure.
//!
//! Rule: libvirt's numbers decide, in one table; the text is for messages alone, and is never parsed
//! A number that is not known is never "off".

/// Whether a domain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It has power and executes, or is about to end.
    Running,
    /// It has power and executes nothing: paused, suspended, or crashed and kept.
    Paused,
    Off,
}

/// The reason of a domain's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// libvirt does not say: a domain that is off was not started since the host's or libvirt's start.
    Unknown,
    /// Off: the guest shut itself down.
    Shutdown,
    /// Off: its power was cut.
    Destroyed,
    /// Off or paused: the guest or QEMU crashed.
    Crashed,
    /// Off: it runs on another host now. Running: it came from there.
    Migrated,
    /// Off: its memory was saved to a file.
    Saved,
    /// Off: a start failed.
    Failed,
    /// Reverted to a snapshot.
    FromSnapshot,
    /// Off: libvirt's daemon ended it.
    Daemon,
    /// Paused by a user or a tool.
    User,
    /// Paused for a migration to another host.
    Migration,
    /// Paused while its memory is saved, or a dump is taken.
    Saving,
    /// Paused by an I/O error of a disk.
    IoError,
    /// Paused by the watchdog device.
    Watchdog,
    /// About to be off.
    ShuttingDown,
    /// Paused while a snapshot is taken.
    Snapshot,
    /// Paused during its start.
    StartingUp,
    /// A migration in its post-copy phase, or one that failed in it.
    PostCopy,
    /// The guest put itself to sleep.
    GuestSuspended,
    /// It runs normally: booted, resumed, woken.
    Usual,
}

/// A domain's state and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainStatus {
    pub state: RunState,
    pub reason: Reason,
    /// For messages: `paused (user)`.
    pub text: String,
}

impl DomainStatus {
    /// From `virDomainState` and the state's own reason; `None` for an unknown state.
    pub(super) fn of(state: i32, reason: i32) -> Option<Self> {
        use Reason as R;
        let (state, name) = match state {
            0 => (RunState::Running, "no state"),
            1 => (RunState::Running, "running"),
            2 => (RunState::Running, "idle"),
            3 => (RunState::Paused, "paused"),
            4 => {
                return Some(Self::new(RunState::Running, R::ShuttingDown, "in shutdown (user)"));
            }
            5 => (RunState::Off, "shut off"),
            6 => {
                let text = if reason == 1 { "crashed (panicked)" } else { "crashed" };
                return Some(Self::new(RunState::Paused, R::Crashed, text));
            }
            7 => {
                return Some(Self::new(RunState::Paused, R::GuestSuspended, "pmsuspended"));
            }
            _ => return None,
        };
        let (reason, why) = match (state, reason) {
            (RunState::Running, 1) => (R::Usual, "booted"),
            (RunState::Running, 2) => (R::Migrated, "migrated"),
            (RunState::Running, 3) => (R::Usual, "restored"),
            (RunState::Running, 4) => (R::FromSnapshot, "from snapshot"),
            (RunState::Running, 5) => (R::Usual, "unpaused"),
            (RunState::Running, 6) => (R::Usual, "migration canceled"),
            (RunState::Running, 7) => (R::Usual, "save canceled"),
            (RunState::Running, 8) => (R::Usual, "event wakeup"),
            (RunState::Running, 9) => (R::Crashed, "crashed"),
            (RunState::Running, 10) => (R::PostCopy, "post-copy"),
            (RunState::Running, 11) => (R::PostCopy, "post-copy failed"),
            (RunState::Paused, 1) => (R::User, "user"),
            (RunState::Paused, 2) => (R::Migration, "migrating"),
            (RunState::Paused, 3) => (R::Saving, "saving"),
            (RunState::Paused, 4) => (R::Saving, "dumping"),
            (RunState::Paused, 5) => (R::IoError, "I/O error"),
            (RunState::Paused, 6) => (R::Watchdog, "watchdog"),
            (RunState::Paused, 7) => (R::FromSnapshot, "from snapshot"),
            (RunState::Paused, 8) => (R::ShuttingDown, "shutting down"),
            (RunState::Paused, 9) => (R::Snapshot, "creating snapshot"),
            (RunState::Paused, 10) => (R::Crashed, "crashed"),
            (RunState::Paused, 11) => (R::StartingUp, "starting up"),
            (RunState::Paused, 12) => (R::PostCopy, "post-copy"),
            (RunState::Paused, 13) => (R::PostCopy, "post-copy failed"),
            (RunState::Off, 1) => (R::Shutdown, "shutdown"),
            (RunState::Off, 2) => (R::Destroyed, "destroyed"),
            (RunState::Off, 3) => (R::Crashed, "crashed"),
            (RunState::Off, 4) => (R::Migrated, "migrated"),
            (RunState::Off, 5) => (R::Saved, "saved"),
            (RunState::Off, 6) => (R::Failed, "failed"),
            (RunState::Off, 7) => (R::FromSnapshot, "from snapshot"),
            (RunState::Off, 8) => (R::Daemon, "daemon"),
            _ => (R::Unknown, "unknown"),
        };
        Some(Self::new(state, reason, format!("{name} ({why})")))
    }

    /// Whether it is off here because libvirt moved it to another host, where it runs.
    pub fn is_elsewhere(&self) -> bool {
        self.state == RunState::Off && self.reason == Reason::Migrated
    }

    /// Whether it is paused here in the middle of a move to another host or from one, and may run there the
    /// next moment or already.
    pub fn is_migrating(&self) -> bool {
        self.state == RunState::Paused && matches!(self.reason, Reason::Migration | Reason::PostCopy)
    }

    fn new(state: RunState, reason: Reason, text: impl Into<String>) -> Self {
        Self { state, reason, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_states_and_reasons() {
        let of = |state, reason| {
            DomainStatus::of(state, reason).map(|status| (status.state, status.reason, status.text))
        };
        let says = |state, reason, text: &str| Some((state, reason, text.to_owned()));
        assert_eq!(of(1, 1), says(RunState::Running, Reason::Usual, "running (booted)"));
        assert_eq!(of(3, 1), says(RunState::Paused, Reason::User, "paused (user)"));
        assert_eq!(of(3, 5), says(RunState::Paused, Reason::IoError, "paused (I/O error)"));
        assert_eq!(of(3, 2), says(RunState::Paused, Reason::Migration, "paused (migrating)"));
        assert_eq!(of(4, 1), says(RunState::Running, Reason::ShuttingDown, "in shutdown (user)"));
        let off = [
            (0, Reason::Unknown),
            (1, Reason::Shutdown),
            (2, Reason::Destroyed),
            (3, Reason::Crashed),
            (4, Reason::Migrated),
            (5, Reason::Saved),
            (6, Reason::Failed),
            (7, Reason::FromSnapshot),
            (8, Reason::Daemon),
            (99, Reason::Unknown),
        ];
        for (number, reason) in off {
            assert_eq!(of(5, number).map(|status| (status.0, status.1)), Some((RunState::Off, reason)));
        }
        assert_eq!(of(6, 1), says(RunState::Paused, Reason::Crashed, "crashed (panicked)"));
        assert_eq!(of(7, 0).map(|status| status.1), Some(Reason::GuestSuspended));
        let status = |state, reason| DomainStatus::of(state, reason).unwrap();
        assert!(status(5, 4).is_elsewhere() && !status(5, 1).is_elsewhere() && !status(1, 2).is_elsewhere());
        assert!(status(3, 2).is_migrating() && status(3, 12).is_migrating() && !status(3, 1).is_migrating());
        // A state of a later libvirt is an error to the caller, never "off".
        assert_eq!((of(8, 0), of(-1, 0)), (None, None));
    }
}
