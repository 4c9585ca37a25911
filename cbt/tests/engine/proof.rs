//! Partial and resumed verifications, and the audit of change tracking.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::{Buffer, BufferPool},
    disk::{Allocation, DiskError, ErrorKind, Operation, ReadDisk, WriteDisk},
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::DiskId,
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Extent, Length, Offset},
    verify::{AuditJob, AuditOutcome, VerifyError, VerifyJob, VerifyPart, audit, compare, readback},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk, MemoryStore};

const DISK: DiskId = DiskId(1);
const BLOCKS: u64 = 64;
const SIZE: Length = Length(BLOCKS * BLOCK - 512);

/// A pass that copies all pending blocks.
async fn drain(
    ledger: &Arc<Ledger>,
    source: Arc<dyn ReadDisk>,
    target: Arc<dyn WriteDisk>,
    pool: &BufferPool,
    settings: TransferSettings,
) {
    let job = PassJob {
        ledger: Arc::clone(ledger),
        source,
        target,
        pool: pool.clone(),
        settings,
        pass: None,
        progress: Arc::new(PassProgress::default()),
        limits: DiskShares::default(),
        baseline: Arc::default(),
        stop: StopSignal::new(),
    };
    assert!(run_pass(job).await.unwrap().finished);
}

fn verify_job(
    ledger: &Arc<Ledger>,
    part: VerifyPart,
    pool: &BufferPool,
    chunk: usize,
    in_flight: usize,
) -> VerifyJob {
    VerifyJob {
        ledger: Arc::clone(ledger),
        part,
        pool: pool.clone(),
        chunk,
        in_flight,
        read_latency_factor: None,
        baseline: Arc::default(),
        trust_holes: true,
        round: 0,
        progress: Arc::default(),
        limits: DiskShares::default(),
        stop: StopSignal::new(),
    }
}

struct Bench {
    faults: Faults,
    source: Arc<MemoryDisk>,
    target: Arc<MemoryDisk>,
    ledger: Arc<Ledger>,
    pool: BufferPool,
}

impl Bench {
    /// Every block of the source but those of `holes` has data, and the target has it.
    async fn drained(holes: std::ops::Range<u64>) -> Self {
        let faults = Faults::default();
        let source = Arc::new(MemoryDisk::new("source", SIZE, faults.clone(), 1));
        let target = Arc::new(MemoryDisk::new("target", SIZE, faults.clone(), 2));
        for block in (0..BLOCKS).filter(|block| !holes.contains(block)) {
            source.set_fill(block, block + 1);
        }
        let store = Arc::new(MemoryStore::new(faults.clone(), 3));
        store.create(DISK, SIZE, &Ledger::initial_rows(SIZE, true));
        let ledger = Arc::new(Ledger::load(store, DISK).await.unwrap());
        let pool = BufferPool::new(8, 4 * BLOCK as usize);
        let bench = Self { faults, source, target, ledger, pool };
        bench.advance(&Changed::Unknown("first".into())).await;
        bench.pass().await;
        bench
    }

    async fn advance(&self, changed: &Changed) {
        self.ledger.advance(ChangeMark("mark".into()), changed).await.unwrap();
    }

    async fn pass(&self) {
        let settings = TransferSettings { chunk: 4 * BLOCK as usize, ..TransferSettings::default() };
        drain(&self.ledger, self.source.clone(), self.target.clone(), &self.pool, settings).await;
    }

    fn verify(&self, part: VerifyPart) -> VerifyJob {
        verify_job(&self.ledger, part, &self.pool, 4 * BLOCK as usize, 1)
    }

    fn audit(&self, budget: u64, from: u64) -> AuditJob {
        AuditJob {
            ledger: Arc::clone(&self.ledger),
            source: self.source.clone(),
            budget: Length(budget * BLOCK),
            from: Offset(from * BLOCK),
            round: 0,
            pool: self.pool.clone(),
            chunk: 4 * BLOCK as usize,
            in_flight: 4,
            read_latency_factor: None,
            baseline: Arc::default(),
            limits: DiskShares::default(),
            stop: StopSignal::new(),
        }
    }

    async fn audited(&self, budget: u64, from: u64) -> AuditOutcome {
        audit(self.audit(budget, from)).await
    }
}

