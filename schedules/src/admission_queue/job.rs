//! Jobs and what they need.
//!
//! Rule: a job names every scope that it touches, each with the disks that it touches there.

use std::{fmt, ops::RangeInclusive};

/// The scope of a limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaScope {
    /// The whole daemon.
    Global,
    /// A source of the configuration.
    Source(String),
    /// A target of the configuration.
    Target(String),
    /// A hypervisor's host.
    Host(String),
    /// Where the source keeps disks.
    Datastore(String),
    Plan(String),
}

impl fmt::Display for QuotaScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("all of warmd"),
            Self::Source(name) => write!(f, "source {name}"),
            Self::Target(name) => write!(f, "target {name}"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Datastore(name) => write!(f, "datastore {name}"),
            Self::Plan(name) => write!(f, "plan {name}"),
        }
    }
}

impl QuotaScope {
    /// As a path, by which users name it: `global`, `source/old`.
    pub fn path(&self) -> String {
        let (sort, name) = match self {
            Self::Global => return "global".to_owned(),
            Self::Source(name) => ("source", name),
            Self::Target(name) => ("target", name),
            Self::Host(name) => ("host", name),
            Self::Datastore(name) => ("datastore", name),
            Self::Plan(name) => ("plan", name),
        };
        format!("{sort}/{name}")
    }
}

/// The counted kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaKind {
    Passes,
    Snapshots,
    Disks,
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passes => "passes",
            Self::Snapshots => "snapshots",
            Self::Disks => "disks",
        })
    }
}

/// An amount of a kind, in a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub scope: QuotaScope,
    pub kind: QuotaKind,
    pub amount: u32,
}

/// Its class. Cutovers go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobClass {
    Cutover,
    PreCopy,
}

/// Priorities that a plan may have: 10 gets ten times as much as 1.
pub const PRIORITIES: RangeInclusive<u32> = 1..=10;

/// A pass, or a cutover, that waits to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionJob {
    /// The caller's number for it.
    pub id: u64,
    pub plan: String,
    pub(crate) priority: u32,
    pub class: JobClass,
    pub(crate) needs: Vec<Need>,
    pub(crate) stays: bool,
    disks: u32,
}

impl AdmissionJob {
    /// A pass over `disks` of a VM of `plan`: one pass, one snapshot and its disks, globally and of its plan.
    pub fn pass(id: u64, plan: &str, disks: u32) -> Self {
        let job = Self {
            id,
            plan: plan.to_owned(),
            priority: 1,
            class: JobClass::PreCopy,
            needs: Vec::new(),
            stays: false,
            disks,
        };
        job.on(&QuotaScope::Global, disks).on(&QuotaScope::Plan(plan.to_owned()), disks)
    }

    /// Also touches `scope`, with so many of its disks.
    #[must_use]
    pub fn on(mut self, scope: &QuotaScope, disks: u32) -> Self {
        for (kind, amount) in [(QuotaKind::Passes, 1), (QuotaKind::Snapshots, 1), (QuotaKind::Disks, disks)] {
            self.needs.push(Need { scope: scope.clone(), kind, amount });
        }
        self
    }

    /// Belongs to a cutover.
    #[must_use]
    pub fn of_cutover(mut self) -> Self {
        self.class = JobClass::Cutover;
        self
    }

    /// Once it runs, it cannot be stopped for a cutover.
    #[must_use]
    pub fn that_stays(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Its plan's priority; brought into [`PRIORITIES`]. That of the plan's latest job counts.
    #[must_use]
    pub fn with_priority(mut self, priority: u32) -> Self {
        self.priority = priority.clamp(*PRIORITIES.start(), *PRIORITIES.end());
        self
    }

    /// Its cost for its plan.
    pub(crate) fn cost(&self) -> u32 {
        self.disks.max(1)
    }
}
