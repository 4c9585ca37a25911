//! A check of the whole database, on an operator's request.

use rusqlite::Connection;

use super::{Store, StoreError, error::StoreFault};

impl Store {
    /// The faults that SQLite finds in the file; empty if there are none. Reads all of it, without delaying
    /// writes.
    pub async fn integrity(&self) -> Result<Vec<String>, StoreError> {
        self.read("checking the state", all).await
    }
}

/// The same of any connection.
pub(super) fn all(db: &Connection) -> Result<Vec<String>, StoreFault> {
    let mut found = lines(db, "PRAGMA integrity_check(100)")?;
    found.retain(|line| line != "ok");
    let orphans = lines(db, "SELECT DISTINCT \"table\" FROM pragma_foreign_key_check")?;
    found.extend(orphans.into_iter().map(|table| format!("table {table} has rows that belong to nothing")));
    found.extend(
        lines(
            db,
            "SELECT name || ' ' || (key >> 32) FROM (SELECT 'chunks of disk' AS name, key FROM chunks
             UNION ALL SELECT 'pages of disk', key FROM pages
             UNION ALL SELECT 'changes of disk', key FROM unverified_readback
             UNION ALL SELECT 'changes of disk', key FROM unverified_compare
             UNION ALL SELECT 'manifest log of disk', key FROM manifest_log)
             WHERE key >> 32 NOT IN (SELECT id FROM disks) GROUP BY name, key >> 32 LIMIT 100",
        )?
        .into_iter()
        .map(|what| format!("{what}, which is not there")),
    );
    found.extend(lines(
        db,
        "SELECT 'manifest log of disk ' || (key >> 32) || ' without their ' || lacks FROM (
             SELECT key, 'blocks' AS lacks FROM manifest_log_hashes WHERE key NOT IN (SELECT key FROM manifest_log)
             UNION ALL
             SELECT key, 'hashes' FROM manifest_log WHERE key NOT IN (SELECT key FROM manifest_log_hashes))
         GROUP BY lacks, key >> 32 LIMIT 100",
    )?);
    Ok(found)
}

fn lines(db: &Connection, sql: &str) -> Result<Vec<String>, StoreFault> {
    let mut select = db.prepare(sql)?;
    let lines = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(lines)
}
