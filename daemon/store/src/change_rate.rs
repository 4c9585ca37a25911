//! What passes learned about the disks that they copied.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use warmd_core::model::id::{DiskKey, MigrationId};
use warmd_schedules::change_rate::HourlyChangeRate;

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_json, to_json},
};

/// How fast a migration's disks change, by the hour of the day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRates {
    /// The time zone of the hours, by its IANA name: in another zone they are invalid.
    pub zone: String,
    /// The number of the last pass that was learnt from.
    pub passes: u32,
    pub disks: BTreeMap<DiskKey, HourlyChangeRate>,
    /// Of the last deltas: bytes that changed ÷ bytes expected from earlier passes; the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<f64>,
}

impl Store {
    /// What was learnt of the migration; `None` before the first observation.
    pub async fn change_rates(&self, id: MigrationId) -> Result<Option<ChangeRates>, StoreError> {
        self.read(format!("reading what was learnt of migration {id}"), move |db| {
            let text: Option<String> = db
                .prepare_cached("SELECT change_rates FROM migrations WHERE id = ?")?
                .query_row([id.to_string()], |row| row.get(0))
                .optional()?
                .flatten();
            text.map(|text| from_json("migrations", id, &text)).transpose()
        })
        .await
    }
}

pub(super) fn set(db: &Connection, id: MigrationId, change_rates: &ChangeRates) -> Result<(), StoreFault> {
    let json = to_json("migrations", id, change_rates)?;
    db.prepare_cached("UPDATE migrations SET change_rates = ? WHERE id = ?")?
        .execute(params![json, id.to_string()])?;
    Ok(())
}
