//! Finished migrations: looked up on request, and kept in no memory.
//!
//! Rule: evidence stays for ever; the ledger of a cancelled one is deleted, as its target's disks are gone,
//! and it describes nothing any more.

use rusqlite::{Connection, OptionalExtension, params};
use warmd_core::model::{id::MigrationId, state::State};

use super::{
    ReadableRows, Store, StoreError,
    disks::find as find_disks,
    error::StoreFault,
    ledger::key,
    migrations::{self, MigrationRow},
    row::{migration_id, unsigned},
    verification::UNVERIFIED,
};

const TABLE: &str = "migrations";
const IS_FINISHED: &str = "state_name IN ('done', 'cancelled')";
/// Rows of a ledger that go in one transaction, so that no other write waits long: some MiB of them.
const STEP: u32 = 2048;
/// The same, of rows with up to 80 KiB each.
const WIDE_STEP: u32 = 64;
/// The shortest part of an id that means it.
const PART: u32 = 4;
/// Migrations in one answer to a search by name, at the most.
const NAMED: u32 = 100;

/// A finished migration, by the names that it may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedMigration {
    pub id: MigrationId,
    pub vm_name: String,
    /// Not cancelled.
    pub is_done: bool,
}

impl Store {
    /// The migrations that are not finished, oldest first.
    pub async fn open_migrations(&self) -> Result<Vec<MigrationRow>, StoreError> {
        self.read("reading the open migrations", |db| {
            migrations::find(db, &format!("NOT {IS_FINISHED}"), &[])
        })
        .await
    }

    /// The same, with those that cannot be read.
    pub async fn open_each(&self) -> Result<ReadableRows, StoreError> {
        self.read("reading the open migrations", |db| {
            migrations::find_each(db, &format!("NOT {IS_FINISHED}"), &[])
        })
        .await
    }

    /// The finished ones, of one plan or all, with those that cannot be read.
    pub async fn finished_each(&self, plan: Option<&str>) -> Result<ReadableRows, StoreError> {
        let plan = plan.map(str::to_owned);
        self.read("reading the finished migrations", move |db| {
            migrations::find_each(db, &format!("{IS_FINISHED} AND (?1 IS NULL OR plan = ?1)"), &[&plan])
        })
        .await
    }

    /// The finished ones, of one plan or all, oldest first.
    pub async fn finished_migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationRow>, StoreError> {
        let plan = plan.map(str::to_owned);
        self.read("reading the finished migrations", move |db| {
            migrations::find(db, &format!("{IS_FINISHED} AND (?1 IS NULL OR plan = ?1)"), &[&plan])
        })
        .await
    }

    /// How many are finished, by plan and state.
    pub async fn count_finished(&self) -> Result<Vec<(String, &'static str, u64)>, StoreError> {
        self.read("counting the finished migrations", |db| {
            let mut select = db.prepare_cached(&format!(
                "SELECT plan, state_name = 'done', count(*) FROM migrations WHERE {IS_FINISHED} GROUP BY 1, 2"
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

    /// The finished ones that `key` may mean: the VM's name, the id, its beginning or its end.
    pub async fn finished_like(&self, key: &str) -> Result<Vec<FinishedMigration>, StoreError> {
        let key = key.to_owned();
        self.read("looking for a finished migration", move |db| {
            let mut select = db.prepare_cached(&format!(
                "SELECT id, vm_name, state_name = 'done' FROM migrations WHERE {IS_FINISHED} AND (vm_name = ?1
                 OR length(?2) >= {PART} AND (substr(id, 1, length(?2)) = ?2 OR substr(id, -length(?2)) = ?2))
                 ORDER BY created DESC LIMIT {NAMED}"
            ))?;
            let mut rows = select.query(params![key, key.to_ascii_lowercase()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                let id = migration_id(TABLE, &id, &id)?;
                found.push(FinishedMigration { id, vm_name: row.get(1)?, is_done: row.get(2)? });
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

    /// The cancelled ones that still have a part of a ledger.
    pub async fn with_needless_ledgers(&self) -> Result<Vec<MigrationId>, StoreError> {
        self.read("looking for ledgers that are no longer needed", |db| {
            let mut select = db.prepare_cached(
                "SELECT DISTINCT migration FROM disks JOIN migrations ON migrations.id = migration
                 WHERE state_name = 'cancelled' AND (anchor IS NOT NULL OR EXISTS (
                     SELECT 1 FROM chunks WHERE key BETWEEN disks.id << 32 AND (disks.id << 32) | 4294967295)
                 OR EXISTS (
                     SELECT 1 FROM unverified_compare WHERE key BETWEEN disks.id << 32 AND (disks.id << 32) | 4294967295))",
            )?;
            let mut rows = select.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                found.push(migration_id("disks", &id, &id)?);
            }
            Ok(found)
        })
        .await
    }

    /// Forgets what the ledgers of a cancelled migration say, in short transactions; passes, results and
    /// journal stay. It may be interrupted anywhere, and repeated. One that is not cancelled is left as it
    /// is, and the answer is [`super::StoreErrorKind::NotFound`].
    pub async fn forget_ledgers(&self, id: MigrationId) -> Result<(), StoreError> {
        while self
            .write(format!("forgetting the ledgers of migration {id}"), move |db| forget(db, id))
            .await?
        {}
        Ok(())
    }
}

/// Takes a step; false when nothing is left.
fn forget(db: &Connection, id: MigrationId) -> Result<bool, StoreFault> {
    let cancelled = db
        .prepare_cached("SELECT 1 FROM migrations WHERE id = ? AND state_name = 'cancelled'")?
        .exists([id.to_string()])?;
    if !cancelled {
        return Err(StoreFault::Missing(format!("migration {id} is not cancelled")));
    }
    for disk in find_disks(db, id)? {
        let range = [key(disk.id, 0), key(disk.id, u32::MAX)];
        // Without its count no disk is compacted.
        db.prepare_cached("DELETE FROM manifest_log_counts WHERE disk = ?")?.execute([disk.id.0])?;
        // Each row of the one has its row in the other.
        let oldest = format!(
            "SELECT key FROM manifest_log WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT {WIDE_STEP}"
        );
        db.prepare_cached(&format!("DELETE FROM manifest_log_hashes WHERE key IN ({oldest})"))?
            .execute(range)?;
        if db.prepare_cached(&format!("DELETE FROM manifest_log WHERE key IN ({oldest})"))?.execute(range)?
            > 0
        {
            return Ok(true);
        }
        for table in ["pages", "chunks"].into_iter().chain(UNVERIFIED) {
            let some = format!("SELECT key FROM {table} WHERE key BETWEEN ?1 AND ?2 LIMIT {STEP}");
            if db.prepare_cached(&format!("DELETE FROM {table} WHERE key IN ({some})"))?.execute(range)? > 0 {
                return Ok(true);
            }
        }
        for table in ["verify_cursors", "latencies"] {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE disk = ?"))?.execute([disk.id.0])?;
        }
        // Last: it shows that rows may be left.
        db.prepare_cached("UPDATE disks SET anchor = NULL WHERE id = ?")?.execute([disk.id.0])?;
    }
    Ok(false)
}
