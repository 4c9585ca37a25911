//! Hundreds of migrations in one daemon, for minutes: at random paused, synced, verified, cut over, undone,
//! while their guests write and the daemon is stopped and crashes. See `tests/soak`.
//!
//! Rule: every migration ends right, and the process does not grow. Every other of the daemon's lives ends
//! calmly: all migrations are paused, no pass runs, and a sample is taken. Work that is under way would count
//! else, of which a busy host has more. The other lives end by a crash in the middle of the work. The first
//! quarter of the samples, in which the permanent data comes into memory, does not count. The permanent cost
//! of a move is the median of the slopes between all pairs of the others (Theil and Sen's estimator, which a
//! few odd samples do not move). It may be half a KiB per move, and 6 MiB in all, the difference between
//! equal loads: so in ten minutes a single `MigrationView` left behind by each VM that was moved is found.
//! SQLite's page cache grows with the file up to its own bound: it is counted separately, and may not exceed
//! the bound. The contents of the simulated machines' disks and snapshots do not count.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::sleep};
use tokio_util::sync::CancellationToken;
use warmd_cbt::{buffer::BufferPool, limit::Limit, transfer::TransferSettings};
use warmd_core::{
    control::{Control as _, EndpointInfo},
    hook_service::NoHookServices,
    images::NoImages,
    model::{id::MigrationId, plan::Plan, request::Request, state::State, view::MigrationView},
    signed_report::NoReportKey,
};
use warmd_metrics::Metrics;
use warmd_migration::{
    audit::AuditAmount,
    context::Engine,
    manager::{Endpoints, Manager, OpenEndpoint},
};
use warmd_store::Store;
use warmd_tests::{
    interrupt,
    simulated::{SimulatedSource, SimulatedTarget, SimulatedWorld, VM, held_bytes},
};

const FLEET: usize = 200;
const BLOCK: u64 = 64 * 1024;
/// The disks of each VM; one has a short last block.
const DISKS: [(&str, u64); 2] = [("vda", 2 * BLOCK), ("vdb", BLOCK + 512)];
/// How long the daemon lives between two starts.
const LIFE: Duration = Duration::from_secs(4);
/// The time for all undisturbed migrations to end.
const END: Duration = Duration::from_mins(4);
const CALM_POLL: Duration = Duration::from_millis(50);
const CHUNK: usize = 64 * 1024;
/// Samples that tell growth from noise. A busy machine takes more than the minutes for them.
const ENOUGH: usize = 12;

