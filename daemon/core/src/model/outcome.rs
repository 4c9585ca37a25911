//! How a phase of a cutover and a pass ended.
//!
//! Rule: decisions read the variants; the text is for people. The store and the wire have one text for each,
//! and the same text is read back as the same variant: see the tests for the words of earlier releases.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a phase of a cutover ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PhaseOutcome {
    Done,
    /// Done, with a note for people.
    DoneWith(String),
    /// Done without any work: the plan asks for none.
    NotInPlan,
    /// `start-vm` of a VM whose source was off.
    NotStarted,
    /// `boot-check` where the target only keeps disks.
    StartedOutside,
    Failed(String),
}

impl PhaseOutcome {
    /// The beginning of a failed phase's text.
    pub const FAILED: &'static str = "failed: ";
    /// The text of a phase without work.
    pub const NOT_IN_PLAN: &'static str = "the plan asks for none";
    /// The beginning of the text of a VM that was not started, and its rest.
    const NOT_STARTED: (&'static str, &'static str) =
        ("not started", ": the source was off when the cutover began");
    const STARTED_OUTSIDE: &'static str = "the machine is started outside warmd";
    const DONE: &'static str = "done";

    /// Why the phase failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Done | Self::DoneWith(_) | Self::NotInPlan | Self::NotStarted | Self::StartedOutside => {
                None
            }
        }
    }
}

impl fmt::Display for PhaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str(Self::DONE),
            Self::DoneWith(note) => f.write_str(note),
            Self::NotInPlan => f.write_str(Self::NOT_IN_PLAN),
            Self::NotStarted => {
                let (begins, ends) = Self::NOT_STARTED;
                write!(f, "{begins}{ends}")
            }
            Self::StartedOutside => f.write_str(Self::STARTED_OUTSIDE),
            Self::Failed(why) => write!(f, "{}{why}", Self::FAILED),
        }
    }
}

impl From<String> for PhaseOutcome {
    fn from(text: String) -> Self {
        if let Some(why) = text.strip_prefix(Self::FAILED) {
            return Self::Failed(why.to_owned());
        }
        match text.as_str() {
            Self::DONE => Self::Done,
            Self::NOT_IN_PLAN => Self::NotInPlan,
            Self::STARTED_OUTSIDE => Self::StartedOutside,
            other if other.starts_with(Self::NOT_STARTED.0) => Self::NotStarted,
            _ => Self::DoneWith(text),
        }
    }
}

impl From<PhaseOutcome> for String {
    fn from(outcome: PhaseOutcome) -> Self {
        outcome.to_string()
    }
}

/// Why a pass ended that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PassFailure {
    /// The daemon ended during the pass: the daemon that started next gave the pass its end.
    CutOff,
    /// The daemon that ran the pass saw the error.
    Error(String),
}

impl PassFailure {
    const CUT_OFF: &'static str = "it was cut off; what it had drained stays drained";
}

impl fmt::Display for PassFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str(Self::CUT_OFF),
            Self::Error(error) => f.write_str(error),
        }
    }
}

impl From<String> for PassFailure {
    fn from(text: String) -> Self {
        if text == Self::CUT_OFF { Self::CutOff } else { Self::Error(text) }
    }
}

impl From<PassFailure> for String {
    fn from(failure: PassFailure) -> Self {
        failure.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These words are in the state of released versions.
    #[test]
    fn stored_outcomes_of_phases_keep_their_words() {
        for (outcome, text) in [
            (PhaseOutcome::Done, "done"),
            (PhaseOutcome::DoneWith("ran for 3s".to_owned()), "ran for 3s"),
            (PhaseOutcome::NotInPlan, "the plan asks for none"),
            (PhaseOutcome::NotStarted, "not started: the source was off when the cutover began"),
            (PhaseOutcome::StartedOutside, "the machine is started outside warmd"),
            (PhaseOutcome::Failed("no space".to_owned()), "failed: no space"),
        ] {
            assert_eq!(outcome.to_string(), text);
            assert_eq!(PhaseOutcome::from(text.to_owned()), outcome);
            let json = serde_json::to_string(&outcome).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<PhaseOutcome>(&json).unwrap(), outcome);
            assert_eq!(outcome.failure().is_some(), text == "failed: no space");
        }
    }

    #[test]
    fn stored_failures_of_passes_keep_their_words() {
        for (failure, text) in [
            (PassFailure::CutOff, "it was cut off; what it had drained stays drained"),
            (PassFailure::Error("read of vda failed".to_owned()), "read of vda failed"),
        ] {
            assert_eq!(failure.to_string(), text);
            assert_eq!(PassFailure::from(text.to_owned()), failure);
            assert_eq!(serde_json::to_string(&failure).unwrap(), format!("{text:?}"));
        }
    }
}
