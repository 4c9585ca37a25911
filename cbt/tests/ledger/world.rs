//! A guest, its source, a target, a store and a driver that acts at the worst moments.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
    sync::Arc,
    time::Duration,
};

use warmd_cbt::{
    buffer::BufferPool,
    disk::ReadDisk,
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    manifest::{BlockHash, RootHasher},
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::LedgerStore,
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Extent, Length, Offset, blocks_in},
    verify::{VerifyJob, VerifyPart, compare, manifest_root, readback},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk, MemoryStore, Random};

use crate::watch::{DISK, Violations, watch};

/// The count of each event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passes: u64,
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    pub(crate) stopped: u64,
    pub(crate) abandoned: u64,
    pub(crate) crashes: u64,
    pub(crate) unknown: u64,
    pub(crate) advance_failed: u64,
    pub(crate) skipped: u64,
    pub(crate) zeroed: u64,
    pub(crate) commits: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passes += other.passes;
        self.finished += other.finished;
        self.failed += other.failed;
        self.stopped += other.stopped;
        self.abandoned += other.abandoned;
        self.crashes += other.crashes;
        self.unknown += other.unknown;
        self.advance_failed += other.advance_failed;
        self.skipped += other.skipped;
        self.zeroed += other.zeroed;
        self.commits += other.commits;
    }
}

/// A mark that the source still knows.
struct Mark {
    content: Vec<u64>,
    written_since: BTreeSet<u64>,
}

pub(crate) struct LedgerWorld {
    random: Random,
    size: Length,
    guest: Vec<u64>,
    history: Vec<Vec<u64>>,
    marks: BTreeMap<String, Mark>,
    faults: Faults,
    target: Arc<MemoryDisk>,
    store: Arc<MemoryStore>,
    ledger: Option<Arc<Ledger>>,
    violations: Violations,
    tally: Tally,
}

