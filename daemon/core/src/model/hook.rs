//! Hooks: a plan's programs that are run, and services that are called, before and after the phases of a
//! cutover.
//!
//! Rule: a program is run with its arguments, never by a shell command line; a service is on the daemon's
//! host. `docs/hooks.md` lists what a hook receives.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    phase::{HooksAfter, Phase},
    plan::duration,
};

/// The longest allowed timeout of a hook.
const LONGEST: Duration = Duration::from_hours(24);
/// The most tries after the first.
const MOST_RETRIES: u32 = 100;

/// A hook as written in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    pub phase: Phase,
    pub when: HookSide,
    /// The program's absolute path, then its arguments; empty if it is a service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The address of the `warmd.hooks.v1` service that is called instead of a program:
    /// `unix:/path/of/socket` or `http://127.0.0.1:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// How long each try may take.
    #[serde(with = "duration", default = "a_minute")]
    pub timeout: Duration,
    /// The number of further tries.
    #[serde(default)]
    pub retries: u32,
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn a_minute() -> Duration {
    Duration::from_mins(1)
}

/// The side of its phase on which a hook is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookSide {
    Before,
    After,
}

/// The consequence when a hook's last try fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The cutover is undone; after the start of the target VM there is no undo, and the failure is a
    /// warning.
    #[default]
    Abort,
    /// The failure is a warning.
    Warn,
}

impl Hook {
    /// When the hook is run, in words: `before stop-source`.
    pub fn place(&self) -> String {
        format!("{} {}", self.when, self.phase)
    }

    /// The program, or the service's address.
    pub fn program(&self) -> &str {
        self.grpc.as_ref().or_else(|| self.command.first()).map_or("", String::as_str)
    }

    /// The command that is run, or the service that is called, in words.
    pub fn words(&self) -> Vec<String> {
        self.grpc.as_ref().map_or_else(|| self.command.clone(), |address| vec![address.clone()])
    }

    /// Whether the hook is run after the start of the target VM: then its failure does not undo the cutover.
    pub fn past_no_return(&self) -> bool {
        self.phase.past_no_return()
            || self.when == HookSide::After && self.phase.spec().hooks_after == HooksAfter::InTheNext
    }

    /// The problems of the hook as written; `name` is its name in the plan.
    pub(super) fn problems(&self, name: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.grpc.is_some() && !self.command.is_empty() {
            problems
                .push(format!("`{name}` has a `command` and `grpc`: it is one of them, remove the other"));
        }
        if let Some(address) = &self.grpc {
            if !address.starts_with("unix:/") && !address.starts_with("http://") {
                problems.push(format!(
                    "`{name}.grpc` is {address:?}: write unix:/path/of/socket or http://127.0.0.1:PORT"
                ));
            }
        } else if !self.program().starts_with('/') {
            problems.push(format!(
                "`{name}.command` is {:?}: begin it with the absolute path of a program; no shell reads it",
                self.command
            ));
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            problems.push(format!("`{name}.command` has a null character: no program can be given one"));
        }
        if self.timeout.is_zero() || self.timeout > LONGEST {
            problems.push(format!("`{name}.timeout` must be more than nothing and at most 24h"));
        }
        if self.retries > MOST_RETRIES {
            problems.push(format!("`{name}.retries` is more than {MOST_RETRIES}"));
        }
        problems
    }
}

impl fmt::Display for HookSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// A run of a hook in a cutover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookView {
    pub phase: Phase,
    pub when: HookSide,
    pub command: Vec<String>,
    /// When it was first started.
    pub started: DateTime<Utc>,
    /// `None` if its end was not awaited.
    pub ended: Option<DateTime<Utc>>,
    /// How it ended, in words.
    pub outcome: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_return_begins_after_the_start_itself() {
        let hook = |phase, when| {
            let (retries, on_failure) = (0, OnFailure::Abort);
            Hook { phase, when, command: Vec::new(), grpc: None, timeout: a_minute(), retries, on_failure }
        };
        for phase in Phase::ALL {
            assert_eq!(hook(phase, HookSide::Before).past_no_return(), phase > Phase::StartVm, "{phase}");
            assert_eq!(hook(phase, HookSide::After).past_no_return(), phase >= Phase::StartVm, "{phase}");
        }
    }
}
