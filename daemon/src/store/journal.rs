//! The journal: what was decided, by whom and why. Lines are added, never changed; the database refuses it.

use rusqlite::{Connection, params};

use super::{
    Store, StoreError,
    error::Fault,
    row::{micros, migration_id, moment, unsigned},
};
use crate::model::{id::MigrationId, view::EventView};

/// The end of a migration's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEnd {
    /// Oldest first.
    pub lines: Vec<EventView>,
    /// Older lines.
    pub left_out: u64,
    /// The requests among all of them, oldest first.
    pub requests: Vec<EventView>,
}

impl Store {
    /// Adds lines, in order.
    pub async fn append_events(&self, events: Vec<EventView>) -> Result<(), StoreError> {
        self.write("writing the journal", move |db| append(db, &events)).await
    }

    /// The end of one migration's journal, all of the same moment: at most `most` lines, and as many requests.
    pub async fn journal(&self, id: MigrationId, most: u32) -> Result<JournalEnd, StoreError> {
        self.read(format!("reading the journal of migration {id}"), move |db| {
            let id = id.to_string();
            let last = |condition: &str| -> Result<Vec<EventView>, Fault> {
                let mut lines = select(db, condition, params![id, most])?;
                lines.reverse();
                Ok(lines)
            };
            let lines = last("WHERE migration = ?1")?;
            let requests = last("WHERE migration = ?1 AND kind = 'request'")?;
            let all: i64 = db
                .prepare_cached("SELECT count(*) FROM events WHERE migration = ?")?
                .query_row([&id], |row| row.get(0))?;
            let all: u64 = unsigned("events", &id, all)?;
            Ok(JournalEnd { left_out: all.saturating_sub(lines.len() as u64), lines, requests })
        })
        .await
    }

    /// The last `limit` lines of one migration's journal, or of all, oldest first.
    pub async fn events(&self, id: Option<MigrationId>, limit: u32) -> Result<Vec<EventView>, StoreError> {
        self.read("reading the journal", move |db| {
            let mut lines = match id {
                Some(id) => select(db, "WHERE migration = ?1", params![id.to_string(), limit])?,
                None => select(db, "", params![limit])?,
            };
            lines.reverse();
            Ok(lines)
        })
        .await
    }
}

pub(super) fn append(db: &Connection, events: &[EventView]) -> Result<(), Fault> {
    let mut insert =
        db.prepare_cached("INSERT INTO events (at, migration, by, kind, text) VALUES (?, ?, ?, ?, ?)")?;
    for event in events {
        let migration = event.migration.map(|id| id.to_string());
        insert.execute(params![micros(event.at), migration, event.by, event.kind, event.text])?;
    }
    Ok(())
}

fn select(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<Vec<EventView>, Fault> {
    let mut select = db.prepare_cached(&format!(
        "SELECT id, at, migration, by, kind, text FROM events {condition} ORDER BY id DESC LIMIT ?{}",
        parameters.len()
    ))?;
    let mut rows = select.query(parameters)?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let migration: Option<String> = row.get(2)?;
        lines.push(EventView {
            at: moment("events", id, row.get(1)?)?,
            migration: migration.map(|text| migration_id("events", id, &text)).transpose()?,
            by: row.get(3)?,
            kind: row.get(4)?,
            text: row.get(5)?,
        });
    }
    Ok(lines)
}