fn blocks(first: u64, count: u64) -> Extent {
    Extent::new(Offset(first * BLOCK), Length(count * BLOCK)).unwrap().clip(SIZE).unwrap()
}

fn set(extents: &[Extent]) -> ExtentSet {
    ExtentSet::of(SIZE, extents.iter().copied())
}

#[tokio::test]
async fn only_the_part_is_read_and_only_of_the_part_is_spoken() {
    let bench = Bench::drained(20..30).await;
    let part = [blocks(3, 1), blocks(18, 5), blocks(40, 9), blocks(BLOCKS - 1, 1)];
    let reads = bench.faults.seen(DiskEvent::Read);
    let good = readback(bench.verify(VerifyPart::only(set(&part))), bench.target.clone()).await.unwrap();
    let bytes: u64 = part.iter().map(|extent| extent.len().0).sum();
    assert!(good.is_equal() && good.checked == Length(bytes), "{good:?}");
    // 1 + 2 + 3 + 1 pieces, those in holes cut and left out as the disk likes.
    assert!(bench.faults.seen(DiskEvent::Read) - reads <= 10, "more than the part was read");
    let whole = readback(bench.verify(VerifyPart::default()), bench.target.clone()).await.unwrap();
    assert_eq!(
        (whole.root == good.root, whole.checked),
        (true, SIZE),
        "the root is always the whole manifest's"
    );

    for block in [2, 39, 50] {
        bench.target.set_fill(block, 4711);
    }
    assert!(
        readback(bench.verify(VerifyPart::only(set(&part))), bench.target.clone()).await.unwrap().is_equal()
    );
    bench.target.set_fill(48, 4711);
    let job = || bench.verify(VerifyPart::only(set(&part)));
    let read = readback(job(), bench.target.clone()).await.unwrap();
    let compared = compare(job(), bench.source.clone(), bench.target.clone()).await.unwrap();
    for result in [read, compared] {
        assert_eq!((result.is_equal(), result.mismatched), (false, vec![blocks(48, 1)]));
    }
}

#[tokio::test]
async fn a_verification_goes_on_where_it_was_sure() {
    let bench = Bench::drained(0..0).await;
    bench.faults.add(DiskEvent::Read, 6, DiskFault::Fail);
    for only in [None, Some(Arc::new(set(&[blocks(1, 60)])))] {
        let part = VerifyPart { only, from: Offset(0) };
        let job = bench.verify(part.clone());
        let progress = Arc::clone(&job.progress);
        if part.only.is_none() {
            readback(job, bench.target.clone()).await.unwrap_err();
        } else {
            bench.target.set_fill(33, 4711);
            readback(job, bench.target.clone()).await.unwrap();
        }
        let sure = progress.checked_to.load(Relaxed);
        assert!((BLOCK..=33 * BLOCK).contains(&sure), "{sure}");
        let reads = bench.faults.seen(DiskEvent::Read);
        let job = bench.verify(VerifyPart { from: Offset(sure), ..part.clone() });
        let result = readback(job, bench.target.clone()).await.unwrap();
        assert!(result.finished);
        let all = part.only.map_or(SIZE, |only| only.bytes());
        assert_eq!(result.checked, all, "what the first run checked counts");
        assert!(bench.faults.seen(DiskEvent::Read) - reads < 16, "all of it was read again");
        // The first run's differences lie past the start of the second one.
        assert_eq!(result.is_equal(), all == SIZE, "{result:?}");
    }
}

#[tokio::test]
async fn an_audit_sees_a_change_that_was_not_told() {
    let bench = Bench::drained(20..30).await;
    for (block, fill) in [(5, 4711), (12, 0), (25, 7), (50, 4711)] {
        bench.source.set_fill(block, fill);
    }
    // Block 50 is reported; of the others one changed, one became a hole, and one was a hole.
    bench.advance(&Changed::Known(set(&[blocks(50, 1)]))).await;
    let found = bench.audited(BLOCKS, 0).await;
    assert_eq!(found.mismatched, [blocks(5, 1), blocks(12, 1), blocks(25, 1)]);
    assert_eq!((found.mismatched_bytes.0, found.finished), (3 * BLOCK, true));
    assert_eq!(found.checked + found.holes + Length(BLOCK), SIZE, "all but what is pending");
}

