//! The usual read latencies of a disk's source, as its passes measured them.
//!
//! Rule: it only tunes. A source that is strained when the daemon starts must not become the baseline.

use std::time::Duration;

use rusqlite::params;
use warmd_cbt::{store::DiskId, transfer::LatencyBaseline};

use super::{
    Store, StoreError,
    row::{signed, unsigned},
};

const TABLE: &str = "latencies";

impl Store {
    /// Saves what was learnt of a disk; unknown values stay as they were.
    pub async fn save_baseline(&self, disk: DiskId, baseline: &LatencyBaseline) -> Result<(), StoreError> {
        let known: Vec<_> = baseline.known().collect();
        self.write(format!("keeping the latencies of disk {}", disk.0), move |db| {
            let mut put = db.prepare_cached("INSERT OR REPLACE INTO latencies VALUES (?, ?, ?)")?;
            for (class, time) in &known {
                let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(i64::MAX as u64);
                put.execute(params![
                    disk.0,
                    signed(TABLE, disk.0, *class as u64)?,
                    signed(TABLE, disk.0, nanos)?
                ])?;
            }
            Ok(())
        })
        .await
    }

    /// What was learnt of a disk; empty if it is new.
    pub async fn baseline(&self, disk: DiskId) -> Result<LatencyBaseline, StoreError> {
        self.read(format!("reading the latencies of disk {}", disk.0), move |db| {
            let mut select = db.prepare_cached("SELECT class, time FROM latencies WHERE disk = ?")?;
            let mut rows = select.query([disk.0])?;
            let mut known = Vec::new();
            while let Some(row) = rows.next()? {
                let class: u32 = unsigned(TABLE, disk.0, row.get(0)?)?;
                known.push((class as usize, Duration::from_nanos(unsigned(TABLE, disk.0, row.get(1)?)?)));
            }
            Ok(LatencyBaseline::of(known))
        })
        .await
    }
}
