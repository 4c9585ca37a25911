//! The stages of passes, and their waits.
//!
//! Rule: it only informs, so it may be some seconds behind the ledger after a crash; the saved figures belong
//! to one moment of the pass.

use rusqlite::{Connection, params};
use warmd_cbt::telemetry::{LatencyFigures, Stage, StageView, Telemetry, Wait, WaitView};

use super::{
    Store, StoreError,
    error::StoreFault,
    row::{from_word, signed, unsigned},
};

const STAGES: &str = "stages";
const WAITS: &str = "waits";
const NANOS: f64 = 1e9;

impl Store {
    /// Replaces the figures of a pass: the CPU seconds of the process, and the telemetry of each disk's row,
    /// as `PassRow::disks` names them.
    pub async fn save_telemetry(
        &self,
        pass: i64,
        cpu: Option<f64>,
        disks: Vec<(i64, Telemetry)>,
    ) -> Result<(), StoreError> {
        self.write(format!("keeping the telemetry of pass {pass}"), move |db| {
            let found = db
                .prepare_cached("UPDATE passes SET cpu = ? WHERE id = ?")?
                .execute(params![cpu.map(nanos), pass])?;
            if found == 0 {
                return Err(StoreFault::Missing(format!("there is no pass {pass}")));
            }
            disks.iter().try_for_each(|(row, telemetry)| put(db, *row, telemetry))
        })
        .await
    }
}

fn put(db: &Connection, row: i64, telemetry: &Telemetry) -> Result<(), StoreFault> {
    let found = db
        .prepare_cached("UPDATE disk_passes SET elapsed = ? WHERE id = ?")?
        .execute(params![nanos(telemetry.elapsed), row])?;
    if found == 0 {
        return Err(StoreFault::Missing(format!("there is no disk's pass {row}")));
    }
    let mut stages = db.prepare_cached(
        "INSERT OR REPLACE INTO stages (disk_pass, stage, bytes, requests, in_flight_max, busy, p50, p90, p99, longest,
         cpu, stalled) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for view in &telemetry.stages {
        stages.execute(params![
            row,
            view.stage.name(),
            signed(STAGES, row, view.bytes)?,
            signed(STAGES, row, view.requests)?,
            signed(STAGES, row, view.in_flight_max)?,
            nanos(view.busy),
            nanos(view.latency.p50),
            nanos(view.latency.p90),
            nanos(view.latency.p99),
            nanos(view.latency.max),
            nanos(view.cpu),
            nanos(view.stalled),
        ])?;
    }
    let mut waits =
        db.prepare_cached("INSERT OR REPLACE INTO waits (disk_pass, wait, count, time) VALUES (?, ?, ?, ?)")?;
    for view in &telemetry.waits {
        waits.execute(params![row, view.wait.name(), signed(WAITS, row, view.count)?, nanos(view.time)])?;
    }
    Ok(())
}

/// The telemetry of a disk's pass of that duration.
pub(super) fn read(db: &Connection, row: i64, elapsed: i64) -> Result<Telemetry, StoreFault> {
    let elapsed = unsigned::<u64>("disk_passes", row, elapsed)? as f64 / NANOS;
    let mut stages = db.prepare_cached("SELECT * FROM stages WHERE disk_pass = ?")?;
    let mut rows = stages.query([row])?;
    let mut found = Vec::new();
    while let Some(columns) = rows.next()? {
        let number =
            |column: &str| -> Result<u64, StoreFault> { unsigned(STAGES, row, columns.get(column)?) };
        let time = |column: &str| Ok::<_, StoreFault>(number(column)? as f64 / NANOS);
        let stage: Stage = from_word(STAGES, row, columns.get("stage")?)?;
        found.push(StageView {
            stage,
            bytes: number("bytes")?,
            requests: number("requests")?,
            in_flight: 0,
            in_flight_max: number("in_flight_max")?,
            busy: time("busy")?,
            latency: LatencyFigures {
                p50: time("p50")?,
                p90: time("p90")?,
                p99: time("p99")?,
                max: time("longest")?,
            },
            cpu: time("cpu")?,
            stalled: time("stalled")?,
        });
    }
    found.sort_by_key(|view| view.stage);
    Ok(Telemetry { elapsed, stages: found, waits: waits(db, row)? })
}

fn waits(db: &Connection, row: i64) -> Result<Vec<WaitView>, StoreFault> {
    let mut select = db.prepare_cached("SELECT wait, count, time FROM waits WHERE disk_pass = ?")?;
    let mut rows = select.query([row])?;
    let mut found = Vec::new();
    while let Some(columns) = rows.next()? {
        let wait: Wait = from_word(WAITS, row, columns.get("wait")?)?;
        let time: u64 = unsigned(WAITS, row, columns.get("time")?)?;
        let count = unsigned(WAITS, row, columns.get("count")?)?;
        found.push(WaitView { wait, count, time: time as f64 / NANOS });
    }
    found.sort_by_key(|view| view.wait as usize);
    Ok(found)
}

/// An invalid duration becomes zero: the conversion saturates, and no measured value comes near its limits.
fn nanos(seconds: f64) -> i64 {
    (seconds.max(0.0) * NANOS).round() as i64
}