#[tokio::test]
async fn a_truthful_source_passes_whatever_it_told() {
    let bench = Bench::drained(20..30).await;
    let told = [blocks(0, 3), blocks(22, 1), blocks(60, 4)];
    for extent in told {
        extent.blocks().for_each(|block| bench.source.set_fill(block, 99 + block));
    }
    bench.advance(&Changed::Known(set(&told))).await;
    let found = bench.audited(BLOCKS, 7).await;
    assert_eq!(found.mismatched, []);
    assert_eq!(found.checked + found.holes + set(&told).bytes(), SIZE);
    // Without the source's list of changes there is no audit.
    bench.advance(&Changed::Unknown("lost".into())).await;
    assert_eq!(bench.audited(BLOCKS, 0).await.checked, Length(0));
}

#[tokio::test]
async fn audit_walk_covers_the_disk_within_its_budget_and_wraps() {
    let bench = Bench::drained(0..0).await;
    bench.advance(&Changed::Known(set(&[blocks(10, 5)]))).await;
    bench.source.set_fill(BLOCKS - 1, 4711);
    let (mut from, mut seen, mut rounds) = (0, 0, 0);
    loop {
        let before = bench.faults.seen(DiskEvent::Read);
        let found = bench.audited(8, from).await;
        rounds += 1;
        assert!(
            found.checked.0 <= 8 * BLOCK && bench.faults.seen(DiskEvent::Read) - before <= 8,
            "{found:?}"
        );
        seen += found.checked.0;
        from = found.next.0 / BLOCK;
        if !found.mismatched.is_empty() {
            break;
        }
        assert!(rounds < 20, "the last block was never looked at");
    }
    assert_eq!((rounds, seen), (8, 64 * BLOCK - 512), "each block once, then some again");
    assert!(from < 8, "it goes on from the disk's start: {from}");
}

#[tokio::test]
async fn audit_of_holes_reads_one_in_sixteen_others_each_round() {
    let bench = Bench::drained(0..BLOCKS).await;
    bench.advance(&Changed::Known(set(&[]))).await;
    // As passes are numbered for each of so many disks.
    for (disks, disk) in (1..=5).flat_map(|disks| (0..disks).map(move |disk| (disks, disk))) {
        let mut read = ExtentSet::new(SIZE);
        for round in (disk..disk + 64 * disks).step_by(disks as usize) {
            let source = Arc::new(Liar {
                disk: Arc::clone(&bench.source),
                holes: blocks(0, BLOCKS),
                seen: Mutex::default(),
            });
            let found = audit(AuditJob { round, source: source.clone(), ..bench.audit(4, 0) }).await;
            assert_eq!((found.checked.0.div_ceil(BLOCK), found.mismatched), (4, vec![]));
            source.seen.lock().unwrap().iter().for_each(|extent| read.insert(*extent));
        }
        let rest = BLOCKS - read.bytes().0.div_ceil(BLOCK);
        assert!(rest <= BLOCKS / 8, "disk {disk} of {disks}: {rest} holes were never read");
    }
}

#[tokio::test]
async fn a_hole_that_lies_is_found() {
    let bench = Bench::drained(16..32).await;
    bench.advance(&Changed::Known(set(&[]))).await;
    bench.source.set_fill(19, 4711);
    let liar =
        Arc::new(Liar { disk: Arc::clone(&bench.source), holes: blocks(16, 16), seen: Mutex::default() });
    let mut found = Vec::new();
    for round in (0..128).step_by(2) {
        let outcome = audit(AuditJob { round, source: liar.clone(), ..bench.audit(BLOCKS, 0) }).await;
        found.extend(outcome.mismatched);
    }
    assert!(!found.is_empty() && found.iter().all(|extent| *extent == blocks(19, 1)), "{found:?}");
}

