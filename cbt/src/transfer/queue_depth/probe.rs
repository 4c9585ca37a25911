//! The useful number of reads in flight: doubled while the rate grows with them, then tried a little up and a
//! little down.
//!
//! Rule: of two depths with the same rate the smaller is right. More requests in the source's queue only make
//! production wait, and answers come when their bytes have left the cache.
//!
//! The idea is that of TCP's slow start with a hill climb after it; a rate is compared with the rate just
//! before, never with an old one, as others use the source too.

use std::ops::AddAssign;

/// The result of one round of reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProbeRound {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// A read waited for a slot: without that the depth is not what limits the rate, and nothing can be
    /// learnt of it.
    pub(super) wanted: bool,
}

impl ProbeRound {
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds } else { 0.0 }
    }
}

impl AddAssign for ProbeRound {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        self.wanted |= other.wanted;
    }
}

/// The first depth of a disk.
const START: usize = 8;
/// Doubling the depth must bring this much, or it was doubled once too often.
const PAYS: f64 = 1.08;
/// A quarter more must bring this much.
const STEP_PAYS: f64 = 1.04;
/// An eighth less may cost this much.
const STEP_COSTS: f64 = 0.99;
/// Rounds over which a rate is measured before and after a step.
const MEASURED: u32 = 4;
/// Rounds between two steps.
const REST: u32 = 20;

/// The search for the right depth.
#[derive(Debug)]
pub(super) struct Probe {
    depth: usize,
    ceiling: usize,
    state: State,
    /// The next step goes up.
    upward: bool,
}

#[derive(Debug)]
enum State {
    Doubling {
        before: f64,
    },
    Resting {
        rounds: u32,
        /// Of the last [`MEASURED`] rounds of the rest.
        sum: ProbeRound,
    },
    /// Trying `depth` after `from`. The first round still has earlier requests, and is not counted.
    Trying {
        from: usize,
        before: f64,
        rounds: u32,
        sum: ProbeRound,
    },
}

impl Probe {
    pub(super) fn new(ceiling: usize) -> Self {
        let ceiling = ceiling.max(1);
        Self { depth: START.min(ceiling), ceiling, state: State::Doubling { before: 0.0 }, upward: true }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether it has not found the first depth yet.
    pub(super) fn is_doubling(&self) -> bool {
        matches!(self.state, State::Doubling { .. })
    }

    /// Learns from a round.
    pub(super) fn learn(&mut self, round: ProbeRound) {
        if !round.wanted {
            return;
        }
        match &mut self.state {
            State::Doubling { before } => {
                let rate = round.rate();
                if rate < *before * PAYS {
                    self.depth = (self.depth / 2).max(1);
                    self.rest();
                } else if self.depth == self.ceiling {
                    self.rest();
                } else {
                    *before = rate;
                    self.depth = (self.depth * 2).min(self.ceiling);
                }
            }
            State::Resting { rounds, sum } => {
                *rounds += 1;
                if *rounds > REST - MEASURED {
                    *sum += round;
                }
                if *rounds >= REST {
                    let before = sum.rate();
                    self.step(before);
                }
            }
            State::Trying { from, before, rounds, sum } => {
                *rounds += 1;
                if *rounds > 1 {
                    *sum += round;
                }
                if *rounds > MEASURED {
                    let gain = sum.rate() / before.max(f64::MIN_POSITIVE);
                    let (from, up) = (*from, self.depth > *from);
                    let good = if up { gain >= STEP_PAYS } else { gain >= STEP_COSTS };
                    if !good {
                        self.depth = from;
                        self.upward = !up;
                    }
                    self.rest();
                }
            }
        }
    }

    fn rest(&mut self) {
        self.state = State::Resting { rounds: 0, sum: ProbeRound::default() };
    }

    fn step(&mut self, before: f64) {
        let from = self.depth;
        if self.upward && from == self.ceiling || !self.upward && from == 1 {
            self.upward = !self.upward;
        }
        self.depth =
            if self.upward { (from + (from / 4).max(1)).min(self.ceiling) } else { from - (from / 8).max(1) };
        // With a ceiling of 1 there is no other depth.
        self.depth = self.depth.clamp(1, self.ceiling);
        self.state = State::Trying { from, before, rounds: 0, sum: ProbeRound::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source that answers `width` requests at once, each in the same time.
    fn climb_on(width: usize, ceiling: usize, rounds: usize) -> Vec<usize> {
        let mut climb = Probe::new(ceiling);
        (0..rounds)
            .map(|_| {
                let rate = climb.depth().min(width) as f64 * 1e8;
                climb.learn(ProbeRound { bytes: (rate / 50.0) as u64, seconds: 0.02, wanted: true });
                climb.depth()
            })
            .collect()
    }

    #[test]
    fn it_doubles_to_what_pays_and_stays_near() {
        for width in [1, 3, 8, 20, 64, 200] {
            let depths = climb_on(width, 64, 600);
            let wanted = width.min(64);
            let last = &depths[300..];
            assert!(last.iter().all(|depth| *depth <= wanted + (wanted / 2).max(2)), "{width}: {last:?}");
            assert!(last.iter().all(|depth| *depth + depth.div_ceil(3) + 1 >= wanted), "{width}: {last:?}");
        }
    }

    #[test]
    fn it_gets_to_the_ceiling_in_few_rounds() {
        assert_eq!(climb_on(1000, 64, 3), [16, 32, 64]);
        assert_eq!(climb_on(1000, 5, 3), [5, 5, 5]);
        assert!(climb_on(1000, 1, 100).iter().all(|depth| *depth == 1));
    }

    #[test]
    fn rounds_in_which_nobody_waited_teach_nothing() {
        let mut climb = Probe::new(64);
        for _ in 0..100 {
            climb.learn(ProbeRound { bytes: 1, seconds: 1.0, wanted: false });
        }
        assert_eq!(climb.depth(), START);
    }

    #[test]
    fn it_follows_a_source_that_changes() {
        let mut climb = Probe::new(64);
        let mut run = |width: usize, rounds: usize| {
            for _ in 0..rounds {
                let rate = climb.depth().min(width) as f64 * 1e8;
                climb.learn(ProbeRound { bytes: (rate / 50.0) as u64, seconds: 0.02, wanted: true });
            }
            climb.depth()
        };
        assert!(run(64, 50) >= 48);
        assert!(run(4, 1500) <= 8);
        assert!(run(64, 1500) >= 48);
    }
}