fn main() -> ExitCode {
    match arguments().and_then(|(minutes, seed)| soak(minutes, seed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(u64, u64)> {
    let (mut minutes, mut seed) = (10, rand::random());
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--minutes" => minutes = value.parse()?,
            "--seed" => seed = value.parse()?,
            _ => bail!("{name} is no option of mine"),
        }
    }
    Ok((minutes, seed))
}

/// A VM and its migration.
struct Move {
    world: SimulatedWorld,
    id: Option<MigrationId>,
    /// How often it was moved.
    moved: u32,
}

/// A daemon without its API, in its own runtime, so that it can be dropped at any moment.
struct Life {
    runtime: Runtime,
    store: Store,
    manager: Arc<Manager>,
    shutdown: CancellationToken,
}

struct Sample {
    moved: u32,
    /// Resident bytes without those of SQLite and of the simulated machines' disks.
    memory: u64,
    sqlite: u64,
    files: u64,
}

fn soak(minutes: u64, seed: u64) -> Result<()> {
    interrupt::catch()?;
    println!("{FLEET} migrations with {} disks each, for {minutes} min, seed {seed}", DISKS.len());
    let mut random = StdRng::seed_from_u64(seed);
    let dir = TempDir::new()?;
    let new = |_| Move { world: SimulatedWorld::new(&DISKS), id: None, moved: 0 };
    let mut fleet: Vec<Move> = (0..FLEET).map(new).collect();
    // All permanent data is in memory before the first sample.
    let life = Life::begin(&dir, &fleet)?;
    life.seed(&mut fleet, &mut random)?;
    life.stop()?;
    let (begun, whole) = (Instant::now(), Duration::from_mins(minutes));
    let (mut samples, mut asked, mut crashes) = (Vec::new(), 0, 0);
    while begun.elapsed() < whole || samples.len() < ENOUGH {
        interrupt::check()?;
        let life = Life::begin(&dir, &fleet)?;
        asked += life.disturb(&mut fleet, &mut random)?;
        life.crash();
        crashes += 1;
        let life = Life::begin(&dir, &fleet)?;
        asked += life.disturb(&mut fleet, &mut random)?;
        life.calm(&fleet)?;
        let sample = Sample::now(fleet.iter().map(|one| one.moved).sum())?;
        println!(
            "{:>5.0} s  memory {:>7} KiB  SQLite {:>6} KiB  open files {:>4}  requests {asked:>7}  moved {:>5}  crashes {crashes}",
            begun.elapsed().as_secs_f64(),
            sample.memory / 1024,
            sample.sqlite / 1024,
            sample.files,
            sample.moved,
        );
        samples.push(sample);
        life.resume(&fleet)?;
        life.stop()?;
    }
    let life = Life::begin(&dir, &fleet)?;
    life.finish(&mut fleet)?;
    life.stop()?;
    ensure!(crashes > 0, "the daemon never crashed: give it more time");
    judge(&samples)?;
    let moved: u32 = fleet.iter().map(|one| one.moved).sum();
    println!("all right: {moved} moves, {asked} requests, {crashes} crashes; replay with --seed {seed}");
    Ok(())
}

impl Life {
    fn begin(dir: &TempDir, fleet: &[Move]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let store = Store::open(dir.path())?;
        let shutdown = CancellationToken::new();
        let mut endpoints = Endpoints::default();
        for (at, one) in fleet.iter().enumerate() {
            let endpoint = |name: String| EndpointInfo {
                name,
                kind: "simulated".to_owned(),
                address: "memory".to_owned(),
            };
            let (source, target) = (format!("s{at}"), format!("t{at}"));
            let limit = Limit::default();
            let handle = Arc::new(SimulatedSource(one.world.clone())) as _;
            let opened = OpenEndpoint { endpoint: endpoint(source.clone()), limit, handle };
            endpoints.sources.insert(source, opened);
            let handle = Arc::new(SimulatedTarget(one.world.clone())) as _;
            let opened = OpenEndpoint { endpoint: endpoint(target.clone()), limit, handle };
            endpoints.targets.insert(target, opened);
        }
        let settings = TransferSettings { chunk: CHUNK, ..TransferSettings::default() };
        let engine = Engine {
            pool: BufferPool::new(32, CHUNK),
            settings,
            limit: Limit::default(),
            audit: AuditAmount::default(),
            images: Arc::new(NoImages),
            reports: Arc::new(NoReportKey),
            hooks: Arc::new(NoHookServices),
            metrics: Arc::new(Metrics::default()),
        };
        let starting = Manager::start(store.clone(), endpoints, engine, shutdown.clone());
        let manager = runtime.block_on(starting).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { runtime, store, manager, shutdown })
    }

    /// Begins every migration, with full disks, and waits for the full passes.
    fn seed(&self, fleet: &mut [Move], random: &mut StdRng) -> Result<()> {
        for (at, one) in fleet.iter_mut().enumerate() {
            for (disk, size) in DISKS {
                let mut noise = vec![0; size as usize];
                random.fill(&mut noise[..]);
                one.world.guest_writes(disk, 0, &noise);
            }
            self.plan(at, one)?;
        }
        let begun = Instant::now();
        loop {
            let mut views = fleet.iter().map(|one| self.view(one));
            let seeded = |view: &MigrationView| matches!(view.state, State::Synced | State::Syncing);
            if views.all(|view| view.is_ok_and(|view| view.as_ref().is_some_and(seeded))) {
                return Ok(());
            }
            interrupt::check()?;
            ensure!(begun.elapsed() < END, "the full passes have not ended within {END:?}");
        }
    }

    /// Sends random requests while guests write, for a while; returns the number of requests.
    fn disturb(&self, fleet: &mut [Move], random: &mut StdRng) -> Result<u64> {
        let begun = Instant::now();
        let mut asked = 0;
        while begun.elapsed() < LIFE {
            let at = random.random_range(0..fleet.len());
            let Some(one) = fleet.get_mut(at) else { continue };
            scribble(&one.world, random);
            // The world's record of calls is not needed here, and must not count as the daemon's growth.
            one.world.with(|truth| truth.calls.clear());
            match self.view(one)? {
                None => self.plan(at, one)?,
                Some(view) if view.state == State::Done => one.arrived(),
                Some(view) if view.state == State::Cancelled => one.renew(),
                Some(view) => {
                    let request = match random.random_range(0..12) {
                        0..4 => Request::Sync,
                        4 => Request::Pause,
                        5 | 6 => Request::Resume,
                        7 => Request::verify(),
                        8 => Request::AbortCutover,
                        9 if random.random_bool(0.1) => Request::Cancel,
                        _ => Request::cutover(),
                    };
                    let asking = self.manager.request(view.id, request, "soak");
                    self.runtime.block_on(asking).map_err(|error| anyhow::anyhow!("{error}"))?;
                    asked += 1;
                }
            }
        }
        Ok(asked)
    }

    /// Pauses all migrations, and waits until none of them works.
    fn calm(&self, fleet: &[Move]) -> Result<()> {
        for id in fleet.iter().filter_map(|one| one.id) {
            self.ask(id, Request::Pause)?;
        }
        let begun = Instant::now();
        loop {
            let mut busy = Vec::new();
            for one in fleet {
                let Some(view) = self.view(one)? else { continue };
                match view.state {
                    State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => {}
                    // A cutover that ended after the request.
                    State::Synced | State::Syncing => {
                        self.ask(view.id, Request::Pause)?;
                        busy.push(view.state.to_string());
                    }
                    state => busy.push(state.to_string()),
                }
            }
            if busy.is_empty() {
                return Ok(());
            }
            interrupt::check()?;
            ensure!(begun.elapsed() < END, "{} migrations still work, such as {}", busy.len(), busy[0]);
            self.runtime.block_on(async { sleep(CALM_POLL).await });
        }
    }

    /// Has those go on that are paused.
    fn resume(&self, fleet: &[Move]) -> Result<()> {
        for one in fleet {
            if let Some(view) = self.view(one)?
                && matches!(view.state, State::Paused { .. })
            {
                self.ask(view.id, Request::Resume)?;
            }
        }
        Ok(())
    }

    fn view(&self, one: &Move) -> Result<Option<MigrationView>> {
        let Some(id) = one.id else { return Ok(None) };
        let view = self.runtime.block_on(self.manager.migration(&id.to_string()));
        Ok(Some(view.map_err(|error| anyhow::anyhow!("{error}"))?))
    }

    fn plan(&self, at: usize, one: &mut Move) -> Result<()> {
        let text = format!(
            "name = \"p{at}-{}\"\nsource = \"s{at}\"\ntarget = \"t{at}\"\nvms = [\"{VM}\"]\n\
             [schedule]\ninterval = \"2s\"\n[cutover]\ngraceful_shutdown = \"5s\"\nmin_uptime = \"20ms\"\n",
            one.moved
        );
        let plan: Plan = toml::from_str(&text)?;
        let applied = self.runtime.block_on(self.manager.apply_plan(plan, "soak"));
        let applied = applied.map_err(|error| anyhow::anyhow!("{error}"))?;
        let id = applied.started.first().or(applied.kept.first()).context("no migration was begun")?;
        one.id = Some(*id);
        Ok(())
    }

    /// Brings all migrations to their end, undisturbed.
    fn finish(&self, fleet: &mut [Move]) -> Result<()> {
        let begun = Instant::now();
        for (at, one) in fleet.iter_mut().enumerate() {
            if one.id.is_none() {
                self.plan(at, one)?;
            }
        }
        loop {
            let mut left = Vec::new();
            for one in fleet.iter_mut() {
                let Some(view) = self.view(one)? else { continue };
                match view.state {
                    State::Done => {
                        one.arrived();
                        one.id = None;
                        continue;
                    }
                    State::Cancelled => {
                        one.id = None;
                        continue;
                    }
                    State::Synced => self.ask(view.id, Request::cutover())?,
                    State::Paused { .. } | State::Failed { .. } => self.ask(view.id, Request::Resume)?,
                    _ => {}
                }
                left.push(view);
            }
            if left.is_empty() {
                return Ok(());
            }
            interrupt::check()?;
            if begun.elapsed() > END {
                let some: Vec<_> = left.iter().take(5).map(|view| view.state.to_string()).collect();
                bail!("{} migrations have not ended, such as {some:?}", left.len());
            }
        }
    }

    fn ask(&self, id: MigrationId, request: Request) -> Result<()> {
        let asked = self.runtime.block_on(self.manager.request(id, request, "soak"));
        asked.map(drop).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Drops the daemon at this moment.
    fn crash(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(30));
    }

    fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.runtime.block_on(self.manager.finish());
        self.runtime.block_on(self.store.close())?;
        Ok(())
    }
}