#[tokio::test]
async fn audit_that_fails_or_stops_does_not_blame_tracking() {
    let bench = Bench::drained(0..0).await;
    bench.advance(&Changed::Known(set(&[]))).await;
    bench.faults.add(DiskEvent::Read, 1, DiskFault::Fail);
    let found = audit(bench.audit(8, 0)).await;
    assert!(matches!(found.failed, Some(VerifyError::Source(_))) && !found.finished, "{found:?}");
    assert_eq!(found.mismatched, []);
    let job = bench.audit(8, 3);
    job.stop.stop();
    let found = audit(job).await;
    assert_eq!((found.finished, found.next, found.mismatched), (false, Offset(3 * BLOCK), vec![]));
}

#[tokio::test]
async fn bad_sector_is_skipped_and_earlier_findings_count() {
    let bench = Bench::drained(0..0).await;
    bench.advance(&Changed::Known(set(&[]))).await;
    bench.source.set_fill(50, 4711);
    bench.source.set_fill(21, 4711);
    // The walk wraps: block 50 lies before these sectors in it, block 21 behind.
    for at in [53, 10] {
        let source = Arc::new(Bad { disk: Arc::clone(&bench.source), at: Some(blocks(at, 1)) });
        let job = AuditJob { source: source.clone(), in_flight: 1, ..bench.audit(BLOCKS, 48) };
        let found = audit(job).await;
        assert!(matches!(found.failed, Some(VerifyError::Source(_))) && !found.finished, "{found:?}");
        assert_eq!(found.mismatched, [blocks(50, 1)], "sector {at}");
        assert!(found.next > Offset(at * BLOCK) && found.next < Offset((at + 8) * BLOCK), "{found:?}");
        let job = AuditJob { source, in_flight: 1, ..bench.audit(4, found.next.0 / BLOCK) };
        let next = audit(job).await;
        assert!(next.failed.is_none() && next.finished, "it hangs at sector {at}: {next:?}");
    }
    // The same where the source cannot even report holes; blocks chosen before are read.
    let source = Arc::new(Bad { disk: Arc::clone(&bench.source), at: None });
    let found = audit(AuditJob { source, ..bench.audit(BLOCKS, 40) }).await;
    assert!(matches!(found.failed, Some(VerifyError::Source(_))), "{found:?}");
    assert_eq!(found.mismatched, [blocks(50, 1)]);
    assert_eq!(found.next, Offset(4 * BLOCK), "a chunk past the place");
}

#[tokio::test]
async fn stop_during_a_hanging_read_returns_and_loses_nothing() {
    let bench = Bench::drained(0..0).await;
    bench.advance(&Changed::Known(set(&[]))).await;
    bench.source.set_fill(50, 4711);
    let source = Arc::new(Hanging { disk: Arc::clone(&bench.source), at: blocks(58, 1) });
    let job = AuditJob { source, in_flight: 1, ..bench.audit(BLOCKS, 48) };
    let stop = job.stop.clone();
    let auditing = tokio::spawn(audit(job));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stop.stop();
    let found = tokio::time::timeout(std::time::Duration::from_secs(20), auditing).await.unwrap().unwrap();
    assert_eq!((found.finished, found.mismatched), (false, vec![blocks(50, 1)]));
    // A difference is not skipped: a resumed verification finds it again.
    assert_eq!(found.next, Offset(50 * BLOCK));
}

#[tokio::test]
async fn a_compare_tells_which_blocks_the_source_kept_to_itself() {
    let bench = Bench::drained(20..30).await;
    bench.source.set_fill(7, 4711);
    bench.target.set_fill(9, 4711);
    let job = bench.verify(VerifyPart::default());
    let progress = Arc::clone(&job.progress);
    let found = compare(job, bench.source.clone(), bench.target.clone()).await.unwrap();
    assert_eq!(found.mismatched, [blocks(7, 1), blocks(9, 1)]);
    assert_eq!(progress.take_unreported(), [blocks(7, 1)], "block 9 is the target's own");
    assert_eq!(progress.take_wrong(SIZE).len(), 2);
    let job = bench.verify(VerifyPart::default());
    let progress = Arc::clone(&job.progress);
    readback(job, bench.target.clone()).await.unwrap();
    assert_eq!((progress.take_unreported(), progress.take_wrong(SIZE)), (vec![], vec![blocks(9, 1)]));
}

