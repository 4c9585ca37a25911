//! Passes and their figures, which grow in the same transaction as the drain that they describe.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use warmd_cbt::{
    mark::ChangeMark,
    store::{DiskId, PassFigures},
};
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    outcome::PassFailure,
    report::PassSums,
    view::{DiskPassView, PassKind, PassView, SnapshotCost},
};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_word, micros, moment, signed, to_word, unsigned},
    telemetry, verification,
};

const TABLE: &str = "passes";
const DISKS: &str = "disk_passes";

/// One disk of a pass that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDiskPass {
    pub disk: DiskId,
    /// Pending now, in bytes.
    pub pending: u64,
    /// Bytes that the source reported as changed since the anchor; the whole disk if it could not report.
    pub changed: u64,
    /// Extents pending now.
    pub extents: u64,
    /// Why the source could not report the changes.
    pub unknown: Option<String>,
    pub mark: ChangeMark,
}

/// The part of a pass that a schedule learns from.
#[derive(Clone, Debug, PartialEq)]
pub struct PassFacts {
    pub number: u32,
    pub kind: PassKind,
    pub started: DateTime<Utc>,
    /// `None` if it runs, or was interrupted.
    pub ended: Option<DateTime<Utc>>,
    pub failed: bool,
    pub disks: Vec<DiskFacts>,
}

/// The part of a pass over one disk that a schedule learns from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    pub key: DiskKey,
    /// Pending when it began, in bytes.
    pub pending: u64,
    /// Bytes that the source reported as changed; `None` if it could not report.
    pub changed: Option<u64>,
}

/// A pass as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct PassRow {
    /// For [`Store::end_pass`].
    pub id: i64,
    /// What `LedgerCommit::pass` names for each disk.
    pub disks: Vec<(DiskId, i64)>,
    pub view: PassView,
}

impl Store {
    /// Notes that a pass began, with the next number.
    pub async fn begin_pass(
        &self,
        id: MigrationId,
        kind: PassKind,
        started: DateTime<Utc>,
        disks: Vec<NewDiskPass>,
    ) -> Result<PassRow, StoreError> {
        self.write(format!("beginning a pass of migration {id}"), move |db| {
            db.prepare_cached(
                "INSERT INTO passes (migration, number, kind, started) VALUES
                 (?1, (SELECT coalesce(max(number), 0) + 1 FROM passes WHERE migration = ?1), ?2, ?3)",
            )?
            .execute(params![id.to_string(), to_word(TABLE, &kind)?, micros(started)])?;
            let pass = db.last_insert_rowid();
            verification::forget_cursors(db, id)?;
            for disk in &disks {
                insert(db, pass, disk)?;
            }
            find(db, "id = ?1", &[&pass])?.pop().ok_or_else(|| StoreFault::Missing(format!("pass {pass}")))
        })
        .await
    }

    /// Notes that the pass ended, and the error if it failed.
    pub async fn end_pass(
        &self,
        pass: i64,
        ended: DateTime<Utc>,
        error: Option<String>,
    ) -> Result<(), StoreError> {
        self.write(format!("ending pass {pass}"), move |db| {
            let found = db
                .prepare_cached("UPDATE passes SET ended = ?, error = ? WHERE id = ?")?
                .execute(params![micros(ended), error, pass])?;
            if found == 0 { Err(StoreFault::Missing(format!("there is no pass {pass}"))) } else { Ok(()) }
        })
        .await
    }

    /// Notes what the snapshot of the migration's pass that began at `since` or later cost; nothing if there
    /// is no such pass.
    pub async fn note_snapshot(
        &self,
        id: MigrationId,
        since: DateTime<Utc>,
        cost: SnapshotCost,
    ) -> Result<(), StoreError> {
        self.write(format!("noting what a snapshot of migration {id} cost"), move |db| {
            let micros_of = |seconds: f64| (seconds * 1e6) as i64;
            db.prepare_cached(
                "UPDATE passes SET snapshot_made = ?1, snapshot_removed = ?2 WHERE id =
                 (SELECT max(id) FROM passes WHERE migration = ?3 AND started >= ?4)",
            )?
            .execute(params![
                micros_of(cost.made),
                cost.removed.map(micros_of),
                id.to_string(),
                micros(since)
            ])?;
            Ok(())
        })
        .await
    }

