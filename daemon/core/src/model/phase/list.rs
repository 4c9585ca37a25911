//! The list of phases: all that other files must know of each.
//!
//! Rule: nothing about a phase stands in two places. What a phase does is in `migration/cutover.rs`.

use warmd_schedules::forecast::CutoverStep;

use super::Phase;

/// What is to be known of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseSpec {
    pub phase: Phase,
    /// Its name in the API, the journal and the CLI.
    pub name: &'static str,
    /// Its name in earlier releases: saved plans and states contain it.
    pub earlier_name: Option<&'static str>,
    pub deadline: PhaseDeadline,
    pub admission: PhaseAdmission,
    /// Whether a halt of its group, or an abort, ends it; and a phase in which the daemon ends again and
    /// again is not begun for ever.
    pub can_be_aborted: bool,
    pub after_restart: AfterRestart,
    /// How a failure is undone; `None` past the point of no return.
    pub undo: Option<PhaseUndo>,
    pub hooks_after: HooksAfter,
    /// Whether the VMs of a group wait for each other at its end.
    pub has_barrier: bool,
    /// The step of the forecast that its time is measured for; for the final delta, the time without its
    /// copying.
    pub forecast: Option<CutoverStep>,
    /// Its line in `docs/glossary.md`.
    pub summary: &'static str,
}

/// What bounds a phase's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseDeadline {
    /// The plan's deadline of a delta.
    Delta,
    /// The guest's time for its shutdown, and a margin.
    Shutdown,
    /// The plan's deadline of the verification.
    Verify,
    /// The conversion's time.
    Conversion,
    /// The plan's deadline for the creation and the start of a VM.
    Create,
    /// The time of the boot check.
    BootCheck,
    /// A fixed time.
    Cleanup,
}

/// How a phase gets the admission of its cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseAdmission {
    /// It waits for it while its window is open.
    Wait,
    /// It has it, or gets it at once: the VM is down.
    AtOnce,
    /// The same, where it reads the source.
    AtOnceToCompare,
    /// It needs none, and gives it back.
    Needless,
}

/// Where a cutover continues after a restart of the daemon in the phase. While the daemon was down the source
/// VM may have run and stopped again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRestart {
    /// In the phase, from its beginning.
    Here,
    /// With another final delta.
    FinalDelta,
    /// The same, unless the target VM's start was requested.
    FinalDeltaUnlessStarted,
}

/// What the undo of a cutover that failed in a phase has to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseUndo {
    /// The source VM may be off.
    pub source_may_be_off: bool,
    /// The guest may still carry out the shutdown that was requested.
    pub shutdown_may_follow: bool,
    /// The target's disks may be converted.
    pub may_be_converted: bool,
    /// The target VM may have been created.
    pub may_be_created: bool,
}

/// When the hooks after a phase are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HooksAfter {
    AtItsEnd,
    /// As part of the next phase: this one must not fail after its work is done.
    InTheNext,
}

const NOTHING: PhaseUndo = PhaseUndo {
    source_may_be_off: false,
    shutdown_may_follow: false,
    may_be_converted: false,
    may_be_created: false,
};
const STOPPING: PhaseUndo = PhaseUndo { source_may_be_off: true, shutdown_may_follow: true, ..NOTHING };
const COPYING: PhaseUndo = PhaseUndo { source_may_be_off: true, may_be_converted: true, ..NOTHING };
const CREATING: PhaseUndo = PhaseUndo { may_be_created: true, ..COPYING };

/// The phases, in their order.
pub const PHASES: [PhaseSpec; 9] = [
    PhaseSpec {
        phase: Phase::CatchUpDelta,
        name: "catch-up-delta",
        earlier_name: Some("last-delta"),
        deadline: PhaseDeadline::Delta,
        admission: PhaseAdmission::Wait,
        can_be_aborted: true,
        after_restart: AfterRestart::Here,
        undo: Some(NOTHING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: None,
        summary: "One more delta; pre-flight rules and room for the state are checked again.",
    },
    PhaseSpec {
        phase: Phase::StopSource,
        name: "stop-source",
        earlier_name: None,
        deadline: PhaseDeadline::Shutdown,
        admission: PhaseAdmission::AtOnce,
        can_be_aborted: true,
        after_restart: AfterRestart::Here,
        undo: Some(STOPPING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: Some(CutoverStep::Shutdown),
        summary: "The source VM is shut down, then held off.",
    },
    PhaseSpec {
        phase: Phase::FinalDelta,
        name: "final-delta",
        earlier_name: None,
        deadline: PhaseDeadline::Delta,
        admission: PhaseAdmission::AtOnce,
        can_be_aborted: true,
        after_restart: AfterRestart::Here,
        undo: Some(COPYING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: Some(CutoverStep::Snapshot),
        summary: "What changed until the stop is copied.",
    },
    PhaseSpec {
        phase: Phase::Verify,
        name: "verify",
        earlier_name: None,
        deadline: PhaseDeadline::Verify,
        admission: PhaseAdmission::AtOnceToCompare,
        can_be_aborted: true,
        after_restart: AfterRestart::FinalDelta,
        undo: Some(COPYING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: Some(CutoverStep::Verify),
        summary: "The verification that the plan requires; then the manifest roots are recorded.",
    },
    PhaseSpec {
        phase: Phase::Convert,
        name: "convert",
        earlier_name: None,
        deadline: PhaseDeadline::Conversion,
        admission: PhaseAdmission::Needless,
        can_be_aborted: true,
        after_restart: AfterRestart::FinalDelta,
        undo: Some(COPYING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: Some(CutoverStep::Convert),
        summary: "The plan's conversion, if any.",
    },
    PhaseSpec {
        phase: Phase::CreateVm,
        name: "create-vm",
        earlier_name: None,
        deadline: PhaseDeadline::Create,
        admission: PhaseAdmission::Needless,
        can_be_aborted: true,
        after_restart: AfterRestart::FinalDelta,
        undo: Some(CREATING),
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: true,
        forecast: Some(CutoverStep::Create),
        summary: "The VM is defined on the target, stopped.",
    },
    PhaseSpec {
        phase: Phase::StartVm,
        name: "start-vm",
        earlier_name: None,
        deadline: PhaseDeadline::Create,
        admission: PhaseAdmission::Needless,
        can_be_aborted: false,
        after_restart: AfterRestart::FinalDeltaUnlessStarted,
        undo: Some(CREATING),
        hooks_after: HooksAfter::InTheNext,
        has_barrier: false,
        forecast: Some(CutoverStep::Boot),
        summary: "The VM is started. The point of no return is its end.",
    },
    PhaseSpec {
        phase: Phase::BootCheck,
        name: "boot-check",
        earlier_name: Some("watch"),
        deadline: PhaseDeadline::BootCheck,
        admission: PhaseAdmission::Needless,
        can_be_aborted: false,
        after_restart: AfterRestart::Here,
        undo: None,
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: None,
        summary: "The target VM must run for `min_uptime` and pass the boot check.",
    },
    PhaseSpec {
        phase: Phase::Cleanup,
        name: "cleanup",
        earlier_name: Some("release"),
        deadline: PhaseDeadline::Cleanup,
        admission: PhaseAdmission::Needless,
        can_be_aborted: false,
        after_restart: AfterRestart::Here,
        undo: None,
        hooks_after: HooksAfter::AtItsEnd,
        has_barrier: false,
        forecast: None,
        summary: "Marks and helper files are removed from the source, the target VM gets the autostart.",
    },
];
