//! Progress output: redrawn in place on a terminal, a line at each change in a pipe.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use chrono::Utc;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use warmd_proto::v1::Migration;

use super::{
    failure::CliFailure,
    out::{Out, complain, one_line},
    show,
};

/// In a pipe, progress alone is printed no more often than this for one migration.
const EVERY: Duration = Duration::from_secs(1);

/// What makes a line worth printing at once: the state, the phase, the pass, and whether that runs; and what
/// is waited for.
type Stage = (i32, i32, Option<(u32, bool)>, bool, Option<String>);

/// A place for progress.
#[derive(Debug)]
pub(super) struct Screen<'a> {
    out: &'a Out,
    live: Option<Live>,
    told: BTreeMap<String, (Stage, Instant)>,
    /// Whether lines say which migration they are about.
    names: bool,
}

#[derive(Debug)]
struct Live {
    multi: MultiProgress,
    lines: Vec<ProgressBar>,
    /// By id, which means by age.
    migrations: BTreeMap<String, Migration>,
}

impl<'a> Screen<'a> {
    /// For one migration, or for several.
    pub(super) fn new(out: &'a Out, several: bool) -> Self {
        let live = (out.is_terminal() && !out.is_json()).then(Live::new);
        Self { out, live, told: BTreeMap::new(), names: several }
    }

    /// Shows a migration's state.
    pub(super) fn show(&mut self, migration: Migration) -> Result<(), CliFailure> {
        if let Some(live) = &mut self.live {
            live.show(migration);
            return Ok(());
        }
        let stage = stage(&migration);
        let recent = self.told.get(&migration.id);
        if recent.is_some_and(|(told, at)| *told == stage && at.elapsed() < EVERY) {
            return Ok(());
        }
        self.told.insert(migration.id.clone(), (stage, Instant::now()));
        let line = if self.names { show::line(&migration) } else { show::progress(&migration) };
        self.out.text(&format!("{}  {line}", Utc::now().format("%H:%M:%S")))
    }

    /// A permanent line.
    pub(super) fn say(&mut self, line: &str) -> Result<(), CliFailure> {
        match &self.live {
            Some(live) => Ok(live.multi.println(one_line(line))?),
            None => self.out.text(line),
        }
    }

    /// A line about the connection, not about a migration.
    pub(super) fn aside(&mut self, line: &str) -> Result<(), CliFailure> {
        if let Some(live) = &self.live {
            live.multi.println(one_line(line))?;
        } else {
            complain(line);
        }
        Ok(())
    }

    /// Ends it: the redrawn part stays as it is, or is wiped.
    pub(super) fn finish(&mut self, wipe: bool) -> Result<(), CliFailure> {
        if let Some(live) = self.live.take() {
            for line in &live.lines {
                line.abandon();
            }
            if wipe {
                live.multi.clear()?;
            }
        }
        Ok(())
    }
}

impl Live {
    fn new() -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        Self { multi, lines: Vec::new(), migrations: BTreeMap::new() }
    }

    fn show(&mut self, migration: Migration) {
        self.migrations.insert(migration.id.clone(), migration);
        let frame = show::frame(self.migrations.values());
        while self.lines.len() < frame.len() {
            self.lines.push(self.multi.add(line()));
        }
        while self.lines.len() > frame.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
                self.multi.remove(&line);
            }
        }
        for (line, text) in self.lines.iter().zip(frame) {
            line.set_message(one_line(&text));
        }
    }
}

fn line() -> ProgressBar {
    let line = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        line.set_style(style);
    }
    line
}

fn stage(migration: &Migration) -> Stage {
    let pass = migration.pass.as_ref().map(|pass| (pass.number, pass.ended.is_some()));
    let waits = migration.waiting.as_ref().map(|waiting| waiting.reason.clone());
    (migration.state, migration.phase, pass, show::is_verifying(migration), waits)
}

/// Until Ctrl-C. Where there is no such signal, for ever.
pub(super) async fn interrupted() {
    let signal: io::Result<()> = tokio::signal::ctrl_c().await;
    if signal.is_err() {
        std::future::pending::<()>().await;
    }
}
