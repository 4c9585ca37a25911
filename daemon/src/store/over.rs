//! Migrations that are over: looked up when somebody asks, and held in nobody's memory.
//!
//! Rule: evidence stays for ever.

use rusqlite::{OptionalExtension, params};

use super::{
    Store, StoreError,
    migrations::{self, MigrationRow},
    row::{migration_id, unsigned},
};
use crate::model::{id::MigrationId, state::State};

const TABLE: &str = "migrations";
const IS_OVER: &str = "state_name IN ('done', 'cancelled')";
/// The shortest part of an id that means it.
const PART: u32 = 4;
/// Migrations that one look for a name answers with at the most.
const NAMED: u32 = 100;

impl Store {
    /// The migrations that are not over, oldest first.
    pub async fn open_migrations(&self) -> Result<Vec<MigrationRow>, StoreError> {
        self.read("reading the open migrations", |db| migrations::find(db, &format!("NOT {IS_OVER}"), &[]))
            .await
    }

    /// Those that are over, of one plan or all, oldest first.
    pub async fn finished_migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationRow>, StoreError> {
        let plan = plan.map(str::to_owned);
        self.read("reading the finished migrations", move |db| {
            migrations::find(db, &format!("{IS_OVER} AND (?1 IS NULL OR plan = ?1)"), &[&plan])
        })
        .await
    }

    /// How many are over, by plan and state.
    pub async fn count_finished(&self) -> Result<Vec<(String, &'static str, u64)>, StoreError> {
        self.read("counting the finished migrations", |db| {
            let mut select = db.prepare_cached(&format!(
                "SELECT plan, state_name = 'done', count(*) FROM migrations WHERE {IS_OVER} GROUP BY 1, 2"
            ))?;
            let mut rows = select.query([])?;
            let mut counts = Vec::new();
            while let Some(row) = rows.next()? {
                let plan: String = row.get(0)?;
                let state = if row.get(1)? { State::Done } else { State::Cancelled };
                let count = unsigned(TABLE, &plan, row.get(2)?)?;
                counts.push((plan, state.name(), count));
            }
            Ok(counts)
        })
        .await
    }

    /// Id and VM's name of those that are over and that `key` may mean: the VM's name, the id, its beginning or its end.
    pub async fn finished_like(&self, key: &str) -> Result<Vec<(MigrationId, String)>, StoreError> {
        let key = key.to_owned();
        self.read("looking for a finished migration", move |db| {
            let mut select = db.prepare_cached(&format!(
                "SELECT id, vm_name FROM migrations WHERE {IS_OVER} AND (vm_name = ?1
                 OR length(?2) >= {PART} AND (substr(id, 1, length(?2)) = ?2 OR substr(id, -length(?2)) = ?2))
                 ORDER BY created DESC LIMIT {NAMED}"
            ))?;
            let mut rows = select.query(params![key, key.to_ascii_lowercase()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                found.push((migration_id(TABLE, &id, &id)?, row.get(1)?));
            }
            Ok(found)
        })
        .await
    }

    /// The migration by which this plan has moved that VM of that source.
    pub async fn moved_by(
        &self,
        plan: &str,
        source: &str,
        vm: &str,
    ) -> Result<Option<MigrationId>, StoreError> {
        let asked = [plan, source, vm].map(str::to_owned);
        self.read("looking for who moved a VM", move |db| {
            let mut select = db.prepare_cached(
                "SELECT id FROM migrations WHERE state_name = 'done' AND plan = ? AND source = ? AND vm = ?
                 ORDER BY created LIMIT 1",
            )?;
            let id: Option<String> = select.query_row(asked, |row| row.get(0)).optional()?;
            id.map(|id| migration_id(TABLE, &id, &id)).transpose()
        })
        .await
    }
}
