//! Ledgers against a naive model: what was committed is there, all of it, and nothing else.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{prelude::*, sample::Index, test_runner::FileFailurePersistence};
use rusqlite::Connection;
use warmd_cbt::{
    batch::Batch,
    chunk::{CHUNK_BLOCKS, ChunkBits},
    extents::ExtentSet,
    ledger::Ledger,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, PassFigures, StoreErrorKind},
    units::{BLOCK, BlockIndex, Extent, Length, blocks_in},
};
use warmd_daemon::{
    model::view::PassKind,
    store::{NewDiskPass, Store},
};

use super::{Fixture, at, disk};

/// Three chunks and a bit, with a short last block; and less than a page.
const SIZES: [u64; 2] = [(3 << 30) + 5 * BLOCK + 512, 10 * BLOCK];

#[derive(Clone, Debug)]
enum Step {
    Commit {
        disk: usize,
        anchor: Option<u8>,
        chunks: Vec<Bits>,
        hashes: Vec<Run>,
        figures: bool,
    },
    /// Names a block past the end, or a pass of another disk: nothing of it may be done.
    Bad {
        disk: usize,
        chunks: Vec<Bits>,
        hashes: Vec<Run>,
        pass: bool,
    },
    Reopen,
    Look {
        disk: usize,
        places: Vec<(Index, u64)>,
    },
    Fold {
        disk: usize,
    },
}

/// New bits of a chunk: pending runs, and whether all of it is trusted.
#[derive(Clone, Debug)]
struct Bits {
    chunk: Index,
    runs: Vec<(u16, u16)>,
    trusted: bool,
}

/// Hashes of consecutive blocks, zero or not; most near the disk's start, so that commits meet.
#[derive(Clone, Debug)]
struct Run {
    near: bool,
    from: Index,
    len: u64,
    hash: u8,
}

fn bits() -> impl Strategy<Value = Bits> {
    let run = (0..CHUNK_BLOCKS as u16, 1..2000_u16);
    (any::<Index>(), prop::collection::vec(run, 0..6), any::<bool>())
        .prop_map(|(chunk, runs, trusted)| Bits { chunk, runs, trusted })
}

