//! Ledgers against a naive model: all committed rows are there, and no others.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

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
use warmd_core::model::view::PassKind;
use warmd_store::{NewDiskPass, Store};

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
    /// Names a block past the end, or a pass of another disk: no part of it may be applied.
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
    Compact {
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
        1 => disk.clone().prop_map(|disk| Step::Compact { disk }),
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
                    ..LedgerCommit::default()
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
            Step::Compact { disk } => self.fixture.store.compact_manifest(self.disks[disk].0).await.unwrap(),
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
                self.fixture.store.compact_manifest(*row).await.unwrap();
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
        assert_eq!(
            count("SELECT (SELECT count(*) FROM manifest_log) + (SELECT count(*) FROM manifest_log_hashes)"),
            0
        );
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

/// The engine's changes to its ledger.
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