    /// Ends all passes that have no end, which no task runs any more: as cut off, and at the last moment that
    /// is known of them. Those of finished migrations stay as they are.
    pub async fn end_cut_passes(&self) -> Result<(), StoreError> {
        self.write("ending passes that were cut off", move |db| {
            db.prepare_cached(
                "UPDATE passes SET error = ?, ended = started +
                     coalesce((SELECT max(elapsed) FROM disk_passes WHERE pass = passes.id), 0) / 1000
                 WHERE ended IS NULL AND migration IN
                     (SELECT id FROM migrations WHERE state_name NOT IN ('done', 'cancelled'))",
            )?
            .execute([PassFailure::CutOff.to_string()])?;
            Ok(())
        })
        .await
    }

    /// The migration's passes, oldest first.
    pub async fn passes(&self, id: MigrationId) -> Result<Vec<PassRow>, StoreError> {
        self.read(format!("reading the passes of migration {id}"), move |db| {
            find(db, "migration = ?1", &[&id.to_string()])
        })
        .await
    }

    /// The migration's last passes, at most `most` of them, oldest first, and the sums of all earlier ones.
    pub async fn last_passes(
        &self,
        id: MigrationId,
        most: u32,
    ) -> Result<(Vec<PassRow>, Vec<PassSums>), StoreError> {
        self.read(format!("reading the last passes of migration {id}"), move |db| {
            let id = id.to_string();
            let from = "number > (SELECT max(number) FROM passes WHERE migration = ?1) - ?2";
            let rows = find(db, &format!("migration = ?1 AND {from}"), &[&id, &most])?;
            let first = rows.first().map_or(0, |row| row.view.number);
            let mut select = db.prepare_cached(
                "SELECT key, sum(passes), sum(failed), sum(changed), sum(read), sum(written), sum(zeroed), sum(skipped),
                     sum(drained) FROM (
                 SELECT key, passes, failed, changed, read, written, zeroed, skipped, drained FROM pass_hours
                     WHERE migration = ?1
                 UNION ALL
                 SELECT disks.key, 1, p.error IS NOT NULL, d.changed, d.read, d.written, d.zeroed, d.skipped, d.drained
                     FROM passes p JOIN disk_passes d ON d.pass = p.id JOIN disks ON disks.id = d.disk
                     WHERE p.migration = ?1 AND p.number < ?2)
                 GROUP BY key ORDER BY key",
            )?;
            let mut sums = Vec::new();
            let mut found = select.query(params![id, first])?;
            while let Some(row) = found.next()? {
                let number = |at: usize| -> Result<u64, StoreFault> { unsigned(TABLE, &id, row.get(at)?) };
                sums.push(PassSums {
                    key: row.get(0)?,
                    passes: number(1)?,
                    failed: number(2)?,
                    changed: number(3)?,
                    read: number(4)?,
                    written: number(5)?,
                    zeroed: number(6)?,
                    skipped: number(7)?,
                    drained: number(8)?,
                });
            }
            Ok((rows, sums))
        })
        .await
    }

