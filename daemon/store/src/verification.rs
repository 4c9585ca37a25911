//! The state of verifications and audits: what they have still to check, how far they are, what they found.
//!
//! Rule: the unverified set may be too large, never too small. Blocks are removed only in the transaction
//! that keeps the result for them; and a readback, which never reads the source, clears nothing
//! for a comparison.

use rusqlite::{Connection, OptionalExtension, params};
use warmd_cbt::{chunk::ChunkBits, extents::ExtentSet, store::DiskId, units::Offset};
use warmd_core::model::{
    id::MigrationId,
    plan::VerifyMode,
    view::{AuditView, VerifyResult},
};

use super::{
    Store, StoreError, disks,
    error::StoreFault,
    ledger,
    row::{from_json, signed, to_json, unsigned},
};

/// The blocks that neither a readback nor a compare has checked since, and those that no compare has.
pub(super) const UNVERIFIED: [&str; 2] = ["unverified_readback", "unverified_compare"];
/// Results that a report carries at the most.
const MAX_RESULTS: u32 = 100;

/// How far a verification of a disk has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyCursor {
    pub disk: DiskId,
    /// Mode and scope, in words.
    pub what: String,
    /// Of a sample.
    pub seed: Option<u64>,
    /// The state of the disk's ledger of which it is true.
    pub ledger: String,
    /// Everything before it was checked, and was equal.
    pub checked_to: Offset,
}

impl Store {
    /// The blocks that became pending again after they had been drained, since a verification of them passed
    /// that covers what `mode` covers.
    pub async fn unverified(&self, disk: DiskId, mode: VerifyMode) -> Result<ExtentSet, StoreError> {
        let [read, compared] = UNVERIFIED;
        let table = if mode == VerifyMode::Compare { compared } else { read };
        self.read(format!("reading what changed on disk {}", disk.0), move |db| {
            let mut set = ExtentSet::new(disks::get(db, disk)?.size);
            let mut select = db.prepare_cached(&format!(
                "SELECT key, blocks FROM {table} WHERE key BETWEEN ? AND ? ORDER BY key"
            ))?;
            let mut rows = select.query([ledger::key(disk, 0), ledger::key(disk, u32::MAX)])?;
            while let Some(row) = rows.next()? {
                let key: i64 = row.get(0)?;
                let chunk: u32 = unsigned(table, key, key & i64::from(u32::MAX))?;
                let blocks = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
                set.put_chunk(chunk, decode(table, key, blocks)?);
            }
            Ok(set)
        })
        .await
    }

