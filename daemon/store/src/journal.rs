//! The journal: what was decided, by whom and why. Lines are added, never changed; the database refuses
//! changes.

use rusqlite::{Connection, params};
use warmd_core::{
    control::JournalPage,
    model::{event_kind::EventKind, id::MigrationId, view::EventView},
};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{micros, migration_id, moment, unsigned},
};

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

    /// The end of one migration's journal, all of the same moment: at most `most` lines, and as many
    /// requests.
    pub async fn journal(&self, id: MigrationId, most: u32) -> Result<JournalEnd, StoreError> {
        self.read(format!("reading the journal of migration {id}"), move |db| {
            let id = id.to_string();
            let last = |condition: &str| -> Result<Vec<EventView>, StoreFault> {
                let lines = select(db, condition, Order::NewestFirst, params![id, most])?;
                Ok(lines.into_iter().rev().map(|(_, line)| line).collect())
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

    /// At most `limit` lines of one migration's journal, or of all: the last ones, or the first ones after a
    /// cursor.
    pub async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, StoreError> {
        self.read("reading the journal", move |db| {
            let id = id.map(|id| id.to_string());
            let last: i64 = db
                .prepare_cached("SELECT coalesce(max(id), 0) FROM events")?
                .query_row([], |row| row.get(0))?;
            let last = unsigned("events", last, last)?;
            let from = i64::try_from(after.unwrap_or_default()).unwrap_or(i64::MAX);
            let condition = match id {
                Some(_) => "WHERE id > ?1 AND migration = ?2",
                None => "WHERE id > ?1 AND ?2 IS NULL",
            };
            let order = if after.is_some() { Order::OldestFirst } else { Order::NewestFirst };
            let mut found = select(db, condition, order, params![from, id, limit])?;
            if after.is_none() {
                found.reverse();
            }
            // A full page ends at its last line, any other at the end of the journal.
            let cursor = match found.last() {
                Some((number, _)) if after.is_some() && found.len() == limit as usize => *number,
                _ => last,
            };
            Ok(JournalPage { lines: found.into_iter().map(|(_, line)| line).collect(), cursor })
        })
        .await
    }
}

pub(super) fn append(db: &Connection, events: &[EventView]) -> Result<(), StoreFault> {
    let mut insert =
        db.prepare_cached("INSERT INTO events (at, migration, by, kind, text) VALUES (?, ?, ?, ?, ?)")?;
    for event in events {
        let migration = event.migration.map(|id| id.to_string());
        insert.execute(params![micros(event.at), migration, event.by, event.kind.as_str(), event.text])?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Order {
    OldestFirst,
    NewestFirst,
}

/// Lines with their numbers. The last parameter is their number.
fn select(
    db: &Connection,
    condition: &str,
    order: Order,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<Vec<(u64, EventView)>, StoreFault> {
    let order = match order {
        Order::OldestFirst => "ASC",
        Order::NewestFirst => "DESC",
    };
    let mut select = db.prepare_cached(&format!(
        "SELECT id, at, migration, by, kind, text FROM events {condition} ORDER BY id {order} LIMIT ?{}",
        parameters.len()
    ))?;
    let mut rows = select.query(parameters)?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let migration: Option<String> = row.get(2)?;
        let line = EventView {
            at: moment("events", id, row.get(1)?)?,
            migration: migration.map(|text| migration_id("events", id, &text)).transpose()?,
            by: row.get(3)?,
            kind: EventKind::from(row.get::<_, String>(4)?),
            text: row.get(5)?,
        };
        lines.push((unsigned("events", id, id)?, line));
    }
    Ok(lines)
}
