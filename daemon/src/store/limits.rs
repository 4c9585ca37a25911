//! Limits that were set while the daemon ran, and hold over its restart.

use std::num::{NonZeroU32, NonZeroU64};

use rusqlite::{Row, params};
use warmd_cbt::limit::Limit;

use super::{
    Store, StoreError,
    error::Fault,
    journal,
    row::{micros, migration_id, moment, unsigned},
};
use crate::model::{
    id::DiskKey,
    limit::{SavedLimit, Scope, ScopeName, SetBy},
    view::EventView,
};

impl Store {
    /// Keeps what was set for a scope, or forgets it, together with the journal's line on that.
    pub async fn save_limit(
        &self,
        scope: &Scope,
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

    /// All that were set and not taken back.
    pub async fn limits(&self) -> Result<Vec<(Scope, SavedLimit)>, StoreError> {
        self.read("reading the limits", |db| {
            let mut select = db.prepare_cached(
                "SELECT scope, rate, requests, said_rate, said_requests, by, at FROM limits ORDER BY scope",
            )?;
            let mut rows = select.query([])?;
            let mut limits = Vec::new();
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                let saved = SavedLimit {
                    limit: limit(row, &name, 1)?,
                    instead_of: limit(row, &name, 3)?,
                    set: SetBy { by: row.get(5)?, at: moment("limits", &name, row.get(6)?)? },
                };
                limits.push((scope(&name)?, saved));
            }
            Ok(limits)
        })
        .await
    }
}

fn limit(row: &Row, name: &str, at: usize) -> Result<Limit, Fault> {
    let (rate, requests): (Option<i64>, Option<i64>) = (row.get(at)?, row.get(at + 1)?);
    Ok(Limit {
        rate: rate.map(|rate| unsigned::<u64>("limits", name, rate)).transpose()?.and_then(NonZeroU64::new),
        requests: requests
            .map(|count| unsigned("limits", name, count))
            .transpose()?
            .and_then(NonZeroU32::new),
    })
}

fn scope(name: &str) -> Result<Scope, Fault> {
    Ok(match ScopeName::parse(name) {
        Some(ScopeName::Global) => Scope::Global,
        Some(ScopeName::Source(name)) => Scope::Source(name.to_owned()),
        Some(ScopeName::Target(name)) => Scope::Target(name.to_owned()),
        Some(ScopeName::Migration(id, disk)) => {
            Scope::Migration(migration_id("limits", name, id)?, disk.map(|disk| DiskKey(disk.to_owned())))
        }
        None => return Err(Fault::bad("limits", name, "no scope of a limit")),
    })
}
