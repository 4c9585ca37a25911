//! What ledgers and manifests cost at the extreme, with the daemon's own store: time, memory, and the store's
//! share of a pass.
//!
//! `cargo run --release -p warmd-store --example scale [DIR [SECONDS]]`: the state is made in `DIR` (a
//! directory that is removed at the end by default), each part of a pass runs for `SECONDS` (4). Reads and
//! writes cost nothing here, only the hashing does: no real pass gives the store so little time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement ends by them")]

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::Utc;
use warmd_cbt::{
    batch::Batch,
    buffer::{Buffer, BufferPool},
    disk::{Allocation, DiskError, DiskLimits, ReadDisk, WriteDisk},
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{DiskId, LedgerCommit, LedgerStore, PassFigures, StoreError, StoredLedger},
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, BlockIndex, Extent, Length, Offset, blocks_in},
};
use warmd_core::model::{
    id::{DiskKey, MigrationId, VmId},
    machine::{CpuTopology, Firmware, Machine},
    state::State,
};
use warmd_store::{NewDisk, NewMigration, Store};

const EXTENTS: u64 = 10_000_000;
const HUGE: Length = Length(64 << 40);
const LARGE: Length = Length(1 << 40);
/// Parts of each pass.
const TURNS: usize = 5;

/// A disk of blocks that differ, whose reads and writes cost nothing.
struct Cheap(Length);

#[async_trait]
impl ReadDisk for Cheap {
    fn size(&self) -> Length {
        self.0
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { max_request: 32 << 20, in_flight: 64 }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        for (number, block) in (at.0 / BLOCK + 1..).zip(buffer.chunks_mut(BLOCK as usize)) {
            block[..8].copy_from_slice(&number.to_le_bytes());
        }
        Ok(buffer)
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        Ok(vec![Allocation { extent, zero: false }])
    }
}

#[async_trait]
impl WriteDisk for Cheap {
    async fn write(&self, _: Offset, buffer: Buffer, _: Range<usize>) -> Result<Buffer, DiskError> {
        Ok(buffer)
    }

    async fn write_zeroes(&self, _: Extent) -> Result<(), DiskError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// The store, with a clock.
struct Timed {
    store: Store,
    commits: Mutex<Vec<(Duration, usize)>>,
    reads: Mutex<Vec<Duration>>,
}

#[async_trait]
impl LedgerStore for Timed {
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError> {
        self.store.load(disk).await
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        let (began, hashes) = (Instant::now(), commit.hashes.len());
        let result = self.store.commit(disk, commit).await;
        self.commits.lock().unwrap().push((began.elapsed(), hashes));
        result
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        let began = Instant::now();
        let result = self.store.hashes(disk, spans).await;
        self.reads.lock().unwrap().push(began.elapsed());
        result
    }
}

/// A store that costs nothing: what a pass is without one.
struct Nothing(Length);

#[async_trait]
impl LedgerStore for Nothing {
    async fn load(&self, _: DiskId) -> Result<StoredLedger, StoreError> {
        Ok(StoredLedger { size: self.0, anchor: None, chunks: Vec::new() })
    }

    async fn commit(&self, _: DiskId, _: LedgerCommit) -> Result<(), StoreError> {
        Ok(())
    }

    async fn hashes(&self, _: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        Ok(vec![BlockHash::ZERO; spans.iter().map(|span| (span.end - span.start) as usize).sum()])
    }
}

/// A state with disks, and the figures of the process that uses it.
struct Bench {
    store: Store,
    timed: Arc<Timed>,
    seconds: u64,
}

impl Bench {
    fn open(dir: &Path, seconds: u64) -> Self {
        let store = Store::open(dir).unwrap();
        let timed = Timed { store: store.clone(), commits: Mutex::default(), reads: Mutex::default() };
        Self { store, timed: Arc::new(timed), seconds }
    }

