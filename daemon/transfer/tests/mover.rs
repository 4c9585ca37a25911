//! A pass by messages alone: the order and every change go through JSON, as they would between hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by them")]

use std::{
    num::NonZeroU64,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use serde_json::{from_str, to_string};
use warmd_cbt::{
    batch::Batch,
    buffer::BufferPool,
    disk::Operation,
    extents::ExtentSet,
    ledger::Ledger,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{DiskId, LedgerStore, PassFigures, StoreError, StoreErrorKind},
    transfer::{PassError, TransferSettings},
    units::{BLOCK, BlockIndex, Extent, Length, Offset},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk, MemoryStore, Random};
use warmd_core::{
    clock,
    model::{
        id::{DiskKey, MigrationId},
        view::PassKind,
    },
    pass::{
        BlockChange, CopySide, DiskOrder, LedgerChange, PassEvent, PassFailureCause, PassFault, PassLabels,
        PassLedger, PassObserver, PassOrder, PassResult, RateCeiling,
    },
};
use warmd_transfer::{
    drain::{DrainEnd, OpenDisk, drain, outcome, shares_within},
    ledger_keeper::LedgerKeeper,
    ordered_ledger::replica,
};

const DISK: DiskId = DiskId(7);
const BLOCKS: u64 = 64;
const SIZE: Length = Length(BLOCKS * BLOCK - 512);
const RECORD: i64 = 3;

struct World {
    faults: Faults,
    source: Arc<MemoryDisk>,
    target: Arc<MemoryDisk>,
    store: Arc<MemoryStore>,
    ledger: Arc<Ledger>,
    pool: BufferPool,
}

/// The state behind a connection: changes arrive as text.
struct Connection(LedgerKeeper);

#[async_trait]
impl PassLedger for Connection {
    async fn commit(&self, change: LedgerChange) -> Result<(), StoreError> {
        let sent = to_string(&PassEvent::Change(change)).unwrap();
        let PassEvent::Change(change) = from_str(&sent).unwrap() else { panic!("{sent}") };
        self.0.commit(change).await
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        self.0.hashes(disk, spans).await
    }
}

/// Keeps the events.
#[derive(Default)]
struct Recorder(Mutex<Vec<PassEvent>>);

#[async_trait]
impl PassObserver for Recorder {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        self.0.lock().unwrap().push(event.clone());
        Ok(())
    }
}

impl World {
    /// Every block of the source has data; all of it is pending.
    async fn new(seed: u64) -> Self {
        let faults = Faults::default();
        let source = Arc::new(MemoryDisk::new("source", SIZE, faults.clone(), seed));
        let target = Arc::new(MemoryDisk::new("target", SIZE, faults.clone(), seed + 1));
        for block in 0..BLOCKS {
            source.set_fill(block, block + 1);
        }
        let store = Arc::new(MemoryStore::new(faults.clone(), seed + 2));
        store.create(DISK, SIZE, &Ledger::initial_rows(SIZE, false));
        let ledger = Arc::new(Ledger::load(store.clone(), DISK).await.unwrap());
        let pool = BufferPool::new(8, 4 * BLOCK as usize);
        let world = Self { faults, source, target, store, ledger, pool };
        world.advance(&Changed::Unknown("first".into())).await;
        world
    }

    async fn advance(&self, changed: &Changed) {
        self.ledger.advance(ChangeMark("mark".into()), changed).await.unwrap();
    }

    fn keeper(&self, generation: u64) -> LedgerKeeper {
        LedgerKeeper::new(generation, [(Arc::clone(&self.ledger), Some(RECORD))])
    }

