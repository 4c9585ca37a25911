//! A sample of a disk's blocks: seeded, so that it can be taken again, and stratified, so that it reaches
//! everywhere.
//!
//! Rule: the same size, number and seed give the same blocks for ever: reports name the seed.
//!
//! A disk of N blocks, of which n are sampled, is cut into n strata: stratum i is the blocks from ⌊i·N/n⌋ up
//! to, not including, ⌊(i+1)·N/n⌋. Of each stratum of s blocks one is taken: its first plus ⌊r·s / 2⁶⁴⌋,
//! where r is the output of SplitMix64 for the state `seed + (i+1)·0x9E3779B97F4A7C15`.

use crate::{
    extents::ExtentSet,
    units::{BLOCK, Extent, Length, Offset, blocks_in},
};

/// Blocks drawn before other tasks may run: about a millisecond's work.
const AT_ONCE: u64 = 1 << 13;

/// The sampled blocks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of the disk.
    size: Length,
    /// One of each stratum.
    blocks: u64,
    seed: u64,
}

impl Sample {
    /// At least `bytes` of a disk of `size` bytes: as many blocks as contain them, at least one, at most all.
    pub fn new(size: Length, bytes: Length, seed: u64) -> Self {
        let all = blocks_in(size);
        Self { size, blocks: blocks_in(bytes).clamp(1, all.max(1)).min(all), seed }
    }

    /// Blocks that are sampled.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The sampled blocks. They may be millions: it yields to its thread's other tasks from time to time.
    pub async fn set(self) -> ExtentSet {
        let mut set = ExtentSet::new(self.size);
        for stratum in 0..self.blocks {
            if stratum % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            if let Some(block) = Extent::new(Offset(self.pick(stratum) * BLOCK), Length(BLOCK)) {
                set.insert(block);
            }
        }
        set
    }

    /// The upper bound of the probability that `bad` bad blocks, at any places, are all missed:
    /// `(1 − 1/s)^bad` where s is the number of blocks in the largest stratum, ⌈N/n⌉.
    ///
    /// A stratum of s blocks with j bad ones is passed with a chance of 1 − j/s, which is at most
    /// `(1 − 1/s)^j`; strata are picked from independently, so the chances multiply. It holds for blocks that
    /// went bad without regard to the seed.
    pub fn miss_probability(&self, bad: u64) -> f64 {
        if self.blocks == 0 {
            return 1.0;
        }
        let largest = blocks_in(self.size).div_ceil(self.blocks);
        (1.0 - 1.0 / largest as f64).powf(bad as f64)
    }

    fn pick(&self, stratum: u64) -> u64 {
        let border = |at: u64| {
            (u128::from(at) * u128::from(blocks_in(self.size)) / u128::from(self.blocks.max(1))) as u64
        };
        let (first, end) = (border(stratum), border(stratum + 1));
        let random = split_mix(self.seed.wrapping_add((stratum + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        first + ((u128::from(random) * u128::from(end - first)) >> 64) as u64
    }
}

fn split_mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(sample: Sample) -> ExtentSet {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sample.set())
    }

    proptest! {
        #[test]
        fn every_stratum_gives_one_block(
            all in 1_u64..5000, bytes in 0_u64..5000 * BLOCK, seed: u64, short in 0..BLOCK,
        ) {
            let size = Length(all * BLOCK - short);
            let sample = Sample::new(size, Length(bytes), seed);
            let set = set(sample);
            let picked: Vec<_> = (0..all).filter(|block| set.contains(*block)).collect();
            prop_assert_eq!(picked.len() as u64, sample.blocks());
            prop_assert_eq!(sample.blocks(), bytes.div_ceil(BLOCK).clamp(1, all));
            for (stratum, block) in picked.iter().enumerate() {
                let border = |at: usize| at as u64 * all / sample.blocks();
                prop_assert!((border(stratum)..border(stratum + 1)).contains(block));
            }
            prop_assert_eq!(self::set(Sample::new(size, Length(bytes), seed)), set);
        }
    }

    #[test]
    fn seeds_that_stand_in_reports_give_these_blocks_for_ever() {
        let sample = Sample::new(Length(1000 * BLOCK), Length(5 * BLOCK), 42);
        let picked: Vec<_> = (0..5).map(|stratum| sample.pick(stratum)).collect();
        assert_eq!(picked, PICKED);
        assert_ne!(set(sample), set(Sample { seed: 43, ..sample }));
    }

    #[tokio::test]
    async fn drawing_millions_of_blocks_keeps_nobody_waiting() {
        let turns = std::rc::Rc::new(std::cell::Cell::new(0_u64));
        let counted = turns.clone();
        let others = async move {
            loop {
                counted.set(counted.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let size = Length(1 << 40);
        let drawn = tokio::select! {
            drawn = Sample::new(size, Length(1 << 36), 1).set() => drawn,
            () = others => unreachable!("it has no end"),
        };
        assert_eq!(drawn.bytes(), Length(1 << 36));
        assert!(turns.get() > 100, "others had {} turns", turns.get());
    }

    /// Computed by the definition above with another program.
    const PICKED: [u64; 5] = [148, 231, 455, 668, 807];

    #[test]
    fn the_bound_holds_wherever_the_bad_blocks_lie() {
        // 20 strata of 5 blocks; how often a sample misses these bad blocks, over many seeds.
        let size = Length(100 * BLOCK);
        for bad in [vec![7], vec![0, 1], vec![0, 50], (0..100).step_by(9).collect(), (5..9).collect()] {
            let seeds = 4000;
            let missed = (0..seeds).filter(|seed| {
                let set = set(Sample::new(size, Length(20 * BLOCK), *seed));
                !bad.iter().any(|block| set.contains(*block))
            });
            let (missed, bound) = (
                missed.count() as f64 / f64::from(seeds as u32),
                Sample::new(size, Length(20 * BLOCK), 0).miss_probability(bad.len() as u64),
            );
            assert!(missed <= bound + 0.03, "{bad:?}: {missed} of samples miss them, at most {bound} may");
            if bad.len() == 1 {
                assert!(
                    (missed - bound).abs() < 0.03,
                    "one block is missed as often as is said: {missed}, {bound}"
                );
            }
        }
        assert!(
            (Sample::new(size, size, 1).miss_probability(1)).abs() < f64::EPSILON,
            "all of it misses nothing"
        );
    }
}
