//! Hooks of cutovers as they went.

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, params};

use super::{
    Store, StoreError,
    error::Fault,
    row::{from_word, micros, moment, to_word},
};
use crate::model::{
    hook::{Hook, HookView},
    id::MigrationId,
};

const TABLE: &str = "hooks";

/// Which hook of which cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookKey {
    pub migration: MigrationId,
    /// Of the cutover.
    pub attempt: u32,
    /// Among the plan's hooks.
    pub position: u32,
}

/// How a hook stood before it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookStanding {
    New,
    /// It was begun, and nobody saw it end.
    CutOff,
    /// It has ended in this cutover; nothing was noted.
    Ended,
}

impl Store {
    /// Notes that the hook begins, unless it has ended in this cutover. Another hook in its place is a new one.
    pub async fn begin_hook(
        &self,
        key: HookKey,
        hook: Hook,
        started: DateTime<Utc>,
    ) -> Result<HookStanding, StoreError> {
        self.write(format!("beginning a hook of migration {}", key.migration), move |db| {
            let id = key.migration.to_string();
            let bad = |error| Fault::bad(TABLE, &id, error);
            let command = serde_json::to_string(&hook.words()).map_err(bad)?;
            let (phase, side) = (to_word(TABLE, &hook.phase)?, to_word(TABLE, &hook.when)?);
            let ended: Option<bool> = db
                .prepare_cached(
                    "SELECT ended IS NOT NULL FROM hooks WHERE migration = ? AND attempt = ? AND position = ?
                     AND phase = ? AND side = ? AND command = ?",
                )?
                .query_row(params![id, key.attempt, key.position, phase, side, command], |row| row.get(0))
                .optional()?;
            match ended {
                Some(true) => return Ok(HookStanding::Ended),
                Some(false) => return Ok(HookStanding::CutOff),
                None => {}
            }
            db.prepare_cached(
                "INSERT OR REPLACE INTO hooks (migration, attempt, position, phase, side, command, started)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id,
                key.attempt,
                key.position,
                phase,
                side,
                command,
                micros(started)
            ])?;
            Ok(HookStanding::New)
        })
        .await
    }

    /// Notes that the hook ended, and how.
    pub async fn end_hook(
        &self,
        key: HookKey,
        ended: DateTime<Utc>,
        outcome: &str,
    ) -> Result<(), StoreError> {
        let outcome = outcome.to_owned();
        self.write(format!("ending a hook of migration {}", key.migration), move |db| {
            let found = db
                .prepare_cached(
                    "UPDATE hooks SET ended = ?, outcome = ? WHERE migration = ? AND attempt = ? AND position = ?",
                )?
                .execute(params![
                    micros(ended),
                    outcome,
                    key.migration.to_string(),
                    key.attempt,
                    key.position
                ])?;
            if found == 0 {
                return Err(Fault::Missing(format!("{key:?} has not begun")));
            }
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
                        .map_err(|error| Fault::bad(TABLE, &id, error))?,
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
