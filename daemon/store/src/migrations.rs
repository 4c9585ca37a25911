//! Migrations and the state of each.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use warmd_core::model::{
    cutover_record::CutoverRecord,
    forecast::ForecastRange,
    id::{MigrationId, VmId},
    machine::Machine,
    scheduled_cutover::ScheduledCutover,
    state::State,
    view::EventView,
};

use super::{
    Store, StoreError,
    change_rate::{self, ChangeRates},
    cutovers,
    error::StoreFault,
    journal, limits,
    row::{from_json, micros, migration_id, moment, to_json, unsigned},
    unreadable::{ReadableRows, Unreadable},
};

const TABLE: &str = "migrations";
const COLUMNS: &str = "id, plan, source, target, vm, vm_name, target_name, machine, state, since, created, warnings, \
                       attempt, was_running, source_stopped, start_requested_at, target_running, scheduled_cutover, \
                       rolled_back, handed_over_at, reclaimed_at, forced, barrier_wait, hold_off, create_requested, \
                       monitor_until, source_seen_running_at";

/// A migration to create.
#[derive(Clone, Debug)]
pub struct NewMigration {
    pub id: MigrationId,
    pub plan: String,
    pub source: String,
    pub target: String,
    pub vm: VmId,
    pub vm_name: String,
    pub target_name: String,
    pub machine: Machine,
    pub state: State,
    pub created: DateTime<Utc>,
    pub warnings: Vec<String>,
    /// Lines for the journal, if the migration is new.
    pub events: Vec<EventView>,
}

/// The result of creating a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    New(MigrationRow),
    /// An unfinished one moves the same VM of the same source; nothing was changed.
    Exists(MigrationRow),
}

/// A migration as it is stored. Times are kept to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationRow {
    pub id: MigrationId,
    pub plan: String,
    pub source: String,
    pub target: String,
    pub vm: VmId,
    pub vm_name: String,
    pub target_name: String,
    /// The source's last description.
    pub machine: Machine,
    pub state: State,
    /// When it entered that state.
    pub since: DateTime<Utc>,
    pub created: DateTime<Utc>,
    pub warnings: Vec<String>,
    pub cutover: CutoverRecord,
    /// A cutover that is to begin later, or is on hold.
    pub scheduled_cutover: Option<ScheduledCutover>,
    /// When the source VM was seen to run after the target VM's start, if it was not seen off since.
    pub source_seen_running_at: Option<DateTime<Utc>>,
}

/// A step of a migration: all of it is saved in one transaction.
#[derive(Clone, Debug)]
pub struct MigrationUpdate {
    pub state: State,
    /// When; the migration's `since`, unless the state stays the same.
    pub at: DateTime<Utc>,
    /// `None` leaves it as it is.
    pub cutover: Option<CutoverRecord>,
    /// `None` leaves it as it is, `Some(None)` forgets it.
    pub scheduled_cutover: Option<Option<ScheduledCutover>>,
    /// What the cutover that begins is expected to take, in seconds, if that is known; `None` leaves it as it
    /// is.
    pub forecast: Option<Option<ForecastRange>>,
    /// `None` leaves it as it is.
    pub change_rates: Option<ChangeRates>,
    /// `None` leaves them as they are.
    pub warnings: Option<Vec<String>>,
    /// Lines for the journal.
    pub events: Vec<EventView>,
}

impl MigrationUpdate {
    /// To `state`, without other changes.
    pub fn to(state: State, at: DateTime<Utc>) -> Self {
        Self {
            state,
            at,
            cutover: None,
            scheduled_cutover: None,
            forecast: None,
            change_rates: None,
            warnings: None,
            events: Vec::new(),
        }
    }
}

impl Store {
    /// Creates a migration, unless an unfinished one moves the same VM.
    pub async fn create_migration(&self, new: NewMigration) -> Result<Created, StoreError> {
        self.write(format!("creating migration {} of VM {}", new.id, new.vm_name), move |db| create(db, &new))
            .await
    }

