//! Limits that were set while the daemon ran, and stay across a restart.

use std::num::{NonZeroU32, NonZeroU64};

use rusqlite::{Connection, Row, params};
use warmd_cbt::limit::Limit;
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    limit::{LimitScope, SavedLimit, ScopeName, SetBy},
    view::EventView,
};

use super::{
    Store, StoreError,
    error::StoreFault,
    journal,
    row::{micros, migration_id, moment, unsigned},
};

/// The limits that were set and not removed.
#[derive(Debug, Default)]
pub struct SavedLimits {
    pub limits: Vec<(LimitScope, SavedLimit)>,
    /// Invalid rows, by their scope, and why.
    pub unreadable: Vec<(String, StoreError)>,
}

impl Store {
    /// Saves or deletes the limit of a scope, together with its journal line.
    pub async fn save_limit(
        &self,
        scope: &LimitScope,
        saved: Option<SavedLimit>,
        line: EventView,
    ) -> Result<(), StoreError> {
        let scope = scope.to_string();
        self.write(format!("saving the limit of {scope}"), move |db| {
            match saved {
                Some(SavedLimit { limit, instead_of, set }) => {
                    // A rate that SQLite's signed integers cannot hold is none.
                    let rate = |limit: &Limit| limit.rate.and_then(|rate| i64::try_from(rate.get()).ok());
                    let requests = |limit: &Limit| limit.requests.map(NonZeroU32::get);
                    db.prepare_cached("INSERT OR REPLACE INTO limits VALUES (?, ?, ?, ?, ?, ?, ?)")?
                        .execute(params![
                            scope,
                            rate(&limit),
                            requests(&limit),
                            rate(&instead_of),
                            requests(&instead_of),
                            set.by,
                            micros(set.at)
                        ])?;
                }
                None => {
                    db.prepare_cached("DELETE FROM limits WHERE scope = ?")?.execute([&scope])?;
                }
            }
            journal::append(db, &[line])
        })
        .await
    }

    /// All that were set and not removed. A row that cannot be read is reported, and stays: the other limits
    /// apply.
    pub async fn limits(&self) -> Result<SavedLimits, StoreError> {
        self.read("reading the limits", |db| {
            let mut select = db.prepare_cached(
                "SELECT scope, rate, requests, configured_rate, configured_requests, by, at FROM limits ORDER BY scope",
            )?;
            let mut rows = select.query([])?;
            let mut saved = SavedLimits::default();
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                match read(row, &name) {
                    Ok(limit) => saved.limits.push(limit),
                    Err(fault) => saved.unreadable.push((name, fault.into_error("reading a limit"))),
                }
            }
            Ok(saved)
        })
        .await
    }
}

/// Deletes the limits of a finished migration, and for its disks.
pub(super) fn forget_migration(db: &Connection, id: MigrationId) -> Result<(), StoreFault> {
    let scope = LimitScope::Migration(id, None).to_string();
    db.prepare_cached("DELETE FROM limits WHERE scope = ?1 OR substr(scope, 1, length(?1) + 1) = ?1 || '/'")?
        .execute([scope])?;
    Ok(())
}

fn read(row: &Row, name: &str) -> Result<(LimitScope, SavedLimit), StoreFault> {
    let saved = SavedLimit {
        limit: limit(row, name, 1)?,
        instead_of: limit(row, name, 3)?,
        set: SetBy { by: row.get(5)?, at: moment("limits", name, row.get(6)?)? },
    };
    Ok((scope(name)?, saved))
}

/// NULL is no limit; a zero is never written, and must not count as no limit.
fn limit(row: &Row, name: &str, at: usize) -> Result<Limit, StoreFault> {
    let (rate, requests): (Option<i64>, Option<i64>) = (row.get(at)?, row.get(at + 1)?);
    let zero = || StoreFault::bad("limits", name, "a limit of nothing");
    let rate = rate.map(|rate| NonZeroU64::new(unsigned("limits", name, rate)?).ok_or_else(zero));
    let requests = requests.map(|count| NonZeroU32::new(unsigned("limits", name, count)?).ok_or_else(zero));
    Ok(Limit { rate: rate.transpose()?, requests: requests.transpose()? })
}

fn scope(name: &str) -> Result<LimitScope, StoreFault> {
    Ok(match ScopeName::parse(name) {
        Some(ScopeName::Global) => LimitScope::Global,
        Some(ScopeName::Source(name)) => LimitScope::Source(name.to_owned()),
        Some(ScopeName::Target(name)) => LimitScope::Target(name.to_owned()),
        Some(ScopeName::Migration(id, disk)) => LimitScope::Migration(
            migration_id("limits", name, id)?,
            disk.map(|disk| DiskKey(disk.to_owned())),
        ),
        None => return Err(StoreFault::bad("limits", name, "no scope of a limit")),
    })
}