    async fn disk(&self, name: &str, size: Length) -> DiskId {
        let machine = Machine {
            id: VmId(name.to_owned()),
            name: name.to_owned(),
            uuid: String::new(),
            firmware: Firmware::Bios,
            machine_type: "q35".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
            memory: Length(1 << 28),
            disks: Vec::new(),
            nics: Vec::new(),
            hardware: None,
            host: None,
        };
        let new = NewMigration {
            id: MigrationId::generate(),
            plan: "scale".to_owned(),
            source: "here".to_owned(),
            target: "there".to_owned(),
            vm: machine.id.clone(),
            vm_name: name.to_owned(),
            target_name: name.to_owned(),
            machine,
            state: State::Defined,
            created: Utc::now(),
            warnings: Vec::new(),
            events: Vec::new(),
        };
        let id = new.id;
        self.store.create_migration(new).await.unwrap();
        let disk = NewDisk {
            key: DiskKey("vda".to_owned()),
            size,
            location: format!("/{name}"),
            requested_location: None,
            reads_zero: true,
        };
        self.store.save_disks(id, vec![disk]).await.unwrap()[0].id
    }

    async fn ledger(&self, disk: DiskId) -> Arc<Ledger> {
        let (began, cpu) = (Instant::now(), cpu_seconds("self"));
        let ledger = Ledger::load(self.timed.clone(), disk).await.unwrap();
        say(&format!("  load, {} bytes pending", ledger.pending_bytes()), began, cpu);
        Arc::new(ledger)
    }

    async fn advance(&self, ledger: &Ledger, what: &str, blocks: impl Iterator<Item = u64>) -> Changed {
        let (began, cpu) = (Instant::now(), cpu_seconds("self"));
        let changed = known(ledger.size(), blocks);
        say(&format!("  taking in what changed, {what}"), began, cpu);
        let (began, cpu) = (Instant::now(), cpu_seconds("self"));
        ledger.advance(ChangeMark(what.to_owned()), &changed).await.unwrap();
        let commit = self.timed.commits.lock().unwrap().pop().unwrap().0;
        say(&format!("  advance (of it the commit {:.3} s)", commit.as_secs_f64()), began, cpu);
        changed
    }

    /// Runs parts of a pass, by turns with parts of one without a store, and says what part of it was the
    /// store's.
    async fn pass(&self, what: &str, ledger: &Arc<Ledger>, changed: Changed) {
        let nothing = Arc::new(Nothing(ledger.size()));
        let free = Arc::new(Ledger::load(nothing, DiskId(1)).await.unwrap());
        free.advance(ChangeMark(what.to_owned()), &changed).await.unwrap();
        drop(changed);
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let with = self.part(&format!("{what}, part {turn}"), ledger).await;
            let without = self.part(&format!("{what}, part {turn}, without a store"), &free).await;
            rates.push(with.0 / without.0);
            costs.push(with.1 / without.1);
            if ledger.is_done() || free.is_done() {
                break;
            }
        }
        let median = |ratios: &mut Vec<f64>| {
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        };
        println!(
            "  {what}: with the store {:.3} times the bytes a second, and {:.3} times the bytes a CPU second, of without \
             (medians of {})",
            median(&mut rates),
            median(&mut costs),
            rates.len()
        );
    }

