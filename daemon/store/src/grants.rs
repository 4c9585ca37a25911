//! Grants: who may do what over the API.
//!
//! Rule: a grant that cannot be read allows nothing. It is reported, and stays.

use rusqlite::{Row, params};
use warmd_core::model::{
    access::{Grant, Subject},
    view::EventView,
};

use super::{
    Store, StoreError,
    error::StoreFault,
    journal,
    row::{micros, moment},
};

/// The grants of a state.
#[derive(Debug, Default)]
pub struct SavedGrants {
    pub grants: Vec<Grant>,
    /// Invalid rows, by their subject, and why.
    pub unreadable: Vec<(String, StoreError)>,
}

impl Store {
    /// Saves a grant, in place of the subject's earlier one, together with its journal line.
    pub async fn save_grant(&self, grant: Grant, line: EventView) -> Result<(), StoreError> {
        self.write(format!("saving the role of {}", grant.subject), move |db| {
            let Grant { subject, role, plans, by, at } = grant;
            db.prepare_cached("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?)")?.execute(params![
                subject.to_string(),
                role.name(),
                serde_json::Value::from(plans).to_string(),
                by,
                micros(at)
            ])?;
            journal::append(db, &[line])
        })
        .await
    }

    /// Deletes the subject's grant, also an unreadable one, together with its journal line. Returns whether
    /// there was one; else there is no line.
    pub async fn delete_grant(&self, subject: &Subject, line: EventView) -> Result<bool, StoreError> {
        let subject = subject.to_string();
        self.write(format!("deleting the role of {subject}"), move |db| {
            let rows = db.prepare_cached("DELETE FROM grants WHERE subject = ?")?.execute([&subject])?;
            if rows > 0 {
                journal::append(db, &[line])?;
            }
            Ok(rows > 0)
        })
        .await
    }

    /// All grants, by subject.
    pub async fn grants(&self) -> Result<SavedGrants, StoreError> {
        self.read("reading the grants", |db| {
            let mut select =
                db.prepare_cached("SELECT subject, role, plans, by, at FROM grants ORDER BY subject")?;
            let mut rows = select.query([])?;
            let mut saved = SavedGrants::default();
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                match read(row, &name) {
                    Ok(grant) => saved.grants.push(grant),
                    Err(fault) => saved.unreadable.push((name, fault.into_error("reading a grant"))),
                }
            }
            Ok(saved)
        })
        .await
    }
}

fn read(row: &Row, name: &str) -> Result<Grant, StoreFault> {
    let bad = |why: String| StoreFault::bad("grants", name, why);
    let (role, plans): (String, String) = (row.get(1)?, row.get(2)?);
    Ok(Grant {
        subject: name.parse().map_err(bad)?,
        role: role.parse().map_err(bad)?,
        plans: serde_json::from_str(&plans).map_err(|error| bad(error.to_string()))?,
        by: row.get(3)?,
        at: moment("grants", name, row.get(4)?)?,
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use warmd_core::model::{access::Role, event_kind::EventKind};

    use super::{super::schema, *};

    fn line() -> EventView {
        let (by, kind, text) = ("test".to_owned(), EventKind::Access, "grant".to_owned());
        EventView { at: DateTime::UNIX_EPOCH, migration: None, by, kind, text }
    }

    fn grant(role: Role) -> Grant {
        Grant {
            subject: Subject::Certificate("anna".to_owned()),
            role,
            plans: vec!["web-*".to_owned()],
            by: "root".to_owned(),
            at: DateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn grant_is_kept_replaced_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for role in Role::ALL {
            store.save_grant(grant(role), line()).await.unwrap();
            assert_eq!(store.grants().await.unwrap().grants, [grant(role)]);
        }
        let subject = grant(Role::Admin).subject;
        for had in [true, false] {
            assert_eq!(store.delete_grant(&subject, line()).await.unwrap(), had);
            assert_eq!(store.grants().await.unwrap().grants, []);
        }
        let lines = store.events(None, None, 10).await.unwrap().lines;
        assert_eq!(lines.len(), Role::ALL.len() + 1, "a line for each change");
    }

    /// The version before roles.
    const BEFORE: usize = 26;

    #[tokio::test]
    async fn database_without_grants_gets_them_and_keeps_its_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut raw = rusqlite::Connection::open(dir.path().join(crate::FILE_NAME)).unwrap();
        schema::upgrade(&mut raw, &schema::UPGRADES[..BEFORE]).unwrap();
        raw.execute("INSERT INTO events (at, by, kind, text) VALUES (0, 'root', 'plan', 'applied')", [])
            .unwrap();
        drop(raw);

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.grants().await.unwrap().grants, [], "an upgrade grants no role");
        store.save_grant(grant(Role::Operator), line()).await.unwrap();
        let page = store.events(None, None, 10).await.unwrap();
        let texts: Vec<_> = page.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["applied", "grant"]);
        assert_eq!(store.integrity().await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn grant_that_cannot_be_read_allows_nothing_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save_grant(grant(Role::Viewer), line()).await.unwrap();
        let spoil = |db: &rusqlite::Connection| {
            db.execute("INSERT INTO grants VALUES ('cert:bob', 'emperor', '[]', 'x', 0)", [])?;
            Ok(())
        };
        store.write("spoiling a grant".to_owned(), spoil).await.unwrap();
        let saved = store.grants().await.unwrap();
        assert_eq!(saved.grants, [grant(Role::Viewer)]);
        assert_eq!(saved.unreadable[0].0, "cert:bob");
        let unreadable = Subject::Certificate("bob".to_owned());
        assert!(store.delete_grant(&unreadable, line()).await.unwrap());
        assert!(store.grants().await.unwrap().unreadable.is_empty());
    }
}