    /// The sum of all passes' audits, by disk: how many there were, and the bytes checked and found wrong.
    pub async fn audit_sums(
        &self,
        id: MigrationId,
    ) -> Result<BTreeMap<DiskKey, (u32, u64, u64)>, StoreError> {
        self.read(format!("reading the audits of migration {id}"), move |db| {
            let id = id.to_string();
            let mut select = db.prepare_cached(
                "SELECT key, sum(audits), sum(checked), sum(mismatched) FROM (
                 SELECT key, audits, checked, mismatched FROM pass_hours WHERE migration = ?1
                 UNION ALL
                 SELECT disks.key, 1, json_extract(body, '$.is.checked'), json_extract(body, '$.is.mismatched_bytes')
                     FROM audits JOIN disk_passes d ON d.id = audits.disk_pass JOIN passes p ON p.id = d.pass
                     JOIN disks ON disks.id = d.disk WHERE p.migration = ?1)
                 GROUP BY key",
            )?;
            let mut rows = select.query([&id])?;
            let mut sums = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let number = |at: usize| -> Result<u64, StoreFault> { unsigned("audits", &id, row.get(at)?) };
                let passes = unsigned("audits", &id, row.get(1)?)?;
                sums.insert(DiskKey(row.get(0)?), (passes, number(2)?, number(3)?));
            }
            Ok(sums)
        })
        .await
    }

    /// The figures of the migration's last passes, at most `count` of them, oldest first. Schedules and
    /// forecasts ask for it again and again, so it is one statement.
    pub async fn recent_passes(&self, id: MigrationId, count: u32) -> Result<Vec<PassFacts>, StoreError> {
        self.read(format!("reading the last passes of migration {id}"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT passes.id, number, kind, started, ended, error IS NOT NULL, disks.key, pending, changed,
                 unknown IS NOT NULL FROM passes LEFT JOIN disk_passes ON pass = passes.id
                 LEFT JOIN disks ON disks.id = disk
                 WHERE passes.migration = ?1
                 AND number > (SELECT max(number) FROM passes WHERE migration = ?1) - ?2
                 ORDER BY number, disk_passes.id",
            )?;
            let mut rows = select.query(params![id.to_string(), count])?;
            let mut passes: Vec<PassFacts> = Vec::new();
            while let Some(row) = rows.next()? {
                let pass: i64 = row.get(0)?;
                let number = unsigned(TABLE, pass, row.get(1)?)?;
                if passes.last().is_none_or(|last| last.number != number) {
                    passes.push(PassFacts {
                        number,
                        kind: from_word(TABLE, pass, row.get(2)?)?,
                        started: moment(TABLE, pass, row.get(3)?)?,
                        ended: row.get::<_, Option<i64>>(4)?.map(|at| moment(TABLE, pass, at)).transpose()?,
                        failed: row.get(5)?,
                        disks: Vec::new(),
                    });
                }
                let (Some(last), Some(key)) = (passes.last_mut(), row.get(6)?) else { continue };
                let changed = unsigned(DISKS, pass, row.get(8)?)?;
                let unknown: bool = row.get(9)?;
                last.disks.push(DiskFacts {
                    key: DiskKey(key),
                    pending: unsigned(DISKS, pass, row.get(7)?)?,
                    changed: (!unknown).then_some(changed),
                });
            }
            Ok(passes)
        })
        .await
    }

    /// When the last pass began that ended well: the copy is of that moment, also if later passes failed.
    pub async fn last_copied(&self, id: MigrationId) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.read(format!("reading the last whole pass of migration {id}"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT id, started FROM passes WHERE migration = ? AND ended IS NOT NULL AND error IS NULL
                 ORDER BY number DESC LIMIT 1",
            )?;
            let found: Option<(i64, i64)> =
                select.query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            found.map(|(pass, started)| moment(TABLE, pass, started)).transpose()
        })
        .await
    }

    /// The last pass; its `ended` is `None` if it still runs, or ran when the daemon ended.
    pub async fn last_pass(&self, id: MigrationId) -> Result<Option<PassRow>, StoreError> {
        self.read(format!("reading the last pass of migration {id}"), move |db| {
            let condition = "id = (SELECT max(id) FROM passes WHERE migration = ?1)";
            Ok(find(db, condition, &[&id.to_string()])?.pop())
        })
        .await
    }
}

fn insert(db: &Connection, pass: i64, new: &NewDiskPass) -> Result<(), StoreFault> {
    let number = |value| signed(DISKS, new.disk.0, value);
    db.prepare_cached(
        "INSERT INTO disk_passes (pass, disk, pending, changed, extents, unknown, mark)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        pass,
        new.disk.0,
        number(new.pending)?,
        number(new.changed)?,
        number(new.extents)?,
        new.unknown,
        new.mark.0
    ])?;
    Ok(())
}

