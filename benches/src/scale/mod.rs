//! Hundreds of VMs in one plan, thousands of disks in one daemon: the cost, the latency of answers, and the
//! time until it is ready after a restart. See `benches/scale`.
//!
//! Rule: the daemon is a separate process ([`serve`]) with all of warmd except its `main` and the endpoints,
//! which are simulated in memory. `warmctl` and a client that stays connected send requests through the Unix
//! socket. Before the first measurement each migration has a history of passes and guest writes.

mod asking;
mod child;
pub mod plan;
pub mod serve;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use warmd_tests::TestDir;

use self::{
    asking::{AskLatency, Asker},
    child::Child,
};
use crate::bars::{Bar, BarLimit};

/// The case's name.
const NAME: &str = "scale";
/// Timeout for any state that the daemon must reach.
const PATIENCE: Duration = Duration::from_mins(10);

/// The size of the run.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub vms: usize,
    /// Disks of each VM.
    pub disks: usize,
    /// Earlier passes of each migration.
    pub passes: u32,
    /// Seconds from one pass of a migration to the next while passes are measured.
    pub every: u64,
    /// The time for which CPU use is measured.
    pub minute: Duration,
    /// Answers by a client that stays connected.
    pub calls: usize,
    /// Runs of `warmctl`.
    pub runs: usize,
    pub restarts: usize,
}

impl Size {
    /// The size that has bars.
    pub const FULL: Self = Self {
        vms: 500,
        disks: 4,
        passes: 8,
        every: 60,
        minute: Duration::from_mins(1),
        calls: 300,
        runs: 100,
        restarts: 5,
    };
    /// A small size, only to test that everything works.
    pub const QUICK: Self = Self {
        vms: 20,
        disks: 2,
        passes: 2,
        every: 1,
        minute: Duration::from_secs(1),
        calls: 5,
        runs: 2,
        restarts: 1,
    };
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub vms: usize,
    pub disks: usize,
    pub passes_before: u32,
    /// From `plan apply` to the last full pass, in seconds.
    pub seeded_s: f64,
    /// CPU use in per cent of one core while no pass is due.
    pub waiting_cpu: f64,
    /// The same while every migration has a pass once a minute that finds nothing to copy.
    pub passing_cpu: f64,
    /// Such passes in a minute.
    pub passes_a_minute: f64,
    /// Milliseconds.
    pub answers: Vec<AskLatency>,
    /// Seconds from a process's start until it reports that it is ready, one for each restart.
    pub ready_s: Vec<f64>,
    /// The same of `warmd serve` itself, which has no endpoints: it starts all migrations and finds the
    /// endpoints missing.
    pub ready_warmd_s: Vec<f64>,
    /// The same after the previous process was killed during passes.
    pub ready_killed_s: f64,
    /// Seconds until the complete answer of `migration list`.
    pub listed_s: Vec<f64>,
    pub rss_mib: f64,
}