    /// How far the verification called `what` of the migration's disks has come.
    pub async fn verify_cursors(&self, id: MigrationId, what: &str) -> Result<Vec<VerifyCursor>, StoreError> {
        let what = what.to_owned();
        self.read(format!("reading how far a verification of migration {id} is"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT disk, seed, ledger, checked_to FROM verify_cursors JOIN disks ON disks.id = disk
                 WHERE migration = ? AND what = ? ORDER BY disk",
            )?;
            let mut rows = select.query(params![id.to_string(), what])?;
            let mut cursors = Vec::new();
            while let Some(row) = rows.next()? {
                let disk: i64 = row.get(0)?;
                let number = |value| unsigned("verify_cursors", disk, value);
                cursors.push(VerifyCursor {
                    disk: DiskId(disk),
                    what: what.clone(),
                    seed: row.get::<_, Option<i64>>(1)?.map(number).transpose()?,
                    ledger: row.get(2)?,
                    checked_to: Offset(number(row.get(3)?)?),
                });
            }
            Ok(cursors)
        })
        .await
    }

    /// Keeps how far a verification has come.
    pub async fn put_verify_cursor(&self, cursor: VerifyCursor) -> Result<(), StoreError> {
        let disk = cursor.disk.0;
        self.write(format!("saving how far the verification of disk {disk} is"), move |db| {
            let number = |value| signed("verify_cursors", disk, value);
            // No verification is resumed over a deleted ledger.
            db.prepare_cached("DELETE FROM verify_cursors WHERE disk = ? AND ledger <> ?")?
                .execute(params![disk, cursor.ledger])?;
            db.prepare_cached(
                "INSERT INTO verify_cursors (disk, what, seed, ledger, checked_to) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (disk, what) DO UPDATE SET
                 seed = excluded.seed, ledger = excluded.ledger, checked_to = excluded.checked_to",
            )?
            .execute(params![
                disk,
                cursor.what,
                cursor.seed.map(number).transpose()?,
                cursor.ledger,
                number(cursor.checked_to.0)?
            ])?;
            Ok(())
        })
        .await
    }

    /// Keeps the result of the verification called `what`, forgets how far it was, and deletes what was
    /// unverified of the disks in `proven`, as far as the result's mode covers it; all at once.
    pub async fn end_verification(
        &self,
        id: MigrationId,
        what: &str,
        result: &VerifyResult,
        proven: Vec<DiskId>,
    ) -> Result<(), StoreError> {
        let (what, result) = (what.to_owned(), result.clone());
        self.write(format!("saving the result of migration {id}"), move |db| {
            insert_verify_result(db, id, &result)?;
            db.prepare_cached(
                "DELETE FROM verify_cursors WHERE what = ? AND disk IN (SELECT id FROM disks WHERE migration = ?)",
            )?
            .execute(params![what, id.to_string()])?;
            let [read, compared] = UNVERIFIED;
            let settled = if result.mode == VerifyMode::Compare { vec![read, compared] } else { vec![read] };
            for table in settled {
                let mut forget =
                    db.prepare_cached(&format!("DELETE FROM {table} WHERE key BETWEEN ? AND ?"))?;
                for disk in &proven {
                    forget.execute([ledger::key(*disk, 0), ledger::key(*disk, u32::MAX)])?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Saves a verification's result, beside earlier ones.
    pub async fn put_verify_result(&self, id: MigrationId, result: &VerifyResult) -> Result<(), StoreError> {
        let result = result.clone();
        self.write(format!("saving the result of migration {id}"), move |db| {
            insert_verify_result(db, id, &result)
        })
        .await
    }

    /// The last result.
    pub async fn verify_result(&self, id: MigrationId) -> Result<Option<VerifyResult>, StoreError> {
        Ok(self.last_verify_results(id, 1).await?.pop())
    }

    /// The last results, oldest first; a bounded number.
    pub async fn verify_results(&self, id: MigrationId) -> Result<Vec<VerifyResult>, StoreError> {
        self.last_verify_results(id, MAX_RESULTS).await
    }

    async fn last_verify_results(&self, id: MigrationId, most: u32) -> Result<Vec<VerifyResult>, StoreError> {
        self.read(format!("reading the verify results of migration {id}"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT id, body FROM verify_results WHERE migration = ? ORDER BY id DESC LIMIT ?",
            )?;
            let mut rows = select.query(params![id.to_string(), most])?;
            let mut results = Vec::new();
            while let Some(row) = rows.next()? {
                results.push(from_json("verify_results", row.get::<_, i64>(0)?, &row.get::<_, String>(1)?)?);
            }
            results.reverse();
            Ok(results)
        })
        .await
    }

    /// Saves the result of an audit in a disk's pass (`disk_pass`, as `begin_pass` gave it), where the next
    /// one begins, and, if there is one, the fault: the first one stays.
    pub async fn put_audit(
        &self,
        disk: DiskId,
        disk_pass: i64,
        audit: &AuditView,
        next: Offset,
        fault: Option<String>,
    ) -> Result<(), StoreError> {
        let audit = audit.clone();
        self.write(format!("saving the audit of disk {}", disk.0), move |db| {
            db.prepare_cached(
                "INSERT INTO audits (disk_pass, body) VALUES (?, ?)
                 ON CONFLICT (disk_pass) DO UPDATE SET body = excluded.body",
            )?
            .execute(params![disk_pass, to_json("audits", disk_pass, &audit)?])?;
            let found = db
                .prepare_cached(
                    "UPDATE disks SET audit_cursor = ?, tracking_fault = coalesce(tracking_fault, ?) WHERE id = ?",
                )?
                .execute(params![signed("disks", disk.0, next.0)?, fault, disk.0])?;
            if found == 0 { Err(StoreFault::Missing(format!("there is no disk {}", disk.0))) } else { Ok(()) }
        })
        .await
    }

    /// Saves the tracking fault of the disk; whether it is the first one, which stays.
    pub async fn put_tracking_fault(&self, disk: DiskId, fault: String) -> Result<bool, StoreError> {
        self.write(format!("saving a fault of the change tracking of disk {}", disk.0), move |db| {
            let found = db
                .prepare_cached(
                    "UPDATE disks SET tracking_fault = ? WHERE id = ? AND tracking_fault IS NULL",
                )?
                .execute(params![fault, disk.0])?;
            Ok(found > 0)
        })
        .await
    }
}

/// Adds blocks to the unverified ones, in the transaction that makes them pending.
pub(super) fn mark_unverified(
    db: &Connection,
    disk: DiskId,
    touched: &[(u32, ChunkBits)],
) -> Result<(), StoreFault> {
    for table in UNVERIFIED {
        let mut select = db.prepare_cached(&format!("SELECT blocks FROM {table} WHERE key = ?"))?;
        let mut put = db.prepare_cached(&format!(
            "INSERT INTO {table} (key, blocks) VALUES (?, ?)
             ON CONFLICT (key) DO UPDATE SET blocks = excluded.blocks"
        ))?;
        for (chunk, blocks) in touched {
            let key = ledger::key(disk, *chunk);
            let before: Option<Vec<u8>> = select.query_row([key], |row| row.get(0)).optional()?;
            let mut blocks = blocks.clone();
            if let Some(before) = before {
                blocks.union(&decode(table, key, &before)?);
            }
            put.execute(params![key, blocks.encode()])?;
        }
    }
    Ok(())
}

/// The result of a pass's audit, if there was one.
pub(super) fn audit(db: &Connection, disk_pass: i64) -> Result<Option<AuditView>, StoreFault> {
    let mut select = db.prepare_cached("SELECT body FROM audits WHERE disk_pass = ?")?;
    let body: Option<String> = select.query_row([disk_pass], |row| row.get(0)).optional()?;
    body.map(|body| from_json("audits", disk_pass, &body)).transpose()
}

/// Forgets how far verifications are: the blocks that they read are about to be written again.
pub(super) fn forget_cursors(db: &Connection, id: MigrationId) -> Result<(), StoreFault> {
    db.prepare_cached("DELETE FROM verify_cursors WHERE disk IN (SELECT id FROM disks WHERE migration = ?)")?
        .execute([id.to_string()])?;
    Ok(())
}

fn decode(table: &'static str, key: i64, bytes: &[u8]) -> Result<ChunkBits, StoreFault> {
    ChunkBits::decode(bytes).ok_or_else(|| StoreFault::bad(table, key, "these bits cannot be"))
}

fn insert_verify_result(db: &Connection, id: MigrationId, result: &VerifyResult) -> Result<(), StoreFault> {
    db.prepare_cached("INSERT INTO verify_results (migration, body) VALUES (?, ?)")?
        .execute(params![id.to_string(), to_json("verify_results", id, result)?])?;
    Ok(())
}
