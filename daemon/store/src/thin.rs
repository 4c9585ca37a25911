//! Keeping the state small: older passes become hourly sums, their stages and old lines of the journal are
//! deleted.
//!
//! Rule: a step is short, and reads little more than it deletes, so that no other write waits long. All
//! evidence stays: the first pass, all requests and warnings, and the sums of deleted rows.

use std::{collections::BTreeMap, path::Path, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{OpenError, Store, StoreError, error::StoreFault, locked, row::micros, verification};

/// Passes that are deleted in one transaction.
const STEP: u32 = 50;
/// Lines of the journal that are read in one.
const LINES: u32 = 1000;
/// Passes above the kept number before any are deleted: else each pass would cause work.
const SLACK: u32 = 20;

/// What is kept: `[state]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The last passes of each migration that are kept one by one; the older ones become hourly sums.
    pub keep_passes: u32,
    /// The last passes of each migration whose stages are kept.
    pub keep_stages: u32,
    /// For how long the journal's lines are kept; requests, plans and warnings stay.
    #[serde(with = "warmd_core::model::plan::duration")]
    pub keep_journal: Duration,
    /// Bytes kept in reserve for the moment in which the file system is full; 0 for none.
    pub reserve: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            keep_passes: 1000,
            keep_stages: 100,
            keep_journal: Duration::from_hours(24 * 90),
            reserve: super::RESERVE,
        }
    }
}

/// The fewest passes that may be kept: schedules read so many, and the last one's number shows what wrote
/// to the target last.
const FEWEST: u32 = 501;

impl Retention {
    /// Its invalid keys, and why.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let few = self.keep_passes < FEWEST;
        few.then(|| {
            let text = format!("`keep_passes` is {}: use {FEWEST} or more", self.keep_passes);
            ("keep_passes", text)
        })
    }
}

/// How far the state is thinned out. Kept in memory: after a start all is checked once more.
#[derive(Clone, Debug)]
pub(super) struct Thinned {
    /// The journal's newest line when the state was opened, and the time of that.
    opened: (Option<DateTime<Utc>>, Instant),
    /// The journal's lines up to this one are deleted, or stay for ever.
    line: i64,
    /// Of each migration, the pass up to which no stages are left.
    stages: BTreeMap<String, i64>,
}

impl Thinned {
    /// Of the state in `file`, which has just been opened.
    pub(super) fn opened(db: &Connection, file: &Path) -> Result<Self, OpenError> {
        let newest = db.query_row("SELECT at FROM events ORDER BY id DESC LIMIT 1", [], |row| row.get(0));
        let newest: Option<i64> = newest.optional().map_err(|cause| OpenError::Database {
            what: "read the journal's end in",
            file: file.to_owned(),
            cause,
        })?;
        let newest = newest.and_then(DateTime::from_timestamp_micros);
        Ok(Self { opened: (newest, Instant::now()), line: 0, stages: BTreeMap::new() })
    }

    /// The time, which is not trusted alone: a clock that is set forward would delete the whole journal. It
    /// is no later than what the state's own times and the uptime allow.
    fn now(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let (newest, at) = self.opened;
        let uptime = TimeDelta::from_std(at.elapsed()).unwrap_or(TimeDelta::MAX);
        let latest = newest.and_then(|newest| newest.checked_add_signed(uptime));
        latest.map_or(now, |latest| latest.min(now))
    }
}

