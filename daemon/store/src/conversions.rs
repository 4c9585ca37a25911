//! Conversions of disks, the last one of each migration.
//!
//! Rule: a conversion is saved before its first byte is written into a disk, so a state that does not know
//! the one that is noted beside the disks is older than they are.

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;
use warmd_core::model::{conversion::ConversionView, id::MigrationId};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_json, micros, moment, to_json},
};

const TABLE: &str = "conversions";

/// A conversion that is, or is about to be, on a migration's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversionRow {
    /// The id in the note beside the disks.
    pub id: Uuid,
    /// Of the cutover.
    pub attempt: u32,
    /// The number of the last pass before it.
    pub pass: u32,
    pub view: ConversionView,
}

impl Store {
    /// Notes a conversion whose writes begin now, in place of an earlier one.
    pub async fn begin_conversion(&self, id: MigrationId, row: ConversionRow) -> Result<(), StoreError> {
        self.write(format!("noting the conversion of migration {id}"), move |db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO conversions (migration, id, attempt, pass, conversion)
                 VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id.to_string(),
                row.id.to_string(),
                row.attempt,
                row.pass,
                to_json(TABLE, id, &row.view)?
            ])?;
            Ok(())
        })
        .await
    }

    /// Notes that all of the conversion `conversion` is on the disks.
    pub async fn commit_conversion(
        &self,
        id: MigrationId,
        conversion: Uuid,
        at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.write(format!("noting the end of the conversion of migration {id}"), move |db| {
            let found = db
                .prepare_cached("UPDATE conversions SET committed = ? WHERE migration = ? AND id = ?")?
                .execute(params![micros(at), id.to_string(), conversion.to_string()])?;
            if found == 0 {
                return Err(StoreFault::Missing(format!("conversion {conversion} has not begun")));
            }
            Ok(())
        })
        .await
    }

    /// The last conversion of the migration's disks.
    pub async fn conversion(&self, id: MigrationId) -> Result<Option<ConversionRow>, StoreError> {
        self.read(format!("reading the conversion of migration {id}"), move |db| {
            let name = id.to_string();
            let mut select = db.prepare_cached(
                "SELECT id, attempt, pass, conversion, committed FROM conversions WHERE migration = ?",
            )?;
            let found = select
                .query_row([&name], |row| {
                    let id: String = row.get(0)?;
                    let json: String = row.get(3)?;
                    Ok((id, row.get(1)?, row.get(2)?, json, row.get::<_, Option<i64>>(4)?))
                })
                .optional()?;
            let Some((id, attempt, pass, json, committed)) = found else { return Ok(None) };
            let mut view: ConversionView = from_json(TABLE, &name, &json)?;
            view.committed = committed.map(|at| moment(TABLE, &name, at)).transpose()?;
            let id = id.parse().map_err(|error: uuid::Error| StoreFault::bad(TABLE, &name, error))?;
            Ok(Some(ConversionRow { id, attempt, pass, view }))
        })
        .await
    }
}