    /// The order of what is pending now, as it arrives.
    async fn order(&self, generation: u64) -> PassOrder {
        let pass = PassLabels {
            migration: MigrationId::generate(),
            plan: "plan".into(),
            vm: "vm".into(),
            kind: PassKind::Delta,
        };
        let disk = DiskOrder {
            key: DiskKey("vda".into()),
            disk: DISK,
            record: Some(RECORD),
            size: SIZE,
            mark: self.ledger.anchor().unwrap(),
            location: "/target".into(),
            pending: self.ledger.pending_bytes().0,
            blocks: Some(self.store.load(DISK).await.unwrap().chunks),
            audit: None,
            latencies: Vec::new(),
        };
        let settings = TransferSettings {
            chunk: 4 * BLOCK as usize,
            batch_bytes: 8 * BLOCK,
            window: 16 * BLOCK,
            zero_request: 8 * BLOCK,
            ..TransferSettings::default()
        };
        let order = PassOrder {
            pass,
            number: 1,
            generation,
            started: clock::now(),
            settings,
            ceilings: Vec::new(),
            disks: vec![disk],
        };
        from_str(&to_string(&order).unwrap()).unwrap()
    }

    /// The order, carried out by a mover that has nothing but the order, its disks and the connection.
    async fn carry_out(
        &self,
        order: &PassOrder,
        keeper: LedgerKeeper,
        events: &Recorder,
    ) -> Result<DrainEnd, PassError> {
        let state = Arc::new(Connection(keeper));
        let ledger = Arc::new(replica(&order.disks[0], order.generation, state).await?);
        let disk = OpenDisk {
            key: order.disks[0].key.clone(),
            record: None,
            ledger: Arc::clone(&ledger),
            source: self.source.clone(),
            target: self.target.clone(),
            limits: shares_within(&order.ceilings),
            baseline: Arc::default(),
            progress: Arc::default(),
        };
        let end = drain(order, vec![disk], &self.pool, events, &StopSignal::new()).await;
        // As the daemon does before it gives the disk to another.
        ledger.quiet().await;
        end
    }

    async fn pass(&self, generation: u64) -> Result<DrainEnd, PassError> {
        let order = self.order(generation).await;
        self.carry_out(&order, self.keeper(generation), &Recorder::default()).await
    }

    /// Whatever is not pending is on the target as the manifest says.
    fn check(&self, seed: u64) {
        let (source, target) = (self.source.contents(), self.target.contents());
        let view = self.store.view(DISK).unwrap();
        let bytes = |of: &[u8], block: u64| {
            let at = (block * BLOCK) as usize;
            BlockHash::of(&of[at..of.len().min(at + BLOCK as usize)])
        };
        for block in (0..BLOCKS).filter(|block| !view.pending.contains(*block)) {
            let (source, target) = (bytes(&source, block), bytes(&target, block));
            assert_eq!((source, target), (view.hashes[block as usize], source), "seed {seed}, block {block}");
        }
    }
}

fn blocks(first: u64, count: u64) -> Extent {
    Extent::new(Offset(first * BLOCK), Length(count * BLOCK)).unwrap()
}

#[tokio::test]
async fn a_mover_copies_what_the_order_says_and_nothing_else() {
    let world = World::new(1).await;
    let events = Recorder::default();
    let order = world.order(0).await;
    let end = world.carry_out(&order, world.keeper(0), &events).await.unwrap();
    assert_eq!((end, world.ledger.is_done()), (DrainEnd::Drained, true));
    world.check(0);
    assert_eq!(world.source.contents(), world.target.contents());
    let opened = PassEvent::Opened(vec![(DiskKey("vda".into()), SIZE.0)]);
    assert_eq!(*events.0.lock().unwrap(), [opened, PassEvent::Drained]);
    assert_eq!(world.store.view(DISK).unwrap().figures.drained, SIZE.0, "the figures came back");
    // A delta of three blocks, one of which has its old data.
    world.source.set_fill(5, 500);
    world.source.set_fill(63, 501);
    let changed = ExtentSet::of(SIZE, [blocks(5, 2), blocks(63, 1)]);
    world.advance(&Changed::Known(changed)).await;
    let before = world.store.view(DISK).unwrap().figures;
    assert_eq!(world.pass(1).await.unwrap(), DrainEnd::Drained);
    world.check(1);
    assert_eq!(world.source.contents(), world.target.contents());
    let after = world.store.view(DISK).unwrap().figures;
    let (written, skipped) = (after.written - before.written, after.skipped - before.skipped);
    assert_eq!((written, skipped), (2 * BLOCK - 512, BLOCK), "the mover knew the old hash");
}

