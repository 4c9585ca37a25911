//! Recorded roots: the contents of the target's disks when a cutover had verified them, or had not, as its
//! plan wanted it.

use chrono::{DateTime, Utc};
use rusqlite::params;
use warmd_cbt::store::DiskId;
use warmd_core::model::id::MigrationId;

use super::{
    Store, StoreError,
    row::{micros, moment, unsigned},
};

const TABLE: &str = "recorded_roots";

/// The recorded root of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRoot {
    pub disk: DiskId,
    /// The cutover attempt that recorded it.
    pub attempt: u32,
    /// In hexadecimal.
    pub root: String,
    /// How the copy was verified: `none`, `readback full`, `compare sample=1%, seed 7`; `None` if an older
    /// warmd recorded it.
    pub verified_by: Option<String>,
    pub at: DateTime<Utc>,
}

impl Store {
    /// Records roots, all or none; what an earlier attempt recorded of these disks is replaced.
    pub async fn record_roots(&self, recorded_roots: Vec<RecordedRoot>) -> Result<(), StoreError> {
        self.write("recording the manifests' roots", move |db| {
            for root in &recorded_roots {
                db.prepare_cached(
                    "INSERT OR REPLACE INTO recorded_roots (disk, attempt, root, verified_by, at) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![root.disk.0, root.attempt, root.root, root.verified_by, micros(root.at)])?;
            }
            Ok(())
        })
        .await
    }

    /// The recorded roots of the migration's disks.
    pub async fn recorded_roots(&self, id: MigrationId) -> Result<Vec<RecordedRoot>, StoreError> {
        self.read(format!("reading the recorded roots of migration {id}"), move |db| {
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