/// Cannot read one place; nor report holes in the disk's first block if there is none.
struct Bad {
    disk: Arc<MemoryDisk>,
    at: Option<Extent>,
}

#[async_trait]
impl ReadDisk for Bad {
    fn size(&self) -> Length {
        self.disk.size()
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64));
        if extent.zip(self.at).is_some_and(|(read, bad)| read.intersect(&bad).is_some()) {
            return Err(DiskError::new(ErrorKind::Media, Operation::Read, "bad", extent, "a bad sector"));
        }
        self.disk.read(at, buffer).await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        if self.at.is_none() && extent.start() == Offset(0) {
            let cause = "a bad sector";
            return Err(DiskError::new(ErrorKind::Media, Operation::Allocation, "bad", Some(extent), cause));
        }
        Ok(vec![Allocation { extent, zero: false }])
    }
}

/// Never answers at one place.
struct Hanging {
    disk: Arc<MemoryDisk>,
    at: Extent,
}

#[async_trait]
impl ReadDisk for Hanging {
    fn size(&self) -> Length {
        self.disk.size()
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        if Extent::new(at, Length(buffer.len() as u64)).is_some_and(|read| read.intersect(&self.at).is_some())
        {
            std::future::pending::<()>().await;
        }
        self.disk.read(at, buffer).await
    }
}

/// Calls these blocks holes whatever their content, and all others data; records the reads.
struct Liar {
    disk: Arc<MemoryDisk>,
    holes: Extent,
    seen: Mutex<Vec<Extent>>,
}

#[async_trait]
impl ReadDisk for Liar {
    fn size(&self) -> Length {
        self.disk.size()
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        self.seen.lock().unwrap().extend(Extent::new(at, Length(buffer.len() as u64)));
        self.disk.read(at, buffer).await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        let first = extent.split(BLOCK).next().unwrap();
        Ok(vec![Allocation { extent: first, zero: first.intersect(&self.holes).is_some() }])
    }
}

/// A disk of holes and a few blocks of data, which counts its queries. It answers like NBD: 4 GiB at a
/// time at the most.
struct Thin {
    size: Length,
    data: Vec<u64>,
    /// Blocks that it calls holes, and that have data.
    lies: Vec<u64>,
    questions: AtomicU64,
    read: AtomicU64,
}

impl Thin {
    const ANSWER: u64 = 4 << 30;

    fn new(size: Length, data: &[u64], lies: &[u64]) -> Arc<Self> {
        let (data, lies) = (data.to_vec(), lies.to_vec());
        Arc::new(Self { size, data, lies, questions: AtomicU64::new(0), read: AtomicU64::new(0) })
    }

    fn asked(&self) -> (u64, u64) {
        (self.questions.load(Relaxed), self.read.load(Relaxed))
    }
}

#[async_trait]
impl ReadDisk for Thin {
    fn size(&self) -> Length {
        self.size
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64)).unwrap();
        self.read.fetch_add(extent.len().0, Relaxed);
        for (block, bytes) in extent.blocks().zip(buffer.chunks_mut(BLOCK as usize)) {
            bytes.fill(u8::from(self.data.contains(&block) || self.lies.contains(&block)));
        }
        Ok(buffer)
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        self.questions.fetch_add(1, Relaxed);
        let extent = extent.clip(Length(extent.start().0 + Self::ANSWER)).unwrap();
        let mut runs = Vec::new();
        let mut at = extent.start();
        for data in self.data.iter().filter_map(|block| blocks_of(*block, 1).intersect(&extent)) {
            runs.extend(Extent::between(at, data.start()).map(|extent| Allocation { extent, zero: true }));
            runs.push(Allocation { extent: data, zero: false });
            at = data.end();
        }
        runs.extend(Extent::between(at, extent.end()).map(|extent| Allocation { extent, zero: true }));
        Ok(runs)
    }
}

#[async_trait]
impl WriteDisk for Thin {
    async fn write(&self, _: Offset, buffer: Buffer, _: std::ops::Range<usize>) -> Result<Buffer, DiskError> {
        Ok(buffer)
    }

