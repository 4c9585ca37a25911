//! The runs of a case: a warm-up, then pairs A B A B for each peer.
//!
//! Rule: both runs of a pair begin with equal disks, and each result is compared; the first difference ends
//! the benchmark.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use warmd_tests::interrupt;

use crate::{
    cases::Case,
    children::ProcessGroup,
    engine::Done,
    fixture::{DEADLINE, Fixture, Served},
    measure::BenchMeasurement,
    report::{BenchTotals, Row},
    sides::{self, Peer},
};

/// How cases are run.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The directory of the images.
    pub below: PathBuf,
    /// The directory of our own programs.
    pub programs: PathBuf,
    /// Number of pairs that count.
    pub pairs: usize,
    /// Only test that every case runs: no warm-up, and one run of warmd serves all peers.
    pub quick: bool,
    /// Options for `bench-engine`, for tuning.
    pub engine_words: Vec<String>,
    /// Only peers with these names; all if there are none.
    pub peers: Vec<String>,
}

/// One pair that counts.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub warmd: BenchMeasurement,
    pub done: Done,
    pub peer: BenchMeasurement,
}

impl Bench {
    /// Runs a case: one row for each peer.
    pub fn run(&self, case: &Case) -> Result<Vec<Row>> {
        let fixture = Fixture::make(case, &self.below, &self.programs).context("preparing it")?;
        let moved = BenchTotals { changed: fixture.changed_bytes(), touched: fixture.touched_bytes() };
        let peers = case.peers.iter().copied().filter(|peer| self.wants(*peer));
        let settled = peers.map(|peer| Ok((peer, self.warm_up(&fixture, peer)?, Vec::new())));
        let mut settled = settled.collect::<Result<Vec<_>>>()?;
        let mut shared = None;
        // Round by round, so that a temporary load of the machine affects all peers.
        for _ in 0..self.pairs {
            for (peer, setting, pairs) in &mut settled {
                let (warmd, done) = match shared {
                    Some(run) => run,
                    None => self.warmd(&fixture)?,
                };
                shared = self.quick.then_some((warmd, done));
                pairs.push(Pair { warmd, done, peer: self.peer(&fixture, *peer, setting)? });
            }
        }
        let row = |(peer, setting, pairs): &(Peer, &[&str], Vec<Pair>)| {
            Row::new(&case.name, peer.name(), moved, setting.join(" "), pairs)
        };
        Ok(settled.iter().map(row).collect())
    }

    /// Whether this peer is selected.
    pub fn wants(&self, peer: Peer) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|name| name == peer.name())
    }

    /// One run of each side that does not count, and the choice of the peer's setting.
    fn warm_up(&self, fixture: &Fixture, peer: Peer) -> Result<&'static [&'static str]> {
        let first = peer.settings().first().copied().unwrap_or_default();
        if self.quick {
            return Ok(first);
        }
        self.warmd(fixture)?;
        let mut best = (f64::INFINITY, first);
        for setting in peer.settings() {
            let took = self.peer(fixture, peer, setting)?.wall_s();
            if took < best.0 {
                best = (took, setting);
            }
        }
        Ok(best.1)
    }

    fn warmd(&self, fixture: &Fixture) -> Result<(BenchMeasurement, Done)> {
        let state = fixture.fresh_state()?;
        let command = |served: &Served| {
            Ok(vec![sides::engine(&self.programs, fixture, served, &state, &self.engine_words)?])
        };
        let (measured, said) = self.measure(fixture, command).context("warmd")?;
        Ok((measured, serde_json::from_str(&said).with_context(|| format!("bench-engine said {said:?}"))?))
    }

    fn peer(&self, fixture: &Fixture, peer: Peer, setting: &[&str]) -> Result<BenchMeasurement> {
        let commands = |served: &Served| peer.commands(&self.programs, setting, fixture, served);
        let (measured, _) = self.measure(fixture, commands).with_context(|| peer.name())?;
        Ok(measured)
    }

    /// One run: its figures, and the line that the (first) command printed before them.
    fn measure(
        &self,
        fixture: &Fixture,
        commands: impl FnOnce(&Served) -> Result<Vec<Vec<String>>>,
    ) -> Result<(BenchMeasurement, String)> {
        interrupt::check()?;
        fixture.reset()?;
        let served = fixture.serve()?;
        let commands = commands(&served)?;
        // With one command for all disks it syncs all, else each its own.
        let targets = fixture.targets();
        let share = targets.len().div_ceil(commands.len().max(1)).max(1);
        let commands: Vec<_> =
            commands.into_iter().zip(targets.chunks(share).map(<[PathBuf]>::to_vec)).collect();
        let figures = self.at_once(&commands)?;
        drop(served);
        fixture.compare().context("after the run")?;
        Ok(figures)
    }

    /// Runs commands at once, each with the files that it must have synced: their figures together, and the
    /// last line that the first one printed.
    pub fn at_once(&self, commands: &[(Vec<String>, Vec<PathBuf>)]) -> Result<(BenchMeasurement, String)> {
        let running = commands
            .iter()
            .map(|(command, sync)| ProcessGroup::spawn(&mut measured(&self.programs, command, sync)))
            .collect::<Result<Vec<_>>>()?;
        let said = running.into_iter().map(|group| group.output(DEADLINE)).collect::<Result<Vec<_>>>()?;
        let lines: Vec<Vec<&str>> = said.iter().map(|text| text.lines().collect()).collect();
        let figures = lines
            .iter()
            .map(|lines| Ok(serde_json::from_str(lines.last().copied().unwrap_or_default())?))
            .collect::<Result<Vec<BenchMeasurement>>>()?;
        let before = lines.first().and_then(|lines| lines.iter().rev().nth(1)).copied().unwrap_or_default();
        Ok((BenchMeasurement::together(&figures).context("nothing was run")?, before.to_owned()))
    }
}

fn measured(programs: &Path, command: &[String], sync: &[PathBuf]) -> Command {
    let mut parent = Command::new(programs.join("bench-peer"));
    parent.arg("measure");
    for file in sync {
        parent.arg("--sync").arg(file);
    }
    parent.arg("--").args(command);
    parent
}
