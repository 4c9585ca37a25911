//! Values as they are saved: text, numbers and JSON that carries its version.
//!
//! Rule: saved data outlives the type that wrote it. A saved form keeps its version; when a live type changes
//! so that the golden tests below fail, its old form gets a struct of its own here, and [`Saved::read`] turns
//! it into the new.

use std::fmt::Display;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use warmd_core::model::{
    conversion::ConversionView,
    forecast::ForecastRange,
    id::MigrationId,
    machine::{Machine, VmSummary},
    plan::Plan,
    scheduled_cutover::ScheduledCutover,
    state::State,
    view::{AuditView, VerifyResult},
};

use super::{change_rate::ChangeRates, error::StoreFault};

/// A type that is saved as JSON.
pub(super) trait Saved: Serialize + DeserializeOwned {
    /// The version that is written.
    const VERSION: u32 = 1;

    /// Reads the body of any version that was ever written.
    fn read(version: u32, body: &str) -> Result<Self, BadJson> {
        match version {
            1 => Ok(serde_json::from_str(body)?),
            other => Err(BadJson::Version(other)),
        }
    }
}

impl Saved for warmd_core::model::hold_off::HoldOff {}
impl Saved for Machine {}
impl Saved for Plan {}
impl Saved for State {}
impl Saved for VerifyResult {}
impl Saved for AuditView {}
impl Saved for ScheduledCutover {}
impl Saved for ChangeRates {}
impl Saved for ForecastRange {}
impl Saved for ConversionView {}
impl Saved for Vec<String> {}
impl Saved for Vec<VmSummary> {}

/// Why a saved value cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadJson {
    #[error("version {0} of this value is unknown")]
    Version(u32),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    is: &'a T,
}

#[derive(Deserialize)]
struct Read<'a> {
    v: u32,
    #[serde(borrow)]
    is: &'a RawValue,
}

pub(super) fn to_json<T: Saved>(
    table: &'static str,
    row: impl Display,
    value: &T,
) -> Result<String, StoreFault> {
    serde_json::to_string(&Written { v: T::VERSION, is: value })
        .map_err(|error| StoreFault::bad(table, row, error))
}

pub(super) fn from_json<T: Saved>(
    table: &'static str,
    row: impl Display,
    text: &str,
) -> Result<T, StoreFault> {
    let read = || -> Result<T, BadJson> {
        let outer: Read = serde_json::from_str(text)?;
        T::read(outer.v, outer.is.get())
    };
    read().map_err(|error| StoreFault::bad(table, row, error))
}

/// A unit enum as its serde name.
pub(super) fn to_word<T: Serialize>(table: &'static str, value: &T) -> Result<String, StoreFault> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(other) => Err(StoreFault::bad(table, "new", format!("{other} is no single word"))),
        Err(error) => Err(StoreFault::bad(table, "new", error)),
    }
}

pub(super) fn from_word<T: DeserializeOwned>(
    table: &'static str,
    row: impl Display,
    word: String,
) -> Result<T, StoreFault> {
    serde_json::from_value(serde_json::Value::String(word))
        .map_err(|error| StoreFault::bad(table, row, error))
}

pub(super) fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

pub(super) fn moment(
    table: &'static str,
    row: impl Display,
    micros: i64,
) -> Result<DateTime<Utc>, StoreFault> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| StoreFault::bad(table, row, format!("{micros} is no time")))
}

pub(super) fn migration_id(
    table: &'static str,
    row: impl Display,
    text: &str,
) -> Result<MigrationId, StoreFault> {
    text.parse().map_err(|error: uuid::Error| StoreFault::bad(table, row, error))
}

/// SQLite's integers are signed: a count above 2⁶³ cannot be kept.
pub(super) fn signed(table: &'static str, row: impl Display, value: u64) -> Result<i64, StoreFault> {
    i64::try_from(value).map_err(|error| StoreFault::bad(table, row, error))
}

