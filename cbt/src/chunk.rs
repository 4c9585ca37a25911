//! The bits of 1 GiB of disk, in memory and as the store keeps them.
//!
//! Rule: bytes from a store are outside data; [`ChunkBits::decode`] refuses what [`ChunkBits::encode`] cannot have made.

use std::ops::Range;

use bitvec::{array::BitArray, order::Lsb0};

/// Blocks in a chunk.
pub const CHUNK_BLOCKS: u64 = 16_384;

const BITS: usize = CHUNK_BLOCKS as usize;
const WORDS: usize = BITS / 64;

type Bits = BitArray<[u64; WORDS], Lsb0>;

/// A bit for each block of a chunk. None and all take no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkBits(Form);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    None,
    Some(Box<Bits>),
    All,
}

const TAG_ALL: u8 = 1;
const TAG_RUNS: u8 = 2;
const TAG_BITS: u8 = 3;

impl ChunkBits {
    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Form::None)
    }

    /// Bits set.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Form::None => 0,
            Form::Some(bits) => bits.data.iter().map(|word| u64::from(word.count_ones())).sum(),
            Form::All => CHUNK_BLOCKS,
        }
    }

    /// Whether `bit` is set.
    pub fn get(&self, bit: usize) -> bool {
        match &self.0 {
            Form::None => false,
            Form::Some(bits) => bits[bit],
            Form::All => true,
        }
    }

    /// Sets or clears a range.
    pub fn set(&mut self, range: Range<usize>, value: bool) {
        if range.is_empty() {
            return;
        }
        if range == (0..BITS) {
            self.0 = if value { Form::All } else { Form::None };
            return;
        }
        self.change(|bits| bits[range].fill(value));
    }

    /// Sets every bit that `other` has.
    pub fn union(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (_, Form::None) | (Form::All, _) => {}
            (_, Form::All) => self.0 = Form::All,
            (_, Form::Some(theirs)) => self.change(|bits| zip(bits, theirs, |ours, theirs| ours | theirs)),
        }
    }

    /// Clears every bit that `other` has.
    pub fn subtract(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (Form::None, _) | (_, Form::None) => {}
            (_, Form::All) => self.0 = Form::None,
            (_, Form::Some(theirs)) => self.change(|bits| zip(bits, theirs, |ours, theirs| ours & !theirs)),
        }
    }

    /// Clears every bit that `other` has not.
    pub fn intersect(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (Form::None, _) | (_, Form::All) => {}
            (_, Form::None) => self.0 = Form::None,
            (_, Form::Some(theirs)) => self.change(|bits| zip(bits, theirs, |ours, theirs| ours & theirs)),
        }
    }

    /// The first set bit at or after `from`.
    pub fn first_set(&self, from: usize) -> Option<usize> {
        match &self.0 {
            _ if from >= BITS => None,
            Form::None => None,
            Form::Some(bits) => bits[from..].first_one().map(|bit| from + bit),
            Form::All => Some(from),
        }
    }

    /// The first clear bit at or after `from`.
    pub fn first_clear(&self, from: usize) -> Option<usize> {
        match &self.0 {
            _ if from >= BITS => None,
            Form::None => Some(from),
            Form::Some(bits) => bits[from..].first_zero().map(|bit| from + bit),
            Form::All => None,
        }
    }

    /// Runs of set bits, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.first_set(at)?;
            at = self.first_clear(start).unwrap_or(BITS);
            Some(start..at)
        })
    }

    /// The bytes to keep: a tag, then nothing (all), runs as pairs of little-endian u16 (first, length − 1), or the
    /// bits themselves, whichever is shortest. Nothing for no bits.
    pub fn encode(&self) -> Vec<u8> {
        match &self.0 {
            Form::None => Vec::new(),
            Form::All => vec![TAG_ALL],
            Form::Some(bits) => {
                let runs: Vec<_> = self.runs().take(BITS / 8 / 4).collect();
                if runs.len() < BITS / 8 / 4 {
                    let pairs = runs
                        .iter()
                        .flat_map(|run| [run.start as u16, (run.len() - 1) as u16])
                        .flat_map(u16::to_le_bytes);
                    std::iter::once(TAG_RUNS).chain(pairs).collect()
                } else {
                    std::iter::once(TAG_BITS)
                        .chain(bits.data.iter().flat_map(|word| word.to_le_bytes()))
                        .collect()
                }
            }
        }
    }

    /// What [`ChunkBits::encode`] made; `None` if the bytes are not that.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let Some((tag, rest)) = bytes.split_first() else { return Some(Self::default()) };
        let mut chunk = Self::default();
        match *tag {
            TAG_ALL if rest.is_empty() => chunk.0 = Form::All,
            TAG_RUNS => {
                let (pairs, []) = rest.as_chunks::<4>() else { return None };
                let mut end = 0;
                for [a, b, c, d] in pairs {
                    let start = usize::from(u16::from_le_bytes([*a, *b]));
                    let stop = start + usize::from(u16::from_le_bytes([*c, *d])) + 1;
                    if start < end || stop > BITS {
                        return None;
                    }
                    chunk.set(start..stop, true);
                    end = stop;
                }
            }
            TAG_BITS if rest.len() == BITS / 8 => {
                let (words, _) = rest.as_chunks::<8>();
                let mut bits = Box::new(Bits::ZERO);
                for (word, bytes) in bits.data.iter_mut().zip(words) {
                    *word = u64::from_le_bytes(*bytes);
                }
                chunk.0 = Form::Some(bits);
                chunk.normalize();
            }
            _ => return None,
        }
        Some(chunk)
    }

    fn change(&mut self, change: impl FnOnce(&mut Bits)) {
        if !matches!(self.0, Form::Some(_)) {
            let mut bits = Box::new(Bits::ZERO);
            bits.data.fill(if matches!(self.0, Form::All) { u64::MAX } else { 0 });
            self.0 = Form::Some(bits);
        }
        if let Form::Some(bits) = &mut self.0 {
            change(bits);
        }
        self.normalize();
    }

    fn normalize(&mut self) {
        if let Form::Some(bits) = &self.0 {
            if bits.data.iter().all(|word| *word == 0) {
                self.0 = Form::None;
            } else if bits.data.iter().all(|word| *word == u64::MAX) {
                self.0 = Form::All;
            }
        }
    }
}

fn zip(ours: &mut Bits, theirs: &Bits, join: impl Fn(u64, u64) -> u64) {
    for (ours, theirs) in ours.data.iter_mut().zip(&theirs.data) {
        *ours = join(*ours, *theirs);
    }
}
