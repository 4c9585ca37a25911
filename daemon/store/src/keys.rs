//! Which keys signed reports, so that a lost or replaced key is noticed.
//!
//! Rule: a database whose reports were signed by another key is reported in the log and in the journal.
//! It is opened all the same: VMs in the middle of their cutovers must not wait for a key.

use rusqlite::{Connection, OptionalExtension, params};
use warmd_core::{
    clock,
    model::{event_kind::EventKind, report::KeySince, view::EventView},
};

use super::{
    Store, StoreError,
    error::StoreFault,
    journal,
    row::{micros, moment},
};

const TABLE: &str = "report_keys";

impl Store {
    /// The keys that signed reports, oldest first, the present one last.
    pub async fn report_keys(&self) -> Result<Vec<KeySince>, StoreError> {
        self.read("reading which keys signed reports", |db| {
            let mut select = db.prepare_cached("SELECT id, key, since FROM report_keys ORDER BY id")?;
            let mut rows = select.query([])?;
            let mut keys = Vec::new();
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                keys.push(KeySince { key: row.get(1)?, since: moment(TABLE, id, row.get(2)?)? });
            }
            Ok(keys)
        })
        .await
    }

    /// Notes the public key, in hexadecimal, that signs reports from now on. `file` is where the daemon keeps
    /// its secret; `is_new` if there was no such file.
    pub async fn note_report_key(
        &self,
        key: String,
        file: &'static str,
        is_new: bool,
    ) -> Result<(), StoreError> {
        self.write("noting the key that signs reports", move |db| note(db, &key, file, is_new)).await
    }
}

/// Notes the key in `file` that signs from now on.
fn note(db: &Connection, key: &str, file: &str, is_new: bool) -> Result<(), StoreFault> {
    let last: Option<String> = db
        .query_row("SELECT key FROM report_keys ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
        .optional()?;
    if last.as_deref() == Some(key) {
        return Ok(());
    }
    let used: bool = db.query_row("SELECT EXISTS (SELECT 1 FROM migrations)", [], |row| row.get(0))?;
    let now = clock::now();
    db.execute("INSERT INTO report_keys (key, since) VALUES (?, ?)", params![key, micros(now)])?;
    let text = match last {
        Some(old) => format!(
            "REPORTS ARE SIGNED BY ANOTHER KEY from now on: {key}; until now it was {old}. Was {file} lost, or replaced? \
             Reports of before are checked with the old key; if a backup has it, stop warmd and put it back"
        ),
        None if used && is_new => format!(
            "THERE WAS NO {file} BESIDE THE DATABASE, and a new key was made: {key}. Reports of before, if there are \
             any, are signed by another one; if a backup has that, stop warmd and put it back"
        ),
        None => return Ok(()),
    };
    tracing::warn!("{text}");
    let line = EventView { at: now, migration: None, by: "warmd".to_owned(), kind: EventKind::Warning, text };
    journal::append(db, &[line])
}