#[tokio::test(start_paused = true)]
async fn a_mover_keeps_to_the_lowest_ceiling_of_the_order() {
    let world = World::new(7).await;
    let mut order = world.order(0).await;
    order.ceilings = [8, 2, 4]
        .map(|blocks| RateCeiling {
            scope: format!("{blocks} blocks"),
            bytes_per_second: NonZeroU64::new(blocks * BLOCK).unwrap(),
        })
        .into();
    let begun = tokio::time::Instant::now();
    world.carry_out(&order, world.keeper(0), &Recorder::default()).await.unwrap();
    let took = begun.elapsed().as_secs();
    assert!((28..=36).contains(&took), "64 blocks, two a second, in {took} s");
}

#[tokio::test]
async fn without_an_acknowledgement_nothing_more_is_committed() {
    let world = World::new(2).await;
    world.faults.add(DiskEvent::Commit, 1, DiskFault::Fail);
    let commits = world.faults.seen(DiskEvent::Commit);
    let end = world.pass(0).await;
    let failed = PassResult::Failed(PassFault {
        cause: PassFailureCause::State(StoreErrorKind::Unavailable),
        text: end.as_ref().unwrap_err().to_string(),
    });
    assert_eq!(outcome(&end), failed);
    assert_eq!(world.faults.seen(DiskEvent::Commit) - commits, 2, "the order is void after the second");
    world.faults.clear();
    world.check(2);
    assert!(!world.ledger.is_done());
    assert_eq!(world.pass(1).await.unwrap(), DrainEnd::Drained);
    world.check(2);
    assert_eq!(world.source.contents(), world.target.contents());
}

