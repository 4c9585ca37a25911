//! Garbage rows beside readable ones.

use rusqlite::Connection;
use warmd_store::StoreErrorKind;

use super::{Fixture, migration};

#[tokio::test]
async fn a_row_that_cannot_be_read_hides_no_other() {
    for sql in [
        "UPDATE migrations SET state = 'null' WHERE vm_name = 'web'",
        "UPDATE migrations SET machine = '{\"v\":7,\"is\":{}}' WHERE vm_name = 'web'",
        "UPDATE migrations SET id = 'no uuid' WHERE vm_name = 'web'",
        "UPDATE migrations SET since = 9223372036854775807 WHERE vm_name = 'web'",
        "UPDATE migrations SET attempt = -1 WHERE vm_name = 'web'",
    ] {
        let fixture = Fixture::new();
        migration(&fixture.store, "web").await;
        migration(&fixture.store, "mail").await;
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
        assert_eq!(fixture.store.open_migrations().await.unwrap_err().kind, StoreErrorKind::Corrupt, "{sql}");
        let found = fixture.store.open_each().await.unwrap();
        let names: Vec<_> = found.rows.iter().map(|row| row.vm_name.as_str()).collect();
        let unreadable: Vec<_> = found.unreadable.iter().map(|each| each.vm_name.as_str()).collect();
        assert_eq!((names, unreadable), (vec!["mail"], vec!["web"]), "{sql}");
        assert!(found.unreadable[0].why.contains("table migrations"), "{}", found.unreadable[0].why);
    }
}