/// Adds to the pass's figures of the disk.
pub(super) fn add_figures(
    db: &Connection,
    pass: i64,
    disk: DiskId,
    figures: &PassFigures,
) -> Result<(), StoreFault> {
    let number = |value| signed(DISKS, pass, value);
    let found = db
        .prepare_cached(
            "UPDATE disk_passes SET read = read + ?, written = written + ?, zeroed = zeroed + ?, skipped = skipped + ?, \
             drained = drained + ?, requests = requests + ?, batches = batches + ? WHERE id = ? AND disk = ?",
        )?
        .execute(params![
            number(figures.read)?,
            number(figures.written)?,
            number(figures.zeroed)?,
            number(figures.skipped)?,
            number(figures.drained)?,
            number(figures.requests)?,
            number(figures.batches)?,
            pass,
            disk.0
        ])?;
    if found == 0 {
        return Err(StoreFault::Missing(format!("there is no pass {pass} of disk {}", disk.0)));
    }
    Ok(())
}

fn find(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<Vec<PassRow>, StoreFault> {
    let mut select = db.prepare_cached(&format!(
        "SELECT id, number, kind, started, ended, error, cpu, snapshot_made, snapshot_removed FROM passes WHERE {condition} ORDER BY number"
    ))?;
    let mut rows = select.query(parameters)?;
    let mut passes = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get("id")?;
        let disks = disks_of(db, id)?;
        passes.push(PassRow {
            id,
            disks: disks.iter().map(|(disk, row, _)| (*disk, *row)).collect(),
            view: PassView {
                number: unsigned(TABLE, id, row.get("number")?)?,
                kind: from_word(TABLE, id, row.get("kind")?)?,
                started: moment(TABLE, id, row.get("started")?)?,
                ended: row.get::<_, Option<i64>>("ended")?.map(|at| moment(TABLE, id, at)).transpose()?,
                error: row.get::<_, Option<String>>("error")?.map(PassFailure::from),
                cpu: row.get::<_, Option<i64>>("cpu")?.map(|nanos| nanos as f64 / 1e9),
                snapshot: cost(row)?,
                disks: disks.into_iter().map(|(_, _, view)| view).collect(),
            },
        });
    }
    Ok(passes)
}

fn cost(row: &Row) -> Result<Option<SnapshotCost>, StoreFault> {
    let seconds = |column: &str| -> rusqlite::Result<Option<f64>> {
        Ok(row.get::<_, Option<i64>>(column)?.map(|micros| micros as f64 / 1e6))
    };
    let removed = seconds("snapshot_removed")?;
    Ok(seconds("snapshot_made")?.map(|made| SnapshotCost { made, removed }))
}

fn disks_of(db: &Connection, pass: i64) -> Result<Vec<(DiskId, i64, DiskPassView)>, StoreFault> {
    let mut select = db.prepare_cached(
        "SELECT disk_passes.*, disks.key FROM disk_passes JOIN disks ON disks.id = disk \
         WHERE pass = ? ORDER BY disk_passes.id",
    )?;
    let mut rows = select.query([pass])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((DiskId(row.get("disk")?), row.get("id")?, read(db, row)?));
    }
    Ok(found)
}

fn read(db: &Connection, row: &Row) -> Result<DiskPassView, StoreFault> {
    let id: i64 = row.get("id")?;
    let number = |column: &str| -> Result<u64, StoreFault> { unsigned(DISKS, id, row.get(column)?) };
    Ok(DiskPassView {
        key: DiskKey(row.get("key")?),
        pending: number("pending")?,
        changed: number("changed")?,
        extents: number("extents")?,
        unknown: row.get("unknown")?,
        mark: row.get("mark")?,
        figures: PassFigures {
            read: number("read")?,
            written: number("written")?,
            zeroed: number("zeroed")?,
            skipped: number("skipped")?,
            drained: number("drained")?,
            requests: number("requests")?,
            batches: number("batches")?,
        },
        telemetry: row
            .get::<_, Option<i64>>("elapsed")?
            .map(|elapsed| telemetry::read(db, id, elapsed))
            .transpose()?,
        audit: verification::audit(db, id)?,
    })
}