    /// All migrations, oldest first.
    pub async fn migrations(&self) -> Result<Vec<MigrationRow>, StoreError> {
        self.read("reading the migrations", |db| find(db, "TRUE", &[])).await
    }

    /// One migration.
    pub async fn migration(&self, id: MigrationId) -> Result<Option<MigrationRow>, StoreError> {
        self.read(format!("reading migration {id}"), move |db| {
            Ok(find(db, "id = ?1", &[&id.to_string()])?.pop())
        })
        .await
    }

    /// Saves a step: the state, its details, and its lines in the journal.
    pub async fn save_state(&self, id: MigrationId, change: MigrationUpdate) -> Result<(), StoreError> {
        self.write(format!("saving the state of migration {id}"), move |db| apply(db, id, &change)).await?;
        warmd_core::crash::point("state.saved");
        Ok(())
    }

    /// Saves what is kept of the cutover, without the state.
    pub async fn save_cutover(&self, id: MigrationId, cutover: CutoverRecord) -> Result<(), StoreError> {
        self.write(format!("saving the cutover of migration {id}"), move |db| set_cutover(db, id, &cutover))
            .await
    }

    /// Saves when a cutover is to begin, or that none is, with its lines in the journal.
    pub async fn save_appointment(
        &self,
        id: MigrationId,
        scheduled_cutover: Option<ScheduledCutover>,
        events: Vec<EventView>,
    ) -> Result<(), StoreError> {
        self.write(format!("saving the scheduled_cutover of migration {id}"), move |db| {
            set_appointment(db, id, scheduled_cutover.as_ref())?;
            journal::append(db, &events)
        })
        .await
    }

    /// Migrations whose target VM was started, whose source VM is still monitored, and which no later
    /// migration moves: done ones for as long as their plans want, and while one is seen to run; failed ones
    /// until they are not.
    pub async fn sources_to_watch(&self, now: DateTime<Utc>) -> Result<Vec<MigrationRow>, StoreError> {
        self.read("reading whose source is still looked at", move |db| {
            // In the order of creation: clocks can be set back.
            let later = "SELECT 1 FROM migrations later WHERE later.source = migrations.source \
                         AND later.vm = migrations.vm AND later.rowid > migrations.rowid \
                         AND later.state_name <> 'cancelled'";
            let condition = format!(
                "(state_name = 'failed' OR (state_name = 'done' AND (monitor_until > ?1 OR source_seen_running_at IS NOT NULL))) \
                 AND NOT EXISTS ({later})"
            );
            // One that cannot be read does not stop the check of the others; it is shown as unreadable.
            let found = find_each(db, &condition, &[&micros(now)])?;
            Ok(found.rows.into_iter().filter(|row| row.state.rests_past_no_return()).collect())
        })
        .await
    }

    /// Saves since when the source VM is seen to run beside the target VM, or that it does not, with its
    /// lines in the journal.
    pub async fn save_source_ran(
        &self,
        id: MigrationId,
        since: Option<DateTime<Utc>>,
        events: Vec<EventView>,
    ) -> Result<(), StoreError> {
        self.write(format!("saving what is seen of the source of migration {id}"), move |db| {
            let found = db
                .prepare_cached("UPDATE migrations SET source_seen_running_at = ? WHERE id = ?")?
                .execute(params![since.map(micros), id.to_string()])?;
            exists(found, id)?;
            journal::append(db, &events)
        })
        .await
    }

