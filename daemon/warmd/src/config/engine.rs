//! `[engine]` and `[log]`: settings whose defaults fit most installations.

use std::{io::IsTerminal, time::Duration};

use serde::{Deserialize, Deserializer, de::Error};
use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt as _};
use warmd_cbt::{transfer::TransferSettings, units::BLOCK};
use warmd_core::{
    format::parse_size,
    model::{plan::duration, verify::Amount},
};

/// The settings of passes. Sizes are bytes, or text such as `"512KiB"`, `"1GiB"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSettings {
    /// Buffers that all passes of the daemon share; with `chunk` the most memory that copying takes.
    pub buffers: usize,
    /// Bytes in one piece of work: a multiple of 64 KiB.
    #[serde(deserialize_with = "size")]
    pub chunk: u64,
    /// The most requests to a source's disk at once; only as many are made as raise the rate.
    pub reads_in_flight: usize,
    /// When reads of a source's disk take this many times as long as they used to, fewer are made: production
    /// comes first. 0 never does so; at least 2 otherwise.
    pub read_latency_factor: u32,
    /// Requests to a target's disk at once.
    pub writes_in_flight: usize,
    /// Bytes copied after which they are made durable.
    #[serde(deserialize_with = "size")]
    pub batch_bytes: u64,
    /// Time after which what was copied is made durable.
    #[serde(deserialize_with = "duration::deserialize")]
    pub batch_time: Duration,
    /// How much of each disk is read in a delta to see whether change tracking is right, such as `"1%"`; 0
    /// nothing.
    pub audit: Amount,
    /// The most of it, also with a larger percentage.
    #[serde(deserialize_with = "size")]
    pub audit_max: u64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let settings = TransferSettings::default();
        Self {
            buffers: settings.buffers,
            chunk: settings.chunk as u64,
            reads_in_flight: settings.reads_in_flight,
            read_latency_factor: settings.read_latency_factor.unwrap_or(0.0) as u32,
            writes_in_flight: settings.writes_in_flight,
            batch_bytes: settings.batch_bytes,
            batch_time: settings.batch_time,
            audit: Amount::Share(10_000),
            audit_max: 1 << 30,
        }
    }
}

impl EngineSettings {
    /// As the engine takes them.
    pub fn transfer(&self) -> TransferSettings {
        TransferSettings {
            buffers: self.buffers,
            chunk: self.chunk as usize,
            reads_in_flight: self.reads_in_flight,
            read_latency_factor: (self.read_latency_factor > 0)
                .then_some(f64::from(self.read_latency_factor)),
            writes_in_flight: self.writes_in_flight,
            batch_bytes: self.batch_bytes,
            batch_time: self.batch_time,
            ..TransferSettings::default()
        }
    }

    /// The keys that are out of bounds, and why.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let between = |key, value: u64, low: u64, high: u64, unit: &str| {
            let outside = !(low..=high).contains(&value);
            outside.then(|| (key, format!("`{key}` is {value}{unit}: use {low} to {high}")))
        };
        if !self.chunk.is_multiple_of(BLOCK) {
            return Some(("chunk", format!("`chunk` is {} bytes: use a multiple of 64 KiB", self.chunk)));
        }
        let factor = self.read_latency_factor;
        if factor != 0 && !(2..=1000).contains(&factor) {
            let text = format!("`read_latency_factor` is {factor}: use 0 for never, or 2 to 1000");
            return Some(("read_latency_factor", text));
        }
        between("chunk", self.chunk, BLOCK, 32 << 20, " bytes")
            .or_else(|| between("buffers", self.buffers as u64, 2, 65_536, ""))
            .or_else(|| between("reads_in_flight", self.reads_in_flight as u64, 1, 1024, ""))
            .or_else(|| between("writes_in_flight", self.writes_in_flight as u64, 1, 1024, ""))
            .or_else(|| between("audit_max", self.audit_max, BLOCK, 1 << 50, " bytes"))
            .or_else(|| between("batch_bytes", self.batch_bytes, 1 << 20, 1 << 40, " bytes"))
            .or_else(|| {
                between("batch_time", self.batch_time.as_millis() as u64, 100, 60_000, " milliseconds")
            })
    }
}

/// Bytes, as a number or with a unit.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size in bytes, or text such as \"512KiB\" or \"1GiB\"")]
    enum Form {
        Bytes(u64),
        Text(String),
    }

    match Form::deserialize(deserializer)? {
        Form::Bytes(bytes) => Ok(bytes),
        Form::Text(text) => parse_size(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is no size in bytes, such as \"512KiB\" or \"1GiB\""))
        }),
    }
}

/// What the daemon logs, and how; on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`; also per module, as in `info,warmd_disks::nbd=debug`.
    pub level: String,
}

/// The form of a line in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For a terminal.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

impl LogSettings {
    /// Sends what is traced to standard error from now on. Only the first call of a process counts.
    pub fn start(&self) {
        if let Err(error) = self.to(std::io::stderr, std::io::stderr().is_terminal()).try_init() {
            tracing::debug!(%error, "the log was started before");
        }
    }

    /// What writes lines to `writer`.
    pub fn to<W>(&self, writer: W, colours: bool) -> Box<dyn Subscriber + Send + Sync>
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let filter = EnvFilter::try_new(&self.level).unwrap_or_default();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        match self.format {
            LogFormat::Text => Box::new(log.with_ansi(colours).finish()),
            // The innermost span is that of the migration; there is none around it.
            LogFormat::Json => Box::new(log.json().with_span_list(false).finish()),
        }
    }

    /// What is wrong with the level.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let error = EnvFilter::try_new(&self.level).err()?;
        Some((
            "level",
            format!("`level` is {:?}: use error, warn, info, debug or trace ({error})", self.level),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Also for those who want errors alone, and in both forms.
    #[test]
    fn an_error_says_whose_it_is() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = tempfile::NamedTempFile::new().unwrap();
            let to = Arc::new(written.reopen().unwrap());
            let settings = LogSettings { format, level: "error".to_owned() };
            tracing::subscriber::with_default(settings.to(to, false), || {
                warmd_core::span::migration_span("0193-5eed", "web").in_scope(|| tracing::error!("no room"));
            });
            let line = std::fs::read_to_string(written.path()).unwrap();
            let told = match format {
                LogFormat::Text => "ERROR migration{migration=0193-5eed vm=\"web\"}: ",
                LogFormat::Json => {
                    "\"span\":{\"migration\":\"0193-5eed\",\"vm\":\"web\",\"name\":\"migration\"}"
                }
            };
            assert!(line.contains(told) && line.contains("no room"), "{line}");
        }
    }

    #[test]
    fn the_defaults_are_the_engines_and_within_bounds() {
        let settings = EngineSettings::default();
        assert_eq!(settings.problem(), None);
        assert_eq!(LogSettings::default().problem(), None);
        let (ours, engines) = (settings.transfer(), TransferSettings::default());
        assert_eq!((ours.chunk, ours.batch_time), (engines.chunk, engines.batch_time));
    }
}
