//! Which keys signed reports, so that a lost or replaced key is noticed.
//!
//! Rule: a database whose reports were signed by another key is reported in the log and in the journal.
//! It is opened all the same: VMs in the middle of their cutovers must not wait for a key.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use warmd_core::{
    clock,
    model::{event_kind::EventKind, report::KeySince, view::EventView},
};
use warmd_report::signing::{KEY_FILE, PublicKey};

use super::{
    Store, StoreError,
    error::StoreFault,
    journal,
    row::{micros, moment},
    schema,
};

const TABLE: &str = "report_keys";
/// The first schema with the table.
const SINCE_VERSION: i32 = 9;

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
}

/// Notes the key that signs from now on. `was_there` if it existed, and was not just created.
pub(super) fn note(connection: &mut Connection, key: PublicKey, was_there: bool) -> rusqlite::Result<()> {
    if schema::version(connection)? < SINCE_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let last: Option<String> = transaction
        .query_row("SELECT key FROM report_keys ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
        .optional()?;
    let key = key.to_string();
    if last.as_ref() == Some(&key) {
        return Ok(());
    }
    let used: bool =
        transaction.query_row("SELECT EXISTS (SELECT 1 FROM migrations)", [], |row| row.get(0))?;
    let now = clock::now();
    transaction.execute("INSERT INTO report_keys (key, since) VALUES (?, ?)", params![key, micros(now)])?;
    let text = match last {
        Some(old) => Some(format!(
            "REPORTS ARE SIGNED BY ANOTHER KEY from now on: {key}; until now it was {old}. Was {KEY_FILE} lost, or replaced? \
             Reports of before are checked with the old key; if a backup has it, stop warmd and put it back"
        )),
        None if used && !was_there => Some(format!(
            "THERE WAS NO {KEY_FILE} BESIDE THE DATABASE, and a new key was made: {key}. Reports of before, if there are \
             any, are signed by another one; if a backup has that, stop warmd and put it back"
        )),
        None => None,
    };
    if let Some(text) = text {
        tracing::warn!("{text}");
        tell(&transaction, now, text)?;
    }
    transaction.commit()
}

fn tell(db: &Connection, at: DateTime<Utc>, text: String) -> rusqlite::Result<()> {
    let line = EventView { at, migration: None, by: "warmd".to_owned(), kind: EventKind::Warning, text };
    journal::append(db, &[line]).map_err(|fault| match fault {
        StoreFault::Sql(error) => error,
        // An insert reads nothing that could be bad or missing.
        StoreFault::Bad { cause, .. } => rusqlite::Error::ToSqlConversionFailure(cause),
        StoreFault::Missing(what) => rusqlite::Error::ToSqlConversionFailure(what.into()),
    })
}