    /// Runs a pass for a while; gives its bytes a second, and a CPU second: what others run beside it spoils
    /// only the first.
    async fn part(&self, what: &str, ledger: &Arc<Ledger>) -> (f64, f64) {
        self.timed.commits.lock().unwrap().clear();
        self.timed.reads.lock().unwrap().clear();
        let stop = StopSignal::new();
        let settings = TransferSettings::default();
        let disk = Arc::new(Cheap(ledger.size()));
        let job = PassJob {
            ledger: Arc::clone(ledger),
            source: disk.clone(),
            target: disk,
            pool: BufferPool::new(64, settings.chunk),
            settings,
            pass: None,
            progress: Arc::new(PassProgress::default()),
            limits: DiskShares::default(),
            baseline: Arc::default(),
            stop: stop.clone(),
        };
        let (began, cpu, writer) = (Instant::now(), cpu_seconds("self"), writer_seconds());
        let written = io_bytes();
        let seconds = self.seconds;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.stop();
        });
        let figures = run_pass(job).await.unwrap().figures;
        let (took, cpu, writer) =
            (began.elapsed().as_secs_f64(), cpu_seconds("self") - cpu, writer_seconds() - writer);
        let commits = self.timed.commits.lock().unwrap();
        let sum = |of: &mut dyn Iterator<Item = &(Duration, usize)>| -> (usize, f64) {
            of.fold((0, 0.0), |(count, sum), (time, _)| (count + 1, sum + time.as_secs_f64()))
        };
        let (batches, drains) = sum(&mut commits.iter().filter(|(_, hashes)| *hashes > 0));
        let (claims, claimed) = sum(&mut commits.iter().filter(|(_, hashes)| *hashes == 0));
        let reads: f64 = self.timed.reads.lock().unwrap().iter().map(Duration::as_secs_f64).sum();
        println!(
            "  {what}: {took:.1} s, {:.2} GB/s; {batches} batches {drains:.3} s = {:.2} % of the pass, {claims} claims \
             {claimed:.3} s = {:.2} %, hashes {reads:.3} s = {:.2} %; writer's CPU {writer:.2} s = {:.2} % of the pass, \
             {:.2} % of all CPU ({cpu:.1} s); {} MB written",
            figures.drained as f64 / took / 1e9,
            drains / took * 100.0,
            claimed / took * 100.0,
            reads / took * 100.0,
            writer / took * 100.0,
            writer / cpu * 100.0,
            (io_bytes() - written) / 1_000_000,
        );
        (figures.drained as f64 / took, figures.drained as f64 / cpu)
    }

    /// Drains batches of these blocks, one after the other, and says what each costs.
    async fn drains(&self, what: &str, ledger: &Ledger, batches: impl Iterator<Item = Vec<u64>>) {
        self.timed.commits.lock().unwrap().clear();
        let (writer, written, began) = (writer_seconds(), io_bytes(), Instant::now());
        for blocks in batches {
            let mut batch = Batch::default();
            for block in blocks {
                let hash = BlockHash::of(&block.to_le_bytes());
                let extent =
                    Extent::between(BlockIndex(block).start(), BlockIndex(block + 1).start()).unwrap();
                batch.add(extent, [(BlockIndex(block), hash)], PassFigures::default());
            }
            ledger.drain(batch, None).await.unwrap();
        }
        let took = began.elapsed();
        let mut times: Vec<_> = self.timed.commits.lock().unwrap().iter().map(|(time, _)| *time).collect();
        times.sort_unstable();
        let count = times.len();
        println!(
            "  {what}: {count} commits, median {:.1?}, mean {:.1?}, longest {:.1?}; writer's CPU {:.1} ms each, \
             {} KB written each; all {took:.1?}",
            times[count / 2],
            times.iter().sum::<Duration>() / count as u32,
            times[count - 1],
            (writer_seconds() - writer) * 1000.0 / count as f64,
            (io_bytes() - written) / 1000 / count as u64,
        );
    }
}

fn known(size: Length, blocks: impl Iterator<Item = u64>) -> Changed {
    let extents = blocks.filter_map(|block| Extent::new(BlockIndex(block).start(), Length(BLOCK)));
    Changed::Known(ExtentSet::of(size, extents))
}

async fn nothing_pending(ledger: &Ledger) {
    let mut batch = Batch::default();
    batch.add(Extent::whole(ledger.size()).unwrap(), [], PassFigures::default());
    ledger.drain(batch, None).await.unwrap();
}

fn say(what: &str, began: Instant, cpu: f64) {
    println!(
        "{what}: {:.3} s ({:.2} s of CPU), {}",
        began.elapsed().as_secs_f64(),
        cpu_seconds("self") - cpu,
        memory()
    );
}

fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    format!("RSS {} MiB, peak {} MiB", mib("VmRSS"), mib("VmHWM"))
}

/// From here on the peak is counted again.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// User and system time; ticks are hundredths.
fn cpu_seconds(of: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{of}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn writer_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_writer = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap().trim() == "store-writer";
    let writers = tasks.filter(is_writer);
    writers
        .map(|task| cpu_seconds(&format!("self/task/{}", task.file_name().unwrap().to_str().unwrap())))
        .sum()
}

fn io_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

/// Numbers below `below`, scattered, none twice: a step that has no factor in common with it.
fn shuffled(below: u64) -> impl Iterator<Item = u64> {
    (0..below).map(move |at| at * 7_368_787 % below)
}

