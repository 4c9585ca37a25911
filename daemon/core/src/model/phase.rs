//! The phases of a cutover, in their order, and the point of no return.
//!
//! Rule: [`PHASES`] is the list of phases: what another file must know of a phase stands there. Every name
//! that was ever saved stays readable.

mod list;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

pub use self::list::{AfterRestart, HooksAfter, PHASES, PhaseAdmission, PhaseDeadline, PhaseSpec, PhaseUndo};

/// One phase of a cutover. The order of the variants is the order of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// One more delta while the source runs, so that the final one is small.
    CatchUpDelta,
    /// The source VM is stopped: downtime begins.
    StopSource,
    /// What changed until the stop is copied.
    FinalDelta,
    /// The target is verified to equal the source.
    Verify,
    /// The target's disks are converted, if the plan has a conversion.
    Convert,
    /// The VM is created on the target, stopped.
    CreateVm,
    /// The VM is started on the target: **the point of no return** lies at the end of this phase.
    StartVm,
    /// The target VM must run for `min_uptime` and pass the boot check.
    BootCheck,
    /// Marks and helper files are removed from the source; the target VM gets the autostart.
    Cleanup,
}

/// The names for an error message: after a typing error only present names are listed.
const NAMES: [&str; PHASES.len()] = {
    let (mut names, mut at) = ([""; PHASES.len()], 0);
    while at < PHASES.len() {
        names[at] = PHASES[at].name;
        at += 1;
    }
    names
};

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; PHASES.len()] = {
        let (mut all, mut at) = ([Self::CatchUpDelta; PHASES.len()], 0);
        while at < PHASES.len() {
            all[at] = PHASES[at].phase;
            at += 1;
        }
        all
    };

    /// What is to be known of it.
    pub fn spec(self) -> &'static PhaseSpec {
        &PHASES[self.position()]
    }

    /// Its place in [`PHASES`].
    pub fn position(self) -> usize {
        self as usize
    }

    /// The phase after this one; `None` after the last.
    pub fn next(self) -> Option<Self> {
        Self::ALL.get(self.position() + 1).copied()
    }

    /// The phase before this one; `None` before the first.
    pub fn previous(self) -> Option<Self> {
        Self::ALL.get(self.position().checked_sub(1)?).copied()
    }

    /// Whether the target VM was started before this phase began: from here on there is no undo, only
    /// forward.
    pub fn past_no_return(self) -> bool {
        self.spec().undo.is_none()
    }

    /// Whether the source VM may be off in this phase.
    pub fn source_may_be_off(self) -> bool {
        self.spec().undo.is_none_or(|undo| undo.source_may_be_off)
    }

    /// Whether the target VM may have been created when this phase began, or is created in it.
    pub fn target_vm_may_exist(self) -> bool {
        self.spec().undo.is_none_or(|undo| undo.may_be_created)
    }

    /// Whether its time is downtime: no VM runs.
    pub fn is_downtime(self) -> bool {
        self.spec().undo.is_some_and(|undo| undo.source_may_be_off)
    }

    /// Its name in the API, the journal and the CLI.
    pub fn name(self) -> &'static str {
        self.spec().name
    }
}

impl<'de> Deserialize<'de> for Phase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let is_meant = |spec: &&PhaseSpec| spec.name == name || spec.earlier_name == Some(name.as_str());
        let found = PHASES.iter().find(is_meant).map(|spec| spec.phase);
        found.ok_or_else(|| D::Error::unknown_variant(&name, &NAMES))
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_to_the_end() {
        let mut walked = vec![Phase::CatchUpDelta];
        while let Some(next) = walked.last().and_then(|phase| phase.next()) {
            assert_eq!(next.previous(), walked.last().copied());
            walked.push(next);
        }
        assert_eq!(walked, Phase::ALL);
        assert_eq!(Phase::CatchUpDelta.previous(), None);
    }

    #[test]
    fn each_phase_stands_in_the_list_at_its_place() {
        for (at, spec) in PHASES.iter().enumerate() {
            assert_eq!((spec.phase.position(), spec.phase.spec()), (at, spec), "{}", spec.name);
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(Phase::ALL.map(Phase::name), NAMES);
        for phase in Phase::ALL {
            let text = serde_json::to_string(&phase).unwrap();
            assert_eq!(text, format!("{:?}", phase.name()));
            assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
        }
        for (was, phase) in
            [("last-delta", Phase::CatchUpDelta), ("watch", Phase::BootCheck), ("release", Phase::Cleanup)]
        {
            assert_eq!(serde_json::from_str::<Phase>(&format!("{was:?}")).unwrap(), phase);
        }
    }

    #[test]
    fn no_return_begins_after_the_start() {
        let past: Vec<_> = Phase::ALL.into_iter().filter(|phase| phase.past_no_return()).collect();
        assert_eq!(past, [Phase::BootCheck, Phase::Cleanup]);
    }

    /// What an undo restores is never forgotten by a later phase.
    #[test]
    fn an_undo_restores_at_least_what_one_from_before_does() {
        let undos: Vec<_> = PHASES.iter().filter_map(|spec| spec.undo).collect();
        for (before, after) in undos.iter().zip(&undos[1..]) {
            assert!(!before.source_may_be_off || after.source_may_be_off);
            assert!(!before.may_be_converted || after.may_be_converted);
            assert!(!before.may_be_created || after.may_be_created);
        }
        let from = |is: fn(&PhaseUndo) -> bool| {
            PHASES.iter().find(|spec| spec.undo.as_ref().is_some_and(is)).map(|spec| spec.phase)
        };
        assert_eq!(from(|undo| undo.source_may_be_off), Some(Phase::StopSource));
        assert_eq!(from(|undo| undo.may_be_converted), Some(Phase::FinalDelta));
        assert_eq!(from(|undo| undo.may_be_created), Some(Phase::CreateVm));
        let downtime: Vec<_> = Phase::ALL.into_iter().filter(|phase| phase.is_downtime()).collect();
        assert_eq!(downtime, Phase::ALL[Phase::StopSource.position()..=Phase::StartVm.position()]);
    }

    #[test]
    fn the_glossary_lists_the_phases() {
        let rows = include_str!("../../../docs/glossary.md").lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some((cells.next()?.trim_end_matches('`'), cells.next()?))
        });
        let phases: Vec<_> = rows.filter(|(name, _)| NAMES.contains(name)).collect();
        assert_eq!(phases, PHASES.map(|spec| (spec.name, spec.summary)));
    }
}
