//! What libvirt's word on a domain means for the cutover. Pure.

use crate::{
    libvirt::{RunState, Standing},
    targets::MachineState,
};

/// A domain that ran and is off, or has power and executes nothing, will not come up by itself.
pub(super) fn of(standing: &Standing) -> MachineState {
    let reason = standing.text.split_once(" (").map_or("", |(_, rest)| rest.trim_end_matches(')'));
    match standing.state {
        RunState::Running => MachineState::Running,
        RunState::Paused if matches!(reason, "starting up" | "migrating") => MachineState::Starting,
        // The guest put itself to sleep.
        RunState::Paused if standing.text.starts_with("pmsuspended") => MachineState::Running,
        RunState::Off if matches!(reason, "" | "unknown") => MachineState::Stopped,
        RunState::Paused | RunState::Off => MachineState::Failed(standing.text.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let state = |state, text: &str| of(&Standing { state, text: text.to_owned() });
        let failed = |text: &str| MachineState::Failed(text.to_owned());
        assert_eq!(state(RunState::Running, "running (booted)"), MachineState::Running);
        assert_eq!(state(RunState::Paused, "paused (starting up)"), MachineState::Starting);
        assert_eq!(state(RunState::Paused, "pmsuspended (unknown)"), MachineState::Running);
        assert_eq!(state(RunState::Off, "shut off (unknown)"), MachineState::Stopped);
        for text in ["paused (I/O error)", "paused (user)", "crashed (panicked)"] {
            assert_eq!(state(RunState::Paused, text), failed(text));
        }
        for text in ["shut off (shutdown)", "shut off (failed)", "shut off (crashed)", "shut off (destroyed)"]
        {
            assert_eq!(state(RunState::Off, text), failed(text));
        }
    }
}
