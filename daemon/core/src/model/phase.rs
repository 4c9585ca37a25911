//! The phases of a cutover, in their order, and the point of no return.
//!
//! Rule: every name that was ever saved stays readable, see [`EARLIER`].

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

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

/// The beginning of the outcome of `start-vm` where the source was off.
pub const NOT_STARTED: &str = "not started";
/// The outcome of `boot-check` where the target only keeps disks.
pub const STARTED_OUTSIDE: &str = "the machine is started outside warmd";

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 9] = [
        Self::CatchUpDelta,
        Self::StopSource,
        Self::FinalDelta,
        Self::Verify,
        Self::Convert,
        Self::CreateVm,
        Self::StartVm,
        Self::BootCheck,
        Self::Cleanup,
    ];

    /// The phase after this one; `None` after the last.
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase > self)
    }

    /// Whether the target VM was started before this phase began: from here on there is no undo, only
    /// forward.
    pub fn past_no_return(self) -> bool {
        self > Self::StartVm
    }

    /// Whether the source VM may be off in this phase.
    pub fn source_may_be_off(self) -> bool {
        self >= Self::StopSource
    }

    /// Its name in the API, the journal and the CLI.
    pub fn name(self) -> &'static str {
        match self {
            Self::CatchUpDelta => "catch-up-delta",
            Self::StopSource => "stop-source",
            Self::FinalDelta => "final-delta",
            Self::Verify => "verify",
            Self::Convert => "convert",
            Self::CreateVm => "create-vm",
            Self::StartVm => "start-vm",
            Self::BootCheck => "boot-check",
            Self::Cleanup => "cleanup",
        }
    }
}

/// The names of phases in earlier releases: saved plans and states contain them.
const EARLIER: [(&str, Phase); 3] =
    [("last-delta", Phase::CatchUpDelta), ("watch", Phase::BootCheck), ("release", Phase::Cleanup)];

/// The names for an error message: after a typing error only present names are listed.
const NAMES: [&str; 9] = [
    "catch-up-delta",
    "stop-source",
    "final-delta",
    "verify",
    "convert",
    "create-vm",
    "start-vm",
    "boot-check",
    "cleanup",
];

impl<'de> Deserialize<'de> for Phase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let now = Self::ALL.into_iter().find(|phase| phase.name() == name);
        let earlier = || EARLIER.into_iter().find(|(was, _)| *was == name).map(|(_, phase)| phase);
        now.or_else(earlier).ok_or_else(|| D::Error::unknown_variant(&name, &NAMES))
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
            walked.push(next);
        }
        assert_eq!(walked, Phase::ALL);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(Phase::ALL.map(Phase::name), NAMES);
        for phase in Phase::ALL {
            let text = serde_json::to_string(&phase).unwrap();
            assert_eq!(text, format!("{:?}", phase.name()));
            assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
        }
        for (was, phase) in EARLIER {
            assert_eq!(serde_json::from_str::<Phase>(&format!("{was:?}")).unwrap(), phase);
        }
    }

    #[test]
    fn no_return_begins_after_the_start() {
        let past: Vec<_> = Phase::ALL.into_iter().filter(|phase| phase.past_no_return()).collect();
        assert_eq!(past, [Phase::BootCheck, Phase::Cleanup]);
    }
}
