//! Sealed roots: what the target's disks held when a cutover had verified them, or had not, as its plan wanted it.

use chrono::{DateTime, Utc};
use rusqlite::params;
use warmd_cbt::store::DiskId;

use super::{
    Store, StoreError,
    row::{micros, moment, unsigned},
};
use crate::model::id::MigrationId;

const TABLE: &str = "recorded_roots";

/// One disk's sealed root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRoot {
    pub disk: DiskId,
    /// The attempt at a cutover that sealed it.
    pub attempt: u32,
    /// In hexadecimal.
    pub root: String,
    /// What had proven the copy: `none`, `readback full`, `compare sample=1%, seed 7`; `None` if an older warmd sealed it.
    pub verified_by: Option<String>,
    pub at: DateTime<Utc>,
}

impl Store {
    /// Seals roots, all or none; what an earlier attempt sealed of these disks gives way.
    pub async fn record_roots(&self, recorded_roots: Vec<RecordedRoot>) -> Result<(), StoreError> {
        self.write("sealing the manifests' roots", move |db| {
            for seal in &recorded_roots {
                db.prepare_cached(
                    "INSERT OR REPLACE INTO recorded_roots (disk, attempt, root, verified_by, at) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![seal.disk.0, seal.attempt, seal.root, seal.verified_by, micros(seal.at)])?;
            }
            Ok(())
        })
        .await
    }

    /// What was sealed of the migration's disks.
    pub async fn recorded_roots(&self, id: MigrationId) -> Result<Vec<RecordedRoot>, StoreError> {
        self.read(format!("reading the sealed roots of migration {id}"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT disk, attempt, root, verified_by, at FROM recorded_roots JOIN disks ON disks.id = disk WHERE migration = ? \
                 ORDER BY disk",
            )?;
            let mut rows = select.query([id.to_string()])?;
            let mut recorded_roots = Vec::new();
            while let Some(row) = rows.next()? {
                let disk: i64 = row.get("disk")?;
                recorded_roots.push(RecordedRoot {
                    disk: DiskId(disk),
                    attempt: unsigned(TABLE, disk, row.get("attempt")?)?,
                    root: row.get("root")?,
                    verified_by: row.get("verified_by")?,
                    at: moment(TABLE, disk, row.get("at")?)?,
                });
            }
            Ok(recorded_roots)
        })
        .await
    }
}