fn run() -> impl Strategy<Value = Run> {
    let len = prop_oneof![1..4_u64, 60..70_u64, 1..400_u64];
    (prop::bool::weighted(0.7), any::<Index>(), len, 0..4_u8).prop_map(|(near, from, len, hash)| Run {
        near,
        from,
        len,
        hash,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let chunks = || prop::collection::vec(bits(), 0..4);
    let hashes = || prop::collection::vec(run(), 0..5);
    let disk = 0..SIZES.len();
    prop_oneof![
        8 => (disk.clone(), any::<Option<u8>>(), chunks(), hashes(), any::<bool>()).prop_map(
            |(disk, anchor, chunks, hashes, figures)| Step::Commit { disk, anchor, chunks, hashes, figures }
        ),
        2 => (disk.clone(), chunks(), hashes(), any::<bool>())
            .prop_map(|(disk, chunks, hashes, pass)| Step::Bad { disk, chunks, hashes, pass }),
        1 => Just(Step::Reopen),
        1 => disk.clone().prop_map(|disk| Step::Fold { disk }),
        4 => (disk, prop::collection::vec((any::<Index>(), 0..300_u64), 0..5))
            .prop_map(|(disk, places)| Step::Look { disk, places }),
    ]
}

/// The naive ledger.
#[derive(Default)]
struct Model {
    size: u64,
    anchor: Option<ChangeMark>,
    chunks: BTreeMap<u32, ChunkRow>,
    hashes: BTreeMap<u64, BlockHash>,
    figures: PassFigures,
}

impl Model {
    fn new(size: u64) -> Self {
        let chunks = Ledger::initial_rows(Length(size), true);
        Self { size, chunks: chunks.into_iter().map(|row| (row.chunk, row)).collect(), ..Self::default() }
    }

    fn rows(&self, bits: &[Bits]) -> Vec<ChunkRow> {
        let chunks = self.size.div_ceil(CHUNK_BLOCKS * BLOCK) as usize;
        let row = |bits: &Bits| {
            let mut pending = ChunkBits::default();
            for (from, len) in &bits.runs {
                pending.set(usize::from(*from)..usize::from(from + len).min(CHUNK_BLOCKS as usize), true);
            }
            let trusted = if bits.trusted { pending.clone() } else { ChunkBits::default() };
            ChunkRow { chunk: bits.chunk.index(chunks) as u32, pending, trusted }
        };
        bits.iter().map(row).collect()
    }

    fn hashes(&self, runs: &[Run]) -> Vec<(BlockIndex, BlockHash)> {
        let blocks = blocks_in(Length(self.size));
        let each = |run: &Run| {
            let from = run.from.index(if run.near { blocks.min(400) } else { blocks } as usize) as u64;
            let hash = BlockHash([run.hash; 16]);
            (from..(from + run.len).min(blocks)).map(move |block| (BlockIndex(block), hash))
        };
        runs.iter().flat_map(each).collect()
    }

    fn apply(&mut self, commit: LedgerCommit) {
        if commit.anchor.is_some() {
            self.anchor = commit.anchor;
        }
        for row in commit.chunks {
            if row.pending.is_empty() {
                self.chunks.remove(&row.chunk);
            } else {
                self.chunks.insert(row.chunk, row);
            }
        }
        self.hashes.extend(commit.hashes.into_iter().map(|(block, hash)| (block.0, hash)));
        if commit.pass.is_some() {
            self.figures += commit.figures;
        }
    }

    /// In order and apart.
    fn spans(&self, places: &[(Index, u64)]) -> Vec<Range<u64>> {
        let blocks = blocks_in(Length(self.size));
        let mut starts: Vec<_> =
            places.iter().map(|(from, len)| (from.index(blocks as usize) as u64, *len)).collect();
        starts.sort_unstable();
        let mut end = 0;
        let span = |(from, len): (u64, u64)| {
            let from = from.max(end);
            end = (from + len).min(blocks);
            from..end
        };
        starts.into_iter().map(span).collect()
    }

    fn range(&self, blocks: Range<u64>) -> Vec<BlockHash> {
        blocks.map(|block| self.hashes.get(&block).copied().unwrap_or(BlockHash::ZERO)).collect()
    }
}

/// A store with the model's disks, each in a pass.
struct Pair {
    fixture: Fixture,
    disks: Vec<(DiskId, i64, Model)>,
}

impl Pair {
    async fn new() -> Self {
        let fixture = Fixture::new();
        let mut disks = Vec::new();
        for (at_disk, size) in SIZES.into_iter().enumerate() {
            let (id, row) = disk(&fixture.store, &format!("vm{at_disk}"), size, true).await;
            let new = NewDiskPass {
                disk: row,
                pending: size,
                changed: size,
                extents: 1,
                unknown: None,
                mark: ChangeMark("m".to_owned()),
            };
            let pass = fixture.store.begin_pass(id, PassKind::Full, at(0), vec![new]).await.unwrap();
            disks.push((row, pass.disks[0].1, Model::new(size)));
        }
        Self { fixture, disks }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Commit { disk, anchor, chunks, hashes, figures } => {
                let (row, pass, model) = &mut self.disks[disk];
                let commit = LedgerCommit {
                    anchor: anchor.map(|number| ChangeMark(format!("mark {number}"))),
                    chunks: model.rows(&chunks),
                    hashes: model.hashes(&hashes),
                    figures: PassFigures { read: 7, drained: 1 << 40, batches: 1, ..PassFigures::default() },
                    pass: figures.then_some(*pass),
                };
                self.fixture.store.commit(*row, commit.clone()).await.unwrap();
                model.apply(commit);
            }
            Step::Bad { disk, chunks, hashes, pass } => {
                let (row, _, model) = &self.disks[disk];
                let mut commit = LedgerCommit {
                    anchor: Some(ChangeMark("never".to_owned())),
                    chunks: model.rows(&chunks),
                    hashes: model.hashes(&hashes),
                    ..LedgerCommit::default()
                };
                let kind = if pass {
                    commit.pass = Some(self.disks[1 - disk].1);
                    StoreErrorKind::NotFound
                } else {
                    commit.hashes.push((BlockIndex(blocks_in(Length(model.size))), BlockHash([1; 16])));
                    StoreErrorKind::Corrupt
                };
                assert_eq!(self.fixture.store.commit(*row, commit).await.unwrap_err().kind, kind);
            }
            Step::Reopen => {
                self.fixture.store.close().await.unwrap();
                self.fixture.store = Store::open(self.fixture.dir.path()).unwrap();
            }
            Step::Look { disk, places } => {
                let (row, _, model) = &self.disks[disk];
                let spans = model.spans(&places);
                let found = self.fixture.store.hashes(*row, &spans).await.unwrap();
                assert_eq!(found, spans.into_iter().flat_map(|span| model.range(span)).collect::<Vec<_>>());
            }
            Step::Fold { disk } => self.fixture.store.fold_manifest(self.disks[disk].0).await.unwrap(),
        }
    }

    async fn check(&self) {
        for (row, pass, model) in &self.disks {
            let stored = self.fixture.store.load(*row).await.unwrap();
            assert_eq!((stored.size.0, &stored.anchor), (model.size, &model.anchor));
            assert_eq!(stored.chunks, model.chunks.values().cloned().collect::<Vec<_>>());
            let all = 0..blocks_in(stored.size);
            for _ in 0..2 {
                let found = self.fixture.store.hashes(*row, std::slice::from_ref(&all)).await.unwrap();
                assert_eq!(found, model.range(all.clone()));
                // And once more when all is in the pages.
                self.fixture.store.fold_manifest(*row).await.unwrap();
            }
            let raw = Connection::open(self.fixture.store.file()).unwrap();
            let figures: (i64, i64, i64) = raw
                .query_row("SELECT read, drained, batches FROM disk_passes WHERE id = ?", [pass], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .unwrap();
            let wanted =
                [model.figures.read, model.figures.drained, model.figures.batches].map(u64::cast_signed);
            assert_eq!(<[i64; 3]>::from(figures), wanted);
        }
        // Blocks of zeroes cost nothing.
        let pages = |(_, _, model): &(DiskId, i64, Model)| {
            let full = model.hashes.iter().filter(|(_, hash)| **hash != BlockHash::ZERO);
            full.map(|(block, _)| block / 64).collect::<std::collections::BTreeSet<_>>().len()
        };
        let raw = Connection::open(self.fixture.store.file()).unwrap();
        let count = |sql| raw.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT (SELECT count(*) FROM recent) + (SELECT count(*) FROM recent_hashes)"), 0);
        let kept = count("SELECT count(*) FROM pages");
        assert_eq!(kept as usize, self.disks.iter().map(pages).sum::<usize>());
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/store/proptest-regressions.txt",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn commits_are_what_the_model_says(steps in prop::collection::vec(step(), 1..40)) {
        block_on(async {
            let mut pair = Pair::new().await;
            for step in steps {
                pair.take(step).await;
            }
            pair.check().await;
        });
    }
}

/// What the engine does to its ledger.
#[derive(Clone, Debug)]
enum Act {
    Advance(Option<Vec<(Index, u64)>>),
    Claim(Index, u64),
    Drain(Index, u64),
}

fn act() -> impl Strategy<Value = Act> {
    let place = || (any::<Index>(), 1..3000_u64);
    prop_oneof![
        1 => Just(Act::Advance(None)),
        3 => prop::collection::vec(place(), 0..5).prop_map(|places| Act::Advance(Some(places))),
        3 => place().prop_map(|(from, len)| Act::Claim(from, len)),
        5 => place().prop_map(|(from, len)| Act::Drain(from, len)),
    ]
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn the_engines_ledger_loads_as_it_was_left(acts in prop::collection::vec(act(), 1..25)) {
        block_on(async {
            let fixture = Fixture::new();
            let (_, row) = disk(&fixture.store, "web", SIZES[0], true).await;
            let store: Arc<dyn LedgerStore> = Arc::new(fixture.store.clone());
            let live = Ledger::load(store.clone(), row).await.unwrap();
            let extent = |from: &Index, len: u64| {
                let blocks = blocks_in(Length(SIZES[0]));
                let from = from.index(blocks as usize) as u64;
                Extent::between(BlockIndex(from).start(), BlockIndex(from + len).start()).unwrap()
                    .clip(Length(SIZES[0])).unwrap()
            };
            for (number, act) in acts.iter().enumerate() {
                match act {
                    Act::Advance(changed) => {
                        let changed = match changed {
                            None => Changed::Unknown("lost".to_owned()),
                            Some(places) => {
                                let extents = places.iter().map(|(from, len)| extent(from, *len));
                                Changed::Known(ExtentSet::of(Length(SIZES[0]), extents))
                            }
                        };
                        live.advance(ChangeMark(format!("mark {number}")), &changed).await.unwrap();
                    }
                    Act::Claim(from, len) => live.claim(&[extent(from, *len)]).await.unwrap(),
                    Act::Drain(from, len) => {
                        let mut batch = Batch::default();
                        let extent = extent(from, *len);
                        let hash = BlockHash([number as u8 + 1; 16]);
                        let hashes = extent.blocks().map(|block| (BlockIndex(block), hash));
                        batch.add(extent, hashes, PassFigures::default());
                        live.drain(batch, None).await.unwrap();
                    }
                }
                let loaded = Ledger::load(store.clone(), row).await.unwrap();
                assert_eq!(
                    (loaded.anchor(), loaded.pending_bytes(), loaded.pending_extents(), loaded.is_done()),
                    (live.anchor(), live.pending_bytes(), live.pending_extents(), live.is_done())
                );
            }
        });
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fixture = Fixture::new();
    let nobody = DiskId(42);
    let error = fixture.store.commit(nobody, LedgerCommit::default()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("disk 42"), "{error}");
    assert_eq!(fixture.store.load(nobody).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(fixture.store.hashes(nobody, &[0..1]).await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn ranges_that_no_disk_has_are_refused() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 10 * BLOCK, true).await;
    assert_eq!(fixture.store.hashes(row, &[9..10]).await.unwrap().len(), 1);
    assert_eq!(fixture.store.hashes(row, &[10..10]).await.unwrap(), []);
    assert_eq!(fixture.store.hashes(row, &[]).await.unwrap(), []);
    assert_eq!(fixture.store.hashes(row, &[0..1, 1..2, 5..6]).await.unwrap().len(), 3);
    #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
    let refused =
        [vec![9..11], vec![0..u64::MAX], vec![u64::MAX - 1..u64::MAX], vec![3..4, 2..3], vec![3..2]];
    for spans in refused {
        assert!(fixture.store.hashes(row, &spans).await.is_err(), "{spans:?}");
    }
    let mut pending = ChunkBits::default();
    pending.set(0..1, true);
    for chunk in [1, u32::MAX] {
        let row_past = ChunkRow { chunk, pending: pending.clone(), trusted: ChunkBits::default() };
        let commit = LedgerCommit { chunks: vec![row_past], ..LedgerCommit::default() };
        assert!(fixture.store.commit(row, commit).await.is_err(), "chunk {chunk}");
    }
    let (_, big) = disk(&fixture.store, "big", 1 << 50, true).await;
    let last = blocks_in(Length(1 << 50)) - 1;
    let commit =
        LedgerCommit { hashes: vec![(BlockIndex(last), BlockHash([9; 16]))], ..LedgerCommit::default() };
    fixture.store.commit(big, commit).await.unwrap();
    assert_eq!(fixture.store.hashes(big, &[last..last + 1]).await.unwrap(), [BlockHash([9; 16])]);
    assert!(fixture.store.hashes(big, &[0..last]).await.is_err(), "too many hashes for one answer");
}

#[tokio::test]
async fn garbage_in_a_ledger_is_corrupt() {
    let cases = [
        ("UPDATE chunks SET pending = x'09'", "these bits cannot be"),
        ("UPDATE chunks SET key = key + 100", "past the disk's end"),
        ("UPDATE disks SET size = 9223372036854775807", "more than a disk can have"),
    ];
    for (sql, named) in cases {
        let fixture = Fixture::new();
        let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
        Connection::open(fixture.store.file()).unwrap().execute_batch(sql).unwrap();
        let error = fixture.store.load(row).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
        assert!(error.to_string().contains(named), "{sql}: {error}");
    }
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch(&format!(
        "PRAGMA ignore_check_constraints = ON; INSERT INTO pages VALUES ({}, x'0102')",
        row.0 << 32
    ))
    .unwrap();
    let error = fixture.store.hashes(row, &[0..4]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert!(error.to_string().contains("table pages"), "{error}");
}

#[tokio::test]
async fn garbage_in_recent_hashes_is_corrupt() {
    let cases = [
        "UPDATE recent SET first = 1",
        "UPDATE recent SET last = 900",
        "UPDATE recent SET first = -1",
        "UPDATE recent_hashes SET body = substr(body, 21)",
        "UPDATE recent_hashes SET body = CAST(substr(body, 5) || x'00000000' AS BLOB)",
        "UPDATE recent_hashes SET body = substr(body, 1, 17)",
        "UPDATE recent_hashes SET body = substr(body, 1, 56)",
        "UPDATE recent_hashes SET body = x''",
    ];
    for sql in cases {
        let fixture = Fixture::new();
        let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
        let hashes = [0, 100, 1000].map(|block| (BlockIndex(block), BlockHash([7; 16])));
        let commit = LedgerCommit { hashes: hashes.to_vec(), ..LedgerCommit::default() };
        fixture.store.commit(row, commit).await.unwrap();
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute_batch(&format!("PRAGMA ignore_check_constraints = ON; {sql}")).unwrap();
        for error in [
            fixture.store.hashes(row, &[0..1001]).await.unwrap_err(),
            fixture.store.fold_manifest(row).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
            assert!(error.to_string().contains("table recent, row"), "{sql}: {error}");
        }
    }
}

/// Commits 20,000 hashes, each in a page of its own or so, and says how many wait to be folded.
async fn commit_scattered(store: &Store, disk: DiskId, number: u64) -> i64 {
    let blocks = (0..20_000).map(|block| BlockIndex(block * 50 + number % 50));
    let hashes = blocks.map(|block| (block, BlockHash([number as u8; 16]))).collect();
    store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
    waiting(store)
}

fn waiting(store: &Store) -> i64 {
    let raw = Connection::open(store.file()).unwrap();
    raw.query_row("SELECT coalesce(sum(length(body) / 20), 0) FROM recent_hashes", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn much_that_is_recent_is_folded_by_itself() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 64 << 30, true).await;
    let mut number = 0;
    while commit_scattered(&fixture.store, row, number).await <= 200_000 {
        number += 1;
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    while waiting(&fixture.store) > 200_000 {
        assert!(Instant::now() < deadline, "idle moments are not used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waiting(&fixture.store) > 0, "what is not much stays");
    for _ in 0..50 {
        number += 1;
        commit_scattered(&fixture.store, row, number).await;
    }
    // Nothing is done before the folding that is urgent.
    fixture.store.commit(row, LedgerCommit::default()).await.unwrap();
    assert!(waiting(&fixture.store) <= 800_000, "{} hashes wait", waiting(&fixture.store));
    let found = fixture.store.hashes(row, &[0..50]).await.unwrap();
    for (block, hash) in (0..).zip(found) {
        let newest = (0..=number).rev().find(|number| number % 50 == block);
        assert_eq!(hash, newest.map_or(BlockHash::ZERO, |newest| BlockHash([newest as u8; 16])), "{block}");
    }
    assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_disk_keeps_no_other_from_being_folded() {
    let fixture = Fixture::new();
    let (_, damaged) = disk(&fixture.store, "web", 64 << 30, true).await;
    let (_, sound) = disk(&fixture.store, "db", 64 << 30, true).await;
    // The damaged one has more to fold, and so comes first.
    for number in 0..11 {
        commit_scattered(&fixture.store, damaged, number).await;
    }
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch("UPDATE recent_hashes SET body = zeroblob(length(body))").unwrap();
    let left = waiting(&fixture.store);
    assert!(left > 200_000, "it was folded before it was damaged");
    let mut number = 0;
    while commit_scattered(&fixture.store, sound, number).await <= left + 200_000 {
        number += 1;
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    while waiting(&fixture.store) > left + 200_000 {
        assert!(Instant::now() < deadline, "the damaged disk keeps the other from being folded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fixture.store.hashes(sound, &[1..2]).await.unwrap(), [BlockHash([1; 16])]);
}

#[tokio::test]
async fn the_manifest_stays_within_its_share() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 64 << 30, true).await;
    let (_, other) = disk(&fixture.store, "db", 64 << 30, true).await;
    for gib in 0..64 {
        for disk in [row, other] {
            let blocks = gib * CHUNK_BLOCKS..(gib + 1) * CHUNK_BLOCKS;
            let hashes = blocks.map(|block| (BlockIndex(block), BlockHash([7; 16]))).collect();
            fixture.store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
        }
    }
    fixture.store.close().await.unwrap();
    let share = std::fs::metadata(fixture.store.file()).unwrap().len() as f64 / (128_u64 << 30) as f64;
    assert!(share < 0.000_3, "the file is {:.4} % of the data", share * 100.0);
}
