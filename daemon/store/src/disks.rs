//! The disks of a migration. Each is created with its ledger: all of it pending.

use rusqlite::{Connection, OptionalExtension, Row, params};
use warmd_cbt::{
    ledger::Ledger,
    mark::ChangeMark,
    store::DiskId,
    units::{Length, MAX_DISK, Offset},
};
use warmd_core::model::id::{DiskKey, MigrationId};

use super::{
    Store, StoreError,
    error::StoreFault,
    ledger,
    row::{migration_id, signed, unsigned},
};

const TABLE: &str = "disks";
const COLUMNS: &str = "id, migration, key, size, location, requested_location, reads_zero, anchor, tracking_fault, audit_cursor";

/// A disk that exists on the target, to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    pub key: DiskKey,
    pub size: Length,
    /// Where it is on the target.
    pub location: String,
    /// Its location in the plan, if the plan has one.
    pub requested_location: Option<String>,
    /// Whether every byte of it is known to read as zero now: then the manifest of nothing but zero blocks is
    /// true, and all of it is trusted.
    pub reads_zero: bool,
}

/// A disk as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRow {
    pub id: DiskId,
    pub migration: MigrationId,
    pub key: DiskKey,
    pub size: Length,
    pub location: String,
    pub requested_location: Option<String>,
    /// Whether it was known to read as zero when it was new.
    pub reads_zero: bool,
    /// The ledger's anchor.
    pub anchor: Option<ChangeMark>,
    /// The tracking fault of the source, if one was found.
    pub tracking_fault: Option<String>,
    /// Where the next audit of change tracking begins.
    pub audit_cursor: Offset,
}

impl Store {
    /// Saves the disks, in order, each with its first ledger. A disk that is there already stays as it is,
    /// with what its ledger has reached; if it is there with another size or at another place, that ledger
    /// would be wrong, and the answer is [`super::StoreErrorKind::NotFound`].
    pub async fn save_disks(&self, id: MigrationId, disks: Vec<NewDisk>) -> Result<Vec<DiskRow>, StoreError> {
        self.write(format!("saving the disks of migration {id}"), move |db| {
            for disk in &disks {
                match find(db, id)?.into_iter().find(|row| row.key == disk.key) {
                    Some(row) => same(&row, disk)?,
                    None => insert(db, id, disk)?,
                }
            }
            find(db, id)
        })
        .await
    }

    /// The migration's disks, in the order in which they were saved.
    pub async fn disks(&self, id: MigrationId) -> Result<Vec<DiskRow>, StoreError> {
        self.read(format!("reading the disks of migration {id}"), move |db| find(db, id)).await
    }
}

fn insert(db: &Connection, id: MigrationId, disk: &NewDisk) -> Result<(), StoreFault> {
    if disk.size.0 > MAX_DISK {
        return Err(StoreFault::bad(
            TABLE,
            &disk.key,
            format!("{} bytes are more than a disk can have", disk.size),
        ));
    }
    db.prepare_cached(
        "INSERT INTO disks (migration, key, size, location, requested_location, reads_zero) VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        id.to_string(),
        disk.key.0,
        signed(TABLE, &disk.key, disk.size.0)?,
        disk.location,
        disk.requested_location,
        disk.reads_zero
    ])?;
    let row = DiskId(db.last_insert_rowid());
    ledger::put_chunks(db, row, Ledger::initial_rows(disk.size, disk.reads_zero))
}

fn same(row: &DiskRow, disk: &NewDisk) -> Result<(), StoreFault> {
    if row.size == disk.size && row.location == disk.location {
        return Ok(());
    }
    Err(StoreFault::Missing(format!(
        "disk {} with {} bytes at {} is not the one that was copied to, with {} bytes at {}",
        disk.key, disk.size, disk.location, row.size, row.location
    )))
}

pub(super) fn find(db: &Connection, id: MigrationId) -> Result<Vec<DiskRow>, StoreFault> {
    let mut select =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM disks WHERE migration = ? ORDER BY id"))?;
    let mut rows = select.query([id.to_string()])?;
    let mut disks = Vec::new();
    while let Some(row) = rows.next()? {
        disks.push(read(row)?);
    }
    Ok(disks)
}

pub(super) fn get(db: &Connection, disk: DiskId) -> Result<DiskRow, StoreFault> {
    let mut select = db.prepare_cached(&format!("SELECT {COLUMNS} FROM disks WHERE id = ?"))?;
    let row = select.query_row([disk.0], |row| Ok(read(row))).optional()?;
    row.ok_or_else(|| StoreFault::Missing(format!("there is no disk {}", disk.0)))?
}

fn read(row: &Row) -> Result<DiskRow, StoreFault> {
    let id: i64 = row.get("id")?;
    let size: u64 = unsigned(TABLE, id, row.get("size")?)?;
    if size > MAX_DISK {
        return Err(StoreFault::bad(TABLE, id, format!("{size} bytes are more than a disk can have")));
    }
    Ok(DiskRow {
        id: DiskId(id),
        migration: migration_id(TABLE, id, &row.get::<_, String>("migration")?)?,
        key: DiskKey(row.get("key")?),
        size: Length(size),
        location: row.get("location")?,
        requested_location: row.get("requested_location")?,
        reads_zero: row.get("reads_zero")?,
        anchor: row.get::<_, Option<String>>("anchor")?.map(ChangeMark),
        tracking_fault: row.get("tracking_fault")?,
        audit_cursor: Offset(unsigned(TABLE, id, row.get("audit_cursor")?)?),
    })
}