    async fn write_zeroes(&self, _: Extent) -> Result<(), DiskError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

fn blocks_of(first: u64, count: u64) -> Extent {
    Extent::new(Offset(first * BLOCK), Length(count * BLOCK)).unwrap()
}

/// A terabyte with three blocks of data, drained to the target; and the job that verifies it.
async fn thin(source: &Arc<Thin>, target: &Arc<Thin>) -> VerifyJob {
    let size = source.size;
    let store = Arc::new(MemoryStore::new(Faults::default(), 3));
    store.create(DISK, size, &Ledger::initial_rows(size, true));
    let ledger = Arc::new(Ledger::load(store, DISK).await.unwrap());
    ledger.advance(ChangeMark("mark".into()), &Changed::Unknown("first".into())).await.unwrap();
    let pool = BufferPool::new(8, 8 * BLOCK as usize);
    drain(&ledger, source.clone(), target.clone(), &pool, TransferSettings::default()).await;
    for side in [source, target] {
        side.questions.store(0, Relaxed);
        side.read.store(0, Relaxed);
    }
    verify_job(&ledger, VerifyPart::default(), &pool, 8 * BLOCK as usize, 16)
}

const THIN: Length = Length(1 << 40);
const DATA: [u64; 3] = [0, 1 << 20, (1 << 24) - 1];

#[tokio::test]
async fn holes_on_both_sides_cost_few_queries_and_almost_no_reads() {
    let (source, target) = (Thin::new(THIN, &DATA, &[]), Thin::new(THIN, &DATA, &[]));
    let job = thin(&source, &target).await;
    let most = THIN.0 / Thin::ANSWER + 2;
    let read = readback(job.clone(), target.clone()).await.unwrap();
    assert!(read.is_equal() && read.checked == THIN, "{read:?}");
    let (questions, bytes) = target.asked();
    assert!(questions <= most && bytes == 3 * BLOCK, "{questions} questions, {bytes} bytes read");

    let job = VerifyJob { progress: Arc::default(), ..job };
    let compared = compare(job, source.clone(), target.clone()).await.unwrap();
    assert!(compared.is_equal() && compared.checked == THIN, "{compared:?}");
    // One block of each GiB is read.
    let looks = (THIN.0 >> 30) * BLOCK + 3 * BLOCK;
    for (side, before) in [(&source, (0, 0)), (&target, (questions, bytes))] {
        let (questions, bytes) = side.asked();
        let (questions, bytes) = (questions - before.0, bytes - before.1);
        assert!(questions <= most && bytes <= looks, "{questions} questions, {bytes} bytes read");
        assert!(bytes > looks / 2, "hardly a hole was looked into: {bytes}");
    }
}

#[tokio::test]
async fn source_hole_is_not_read_when_the_target_reports_none() {
    let size = Length(64 << 20);
    let (source, target) = (Thin::new(size, &[3], &[]), Thin::new(size, &(0..1024).collect::<Vec<_>>(), &[]));
    let zeroes = Thin::new(size, &[3], &[]);
    let job = thin(&source, &zeroes).await;
    let compared = compare(job, source.clone(), target).await.unwrap();
    assert_eq!(compared.mismatched_bytes.0, 1023 * BLOCK, "what the target holds too much");
    assert!(source.asked().1 <= 2 * 8 * BLOCK, "{} bytes read of it", source.asked().1);
}

#[tokio::test]
async fn a_side_that_calls_data_holes_is_found_out_by_looks_into_them() {
    let size = Length(4 << 30);
    // All of one GiB: any block that the comparison reads there shows it.
    let lies: Vec<u64> = (1 << 14..2 << 14).collect();
    let (honest, lying) = (Thin::new(size, &DATA[..1], &[]), Thin::new(size, &DATA[..1], &lies));
    for (source, target) in [(&honest, &lying), (&lying, &honest)] {
        let job = thin(source, target).await;
        for round in 0..4 {
            let job = VerifyJob { round, progress: Arc::default(), ..job.clone() };
            let progress = Arc::clone(&job.progress);
            let compared = compare(job, source.clone(), target.clone()).await.unwrap();
            assert_eq!(compared.mismatched_bytes.0, BLOCK, "{compared:?}");
            assert_eq!(progress.take_unreported().is_empty(), Arc::ptr_eq(target, &lying));
        }
    }
}
