//! Results of cutovers' phases.

use chrono::{DateTime, Utc};
use rusqlite::params;
use warmd_core::model::{id::MigrationId, outcome::PhaseOutcome, phase::Phase, view::PhaseView};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_word, micros, moment, to_word},
};

impl Store {
    /// Notes that the phase began. Beginning it again in the same attempt (after a restart) keeps when it
    /// first began. The answer is when that was, and how often in this attempt the daemon ended before the
    /// phase had ended.
    pub async fn begin_phase(
        &self,
        id: MigrationId,
        attempt: u32,
        phase: Phase,
        started: DateTime<Utc>,
    ) -> Result<(DateTime<Utc>, u32), StoreError> {
        self.write(format!("beginning phase {phase} of migration {id}"), move |db| {
            let mut insert = db.prepare_cached(
                "INSERT INTO phases (migration, attempt, position, phase, started) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (migration, attempt, phase) DO UPDATE SET position = excluded.position,
                 interrupted = interrupted + (ended IS NULL), ended = NULL, outcome = NULL RETURNING started, interrupted",
            )?;
            let values = params![
                id.to_string(),
                attempt,
                phase as u8,
                to_word("phases", &phase)?,
                micros(started)
            ];
            let (began, interrupted) = insert.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((moment("phases", id, began)?, interrupted))
        })
        .await
    }

    /// Notes that the phase ended, and how.
    pub async fn end_phase(
        &self,
        id: MigrationId,
        attempt: u32,
        phase: Phase,
        ended: DateTime<Utc>,
        outcome: &PhaseOutcome,
    ) -> Result<(), StoreError> {
        let outcome = outcome.to_string();
        self.write(format!("ending phase {phase} of migration {id}"), move |db| {
            let found = db
                .prepare_cached(
                    "UPDATE phases SET ended = ?, outcome = ? WHERE migration = ? AND attempt = ? AND phase = ?",
                )?
                .execute(params![
                    micros(ended),
                    outcome,
                    id.to_string(),
                    attempt,
                    to_word("phases", &phase)?
                ])?;
            if found == 0 {
                return Err(StoreFault::Missing(format!("attempt {attempt} has not begun it")));
            }
            Ok(())
        })
        .await
    }

    /// The phases of the last attempt at a cutover, in their order.
    pub async fn phases(&self, id: MigrationId) -> Result<Vec<PhaseView>, StoreError> {
        self.read(format!("reading the phases of migration {id}"), move |db| {
            let id = id.to_string();
            let mut select = db.prepare_cached(
                "SELECT phase, started, ended, outcome FROM phases WHERE migration = ?1
                 AND attempt = (SELECT max(attempt) FROM phases WHERE migration = ?1) ORDER BY position",
            )?;
            let mut rows = select.query([&id])?;
            let mut phases = Vec::new();
            while let Some(row) = rows.next()? {
                phases.push(PhaseView {
                    phase: from_word("phases", &id, row.get(0)?)?,
                    started: moment("phases", &id, row.get(1)?)?,
                    ended: row.get::<_, Option<i64>>(2)?.map(|at| moment("phases", &id, at)).transpose()?,
                    outcome: row.get::<_, Option<String>>(3)?.map(PhaseOutcome::from),
                });
            }
            Ok(phases)
        })
        .await
    }
}