impl Store {
    /// Takes steps until only the kept rows are left; returns their number.
    pub async fn thin(&self, keep: &Retention, now: DateTime<Utc>) -> Result<u32, StoreError> {
        let mut steps = 0;
        loop {
            let (keep, mut thinned) = (keep.clone(), locked(&self.0.thinned).clone());
            let work = move |db: &Connection| Ok((step(db, &keep, now, &mut thinned)?, thinned));
            let (more, thinned) = self.write("thinning the state", work).await?;
            *locked(&self.0.thinned) = thinned;
            if !more {
                return Ok(steps);
            }
            steps += 1;
            // Other work goes first.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether there was work to do.
fn step(
    db: &Connection,
    keep: &Retention,
    now: DateTime<Utc>,
    thinned: &mut Thinned,
) -> Result<bool, StoreFault> {
    let span = TimeDelta::from_std(keep.keep_journal).unwrap_or(TimeDelta::MAX);
    let before = thinned.now(now).checked_sub_signed(span);
    Ok(sum_up(db, keep.keep_passes.max(1))?
        || forget_stages(db, keep.keep_stages, &mut thinned.stages)?
        || before.map_or(Ok(false), |before| forget_lines(db, before, &mut thinned.line))?
        || shrink(db)?)
}

fn ids(db: &Connection, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<i64>, StoreFault> {
    let mut select = db.prepare_cached(sql)?;
    Ok(select.query_map(values, |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Some passes of migrations that have too many. A running pass is never old: it is its migration's last. The
/// last one that ended well stays: it gives the age of the copy.
fn sum_up(db: &Connection, keep: u32) -> Result<bool, StoreFault> {
    let passes = ids(
        db,
        &format!(
            "SELECT p.id FROM passes p JOIN (SELECT migration AS of, max(number) AS last FROM passes
                 GROUP BY migration HAVING count(*) > ?1 + {SLACK}) ON p.migration = of
             WHERE p.number > 1 AND p.number <= last - ?1
                 AND (p.ended IS NULL OR p.error IS NOT NULL OR p.number < (SELECT number FROM passes good
                     WHERE good.migration = of AND good.ended IS NOT NULL AND good.error IS NULL
                     ORDER BY good.number DESC LIMIT 1))
             LIMIT {STEP}"
        ),
        &[&keep],
    )?;
    for pass in &passes {
        let rows = ids(db, "SELECT id FROM disk_passes WHERE pass = ?1", &[pass])?;
        for row in rows {
            let audit = verification::audit(db, row)?;
            let (audits, checked, wrong) =
                audit.map_or((0, 0, 0), |audit| (1, audit.checked, audit.mismatched_bytes));
            db.prepare_cached(
                "INSERT INTO pass_hours (migration, hour, key, passes, failed, changed, read, written, zeroed, skipped,
                     drained, requests, audits, checked, mismatched)
                 SELECT p.migration, p.started / 3600000000, disks.key, 1, p.error IS NOT NULL OR p.ended IS NULL,
                     d.changed, d.read, d.written, d.zeroed, d.skipped, d.drained, d.requests, ?2, ?3, ?4
                 FROM disk_passes d JOIN passes p ON p.id = d.pass JOIN disks ON disks.id = d.disk WHERE d.id = ?1
                 ON CONFLICT (migration, hour, key) DO UPDATE SET passes = passes + 1, failed = failed + excluded.failed,
                     changed = changed + excluded.changed, read = read + excluded.read,
                     written = written + excluded.written, zeroed = zeroed + excluded.zeroed,
                     skipped = skipped + excluded.skipped, drained = drained + excluded.drained,
                     requests = requests + excluded.requests, audits = audits + excluded.audits,
                     checked = checked + excluded.checked, mismatched = mismatched + excluded.mismatched",
            )?
            .execute(params![
                row,
                audits,
                i64::try_from(checked).unwrap_or(i64::MAX),
                i64::try_from(wrong).unwrap_or(i64::MAX)
            ])?;
            for table in ["stages", "waits", "audits"] {
                db.prepare_cached(&format!("DELETE FROM {table} WHERE disk_pass = ?"))?.execute([row])?;
            }
        }
        db.prepare_cached("DELETE FROM disk_passes WHERE pass = ?")?.execute([pass])?;
        db.prepare_cached("DELETE FROM passes WHERE id = ?")?.execute([pass])?;
    }
    Ok(!passes.is_empty())
}

/// The stages of some older passes of one migration.
fn forget_stages(db: &Connection, keep: u32, done: &mut BTreeMap<String, i64>) -> Result<bool, StoreFault> {
    let mut select = db.prepare_cached("SELECT migration, max(number) FROM passes GROUP BY migration")?;
    let lasts = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let lasts: Vec<(String, i64)> = lasts.collect::<Result<_, _>>()?;
    done.retain(|of, _| lasts.iter().any(|(migration, _)| migration == of));
    for (migration, last) in lasts {
        let (until, from) = (last - i64::from(keep), done.get(&migration).copied().unwrap_or(0));
        if until <= from {
            continue;
        }
        let mut select = db.prepare_cached(&format!(
            "SELECT id, number FROM passes WHERE migration = ?1 AND number > ?2 AND number <= ?3
             ORDER BY number LIMIT {STEP}"
        ))?;
        let passes =
            select.query_map(params![migration, from, until], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let passes: Vec<(i64, i64)> = passes.collect::<Result<_, _>>()?;
        for (pass, _) in &passes {
            let rows =
                ids(db, "SELECT id FROM disk_passes WHERE pass = ?1 AND elapsed IS NOT NULL", &[pass])?;
            for row in &rows {
                for table in ["stages", "waits"] {
                    db.prepare_cached(&format!("DELETE FROM {table} WHERE disk_pass = ?"))?.execute([row])?;
                }
                db.prepare_cached("UPDATE disk_passes SET elapsed = NULL WHERE id = ?")?.execute([row])?;
            }
        }
        done.insert(migration, passes.last().map_or(until, |(_, number)| *number));
        return Ok(true);
    }
    Ok(false)
}

/// Reads some lines of the journal after `done`, and deletes those from before that moment.
fn forget_lines(db: &Connection, before: DateTime<Utc>, done: &mut i64) -> Result<bool, StoreFault> {
    let before = micros(before);
    let (last, newest): (Option<i64>, Option<i64>) = db
        .prepare_cached(&format!(
            "SELECT max(id), max(at) FROM (SELECT id, at FROM events WHERE id > ? ORDER BY id LIMIT {LINES})"
        ))?
        .query_row([*done], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(last), Some(newest)) = (last, newest) else { return Ok(false) };
    // The journal allows deletions only within this.
    db.prepare_cached("INSERT INTO thinning (id) VALUES (1)")?.execute([])?;
    let gone = db
        .prepare_cached(
            "DELETE FROM events WHERE id > ? AND id <= ? AND at < ? AND kind NOT IN ('request', 'plan', 'access', 'warning')",
        )?
        .execute(params![*done, last, before])?;
    db.prepare_cached("DELETE FROM thinning")?.execute([])?;
    if newest < before {
        // The remaining lines stay for ever.
        *done = last;
        return Ok(true);
    }
    Ok(gone > 0)
}

/// Returns empty pages to the file system, where the file can shrink; else they are used again.
fn shrink(db: &Connection) -> Result<bool, StoreFault> {
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (free, pages) = (number("freelist_count")?, number("page_count")?);
    // Some are soon needed again.
    if number("auto_vacuum")? != 2 || free < 32 || free < pages / 4 {
        return Ok(false);
    }
    let mut vacuum = db.prepare("PRAGMA incremental_vacuum(128)")?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000, 0).unwrap() + TimeDelta::days(days)
    }

    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    async fn run(store: &Store, sql: &'static str) {
        store.write("the test's own", move |db| Ok(db.execute_batch(sql)?)).await.unwrap();
    }

    async fn number(store: &Store, sql: &'static str) -> i64 {
        store.read("the test's own", move |db| Ok(db.query_row(sql, [], |row| row.get(0))?)).await.unwrap()
    }

    async fn note(store: &Store, kind: &str, day: i64) {
        let (kind, by, text) = (kind.to_owned().into(), "t".to_owned(), "x".to_owned());
        let line = warmd_core::model::view::EventView { at: at(day), migration: None, by, kind, text };
        store.append_events(vec![line]).await.unwrap();
    }

    #[tokio::test]
    async fn a_clock_that_is_set_forward_takes_no_history_away() {
        let (dir, store) = open();
        for day in 0..200 {
            note(&store, "state", day).await;
        }
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let keep = Retention { keep_journal: Duration::from_hours(24 * 90), ..Retention::default() };
        // Also when lines have been written by the wrong clock.
        note(&store, "state", 4000).await;
        store.thin(&keep, at(4000)).await.unwrap();
        let left = number(&store, "SELECT count(*) FROM events").await;
        assert!((91..=93).contains(&left), "{left}");
    }

    #[tokio::test]
    async fn lines_that_say_who_did_what_stay() {
        let (_dir, store) = open();
        for kind in ["state", "request", "plan", "access", "warning"] {
            note(&store, kind, 0).await;
        }
        store.thin(&Retention::default(), at(400)).await.unwrap();
        assert_eq!(number(&store, "SELECT count(*) FROM events WHERE kind = 'access'").await, 1);
        assert_eq!(number(&store, "SELECT count(*) FROM events").await, 4);
    }

    #[tokio::test]
    async fn lines_that_stay_are_looked_at_once() {
        let (_dir, store) = open();
        run(
            &store,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3500)
             INSERT INTO events (at, by, kind, text) SELECT i, 't', iif(i % 2, 'request', 'state'), 'x' FROM n",
        )
        .await;
        let keep = Retention::default();
        assert_eq!(store.thin(&keep, at(0)).await.unwrap(), 4);
        assert_eq!(number(&store, "SELECT count(*) FROM events").await, 1750);
        assert_eq!(locked(&store.0.thinned).line, 3500);
        assert_eq!(store.thin(&keep, at(0)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn passes_without_an_end_are_thinned_too_and_block_none() {
        let (_dir, store) = open();
        run(
            &store,
            "INSERT INTO migrations (id, plan, source, target, vm, vm_name, target_name, machine, state_name, state,
                 since, created, warnings)
             SELECT column1, 'p', 's', 't', column1, 'v', 'v', '', 'synced', '', 0, 0, '[]' FROM (VALUES ('a'), ('b'));
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 700)
             INSERT INTO passes (migration, number, kind, started, ended, error)
             SELECT 'a', i, 'delta', i, NULL, NULL FROM n
             UNION ALL SELECT 'b', i, 'delta', i, i, iif(i = 9, NULL, 'failed') FROM n",
        )
        .await;
        store.thin(&Retention { keep_passes: 501, ..Retention::default() }, at(0)).await.unwrap();
        // The first one, and those that are kept.
        assert_eq!(number(&store, "SELECT count(*) FROM passes WHERE migration = 'a'").await, 502);
        // And the last that ended well.
        assert_eq!(number(&store, "SELECT count(*) FROM passes WHERE migration = 'b'").await, 503);
        assert_eq!(number(&store, "SELECT count(*) FROM passes WHERE number = 9").await, 1);
    }

    #[test]
    fn fewer_passes_than_are_asked_for_are_not_kept() {
        assert_eq!(Retention::default().problem(), None);
        assert_eq!(Retention { keep_passes: 501, ..Retention::default() }.problem(), None);
        for few in [0, 500] {
            assert_eq!(
                Retention { keep_passes: few, ..Retention::default() }.problem().unwrap().0,
                "keep_passes"
            );
        }
    }
}
