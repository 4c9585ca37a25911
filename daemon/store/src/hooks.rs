//! Results of cutovers' hooks.
//!
//! Rule: a hook is identified by its moment and its command, and not by its place in the plan: a plan that is
//! applied again in the middle of a cutover, with other hooks or in another order, neither repeats nor skips
//! a hook.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};
use warmd_core::model::{
    hook::{Hook, HookView},
    id::MigrationId,
};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_word, micros, moment, to_word},
};

const TABLE: &str = "hooks";

/// Which hook of which cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookKey {
    pub migration: MigrationId,
    /// Of the cutover.
    pub attempt: u32,
    /// Among the plan's hooks of the same moment and command.
    pub nth: u32,
}

/// A hook's status before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookStatus {
    New,
    /// It was begun, and its end was not seen.
    CutOff,
    /// It has ended in this cutover; nothing was saved.
    Ended,
}

impl Store {
    /// Notes that the hook begins, unless it has ended in this cutover.
    pub async fn begin_hook(
        &self,
        key: HookKey,
        hook: Hook,
        started: DateTime<Utc>,
    ) -> Result<HookStatus, StoreError> {
        self.write(format!("beginning a hook of migration {}", key.migration), move |db| {
            let words = words(key, &hook)?;
            match find(db, key, &words)? {
                Some((_, true)) => return Ok(HookStatus::Ended),
                Some((_, false)) => return Ok(HookStatus::CutOff),
                None => {}
            }
            let (id, [phase, side, command]) = (key.migration.to_string(), words);
            db.prepare_cached(
                "INSERT INTO hooks (migration, attempt, position, phase, side, command, started)
                 SELECT ?1, ?2, coalesce(max(position) + 1, 0), ?3, ?4, ?5, ?6 FROM hooks
                 WHERE migration = ?1 AND attempt = ?2",
            )?
            .execute(params![id, key.attempt, phase, side, command, micros(started)])?;
            Ok(HookStatus::New)
        })
        .await
    }

    /// Notes that the hook ended, and how.
    pub async fn end_hook(
        &self,
        key: HookKey,
        hook: Hook,
        ended: DateTime<Utc>,
        outcome: &str,
    ) -> Result<(), StoreError> {
        let outcome = outcome.to_owned();
        self.write(format!("ending a hook of migration {}", key.migration), move |db| {
            let Some((position, _)) = find(db, key, &words(key, &hook)?)? else {
                return Err(StoreFault::Missing(format!("{key:?} has not begun")));
            };
            db.prepare_cached(
                "UPDATE hooks SET ended = ?, outcome = ? WHERE migration = ? AND attempt = ? AND position = ?",
            )?
            .execute(params![
                micros(ended),
                outcome,
                key.migration.to_string(),
                key.attempt,
                position
            ])?;
            Ok(())
        })
        .await
    }

    /// The hooks of the last cutover, in the order in which they were begun.
    pub async fn hooks(&self, id: MigrationId, attempt: u32) -> Result<Vec<HookView>, StoreError> {
        self.read(format!("reading the hooks of migration {id}"), move |db| {
            let id = id.to_string();
            let mut select = db.prepare_cached(
                "SELECT phase, side, command, started, ended, outcome FROM hooks WHERE migration = ? AND attempt = ?
                 ORDER BY started, position",
            )?;
            let mut rows = select.query(params![id, attempt])?;
            let mut hooks = Vec::new();
            while let Some(row) = rows.next()? {
                let command: String = row.get(2)?;
                hooks.push(HookView {
                    phase: from_word(TABLE, &id, row.get(0)?)?,
                    when: from_word(TABLE, &id, row.get(1)?)?,
                    command: serde_json::from_str(&command)
                        .map_err(|error| StoreFault::bad(TABLE, &id, error))?,
                    started: moment(TABLE, &id, row.get(3)?)?,
                    ended: row.get::<_, Option<i64>>(4)?.map(|at| moment(TABLE, &id, at)).transpose()?,
                    outcome: row.get(5)?,
                });
            }
            Ok(hooks)
        })
        .await
    }
}

/// Where the row of the hook with these words is, and whether it has ended.
fn find(
    db: &Connection,
    key: HookKey,
    [phase, side, command]: &[String; 3],
) -> Result<Option<(i64, bool)>, StoreFault> {
    let found = db
        .prepare_cached(
            "SELECT position, ended IS NOT NULL FROM hooks WHERE migration = ? AND attempt = ?
             AND phase = ? AND side = ? AND command = ? ORDER BY position LIMIT 1 OFFSET ?",
        )?
        .query_row(params![key.migration.to_string(), key.attempt, phase, side, command, key.nth], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(found)
}

/// A hook's identity: its phase, its side and its command, as they are kept.
fn words(key: HookKey, hook: &Hook) -> Result<[String; 3], StoreFault> {
    let id = key.migration.to_string();
    let command = serde_json::to_string(&hook.words()).map_err(|error| StoreFault::bad(TABLE, &id, error))?;
    Ok([to_word(TABLE, &hook.phase)?, to_word(TABLE, &hook.when)?, command])
}