#[tokio::test]
async fn a_failed_disk_is_named_in_the_outcome() {
    let world = World::new(3).await;
    world.faults.add(DiskEvent::Flush, 0, DiskFault::Fail);
    match outcome(&world.pass(0).await) {
        PassResult::Failed(PassFault { cause: PassFailureCause::Disk { side, operation, .. }, .. }) => {
            assert_eq!((side, operation), (CopySide::Target, Operation::Flush));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_older_movers_changes_are_refused() {
    let world = World::new(4).await;
    let order = world.order(4).await;
    let end = world.carry_out(&order, world.keeper(5), &Recorder::default()).await;
    let error = end.unwrap_err().to_string();
    assert!(error.contains("it is of generation 4, and the order of 5"), "{error}");
    assert_eq!(world.ledger.pending_bytes(), SIZE);
}

#[tokio::test]
async fn what_no_order_allows_is_refused_and_changes_nothing() {
    let world = World::new(5).await;
    let keeper = world.keeper(0);
    let drained = |extents: Vec<Extent>, hashes: Vec<u64>| BlockChange::Drain {
        extents,
        hashes: hashes.into_iter().map(|block| (BlockIndex(block), BlockHash([1; 16]))).collect(),
        figures: PassFigures::default(),
    };
    let try_it = async |disk, change| {
        let change = LedgerChange { disk, generation: 0, change };
        keeper.commit(change).await.unwrap_err().to_string()
    };
    keeper
        .commit(LedgerChange { disk: DISK, generation: 0, change: drained(vec![blocks(0, 2)], vec![1]) })
        .await
        .unwrap();
    let left = world.ledger.pending_bytes();
    let odd = Extent::new(Offset(2 * BLOCK + 1), Length(BLOCK)).unwrap();
    for (disk, change, why) in [
        (DiskId(8), drained(vec![blocks(2, 1)], vec![]), "the order has no such disk"),
        (DISK, drained(vec![blocks(1, 2)], vec![2]), "is not pending"),
        (DISK, BlockChange::Claim(vec![blocks(0, 1)]), "is not pending"),
        (DISK, drained(vec![odd], vec![]), "is not of whole blocks"),
        (DISK, drained(vec![blocks(BLOCKS, 1)], vec![]), "is not of whole blocks"),
        (DISK, BlockChange::Claim(vec![odd]), "is not of whole blocks"),
        (DISK, drained(vec![blocks(4, 2)], vec![6]), "a hash of block 6"),
        (DISK, drained(vec![blocks(4, 2)], vec![5, 4]), "a hash of block 4"),
        (DISK, drained(vec![blocks(4, 2)], vec![5, 5]), "a hash of block 5"),
    ] {
        let refused = try_it(disk, change).await;
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(world.ledger.pending_bytes(), left);
    for spans in
        [vec![Range { start: 0, end: BLOCKS + 1 }], vec![4..8, 6..9], vec![Range { start: 9, end: 8 }]]
    {
        let refused = keeper.hashes(DISK, &spans).await.unwrap_err().to_string();
        assert!(refused.contains("it asks for the hashes of blocks"), "{refused}");
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_carried_out_is_refused() {
    let world = World::new(6).await;
    let refused = async |change: fn(&mut DiskOrder)| {
        let mut order = world.order(0).await;
        change(&mut order.disks[0]);
        let end = world.carry_out(&order, world.keeper(0), &Recorder::default()).await;
        end.unwrap_err().to_string()
    };
    assert!(refused(|disk| disk.blocks = None).await.contains("names no blocks"));
    assert!(refused(|disk| disk.size = Length(u64::MAX)).await.contains("larger than every disk"));
    assert!(refused(|disk| disk.blocks.as_mut().unwrap()[0].chunk = 9).await.contains("past its end"));
    assert_eq!(world.ledger.pending_bytes(), SIZE);
}

#[tokio::test]
async fn a_void_order_commits_nothing_more() {
    let world = World::new(8).await;
    let order = world.order(0).await;
    let state = Arc::new(Connection(world.keeper(0)));
    let ledger = replica(&order.disks[0], 0, state).await.unwrap();
    let batch = |first| {
        let mut batch = Batch::default();
        batch.add(blocks(first, 1), [], PassFigures::default());
        batch
    };
    world.faults.add(DiskEvent::Commit, 0, DiskFault::Fail);
    ledger.drain(batch(0), None).await.unwrap_err();
    world.faults.clear();
    let commits = world.faults.seen(DiskEvent::Commit);
    let error = ledger.drain(batch(1), None).await.unwrap_err().to_string();
    assert!(error.contains("the order is void"), "{error}");
    assert_eq!(world.faults.seen(DiskEvent::Commit), commits);
}

/// Any fault at any time costs only repeated work. Blocks often get their old data back: then a block whose
/// claim was lost would be taken for equal.
#[tokio::test]
async fn orders_with_any_faults_end_with_the_right_copy() {
    for seed in 0..300 {
        let world = World::new(seed).await;
        let mut random = Random::new(seed);
        for generation in 0.. {
            assert!(generation < 60, "seed {seed} does not end");
            world.faults.clear();
            if generation < 20 {
                let event = match random.below(5) {
                    0 => DiskEvent::Read,
                    1 => DiskEvent::Write,
                    2 => DiskEvent::Flush,
                    3 => DiskEvent::Hashes,
                    _ => DiskEvent::Commit,
                };
                world.faults.add(event, random.below(12), DiskFault::Fail);
            }
            let end = world.pass(generation).await;
            world.faults.clear();
            world.check(seed);
            if random.percent(60) && generation < 20 {
                let block = random.below(2);
                world.source.set_fill(block, if random.percent(50) { block + 1 } else { 700 });
                let changed = ExtentSet::of(SIZE, [blocks(block, 1)]);
                world.advance(&Changed::Known(changed)).await;
            } else if matches!(end, Ok(DrainEnd::Drained)) {
                break;
            }
        }
        assert!(world.ledger.is_done(), "seed {seed}");
        assert_eq!(world.source.contents(), world.target.contents(), "seed {seed}");
    }
}
