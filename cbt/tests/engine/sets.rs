//! The set algebra against a naive model, and the stored form of its chunks.
//!
//! proptest keeps failed cases in `proptest-regressions/`; it is committed.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};
use warmd_cbt::{
    chunk::{CHUNK_BLOCKS, ChunkBits, LIST_MAX},
    extents::{CHUNK_BYTES, ExtentSet, coalesce},
    units::{BLOCK, Extent, Length, Offset, blocks_in},
};

/// Two chunks and a bit, with a short last block.
const SIZE: Length = Length(2 * CHUNK_BYTES + 300 * BLOCK + 512);

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let end = SIZE.0 + BLOCK;
    let short = (0..end, 1..5 * BLOCK);
    let aligned = (0..end / BLOCK, 1..2000_u64).prop_map(|(at, blocks)| (at * BLOCK, blocks * BLOCK));
    let long = (0..end, 1..SIZE.0);
    let border = (0..3_u64, 0..4_u64, 1..8_u64).prop_map(|(chunk, before, blocks)| {
        ((chunk * CHUNK_BLOCKS).saturating_sub(before) * BLOCK, blocks * BLOCK)
    });
    let one = prop_oneof![8 => short, 3 => aligned, 1 => long, 3 => border];
    vec(one.prop_map(|(at, len)| Extent::new(Offset(at), Length(len)).unwrap()), 0..40)
}

/// Many single blocks, to go through every form of a chunk.
fn scattered() -> impl Strategy<Value = Vec<Extent>> {
    let block = |block: u64| Extent::new(Offset(block * BLOCK), Length(1)).unwrap();
    vec((0..2 * CHUNK_BLOCKS).prop_map(block), 0..3 * LIST_MAX)
}

fn some_extents() -> impl Strategy<Value = Vec<Extent>> {
    prop_oneof![2 => extents(), 1 => scattered()]
}

fn set_of(extents: &[Extent]) -> ExtentSet {
    let mut set = ExtentSet::new(SIZE);
    for extent in extents {
        set.insert(*extent);
    }
    set
}

fn model_of(extents: &[Extent]) -> BTreeSet<u64> {
    extents.iter().filter_map(|extent| extent.clip(SIZE)).flat_map(|extent| extent.blocks()).collect()
}

