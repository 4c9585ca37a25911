//! The phases of a cutover, each printed once when it ended.

use prost_types::Timestamp;
use warmd_proto::v1::{Migration, PhaseRun};

use super::super::{labels, out::one_line};

/// Which phases were printed.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    /// The cutover that is printed: it began then.
    cutover: Option<Timestamp>,
    told: usize,
}

impl Phases {
    /// Prints nothing of a cutover that was finished before.
    pub(crate) fn after(before: &Migration) -> Self {
        let over = before.cutover.as_ref().filter(|cutover| cutover.ended.is_some());
        Self { cutover: over.and_then(|cutover| cutover.started), told: usize::MAX }
    }

    /// Lines for the phases that ended since the last call.
    pub(crate) fn news(&mut self, now: &Migration) -> Vec<String> {
        let Some(cutover) = &now.cutover else {
            return Vec::new();
        };
        if self.cutover != cutover.started {
            *self = Self { cutover: cutover.started, told: 0 };
        }
        let ended: Vec<_> = cutover.phases.iter().take_while(|phase| phase.ended.is_some()).collect();
        let lines = ended.iter().skip(self.told).map(|phase| describe_end(phase)).collect();
        self.told = self.told.max(ended.len());
        lines
    }
}

fn describe_end(phase: &PhaseRun) -> String {
    let [_, name, took, outcome] = row(phase);
    let line = format!("{}  {name} ended after {took}", clock(phase.ended.as_ref()));
    if outcome.is_empty() { line } else { format!("{line}: {}", one_line(&outcome)) }
}

/// Time, phase, duration, outcome.
pub(super) fn row(phase: &PhaseRun) -> [String; 4] {
    [
        clock(phase.started.as_ref()),
        labels::phase(phase.phase()),
        labels::took(phase.started.as_ref(), phase.ended.as_ref()),
        phase.outcome.clone().unwrap_or_default(),
    ]
}

fn clock(at: Option<&Timestamp>) -> String {
    labels::at(at).map_or_else(|| "-".to_owned(), |at| at.format("%H:%M:%S").to_string())
}