pub(super) fn unsigned<T: TryFrom<i64>>(
    table: &'static str,
    row: impl Display,
    value: i64,
) -> Result<T, StoreFault> {
    T::try_from(value).map_err(|_| StoreFault::bad(table, row, format!("{value} is out of range")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmd_core::model::{
        phase::Phase,
        state::ResumePoint,
        view::{DiskVerifyResult, VerifyResult},
    };

    /// As warmd wrote it once. Never edit these: they are in users' files.
    const PLAN_1: &str = r#"{"v":1,"is":{"name":"p","source":"s","target":"t","vms":["a"],"schedule":{"interval":"15m"},"cutover":{"graceful_shutdown":"2m","force_power_off":false,"delta_deadline":"30m","verify_deadline":"1h","create_deadline":"2m","watch":"10s"},"verify":{"mode":"readback"},"networks":{"x":"y"},"vm":{"a":{"name":"b","disks":{"vda":"/dev/x"}}}}}"#;
    const MACHINE_1: &str = r#"{"v":1,"is":{"id":"i","name":"n","uuid":"u","firmware":"uefi-secure","machine_type":"q35","architecture":"x86_64","cpu":{"sockets":1,"cores":2,"threads":3},"memory":4096,"disks":[{"key":"vda","size":65536,"bus":"virtio","boot_order":0,"location":"/x","untracked":null}],"nics":[{"mac":"52:54:00:00:00:01","network":"default","model":"virtio"}]}}"#;
    const VERIFY_RESULT_1: &str = r#"{"v":1,"is":{"mode":"compare","at":"2026-01-02T03:04:05Z","disks":[{"key":"vda","checked":9,"mismatched_bytes":2,"mismatches":[[1,2]],"root":"ab"}]}}"#;

    #[test]
    fn appointments_of_version_1_are_read_for_ever() {
        let at = r#"{"v":1,"is":{"at":{"at":"2026-11-28T21:00:00Z","force":false,"by":"operator uid=0"}}}"#;
        let hold = r#"{"v":1,"is":{"hold":{"why":"held by operator uid=0"}}}"#;
        let on_hold = r#"{"v":1,"is":{"on-hold":{"why":"held by operator uid=0"}}}"#;
        // `hold` is what releases before the new names wrote.
        for (text, now) in [(at, at), (hold, on_hold), (on_hold, on_hold)] {
            let read: ScheduledCutover = from_json("migrations", "m", text).unwrap();
            assert_eq!(to_json("migrations", "m", &read).unwrap(), now);
        }
    }

    #[test]
    fn what_was_learnt_in_version_1_is_read_for_ever() {
        let hours = vec![r#"{"rate":0.5,"weight":2.0}"#; 24].join(",");
        let rhythm = format!(r#"{{"mean":{{"rate":1.5,"weight":3.0}},"hours":[{hours}]}}"#);
        let text =
            format!(r#"{{"v":1,"is":{{"zone":"Europe/Berlin","passes":7,"disks":{{"vda":{rhythm}}}}}}}"#);
        let read: ChangeRates = from_json("migrations", "m", &text).unwrap();
        assert!(read.disks[&warmd_core::model::id::DiskKey("vda".to_owned())].knows());
        assert_eq!(to_json("migrations", "m", &read).unwrap(), text);
    }

    #[test]
    fn what_version_1_wrote_is_read_for_ever() {
        let plan: Plan = from_json("plans", "p", PLAN_1).unwrap();
        assert_eq!((plan.vm["a"].name.as_deref(), plan.networks["x"].as_str()), (Some("b"), "y"));
        assert_eq!(plan.schedule.every, Some(std::time::Duration::from_mins(15)));
        assert!(plan.problems().is_empty(), "{:?}", plan.problems());
        let machine: Machine = from_json("migrations", "m", MACHINE_1).unwrap();
        assert_eq!((machine.cpu.vcpus(), machine.memory.0, machine.disks[0].size.0), (6, 4096, 65_536));
        let result: VerifyResult = from_json("verify_results", 1, VERIFY_RESULT_1).unwrap();
        let DiskVerifyResult { mismatches, .. } = &result.disks[0];
        assert_eq!((result.passed(), mismatches.as_slice()), (false, [(1, 2)].as_slice()));
        let warnings: Vec<String> = from_json("migrations", "m", r#"{"v":1,"is":["w"]}"#).unwrap();
        assert_eq!(warnings, ["w"]);
    }

    #[test]
    fn states_of_version_1_are_read_for_ever() {
        let states = [
            (r#"{"name":"defined"}"#, State::Defined),
            (r#"{"name":"preparing"}"#, State::Preparing),
            (r#"{"name":"seeding"}"#, State::Seeding),
            (r#"{"name":"synced"}"#, State::Synced),
            (r#"{"name":"syncing"}"#, State::Syncing),
            (
                r#"{"name":"cutting-over","phase":"stop-source"}"#,
                State::CuttingOver { phase: Phase::StopSource },
            ),
            (
                r#"{"name":"undoing","phase":"final-delta","reason":"r"}"#,
                State::Undoing { phase: Phase::FinalDelta, reason: "r".to_owned() },
            ),
            (r#"{"name":"paused","from":"seeding"}"#, State::Paused { from: ResumePoint::Seeding }),
            (
                r#"{"name":"failed","reason":"r","resumable":true,"from":"boot-check"}"#,
                State::Failed { reason: "r".to_owned(), resumable: true, from: ResumePoint::BootCheck },
            ),
            (r#"{"name":"rolling-back"}"#, State::RollingBack),
            (r#"{"name":"cancelling"}"#, State::Cancelling),
            (r#"{"name":"done"}"#, State::Done),
            (r#"{"name":"cancelled"}"#, State::Cancelled),
        ];
        for (body, state) in states {
            let text = format!(r#"{{"v":1,"is":{body}}}"#);
            assert_eq!(from_json::<State>("migrations", "m", &text).unwrap(), state);
            assert_eq!(to_json("migrations", "m", &state).unwrap(), text);
        }
        // Names of earlier releases.
        let failed = |from| State::Failed { reason: "r".to_owned(), resumable: true, from };
        let cutting = |phase| State::CuttingOver { phase };
        let renamed = [
            (r#"{"name":"cutting-over","phase":"last-delta"}"#, cutting(Phase::CatchUpDelta)),
            (r#"{"name":"cutting-over","phase":"watch"}"#, cutting(Phase::BootCheck)),
            (r#"{"name":"cutting-over","phase":"release"}"#, cutting(Phase::Cleanup)),
            (
                r#"{"name":"failed","reason":"r","resumable":true,"from":"watch"}"#,
                failed(ResumePoint::BootCheck),
            ),
            (
                r#"{"name":"failed","reason":"r","resumable":true,"from":"release"}"#,
                failed(ResumePoint::Cleanup),
            ),
            (
                r#"{"name":"failed","reason":"r","resumable":true,"from":"overtaken"}"#,
                failed(ResumePoint::StaleState),
            ),
        ];
        for (body, state) in renamed {
            let text = format!(r#"{{"v":1,"is":{body}}}"#);
            assert_eq!(from_json::<State>("migrations", "m", &text).unwrap(), state);
            let now = to_json("migrations", "m", &state).unwrap();
            assert_ne!(now, text);
            assert_eq!(from_json::<State>("migrations", "m", &now).unwrap(), state);
        }
    }

    #[test]
    fn an_unknown_version_and_garbage_name_the_row() {
        for text in ["", "{}", "7", r#"{"v":2,"is":{"name":"done"}}"#, r#"{"v":1,"is":null}"#] {
            let fault = from_json::<State>("migrations", "row 5", text).unwrap_err();
            let error = fault.into_error("reading").to_string();
            assert!(error.contains("table migrations, row row 5"), "{text}: {error}");
        }
    }
}
