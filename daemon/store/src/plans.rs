//! Plans, as they were applied.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};
use warmd_core::model::{plan::Plan, view::EventView};

use super::{
    Created, NewMigration, Store, StoreError,
    error::StoreFault,
    groups, journal, migrations,
    row::{from_json, micros, to_json},
};

/// A plan by its name, and why its row cannot be read.
type UnreadablePlan = (String, StoreError);

impl Store {
    /// Keeps the plan under its name, in place of an earlier one, with journal lines for the migrations
    /// concerned.
    pub async fn put_plan(
        &self,
        plan: &Plan,
        at: DateTime<Utc>,
        events: Vec<EventView>,
    ) -> Result<(), StoreError> {
        let plan = plan.clone();
        self.write(format!("saving plan {}", plan.name), move |db| put(db, &plan, at, &events)).await
    }

    /// The same, and creates its `new` migrations, unless others move those VMs: all of it or nothing.
    pub async fn apply_plan(
        &self,
        plan: &Plan,
        at: DateTime<Utc>,
        events: Vec<EventView>,
        new: Vec<NewMigration>,
    ) -> Result<Vec<Created>, StoreError> {
        let plan = plan.clone();
        self.write(format!("applying plan {}", plan.name), move |db| {
            put(db, &plan, at, &events)?;
            new.iter().map(|new| migrations::create(db, new)).collect()
        })
        .await
    }

    /// All plans, by name.
    pub async fn plans(&self) -> Result<Vec<Plan>, StoreError> {
        self.read("reading the plans", |db| {
            let mut select = db.prepare_cached("SELECT name, body FROM plans ORDER BY name")?;
            let mut rows = select.query([])?;
            let mut plans = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, body): (String, String) = (row.get(0)?, row.get(1)?);
                plans.push(from_json("plans", name, &body)?);
            }
            Ok(plans)
        })
        .await
    }

    /// The readable ones, and of the others the names and why they cannot.
    pub async fn plans_each(&self) -> Result<(Vec<Plan>, Vec<UnreadablePlan>), StoreError> {
        self.read("reading the plans", each).await
    }

    /// The plan of that name, if there is one.
    pub async fn plan(&self, name: &str) -> Result<Option<Plan>, StoreError> {
        let name = name.to_owned();
        self.read(format!("reading plan {name}"), move |db| {
            let body: Option<String> = db
                .prepare_cached("SELECT body FROM plans WHERE name = ?")?
                .query_row([&name], |row| row.get(0))
                .optional()?;
            body.map(|body| from_json("plans", &name, &body)).transpose()
        })
        .await
    }

    /// Forgets the plan; its migrations stay. Returns whether there was one.
    pub async fn delete_plan(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(format!("deleting plan {name}"), move |db| {
            groups::forget(db, &name)?;
            Ok(db.prepare_cached("DELETE FROM plans WHERE name = ?")?.execute([&name])? > 0)
        })
        .await
    }
}

/// The readable plans, and of the others the names and why they cannot.
pub(super) fn each(db: &Connection) -> Result<(Vec<Plan>, Vec<UnreadablePlan>), StoreFault> {
    let mut select = db.prepare_cached("SELECT name, body FROM plans ORDER BY name")?;
    let mut rows = select.query([])?;
    let (mut plans, mut unreadable) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let (name, body): (String, String) = (row.get(0)?, row.get(1)?);
        match from_json("plans", &name, &body) {
            Ok(plan) => plans.push(plan),
            Err(fault) => {
                let error = fault.into_error(&format!("reading plan {name}"));
                unreadable.push((name, error));
            }
        }
    }
    Ok((plans, unreadable))
}

fn put(db: &Connection, plan: &Plan, at: DateTime<Utc>, events: &[EventView]) -> Result<(), StoreFault> {
    db.prepare_cached(
        "INSERT INTO plans (name, body, created, changed) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (name) DO UPDATE SET body = excluded.body, changed = excluded.changed",
    )?
    .execute(params![plan.name, to_json("plans", &plan.name, plan)?, micros(at)])?;
    journal::append(db, events)
}