impl LedgerWorld {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let blocks = if random.percent(2) { 50 + random.below(150) } else { 4 + random.below(16) };
        let short = if random.percent(50) { 512 * random.below(128) } else { 0 };
        let size = Length(blocks * BLOCK - short.min(BLOCK - 512));
        let faults = Faults::default();
        let target = Arc::new(MemoryDisk::new("target", size, faults.clone(), random.draw()));
        let store = Arc::new(MemoryStore::new(faults.clone(), random.draw()));
        let reads_as_zeroes = random.percent(50);
        if !reads_as_zeroes {
            for block in 0..blocks {
                target.set_fill(block, random.below(3));
            }
        }
        store.create(DISK, size, &Ledger::initial_rows(size, reads_as_zeroes));
        let violations = watch(&target, &store);
        let guest: Vec<u64> = (0..blocks).map(|_| random.below(4).saturating_sub(1) * 11).collect();
        let history = guest.iter().map(|fill| vec![0, *fill]).collect();
        let (marks, tally) = (BTreeMap::new(), Tally::default());
        Self { random, size, guest, history, marks, faults, target, store, ledger: None, violations, tally }
    }

    /// Runs for a while, then rests and is checked.
    pub(crate) async fn live(mut self) -> Result<Tally, String> {
        let steps = 4 + self.random.below(12);
        for _ in 0..steps {
            self.step().await?;
        }
        self.faults.clear();
        if self.random.percent(50) {
            self.guest_writes();
        }
        self.ledger().await;
        let anchor = self.advance().await;
        if !anchor {
            return Err("the final advance failed without a fault".to_owned());
        }
        let ledger = self.ledger().await;
        let outcome = run_pass(self.job(&ledger, StopSignal::new())).await;
        match outcome {
            Ok(outcome) if outcome.finished => {}
            other => return Err(format!("the final pass did not finish: {other:?}")),
        }
        self.check(&ledger).await?;
        self.tally.commits = self.faults.seen(DiskEvent::Commit);
        let figures = self.store.view(DISK).ok_or("no disk")?.figures;
        self.tally.skipped = figures.skipped / BLOCK;
        self.tally.zeroed = figures.zeroed / BLOCK;
        Ok(self.tally)
    }

    async fn step(&mut self) -> Result<(), String> {
        if self.random.percent(60) {
            self.guest_writes();
        }
        if self.random.percent(40) {
            self.add_faults();
        }
        let ledger = self.ledger().await;
        if (ledger.anchor().is_none() || self.random.percent(60)) && !self.advance().await {
            self.tally.advance_failed += 1;
        }
        let ledger = self.ledger().await;
        if ledger.anchor().is_some() && self.random.percent(85) {
            self.pass(&ledger).await;
        }
        drop(ledger);
        if self.random.percent(10) {
            self.faults.crash();
        }
        if self.random.percent(20) {
            // A new owner of the migration, in the same process: no request of the old one is in flight.
            self.settle().await;
            self.ledger = None;
        }
        self.violations.first().map_or(Ok(()), Err)
    }

    fn guest_writes(&mut self) {
        for _ in 0..=self.random.below(self.guest.len() as u64) {
            let block = self.random.below(self.guest.len() as u64) as usize;
            let earlier = &self.history[block];
            let fill = match self.random.below(10) {
                0..2 => 0,
                2..6 => earlier[self.random.below(earlier.len() as u64) as usize],
                _ => self.random.draw() | 1,
            };
            self.guest[block] = fill;
            self.history[block].push(fill);
            for mark in self.marks.values_mut() {
                mark.written_since.insert(block as u64);
            }
        }
    }

    fn add_faults(&mut self) {
        let events = [
            DiskEvent::Read,
            DiskEvent::Allocation,
            DiskEvent::Write,
            DiskEvent::Flush,
            DiskEvent::Hashes,
            DiskEvent::Commit,
        ];
        for _ in 0..=self.random.below(2) {
            let event = events[self.random.below(events.len() as u64) as usize];
            let within = if matches!(event, DiskEvent::Read | DiskEvent::Write) { 30 } else { 5 };
            let fault = if self.random.percent(50) { DiskFault::Fail } else { DiskFault::Crash };
            self.faults.add(event, self.random.below(within), fault);
        }
    }

    /// The running process's ledger; a new process's if the last one is dead.
    async fn ledger(&mut self) -> Arc<Ledger> {
        if self.faults.is_dead() {
            // First every task of the dead process must have failed; in a real process it could not run on.
            self.settle().await;
            self.target.crash();
            self.faults.revive();
            self.tally.crashes += 1;
            self.ledger = None;
        }
        if let Some(ledger) = &self.ledger {
            return Arc::clone(ledger);
        }
        let store: Arc<dyn LedgerStore> = self.store.clone();
        let ledger = Arc::new(Ledger::load(store, DISK).await.expect("loading fails only by a fault"));
        self.ledger = Some(Arc::clone(&ledger));
        ledger
    }

    /// A new snapshot, and what changed since the ledger's anchor.
    async fn advance(&mut self) -> bool {
        let ledger = self.ledger().await;
        let known = ledger.anchor().and_then(|anchor| self.marks.get(&anchor.0));
        let written = known.map(|mark| mark.written_since.clone());
        let changed = match written {
            Some(written) if !self.random.percent(15) => {
                let extents = self.as_extents(&written);
                Changed::Known(ExtentSet::of(self.size, extents))
            }
            _ => {
                self.tally.unknown += 1;
                Changed::Unknown("lost".to_owned())
            }
        };
        let name = format!("mark {}", self.marks.len());
        let mark = Mark { content: self.guest.clone(), written_since: BTreeSet::new() };
        self.marks.insert(name.clone(), mark);
        ledger.advance(ChangeMark(name), &changed).await.is_ok()
    }

    /// As a source reports it: in any order, overlapping, not aligned, perhaps too much.
    fn as_extents(&mut self, blocks: &BTreeSet<u64>) -> Vec<Extent> {
        let mut extents = Vec::new();
        for block in blocks {
            let len = [BLOCK, 4096, 512, 3 * BLOCK][self.random.below(4) as usize];
            let from = block * BLOCK + self.random.below(BLOCK / 512) * 512 % (BLOCK - 512);
            let from = from.min(self.size.0 - 1);
            extents.extend(Extent::new(Offset(from), Length(len)));
            let at = self.random.below(extents.len() as u64) as usize;
            let last = extents.len() - 1;
            extents.swap(at, last);
        }
        extents
    }

    async fn pass(&mut self, ledger: &Arc<Ledger>) {
        let stop = StopSignal::new();
        let job = self.job(ledger, stop.clone());
        self.tally.passes += 1;
        let patience = self.random.below(80);
        let (stops, abandons) = (self.random.percent(15), self.random.percent(15));
        let mut pass = Box::pin(run_pass(job));
        if stops || abandons {
            tokio::select! {
                biased;
                outcome = &mut pass => return self.ended(&outcome),
                () = yields(patience) => {}
            }
            if abandons {
                self.tally.abandoned += 1;
                return;
            }
            self.tally.stopped += 1;
            stop.stop();
        }
        let outcome = pass.await;
        self.ended(&outcome);
    }

    fn ended(
        &mut self,
        outcome: &Result<warmd_cbt::transfer::DiskPassResult, warmd_cbt::transfer::PassError>,
    ) {
        match outcome {
            Ok(outcome) => self.tally.finished += u64::from(outcome.finished),
            Err(_) => self.tally.failed += 1,
        }
    }

    fn job(&mut self, ledger: &Arc<Ledger>, stop: StopSignal) -> PassJob {
        let anchor = ledger.anchor().expect("a pass needs an anchor");
        let source = Arc::new(self.snapshot(&anchor));
        source.set_knows_holes(self.random.percent(80));
        let chunk = (1 + self.random.below(4)) * BLOCK;
        let settings = TransferSettings {
            buffers: 1 + self.random.below(6) as usize,
            chunk: chunk as usize,
            reads_in_flight: 1 + self.random.below(6) as usize,
            writes_in_flight: 1 + self.random.below(6) as usize,
            batch_bytes: (1 + self.random.below(12)) * BLOCK,
            batch_time: if self.random.percent(20) { Duration::ZERO } else { Duration::from_secs(2) },
            window: (1 + self.random.below(20)) * BLOCK,
            zero_request: (1 + self.random.below(4)) * BLOCK,
            read_latency_factor: self.random.percent(50).then_some(2.0),
        };
        let pool = BufferPool::new(1 + self.random.below(6) as usize, chunk as usize);
        PassJob {
            ledger: Arc::clone(ledger),
            source,
            target: self.target.clone(),
            pool,
            settings,
            pass: Some(1),
            progress: Arc::new(PassProgress::default()),
            limits: DiskShares::default(),
            baseline: Arc::default(),
            stop,
        }
    }

    fn snapshot(&mut self, mark: &ChangeMark) -> MemoryDisk {
        let source = MemoryDisk::new("source", self.size, self.faults.clone(), self.random.draw());
        for (block, fill) in self.marks[&mark.0].content.iter().enumerate() {
            source.set_fill(block as u64, *fill);
        }
        source
    }

    /// Waits until no task of an abandoned pass or a dead process is left.
    async fn settle(&self) {
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            yields(1).await;
        }
    }

    async fn check(&mut self, ledger: &Arc<Ledger>) -> Result<(), String> {
        if let Some(violation) = self.violations.first() {
            return Err(violation);
        }
        let anchor = ledger.anchor().ok_or("no anchor")?;
        let source = Arc::new(self.snapshot(&anchor));
        if source.contents() != self.target.contents() {
            return Err("the target is not the final snapshot".to_owned());
        }
        let view = self.store.view(DISK).ok_or("no disk")?;
        if !view.pending.is_empty() || !view.trusted.is_empty() {
            return Err("the store has something pending".to_owned());
        }
        let hashes = BlockHash::of_blocks(&source.contents());
        if view.hashes != hashes {
            return Err("the manifest is not the snapshot's".to_owned());
        }
        for block in 0..blocks_in(self.size) {
            if self.target.versions(block).iter().any(|version| *version != hashes[block as usize]) {
                return Err(format!("block {block} is not durable"));
            }
        }
        let mut root = RootHasher::new(self.size);
        root.update(&hashes);
        let root = root.finish();
        let stored = manifest_root(&*self.store, DISK, self.size).await.map_err(|error| error.to_string())?;
        if root.as_ref() != Some(&stored) {
            return Err("the manifest's root is wrong".to_owned());
        }
        let target: Arc<dyn ReadDisk> = self.target.clone();
        let verify = |ledger: &Arc<Ledger>, trust_holes| VerifyJob {
            ledger: Arc::clone(ledger),
            part: VerifyPart::default(),
            pool: BufferPool::new(2, 2 * BLOCK as usize),
            chunk: 3 * BLOCK as usize,
            in_flight: 4,
            read_latency_factor: None,
            baseline: Arc::default(),
            trust_holes,
            round: 0,
            progress: Arc::default(),
            limits: DiskShares::default(),
            stop: StopSignal::new(),
        };
        let trust = self.random.percent(50);
        let readback = readback(verify(ledger, trust), Arc::clone(&target)).await;
        let compared = compare(verify(ledger, !trust), source, target).await;
        for result in [readback, compared] {
            let result = result.map_err(|error| error.to_string())?;
            if !result.is_equal() || result.checked != self.size || result.root != stored {
                return Err(format!("verification is not content: {result:?}"));
            }
        }
        Ok(())
    }
}

async fn yields(times: u64) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}