impl Move {
    /// Checks the moved VM, and starts its next migration.
    fn arrived(&mut self) {
        self.world.assert_moved();
        self.moved += 1;
        self.renew();
    }

    /// Makes it run on the source again, as if it had never been moved.
    fn renew(&mut self) {
        self.world.with(|truth| {
            truth.target_disks.clear();
            truth.marks.clear();
            truth.calls.clear();
            // It belongs to the migration that ended.
            truth.noted = None;
            (truth.target_exists, truth.target_runs, truth.source_runs) = (false, false, true);
        });
        self.id = None;
    }
}

fn scribble(world: &SimulatedWorld, random: &mut StdRng) {
    let (disk, size) = DISKS[random.random_range(0..DISKS.len())];
    let len = random.random_range(1..9000).min(size);
    let at = random.random_range(0..=size - len);
    let fill = if random.random_bool(0.2) { 0 } else { random.random() };
    world.guest_writes(disk, at, &vec![fill; len as usize]);
}

impl Sample {
    fn now(moved: u32) -> Result<Self> {
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = statm.split(' ').nth(1).context("no resident pages")?.parse()?;
        // SAFETY: it has no arguments and counts under its own lock.
        let sqlite = u64::try_from(unsafe { rusqlite::ffi::sqlite3_memory_used() }).unwrap_or_default();
        let resident = pages * rustix::param::page_size() as u64;
        let memory = resident.saturating_sub(sqlite + held_bytes());
        Ok(Self { moved, memory, sqlite, files: std::fs::read_dir("/proc/self/fd")?.count() as u64 })
    }
}

