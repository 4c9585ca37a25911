//! Measured and forecast times of earlier cutovers, of all migrations.

use rusqlite::{Connection, ToSql, params};
use warmd_core::model::{
    forecast::ForecastRange,
    id::MigrationId,
    outcome::PhaseOutcome,
    phase::{PHASES, Phase},
};
use warmd_schedules::forecast::{CutoverStep, PastForecast};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_json, to_json, unsigned},
};

/// The number of measurements of a kind that count.
const RECENT: u32 = 32;

/// Cutovers whose forecasts are read.
const PAST: u32 = 100;

/// The times of cutover steps, in seconds, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeasuredCutovers {
    pub shutdown: Vec<f64>,
    /// Opening the final snapshot: the final delta without its pass.
    pub snapshot: Vec<f64>,
    /// Of this migration alone: it depends on the size.
    pub verify: Vec<f64>,
    /// Of all migrations of its plan, where something was converted.
    pub convert: Vec<f64>,
    pub create: Vec<f64>,
    pub start: Vec<f64>,
    /// All hooks of a cutover while the VM is down.
    pub hooks: Vec<f64>,
    pub past: Vec<PastForecast>,
}

impl Store {
    /// Cutovers that are under way, or being undone.
    pub async fn cutovers_under_way(&self) -> Result<u64, StoreError> {
        self.read("counting the cutovers under way", |db| {
            let count = "SELECT count(*) FROM migrations WHERE state_name IN ('cutting-over', 'undoing')";
            let count: i64 = db.prepare_cached(count)?.query_row([], |row| row.get(0))?;
            unsigned("migrations", "all", count)
        })
        .await
    }

    /// The times of cutovers so far, for a forecast of the migration.
    pub async fn measured_cutovers(&self, id: MigrationId) -> Result<MeasuredCutovers, StoreError> {
        self.read("reading what cutovers took", move |db| {
            let id = id.to_string();
            let phase = |step| phases(db, "phase = ?1", &[&phase_of(step)]);
            let ended_well = ended_well("p.");
            // Where the source reports it, this VM's own snapshots say more than other VMs' cutovers.
            let own = seconds(
                db,
                "SELECT snapshot_made + snapshot_removed FROM passes WHERE migration = ?1
                 AND snapshot_removed IS NOT NULL ORDER BY id DESC LIMIT 32",
                &[&id],
            )?;
            let of_others = || {
                seconds(
                    db,
                    &format!(
                        "SELECT (p.ended - p.started) - (s.ended - s.started) FROM phases p JOIN passes s
                         ON s.migration = p.migration AND s.kind = 'final' AND s.started BETWEEN p.started AND p.ended
                         WHERE p.phase = ?1 AND {ended_well} AND s.ended IS NOT NULL ORDER BY p.ended DESC LIMIT 32"
                    ),
                    &[&phase_of(CutoverStep::Snapshot)],
                )
            };
            Ok(MeasuredCutovers {
                shutdown: phase(CutoverStep::Shutdown)?,
                snapshot: if own.is_empty() { of_others()? } else { own },
                verify: phases(
                    db,
                    "phase = ?1 AND migration = ?2",
                    &[&phase_of(CutoverStep::Verify), &id],
                )?,
                convert: phases(
                    db,
                    "phase = ?1 AND outcome <> ?3 AND migration IN (SELECT id FROM migrations
                     WHERE plan = (SELECT plan FROM migrations WHERE id = ?2))",
                    &[&phase_of(CutoverStep::Convert), &id, &PhaseOutcome::NOT_IN_PLAN],
                )?,
                create: phase(CutoverStep::Create)?,
                start: phase(CutoverStep::Boot)?,
                hooks: seconds(
                    db,
                    &format!(
                        "SELECT sum(ended - started) FROM hooks WHERE ended IS NOT NULL AND phase IN ({})
                         GROUP BY migration, attempt ORDER BY max(ended) DESC LIMIT 32",
                        downtime_phases()
                    ),
                    &[],
                )?,
                past: past(db)?,
            })
        })
        .await
    }
}

pub(super) fn set_forecast(
    db: &Connection,
    id: MigrationId,
    forecast: Option<&ForecastRange>,
) -> Result<(), StoreFault> {
    let json = forecast.map(|forecast| to_json("migrations", id, forecast)).transpose()?;
    db.prepare_cached("UPDATE migrations SET forecast = ? WHERE id = ?")?
        .execute(params![json, id.to_string()])?;
    Ok(())
}

/// The phase whose time is measured for the step.
fn phase_of(step: CutoverStep) -> &'static str {
    PHASES.iter().find(|spec| spec.forecast == Some(step)).map_or("", |spec| spec.name)
}

/// The phases in which no VM runs, as SQL.
fn downtime_phases() -> String {
    let down: Vec<_> = Phase::ALL.into_iter().filter(|phase| phase.is_downtime()).collect();
    down.iter().map(|phase| format!("'{phase}'")).collect::<Vec<_>>().join(", ")
}

/// Whether a phase ended, and did not fail, as SQL; `of` is the table's prefix.
fn ended_well(of: &str) -> String {
    format!("{of}ended IS NOT NULL AND {of}outcome NOT LIKE '{}%'", PhaseOutcome::FAILED)
}

fn phases(db: &Connection, condition: &str, parameters: &[&dyn ToSql]) -> Result<Vec<f64>, StoreFault> {
    let sql = format!(
        "SELECT ended - started FROM phases WHERE {condition} AND {} ORDER BY ended DESC LIMIT {RECENT}",
        ended_well("")
    );
    seconds(db, &sql, parameters)
}

/// Of microseconds, the newest first, those that a clock that was set back did not make negative.
fn seconds(db: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> Result<Vec<f64>, StoreFault> {
    let mut select = db.prepare_cached(sql)?;
    let rows = select.query_map(parameters, |row| row.get::<_, i64>(0))?;
    let mut found = rows.collect::<Result<Vec<_>, _>>()?;
    found.reverse();
    Ok(found.into_iter().filter(|micros| *micros >= 0).map(|micros| micros as f64 / 1e6).collect())
}

fn past(db: &Connection) -> Result<Vec<PastForecast>, StoreFault> {
    let mut select = db.prepare_cached(&format!(
        "SELECT id, forecast, target_running - source_stopped - barrier_wait FROM migrations WHERE forecast IS NOT NULL
         AND target_running IS NOT NULL AND source_stopped IS NOT NULL ORDER BY target_running DESC LIMIT {PAST}"
    ))?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let ForecastRange { low, expected, high } = from_json("migrations", &id, &row.get::<_, String>(1)?)?;
        found.push(PastForecast { low, expected, high, measured: row.get::<_, i64>(2)? as f64 / 1e6 });
    }
    found.reverse();
    Ok(found)
}
