//! Rows that cannot be read, beside those that can.
//!
//! Rule: a garbage row affects its own migration or group, never the others.

use chrono::{DateTime, Utc};
use rusqlite::Row;
use warmd_core::model::{
    id::{MigrationId, VmId},
    state::{ResumePoint, State},
    view::{MigrationView, WaitingView},
};

use super::{
    StoreError,
    error::StoreFault,
    migrations::MigrationRow,
    row::{migration_id, moment},
};

const TABLE: &str = "migrations";

/// The replacement for a garbage text.
pub(super) const UNKNOWN: &str = "?";

/// The migration's id, or a replacement if that is garbage.
pub(super) fn id_or_stand_in(table: &'static str, text: &str) -> Result<MigrationId, StoreFault> {
    migration_id(table, text, text).or_else(|_| {
        let hex = blake3::hash(text.as_bytes()).to_hex();
        migration_id(table, text, &hex.as_str()[..32])
    })
}

/// Migrations, as far as they are readable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadableRows {
    pub rows: Vec<MigrationRow>,
    pub unreadable: Vec<Unreadable>,
}

/// A migration in the state that cannot be read: it is not run, and not deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its own, or a replacement if that is garbage too.
    pub id: MigrationId,
    pub plan: String,
    pub source: String,
    pub vm: VmId,
    pub vm_name: String,
    pub target_name: String,
    pub since: DateTime<Utc>,
    /// The unreadable part, and why.
    pub why: String,
    /// The fault is not in the state but in reading it (an I/O error, no memory, a lock): reading is tried
    /// again.
    pub passing: Option<ReadRetry>,
}

/// Reading that is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRetry {
    /// When it failed first.
    pub since: DateTime<Utc>,
    /// When it is tried again.
    pub next_try: DateTime<Utc>,
    /// How often it failed since then.
    pub tries: u32,
}

impl Unreadable {
    /// One whose row is readable, but not the rows that belong to it.
    pub fn of(row: &MigrationRow, why: &impl ToString) -> Self {
        Self {
            id: row.id,
            plan: row.plan.clone(),
            source: row.source.clone(),
            vm: row.vm.clone(),
            vm_name: row.vm_name.clone(),
            target_name: row.target_name.clone(),
            since: row.since,
            why: why.to_string(),
            passing: None,
        }
    }

    /// The readable part of a row that `fault` makes unreadable as a whole.
    pub(super) fn salvaged(row: &Row<'_>, fault: StoreFault) -> Result<Self, StoreFault> {
        let text = |column: &str| row.get::<_, String>(column).unwrap_or_else(|_| UNKNOWN.to_owned());
        let key = text("id");
        let id = id_or_stand_in(TABLE, &key)?;
        let since = row.get("since").map_err(StoreFault::from).and_then(|at| moment(TABLE, &key, at));
        let error: StoreError = fault.into_error("reading it from the state");
        Ok(Self {
            id,
            plan: text("plan"),
            source: text("source"),
            vm: VmId(text("vm")),
            vm_name: text("vm_name"),
            target_name: text("target_name"),
            since: since.unwrap_or_default(),
            why: error.to_string(),
            passing: None,
        })
    }

    /// Whether it is of that plan, or of one whose name is garbage too.
    pub fn may_be_of(&self, plan: &str) -> bool {
        self.plan == plan || self.plan == UNKNOWN
    }

    /// In words, with the remedy.
    pub fn reason(&self) -> String {
        if self.passing.is_some() {
            return format!(
                "unreadable for now: {}; it is read again until that succeeds, nothing of it is run or deleted before, and \
                 its VMs stay as they are",
                self.why
            );
        }
        format!(
            "unreadable: {}; nothing of it is run or deleted, and its VMs stay as they are: look at both sides, stop \
             warmd, and restore the state from a backup (`warmd state check` tells all that is wrong)",
            self.why
        )
    }

    /// Its display form.
    pub fn view(&self) -> MigrationView {
        MigrationView {
            id: self.id,
            plan: self.plan.clone(),
            vm: self.vm.clone(),
            vm_name: self.vm_name.clone(),
            target_name: self.target_name.clone(),
            state: State::Failed { reason: self.reason(), resumable: false, from: ResumePoint::Synced },
            since: self.since,
            disks: Vec::new(),
            pass: None,
            next_pass: None,
            next_pass_why: None,
            scheduled_cutover: None,
            downtime_forecast: None,
            forecast: None,
            waiting: self.passing.map(|retry| WaitingView {
                reason: self.why.clone(),
                since: retry.since,
                next_try: Some(retry.next_try),
                tries: retry.tries,
                advice: "look at the disk and the memory of warmd's host if the reason stays the same"
                    .to_owned(),
            }),
            left_behind: Vec::new(),
            warnings: Vec::new(),
            cutover: None,
            verification: None,
        }
    }
}
