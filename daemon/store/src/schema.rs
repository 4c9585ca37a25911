//! The schema's versions. A change of it is an *upgrade*: a numbered step with a test.
//!
//! Rule: a step that was released is never edited. Each step is one transaction together with its version
//! number, so a database is always of exactly one version.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// "wrmd": marks a SQLite file as warmd's.
pub(super) const APPLICATION_ID: i32 = 0x7772_6d64;

/// Step `n` (from 0) makes version `n + 1` of version `n`.
pub(super) type Upgrade = fn(&Transaction) -> rusqlite::Result<()>;

/// All steps, the first from nothing.
pub(super) const UPGRADES: &[Upgrade] = &[
    |transaction| transaction.execute_batch(include_str!("schema_v1.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v2.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v3.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v4.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v5.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v6.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v7.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v8.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v9.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v10.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v11.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v12.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v13.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v14.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v15.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v16.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v17.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v18.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v19.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v20.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v21.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v22.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v23.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v24.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v25.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v26.sql")),
    |transaction| transaction.execute_batch(include_str!("schema_v27.sql")),
];

/// The version after all steps.
pub(super) fn newest(upgrades: &[Upgrade]) -> i32 {
    (0..).zip(upgrades).map(|(step, _)| step + 1).last().unwrap_or(0)
}

/// The version of the open database.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes all steps that the database lacks; a failure names the version that was reached.
pub(super) fn upgrade(
    connection: &mut Connection,
    upgrades: &[Upgrade],
) -> Result<(), (i32, rusqlite::Error)> {
    let from = version(connection).map_err(|error| (0, error))?;
    for (step, number) in upgrades.iter().zip(1..).skip(from.max(0) as usize) {
        let before = number - 1;
        let mut take = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            step(&transaction)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()
        };
        take().map_err(|error| (before, error))?;
        if before > 0 {
            tracing::info!(from = before, to = number, "state schema upgraded");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLDER: &[Upgrade] = &[|transaction| {
        transaction.execute_batch("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('kept')")
    }];
    const NEWER: &[Upgrade] = &[
        OLDER[0],
        |transaction| transaction.execute_batch("ALTER TABLE notes ADD COLUMN length INTEGER"),
        |transaction| transaction.execute_batch("UPDATE notes SET length = length(text)"),
    ];
    const FAILING: &[Upgrade] = &[OLDER[0], NEWER[1], |transaction| {
        transaction.execute_batch("DELETE FROM notes; SELECT no_such_function()")
    }];

    #[test]
    fn an_older_database_goes_up_step_by_step() {
        let mut connection = Connection::open_in_memory().unwrap();
        upgrade(&mut connection, OLDER).unwrap();
        assert_eq!(version(&connection).unwrap(), 1);
        upgrade(&mut connection, NEWER).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
        let row: (String, i64) = connection
            .query_row("SELECT text, length FROM notes", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(row, ("kept".to_owned(), 4));
        upgrade(&mut connection, NEWER).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
    }

    #[test]
    fn a_failing_step_leaves_the_version_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        upgrade(&mut connection, OLDER).unwrap();
        let (stands, _) = upgrade(&mut connection, FAILING).unwrap_err();
        assert_eq!(stands, 2, "step 2 is done, step 3 is not");
        assert_eq!(version(&connection).unwrap(), 2);
        let rows: i64 = connection.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1, "the failed step was undone");
    }

    #[test]
    fn the_newest_version_has_its_tables_and_its_marks() {
        let mut connection = Connection::open_in_memory().unwrap();
        upgrade(&mut connection, UPGRADES).unwrap();
        let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap();
        assert_eq!(id, APPLICATION_ID);
        let mut names = connection
            .prepare(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
            )
            .unwrap();
        let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            names.join(" "),
            "audits chunks conversions disk_passes disks events grants group_members groups heartbeat hooks inventories latencies limits location_claims manifest_log manifest_log_counts manifest_log_hashes \
             migrations pages pass_hours passes phases plans recorded_roots report_keys stages thinning unverified_compare unverified_readback verify_cursors verify_results waits"
        );
    }
}
