//! What is kept of a migration's last cutover.
//!
//! Rule: each moment is recorded before what it speaks of is begun, so that a daemon that finds no record
//! knows that it was not begun.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::hold_off::HoldOff;

/// What is kept of the last cutover, to undo it or to report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutoverRecord {
    /// Counted from 1; 0 before the first.
    pub attempt: u32,
    /// Whether the source VM ran when the cutover began: only then is it powered on again.
    pub was_running: Option<bool>,
    /// When the source VM was found off.
    pub source_stopped: Option<DateTime<Utc>>,
    /// When the target VM's start was asked for: from then on it may have run.
    pub start_requested_at: Option<DateTime<Utc>>,
    /// When the target VM was found running.
    pub target_running: Option<DateTime<Utc>>,
    /// When an operator asked for a rollback after that.
    pub rolled_back: Option<DateTime<Utc>>,
    /// When the target's disks were given to the target VM, to the microsecond: it identifies its note beside
    /// the disks.
    pub handed_over_at: Option<DateTime<Utc>>,
    /// By which of these moments they were given to the target VM from which they were reclaimed last, in
    /// whichever cutover that was. Nothing that it wrote is trusted.
    pub reclaimed_at: Option<DateTime<Utc>>,
    /// The operator asked for it regardless of windows and forecasts.
    pub forced: bool,
    /// The other ways to start the source VM, as they were before warmd removed them; `None` if nothing
    /// keeps it from starting.
    pub hold_off: Option<HoldOff>,
    /// The target VM's creation was asked for: from then on it may be there, in whichever phase that is
    /// undone.
    pub create_requested: bool,
    /// Until when the source VM is monitored after the migration is done.
    pub monitor_until: Option<DateTime<Utc>>,
    /// How long the VM waited, off, for the others of its group; to the microsecond.
    pub barrier_wait: Duration,
}