fn same(set: &ExtentSet, model: &BTreeSet<u64>) -> Result<(), TestCaseError> {
    let blocks: BTreeSet<u64> = set.extents().flat_map(|extent| extent.blocks()).collect();
    prop_assert_eq!(&blocks, model);
    prop_assert_eq!(set.is_empty(), model.is_empty());
    let bytes = |block: &u64| BLOCK.min(SIZE.0 - block * BLOCK);
    prop_assert_eq!(set.bytes().0, model.iter().map(bytes).sum::<u64>());
    prop_assert_eq!(set.extent_count(), set.extents().count() as u64);
    let apart = set.extents().zip(set.extents().skip(1)).all(|(one, next)| one.end() < next.start());
    prop_assert!(apart, "extents touch");
    prop_assert!(set.extents().all(|extent| extent.within(SIZE)));
    for (number, chunk) in set.chunks() {
        let decoded = ChunkBits::decode(&chunk.encode());
        prop_assert_eq!(decoded.as_ref(), Some(chunk), "chunk {}", number);
        prop_assert!(chunk.encode().len() as u64 <= CHUNK_BLOCKS / 8 + 1);
        let mut again = ExtentSet::new(SIZE);
        again.put_chunk(number, chunk.clone());
        prop_assert_eq!(&again.chunk(number), chunk);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn algebra_is_that_of_sets(one in some_extents(), other in some_extents()) {
        let (a, b) = (set_of(&one), set_of(&other));
        let (model_a, model_b) = (model_of(&one), model_of(&other));
        same(&a, &model_a)?;
        let mut union = a.clone();
        union.union(&b);
        same(&union, &model_a.union(&model_b).copied().collect())?;
        let mut rest = a.clone();
        rest.subtract(&b);
        same(&rest, &model_a.difference(&model_b).copied().collect())?;
        let mut both = a.clone();
        both.intersect(&b);
        same(&both, &model_a.intersection(&model_b).copied().collect())?;
        // Equal sets are equal, regardless of their history.
        rest.union(&both);
        prop_assert_eq!(&rest, &a);
    }

    #[test]
    fn removal_takes_whole_blocks_alone(kept in some_extents(), removed in some_extents()) {
        let mut set = set_of(&kept);
        let mut model = model_of(&kept);
        for extent in &removed {
            set.remove(*extent);
            let covered = |block: &u64| {
                let end = ((block + 1) * BLOCK).min(SIZE.0);
                extent.start().0 <= block * BLOCK && end <= extent.end().0
            };
            model.retain(|block| !covered(block));
        }
        same(&set, &model)?;
    }

    #[test]
    fn extents_begin_anywhere(kept in some_extents(), from in 0..blocks_in(SIZE) + 5) {
        let set = set_of(&kept);
        let blocks: Vec<u64> =
            set.extents_from(Offset(from * BLOCK)).flat_map(|extent| extent.blocks()).collect();
        let expected: Vec<u64> = model_of(&kept).range(from..).copied().collect();
        prop_assert_eq!(blocks, expected);
        let count = model_of(&kept).iter().filter(|block| set.contains(**block)).count();
        prop_assert_eq!(count, model_of(&kept).len());
        prop_assert!(!set.contains(blocks_in(SIZE)));
    }

    #[test]
    fn coalescing_closes_gaps_and_nothing_else(kept in extents(), gap in 0..20 * BLOCK) {
        let set = set_of(&kept);
        let joined: Vec<Extent> = coalesce(set.extents(), gap).collect();
        for (one, next) in joined.iter().zip(joined.iter().skip(1)) {
            prop_assert!(one.end().0 + gap < next.start().0);
        }
        for extent in set.extents() {
            prop_assert_eq!(joined.iter().filter(|run| run.intersect(&extent) == Some(extent)).count(), 1);
        }
        let inside: u64 = joined.iter().map(|run| run.len().0).sum();
        let gaps: u64 = set.extents().zip(set.extents().skip(1))
            .map(|(one, next)| (next.start() - one.end()).0).filter(|len| *len <= gap).sum();
        prop_assert_eq!(inside, set.bytes().0 + gaps);
    }

    #[test]
    fn splitting_loses_nothing(at in 0..SIZE.0, len in 1..50 * BLOCK, step in 1..9 * BLOCK) {
        let extent = Extent::new(Offset(at), Length(len)).unwrap();
        let pieces: Vec<Extent> = extent.split(step).collect();
        prop_assert_eq!(pieces.first().unwrap().start(), extent.start());
        prop_assert_eq!(pieces.last().unwrap().end(), extent.end());
        prop_assert!(pieces.iter().zip(pieces.iter().skip(1)).all(|(one, next)| one.end() == next.start()));
        prop_assert!(pieces.iter().all(|piece| piece.start().0 / step == (piece.end().0 - 1) / step));
    }

    #[test]
    fn outside_bytes_never_panic(bytes in vec(any::<u8>(), 0..2100), tag in 0..6_u8) {
        let tagged: Vec<u8> = std::iter::once(tag).chain(bytes.iter().copied()).collect();
        for bytes in [&bytes, &tagged] {
            if let Some(chunk) = ChunkBits::decode(bytes) {
                prop_assert_eq!(ChunkBits::decode(&chunk.encode()), Some(chunk.clone()));
                prop_assert_eq!(chunk.runs().map(|run| run.len() as u64).sum::<u64>(), chunk.count());
            }
        }
    }

    #[test]
    fn exact_bits_survive(bits in vec(any::<u8>(), (CHUNK_BLOCKS / 8) as usize)) {
        let bytes: Vec<u8> = std::iter::once(3).chain(bits.iter().copied()).collect();
        let chunk = ChunkBits::decode(&bytes).unwrap();
        for (bit, byte) in (0..CHUNK_BLOCKS as usize).zip((0..).map(|bit: usize| bits.get(bit / 8))) {
            prop_assert_eq!(chunk.get(bit), byte.unwrap() >> (bit % 8) & 1 == 1);
        }
        prop_assert_eq!(chunk.encode(), bytes);
    }
}