/// Measures everything; prints progress.
pub fn run(size: Size, programs: &Path) -> Result<(Figures, Vec<Bar>)> {
    let dir = TestDir::new()?;
    let asker = Asker::new(dir.join("warmd.sock"), programs)?;
    let mut daemon = Child::start(&dir, programs, size)?;
    println!("{} VMs in a plan, {} disks", size.vms, size.vms * size.disks);

    let begun = std::time::Instant::now();
    asker.apply(&plan::often(size, size.every.min(5)))?;
    asker.until_passed(size.vms, 1, PATIENCE)?;
    let seeded_s = begun.elapsed().as_secs_f64();
    println!("  from `plan apply` to the end of all full passes: {seeded_s:.1} s");
    daemon.say("write")?;
    asker.until_passed(size.vms, size.passes, PATIENCE)?;
    asker.apply(&plan::rare(size))?;
    asker.until_at_rest(size.vms, PATIENCE)?;

    let mut answers = asker.latencies("waiting", size)?;
    // After these requests the daemon has compacted its logs: no background work is left.
    let before = asker.passes()?;
    let waiting_cpu = daemon.cpu_per_cent(size.minute)?;
    ensure!(asker.passes()? == before, "a pass ran in the minute in which none was due");
    println!("  CPU while every pass lies ahead: {waiting_cpu:.3} % of one core");

    daemon.say("rest")?;
    asker.apply(&plan::often(size, size.every))?;
    // To spread the passes over time, independent of when the plan was applied.
    asker.until_passed(size.vms, size.passes + 1, PATIENCE)?;
    let before = asker.passes()?;
    let passing_cpu = daemon.cpu_per_cent(size.minute)?;
    let passes_a_minute = (asker.passes()? - before) as f64 / size.minute.as_secs_f64() * 60.0;
    println!(
        "  CPU with {passes_a_minute:.0} passes a minute that find nothing to copy: {passing_cpu:.2} % of one core"
    );
    answers.extend(asker.latencies("passing", size)?);
    let rss_mib = daemon.rss_mib()?;

    // From here on no pass must be due: a restarted daemon finds new simulated disks.
    asker.apply(&plan::rare(size))?;
    asker.until_at_rest(size.vms, PATIENCE)?;
    let (mut ready_s, mut listed_s, mut ready_warmd_s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.restarts {
        daemon.stop()?;
        daemon = Child::start(&dir, programs, size)?;
        ready_s.push(daemon.ready_s);
        ensure!(asker.listed()? == size.vms, "not all migrations are there after a restart");
        listed_s.push(daemon.since_start_s());
    }
    daemon.stop()?;
    for _ in 0..size.restarts {
        let mut warmd = Child::warmd(&dir, programs)?;
        ready_warmd_s.push(warmd.ready_s);
        ensure!(asker.listed()? == size.vms, "not all migrations are there after a restart of warmd");
        warmd.stop()?;
    }
    let ready_killed_s = killed(size, programs)?;
    println!(
        "  ready after a restart: {} s; after a kill: {ready_killed_s:.2} s; `warmd serve` without endpoints: {} s",
        list(&ready_s),
        list(&ready_warmd_s)
    );
    let figures = Figures {
        vms: size.vms,
        disks: size.vms * size.disks,
        passes_before: size.passes,
        seeded_s,
        waiting_cpu,
        passing_cpu,
        passes_a_minute,
        answers,
        ready_s,
        ready_warmd_s,
        ready_killed_s,
        listed_s,
        rss_mib,
    };
    let bars = bars(&figures)?;
    Ok((figures, bars))
}

/// Seconds until a daemon is ready after its predecessor was killed during passes.
fn killed(size: Size, programs: &Path) -> Result<f64> {
    let dir = TestDir::new()?;
    let asker = Asker::new(dir.join("warmd.sock"), programs)?;
    let mut daemon = Child::start(&dir, programs, size)?;
    daemon.say("write")?;
    asker.apply(&plan::often(size, 1))?;
    asker.until_passed(size.vms, 3, PATIENCE)?;
    daemon.kill()?;
    Ok(Child::start(&dir, programs, size)?.ready_s)
}

fn bars(figures: &Figures) -> Result<Vec<Bar>> {
    let most = |values: &[f64]| values.iter().copied().max_by(f64::total_cmp).context("nothing was measured");
    let bar = |what: &str, value, limit| Bar::new(NAME, what, value, BarLimit::AtMost(limit));
    let mut bars = vec![
        bar("scheduling, no pass due: per cent of one core", figures.waiting_cpu, 5.0),
        bar("restart until ready, the slowest: s", most(&figures.ready_s)?, 5.0),
        bar("restart of `warmd serve` until ready, the slowest: s", most(&figures.ready_warmd_s)?, 5.0),
        bar("restart after a kill until ready: s", figures.ready_killed_s, 5.0),
    ];
    for answer in figures.answers.iter().filter(|answer| answer.counts) {
        bars.push(bar(&format!("{}: ms, 99th percentile", answer.name()), answer.p99_ms, 100.0));
    }
    Ok(bars)
}

fn list(values: &[f64]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("{value:.2}")).collect();
    values.join(", ")
}