    /// How many migrations of each plan have a source VM that was last seen running after the cutover.
    pub async fn sources_that_run(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.read("counting the sources that run after their cutover", |db| {
            let mut select = db.prepare_cached(
                "SELECT plan, count(*) FROM migrations WHERE source_seen_running_at IS NOT NULL GROUP BY plan ORDER BY plan",
            )?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Saves the source's present description of the machine.
    pub async fn save_machine(&self, id: MigrationId, machine: &Machine) -> Result<(), StoreError> {
        let machine = machine.clone();
        self.write(format!("saving the machine of migration {id}"), move |db| {
            let json = to_json(TABLE, id, &machine)?;
            let found = db
                .prepare_cached("UPDATE migrations SET machine = ? WHERE id = ?")?
                .execute(params![json, id.to_string()])?;
            exists(found, id)
        })
        .await
    }
}

pub(super) fn create(db: &Connection, new: &NewMigration) -> Result<Created, StoreFault> {
    if let Some(row) = find(
        db,
        "id = ?1 OR (source = ?2 AND vm = ?3 AND state_name NOT IN ('done', 'cancelled'))",
        &[&new.id.to_string(), &new.source, &new.vm.0],
    )?
    .pop()
    {
        return Ok(Created::Exists(row));
    }
    let id = new.id.to_string();
    db.prepare_cached(
        "INSERT INTO migrations (id, plan, source, target, vm, vm_name, target_name, machine, state_name, state, \
         since, created, warnings) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12)",
    )?
    .execute(params![
        id,
        new.plan,
        new.source,
        new.target,
        new.vm.0,
        new.vm_name,
        new.target_name,
        to_json(TABLE, &id, &new.machine)?,
        new.state.name(),
        to_json(TABLE, &id, &new.state)?,
        micros(new.created),
        to_json(TABLE, &id, &new.warnings)?,
    ])?;
    journal::append(db, &new.events)?;
    let made = find(db, "id = ?1", &[&id])?.pop();
    made.map(Created::New).ok_or_else(|| StoreFault::Missing(id))
}

fn set_cutover(db: &Connection, id: MigrationId, cutover: &CutoverRecord) -> Result<(), StoreFault> {
    let hold_off = cutover.hold_off.as_ref().map(|held| to_json(TABLE, id, held)).transpose()?;
    let found = db
        .prepare_cached(
            "UPDATE migrations SET attempt = ?, was_running = ?, source_stopped = ?, start_requested_at = ?, target_running = ?, \
             rolled_back = ?, handed_over_at = ?, reclaimed_at = ?, forced = ?, barrier_wait = ?, hold_off = ?, create_requested = ?, \
             monitor_until = ? WHERE id = ?",
        )?
        .execute(params![
            cutover.attempt,
            cutover.was_running,
            cutover.source_stopped.map(micros),
            cutover.start_requested_at.map(micros),
            cutover.target_running.map(micros),
            cutover.rolled_back.map(micros),
            cutover.handed_over_at.map(micros),
            cutover.reclaimed_at.map(micros),
            cutover.forced,
            i64::try_from(cutover.barrier_wait.as_micros()).unwrap_or(i64::MAX),
            hold_off,
            cutover.create_requested,
            cutover.monitor_until.map(micros),
            id.to_string()
        ])?;
    exists(found, id)
}

fn set_appointment(
    db: &Connection,
    id: MigrationId,
    scheduled_cutover: Option<&ScheduledCutover>,
) -> Result<(), StoreFault> {
    let json =
        scheduled_cutover.map(|scheduled_cutover| to_json(TABLE, id, scheduled_cutover)).transpose()?;
    let found = db
        .prepare_cached("UPDATE migrations SET scheduled_cutover = ? WHERE id = ?")?
        .execute(params![json, id.to_string()])?;
    exists(found, id)
}

fn apply(db: &Connection, id: MigrationId, change: &MigrationUpdate) -> Result<(), StoreFault> {
    let key = id.to_string();
    let json = to_json(TABLE, &key, &change.state)?;
    // A commit that failed may be durable all the same: the same step again is reported once.
    let again: bool = db
        .prepare_cached("SELECT count(*) FROM migrations WHERE id = ? AND state = ? AND since = ?")?
        .query_row(params![key, json, micros(change.at)], |row| row.get(0))?;
    if again {
        return Ok(());
    }
    let found = db
        .prepare_cached(
            "UPDATE migrations SET since = iif(state = ?2, since, ?3), state = ?2, state_name = ?1 WHERE id = ?4",
        )?
        .execute(params![change.state.name(), json, micros(change.at), key])?;
    exists(found, id)?;
    if let Some(cutover) = &change.cutover {
        set_cutover(db, id, cutover)?;
    }
    if let Some(scheduled_cutover) = &change.scheduled_cutover {
        set_appointment(db, id, scheduled_cutover.as_ref())?;
    }
    if let Some(forecast) = &change.forecast {
        cutovers::set_forecast(db, id, forecast.as_ref())?;
    }
    if let Some(change_rates) = &change.change_rates {
        change_rate::set(db, id, change_rates)?;
    }
    if let Some(warnings) = &change.warnings {
        db.prepare_cached("UPDATE migrations SET warnings = ? WHERE id = ?")?
            .execute(params![to_json(TABLE, &key, warnings)?, key])?;
    }
    if change.state.is_final() {
        limits::forget_migration(db, id)?;
    }
    journal::append(db, &change.events)
}

fn exists(found: usize, id: MigrationId) -> Result<(), StoreFault> {
    if found == 0 { Err(StoreFault::Missing(format!("there is no migration {id}"))) } else { Ok(()) }
}

/// The readable ones, and what is known of the others.
pub(super) fn find_each(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<ReadableRows, StoreFault> {
    let mut found = ReadableRows::default();
    for_each(db, condition, parameters, |row| {
        match read(row) {
            Ok(read) => found.rows.push(read),
            Err(fault) => found.unreadable.push(Unreadable::salvaged(row, fault)?),
        }
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn find(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<Vec<MigrationRow>, StoreFault> {
    let mut found = Vec::new();
    for_each(db, condition, parameters, |row| {
        found.push(read(row)?);
        Ok(())
    })?;
    Ok(found)
}

/// Hands the rows to `take`, the oldest first, up to one that it fails on.
fn for_each(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
    mut take: impl FnMut(&Row<'_>) -> Result<(), StoreFault>,
) -> Result<(), StoreFault> {
    let mut select = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM migrations WHERE {condition} ORDER BY created, id"
    ))?;
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        take(row)?;
    }
    Ok(())
}

fn read(row: &Row) -> Result<MigrationRow, StoreFault> {
    let key: String = row.get("id")?;
    let json = |column: &str| row.get::<_, String>(column);
    let time = |column: &str| -> Result<_, StoreFault> { moment(TABLE, &key, row.get(column)?) };
    let maybe = |column: &str| -> Result<_, StoreFault> {
        row.get::<_, Option<i64>>(column)?.map(|at| moment(TABLE, &key, at)).transpose()
    };
    Ok(MigrationRow {
        id: migration_id(TABLE, &key, &key)?,
        plan: row.get("plan")?,
        source: row.get("source")?,
        target: row.get("target")?,
        vm: VmId(row.get("vm")?),
        vm_name: row.get("vm_name")?,
        target_name: row.get("target_name")?,
        machine: from_json(TABLE, &key, &json("machine")?)?,
        state: from_json(TABLE, &key, &json("state")?)?,
        since: time("since")?,
        created: time("created")?,
        warnings: from_json(TABLE, &key, &json("warnings")?)?,
        cutover: CutoverRecord {
            attempt: unsigned(TABLE, &key, row.get("attempt")?)?,
            was_running: row.get("was_running")?,
            source_stopped: maybe("source_stopped")?,
            start_requested_at: maybe("start_requested_at")?,
            target_running: maybe("target_running")?,
            rolled_back: maybe("rolled_back")?,
            handed_over_at: maybe("handed_over_at")?,
            reclaimed_at: maybe("reclaimed_at")?,
            forced: row.get("forced")?,
            barrier_wait: Duration::from_micros(unsigned(TABLE, &key, row.get("barrier_wait")?)?),
            hold_off: row
                .get::<_, Option<String>>("hold_off")?
                .map(|text| from_json(TABLE, &key, &text))
                .transpose()?,
            create_requested: row.get("create_requested")?,
            monitor_until: maybe("monitor_until")?,
        },
        source_seen_running_at: maybe("source_seen_running_at")?,
        scheduled_cutover: row
            .get::<_, Option<String>>("scheduled_cutover")?
            .map(|text| from_json(TABLE, &key, &text))
            .transpose()?,
    })
}
