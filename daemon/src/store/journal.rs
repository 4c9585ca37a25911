//! The journal: what was decided, by whom and why. Lines are added, never changed; the database refuses it.

use rusqlite::{Connection, params};

use super::{
    Store, StoreError,
    error::Fault,
    row::{micros, migration_id, moment, unsigned},
};
use crate::model::{id::MigrationId, view::EventView};

impl Store {
    /// Adds lines, in order.
    pub async fn append_events(&self, events: Vec<EventView>) -> Result<(), StoreError> {
        self.write("writing the journal", move |db| append(db, &events)).await
    }

    /// How many lines one migration's journal has.
    pub async fn count_events(&self, id: MigrationId) -> Result<u64, StoreError> {
        self.read("counting the journal", move |db| {
            let count: i64 = db
                .prepare_cached("SELECT count(*) FROM events WHERE migration = ?")?
                .query_row([id.to_string()], |row| row.get(0))?;
            unsigned("events", id, count)
        })
        .await
    }

    /// The requests among its lines, oldest first, at most the last `limit`.
    pub async fn requests(&self, id: MigrationId, limit: u32) -> Result<Vec<EventView>, StoreError> {
        self.read("reading the requests of the journal", move |db| {
            let mut lines =
                select(db, "WHERE migration = ?1 AND kind = 'request'", params![id.to_string(), limit])?;
            lines.reverse();
            Ok(lines)
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
