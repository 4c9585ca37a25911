//! The random numbers of a simulation, from its seed.
//!
//! Rule: a separate generator that no update of a crate changes: a seed that failed once always means the
//! same run.

use std::time::Duration;

/// The SplitMix64 generator.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// The generator of `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A separate generator for another part, so that the draws of one part do not change the other.
    pub(super) fn split(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..below`; 0 if there is none.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// One of `from..=to`.
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// True `of` times in 1000.
    pub(super) fn happens(&mut self, of: u64) -> bool {
        self.below(1000) < of
    }

    /// One of `choices`, weighted.
    pub(super) fn weighted<T: Clone>(&mut self, choices: &[(u64, T)]) -> T {
        let mut at = self.below(choices.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in choices {
            if at < *weight {
                return choice.clone();
            }
            at -= weight;
        }
        choices[0].1.clone()
    }

    /// One of `choices`.
    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Milliseconds in `from..=to`.
    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }

    /// Long spans are as likely as short ones: first the magnitude is drawn, then the number.
    pub(super) fn magnitude(&mut self, most: u64) -> u64 {
        let bits = self.between(1, u64::from(most.max(1).ilog2()) + 1);
        self.between(1, most.min(1 << bits))
    }
}