async fn huge(bench: &Bench) {
    println!("64 TiB, {EXTENTS} scattered blocks");
    let disk = bench.disk("huge", HUGE).await;
    let ledger = bench.ledger(disk).await;
    nothing_pending(&ledger).await;
    let every = blocks_in(HUGE) / EXTENTS;
    forget_peak();
    let changed = bench.advance(&ledger, "in order", (0..EXTENTS).map(|at| at * every)).await;
    let began = Instant::now();
    println!("  counting {} extents: {:.1?}", ledger.pending_extents(), began.elapsed());
    bench.pass("scattered pass", &ledger, changed).await;
    println!("  {}", memory());
    drop(ledger);
    let ledger = bench.ledger(disk).await;
    nothing_pending(&ledger).await;
    forget_peak();
    bench.advance(&ledger, "in any order", shuffled(EXTENTS).map(|at| at * every + 7)).await;
    let every = blocks_in(HUGE) / 1000;
    let thousands = (0..10).map(|at| (0..1000).map(|block| block * every + at * 64).collect());
    bench.drains("1,000 blocks all over the disk a batch", &ledger, thousands).await;
    let many = (0..10).map(|at| (0..20_000).map(|n| at * 3000 * 16_384 + n * 2_400).collect());
    bench.drains("20,000 blocks over 3,000 GiB a batch", &ledger, many).await;
    bench.advance(&ledger, "in order, again", (0..EXTENTS).map(|at| at * every + 9)).await;
    println!("  {}", memory());
}

async fn large(bench: &Bench) {
    println!("1 TiB, every block with its hash");
    let disk = bench.disk("large", LARGE).await;
    let ledger = bench.ledger(disk).await;
    let blocks = blocks_in(LARGE);
    let batch = |at: u64, every: u64, count: u64| (0..count).map(|n| (at + n) * every).collect::<Vec<_>>();
    let full = (0..blocks / 16_384).map(|at| batch(at * 16_384, 1, 16_384));
    bench.drains("full pass, 16,384 hashes a batch", &ledger, full).await;
    for (what, every, count) in [("1 %", 101, 20_000), ("0.1 %", 1009, 2_000)] {
        bench.advance(&ledger, what, (0..blocks / every).map(|at| at * every)).await;
        let batches = (0..blocks / every / count).map(|at| batch(at * count, every, count));
        bench.drains(&format!("{what} scattered, {count} hashes a batch"), &ledger, batches.take(8)).await;
    }
    nothing_pending(&ledger).await;
    let began = Instant::now();
    bench.store.compact_manifest(disk).await.unwrap();
    println!("  compaction what is recent of it: {:.1?}", began.elapsed());
    for (what, every) in [("1 %, once more", 101), ("20 %", 5)] {
        let changed = bench.advance(&ledger, what, (0..blocks / every).map(|at| at * every)).await;
        let began = Instant::now();
        let window = 4096 * every;
        for at in 0..20 {
            let blocks = (at * window..(at + 1) * window).step_by(every as usize);
            let spans: Vec<_> = blocks.map(|block| block..block + 1).collect();
            bench.store.hashes(disk, &spans).await.unwrap();
        }
        println!("  hashes of a window of 4,096 blocks, {what}: {:.1?}", began.elapsed() / 20);
        bench.pass(&format!("pass, {what}"), &ledger, changed).await;
    }
    let ledger = bench.disk("fresh", LARGE).await;
    let ledger = bench.ledger(ledger).await;
    let first = Changed::Unknown("first".to_owned());
    ledger.advance(ChangeMark("full".to_owned()), &first).await.unwrap();
    bench.pass("full pass", &ledger, first).await;
    println!("  {}", memory());
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let made = arguments.next().map(PathBuf::from);
    let seconds = arguments.next().map_or(4, |text| text.parse().unwrap());
    let dir = made
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("warmd-scale-{}", std::process::id())));
    let bench = Bench::open(&dir, seconds);
    huge(&bench).await;
    large(&bench).await;
    bench.store.close().await.unwrap();
    println!("state: {} MB", fs::metadata(bench.store.file()).unwrap().len() / 1_000_000);
    if made.is_none() {
        fs::remove_dir_all(dir).unwrap();
    }
}