/// The difference between equal loads.
const NOISE: f64 = (6 << 20) as f64;
/// The permanent cost of a move, at most, in bytes.
const A_MOVE: f64 = 512.0;
const MORE_FILES: f64 = 4.0;
/// SQLite's memory: the writer and readers, each with a page cache of 2 MiB.
const SQLITE: u64 = 32 << 20;

fn judge(samples: &[Sample]) -> Result<()> {
    let counted = samples.get(samples.len() / 4..).unwrap_or_default();
    let [first, .., last] = counted else { bail!("only {} samples", samples.len()) };
    let moves = f64::from(last.moved - first.moved);
    let grown = |of: fn(&Sample) -> u64| {
        let mut slopes: Vec<f64> = pairs(counted)
            .filter(|(one, other)| other.moved > one.moved)
            .map(|(one, other)| (of(other) as f64 - of(one) as f64) / f64::from(other.moved - one.moved))
            .collect();
        slopes.sort_unstable_by(f64::total_cmp);
        slopes.get(slopes.len() / 2).map(|slope| slope * moves).context("nothing was moved")
    };
    let (memory, files) = (grown(|sample| sample.memory)?, grown(|sample| sample.files)?);
    println!("in {moves} moves memory grew by {:.0} KiB and open files by {files:.0}", memory / 1024.0);
    ensure!(memory <= NOISE + A_MOVE * moves, "memory grows");
    let sqlite = counted.iter().map(|sample| sample.sqlite).max().unwrap_or_default();
    ensure!(sqlite <= SQLITE, "SQLite keeps {} KiB", sqlite / 1024);
    ensure!(files <= MORE_FILES, "open files grow");
    Ok(())
}

/// Each sample with each later one.
fn pairs(samples: &[Sample]) -> impl Iterator<Item = (&Sample, &Sample)> {
    samples
        .iter()
        .enumerate()
        .flat_map(|(at, one)| samples.iter().skip(at + 1).map(move |other| (one, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Ten minutes as they were measured: a sample every four seconds with 31 moves, up to 6 MiB apart.
    fn ten_minutes(kept: u64) -> Vec<Sample> {
        let sample = |at: u32| {
            let (moved, odd) = (at * 31, u64::from(at * 7 % 13) * MIB / 2);
            Sample { moved, memory: 140 * MIB + odd + u64::from(moved) * kept, sqlite: 0, files: 28 }
        };
        (0..150).map(sample).collect()
    }

    #[test]
    fn last_view_of_each_move_is_found_where_one_is_kept() {
        judge(&ten_minutes(0)).unwrap();
        assert_eq!(judge(&ten_minutes(3400)).unwrap_err().to_string(), "memory grows");
    }

    #[test]
    fn a_page_cache_without_a_bound_is_found() {
        let mut samples = ten_minutes(0);
        for (at, sample) in samples.iter_mut().enumerate() {
            sample.sqlite = at as u64 * MIB;
        }
        assert!(judge(&samples).unwrap_err().to_string().starts_with("SQLite keeps"));
    }

    #[test]
    fn files_left_open_are_found() {
        let mut samples = ten_minutes(0);
        for (at, sample) in samples.iter_mut().enumerate() {
            sample.files += at as u64 / 15;
        }
        assert_eq!(judge(&samples).unwrap_err().to_string(), "open files grow");
    }

    #[test]
    fn without_a_move_there_is_nothing_to_judge() {
        let still = |_| Sample { moved: 7, memory: MIB, sqlite: 0, files: 1 };
        assert!(judge(&(0..20).map(still).collect::<Vec<_>>()).is_err());
        assert!(judge(&[]).is_err());
    }
}
