//! The VMs of sources at the last query.
//!
//! Rule: it only informs. Nothing is decided by it, and it may be lost.

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, params};
use warmd_core::model::machine::{Inventory, VmSummary};

use super::{
    Store, StoreError,
    row::{from_json, micros, moment, to_json},
};

const TABLE: &str = "inventories";

impl Store {
    /// Saves a source's VMs, in place of the earlier list.
    pub async fn put_inventory(
        &self,
        source: &str,
        vms: Vec<VmSummary>,
        seen: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let source = source.to_owned();
        self.write(format!("keeping the inventory of source {source}"), move |db| {
            db.prepare_cached("INSERT OR REPLACE INTO inventories (source, seen, vms) VALUES (?, ?, ?)")?
                .execute(params![source, micros(seen), to_json(TABLE, &source, &vms)?])?;
            Ok(())
        })
        .await
    }

    /// The saved VMs of a source.
    pub async fn inventory(&self, source: &str) -> Result<Option<Inventory>, StoreError> {
        let source = source.to_owned();
        self.read(format!("reading the inventory of source {source}"), move |db| {
            let row: Option<(i64, String)> = db
                .prepare_cached("SELECT seen, vms FROM inventories WHERE source = ?")?
                .query_row([&source], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((seen, vms)) = row else { return Ok(None) };
            let vms = from_json(TABLE, &source, &vms)?;
            Ok(Some(Inventory { vms, seen: moment(TABLE, &source, seen)?, stale: None }))
        })
        .await
    }
}
