//! Keeping the state small: older passes become hourly sums, their stages and old lines of the journal go.
//!
//! Rule: a step is short, so that no other write waits long. What is evidence stays: the first pass, all that was asked for
//! and warned of, and the sums of what went.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, error::Fault, proof, row::micros};

/// Passes, or ten times as many lines, that go in one transaction.
const STEP: u32 = 50;
/// Passes above what is kept, before any go: else each pass would mean work.
const SLACK: u32 = 20;

/// What is kept: `[state]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// The last passes of each migration that are kept one by one; the older ones become hourly sums.
    pub keep_passes: u32,
    /// The last passes of each migration of which it is kept what each stage did.
    pub keep_stages: u32,
    /// For how long the journal's lines are kept; requests, plans and warnings stay.
    #[serde(with = "humantime_serde_like")]
    pub keep_journal: Duration,
    /// Bytes kept in reserve for the moment in which the file system is full; 0 for none.
    pub reserve: u64,
}

mod humantime_serde_like {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            keep_passes: 1000,
            keep_stages: 100,
            keep_journal: Duration::from_hours(24 * 90),
            reserve: super::RESERVE,
        }
    }
}

impl Store {
    /// Takes steps until there is nothing more than is to be kept; how many there were.
    pub async fn thin(&self, keep: &Keep, now: DateTime<Utc>) -> Result<u32, StoreError> {
        let mut steps = 0;
        loop {
            let keep = keep.clone();
            let more = self.write("thinning the state", move |db| step(db, &keep, now)).await?;
            if !more {
                return Ok(steps);
            }
            steps += 1;
            // The work goes first.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether there was something to do.
fn step(db: &Connection, keep: &Keep, now: DateTime<Utc>) -> Result<bool, Fault> {
    Ok(sum_up(db, keep.keep_passes)?
        || forget_stages(db, keep.keep_stages)?
        || {
            let span = chrono::TimeDelta::from_std(keep.keep_journal).unwrap_or(chrono::TimeDelta::MAX);
            now.checked_sub_signed(span).map_or(Ok(false), |before| forget_lines(db, before))?
        }
        || shrink(db)?)
}

fn ids(db: &Connection, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<i64>, Fault> {
    let mut select = db.prepare_cached(sql)?;
    Ok(select.query_map(values, |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Some passes of a migration that has too many.
fn sum_up(db: &Connection, keep: u32) -> Result<bool, Fault> {
    let passes = ids(
        db,
        &format!(
            "SELECT passes.id FROM passes JOIN (SELECT migration AS of, max(number) AS last FROM passes
                 GROUP BY migration HAVING count(*) > ?1 + {SLACK} LIMIT 1) ON migration = of
             WHERE number > 1 AND number <= last - ?1 AND ended IS NOT NULL ORDER BY number LIMIT {STEP}"
        ),
        &[&keep],
    )?;
    for pass in &passes {
        let rows = ids(db, "SELECT id FROM disk_passes WHERE pass = ?1", &[pass])?;
        for row in rows {
            let audit = proof::audit(db, row)?;
            let (audits, checked, wrong) =
                audit.map_or((0, 0, 0), |audit| (1, audit.checked, audit.mismatched_bytes));
            db.prepare_cached(
                "INSERT INTO pass_hours (migration, hour, key, passes, failed, changed, read, written, zeroed, skipped,
                     drained, requests, audits, checked, mismatched)
                 SELECT p.migration, p.started / 3600000000, disks.key, 1, p.error IS NOT NULL, d.changed, d.read,
                     d.written, d.zeroed, d.skipped, d.drained, d.requests, ?2, ?3, ?4
                 FROM disk_passes d JOIN passes p ON p.id = d.pass JOIN disks ON disks.id = d.disk WHERE d.id = ?1
                 ON CONFLICT (migration, hour, key) DO UPDATE SET passes = passes + 1, failed = failed + excluded.failed,
                     changed = changed + excluded.changed, read = read + excluded.read,
                     written = written + excluded.written, zeroed = zeroed + excluded.zeroed,
                     skipped = skipped + excluded.skipped, drained = drained + excluded.drained,
                     requests = requests + excluded.requests, audits = audits + excluded.audits,
                     checked = checked + excluded.checked, mismatched = mismatched + excluded.mismatched",
            )?
            .execute(params![row, audits, i64::try_from(checked).unwrap_or(i64::MAX), i64::try_from(wrong).unwrap_or(i64::MAX)])?;
            for table in ["stages", "waits", "audits"] {
                db.prepare_cached(&format!("DELETE FROM {table} WHERE disk_pass = ?"))?.execute([row])?;
            }
        }
        db.prepare_cached("DELETE FROM disk_passes WHERE pass = ?")?.execute([pass])?;
        db.prepare_cached("DELETE FROM passes WHERE id = ?")?.execute([pass])?;
    }
    Ok(!passes.is_empty())
}

/// What each stage of some older passes did.
fn forget_stages(db: &Connection, keep: u32) -> Result<bool, Fault> {
    let rows = ids(
        db,
        &format!(
            "SELECT d.id FROM passes p JOIN (SELECT migration AS of, max(number) AS last FROM passes GROUP BY migration)
                 ON p.migration = of JOIN disk_passes d ON d.pass = p.id
             WHERE p.number <= last - ?1 AND d.elapsed IS NOT NULL AND p.ended IS NOT NULL LIMIT {STEP}"
        ),
        &[&keep],
    )?;
    for row in &rows {
        for table in ["stages", "waits"] {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE disk_pass = ?"))?.execute([row])?;
        }
        db.prepare_cached("UPDATE disk_passes SET elapsed = NULL WHERE id = ?")?.execute([row])?;
    }
    Ok(!rows.is_empty())
}

/// Some lines of the journal from before that moment.
fn forget_lines(db: &Connection, before: DateTime<Utc>) -> Result<bool, Fault> {
    // The journal lets no line go but within this.
    db.prepare_cached("INSERT INTO thinning (id) VALUES (1)")?.execute([])?;
    let gone = db
        .prepare_cached(&format!(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ?
                 AND kind NOT IN ('request', 'plan', 'warning') ORDER BY id LIMIT {})",
            STEP * 10
        ))?
        .execute([micros(before)])?;
    db.prepare_cached("DELETE FROM thinning")?.execute([])?;
    Ok(gone > 0)
}

/// Gives pages that nothing is in back to the file system, where the file can shrink; else they are used again.
fn shrink(db: &Connection) -> Result<bool, Fault> {
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (free, pages) = (number("freelist_count")?, number("page_count")?);
    // Some are needed soon again.
    if number("auto_vacuum")? != 2 || free < 32 || free < pages / 4 {
        return Ok(false);
    }
    let mut vacuum = db.prepare("PRAGMA incremental_vacuum(128)")?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}
