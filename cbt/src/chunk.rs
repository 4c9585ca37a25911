//! The bits of 1 GiB of disk, in memory and in the store's form.
//!
//! Rule: bytes from a store are untrusted; [`ChunkBits::decode`] refuses bytes that [`ChunkBits::encode`]
//! cannot have made.
//!
//! Empty and full sets take no memory, up to [`LIST_MAX`] scattered blocks two bytes each, other sets a bit
//! for each block (2 KiB). Ten million blocks scattered over 64 TiB take 30 MB this way and not the 128 MiB
//! of a flat map. Clones share their memory until one of them is changed, so rows queued for the store
//! cost nothing.

use std::{ops::Range, sync::Arc};

use bitvec::{array::BitArray, order::Lsb0};
use serde::{Deserialize, Serialize};

/// Blocks in a chunk.
pub const CHUNK_BLOCKS: u64 = 16_384;

/// Blocks up to which a list is kept; from here on it would be near the size of the bits, and slower.
pub const LIST_MAX: usize = 512;

const BITS: usize = CHUNK_BLOCKS as usize;
const WORDS: usize = BITS / 64;

type Bits = BitArray<[u64; WORDS], Lsb0>;

/// A bit for each block of a chunk. In a message it has the store's form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct ChunkBits(Form);

/// Canonical: equal sets have equal forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    None,
    /// In order; 1 to [`LIST_MAX`] of them.
    List(Arc<Vec<u16>>),
    /// More than [`LIST_MAX`] set, but not all.
    Bits(Arc<Bits>),
    All,
}

const TAG_ALL: u8 = 1;
const TAG_RUNS: u8 = 2;
const TAG_BITS: u8 = 3;

impl From<ChunkBits> for Vec<u8> {
    fn from(bits: ChunkBits) -> Self {
        bits.encode()
    }
}

impl TryFrom<Vec<u8>> for ChunkBits {
    type Error = &'static str;
    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        Self::decode(&bytes).ok_or("these bytes are no set of blocks")
    }
}

impl ChunkBits {
    /// Whether no bit is set.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Form::None)
    }

    /// Bits set.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Form::None => 0,
            Form::List(list) => list.len() as u64,
            Form::Bits(bits) => count(bits) as u64,
            Form::All => CHUNK_BLOCKS,
        }
    }

    /// Whether `bit` is set.
    pub fn get(&self, bit: usize) -> bool {
        match &self.0 {
            Form::None => false,
            Form::List(list) => list.binary_search(&(bit as u16)).is_ok(),
            Form::Bits(bits) => bits[bit],
            Form::All => true,
        }
    }

    /// Sets or clears a range.
    pub fn set(&mut self, range: Range<usize>, value: bool) {
        match &mut self.0 {
            _ if range.is_empty() => {}
            _ if range == (0..BITS) => self.0 = if value { Form::All } else { Form::None },
            Form::None if !value => {}
            Form::All if value => {}
            Form::None if range.len() <= LIST_MAX => {
                self.0 = Form::List(Arc::new((range.start as u16..range.end as u16).collect()));
            }
            Form::List(list) if !value || list.len() + range.len() <= LIST_MAX => {
                let list = Arc::make_mut(list);
                if value && list.last().is_some_and(|last| usize::from(*last) < range.start) {
                    list.extend(range.start as u16..range.end as u16);
                    return;
                }
                let from = list.partition_point(|bit| usize::from(*bit) < range.start);
                if value && range.len() == 1 && list[from..].first() != Some(&(range.start as u16)) {
                    list.insert(from, range.start as u16);
                    return;
                }
                let to = from + list[from..].partition_point(|bit| usize::from(*bit) < range.end);
                if value {
                    list.splice(from..to, range.start as u16..range.end as u16);
                } else {
                    list.drain(from..to);
                    if list.is_empty() {
                        self.0 = Form::None;
                    }
                }
            }
            Form::Bits(bits) => {
                Arc::make_mut(bits)[range].fill(value);
                self.normalize();
            }
            _ => {
                let mut bits = self.bits();
                bits[range].fill(value);
                self.0 = form(&bits);
            }
        }
    }

    /// Sets every bit that `other` has.
    pub fn union(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (_, Form::None) | (Form::All, _) => {}
            (Form::None, _) | (_, Form::All) => self.clone_from(other),
            _ => self.join(other, |ours, theirs| ours | theirs),
        }
    }

    /// Clears every bit that `other` has.
    pub fn subtract(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (Form::None, _) | (_, Form::None) => {}
            (_, Form::All) => self.0 = Form::None,
            _ => self.join(other, |ours, theirs| ours & !theirs),
        }
    }

    /// Clears every bit that `other` has not.
    pub fn intersect(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (Form::None, _) | (_, Form::All) => {}
            (_, Form::None) | (Form::All, _) => self.clone_from(other),
            _ => self.join(other, |ours, theirs| ours & theirs),
        }
    }

    /// The first set bit at or after `from`.
    pub fn first_set(&self, from: usize) -> Option<usize> {
        match &self.0 {
            _ if from >= BITS => None,
            Form::None => None,
            Form::List(list) => {
                let at = list.partition_point(|bit| usize::from(*bit) < from);
                list.get(at).map(|bit| usize::from(*bit))
            }
            Form::Bits(bits) => bits[from..].first_one().map(|bit| from + bit),
            Form::All => Some(from),
        }
    }

    /// The first clear bit at or after `from`.
    pub fn first_clear(&self, from: usize) -> Option<usize> {
        match &self.0 {
            _ if from >= BITS => None,
            Form::None => Some(from),
            Form::List(list) => {
                let at = list.partition_point(|bit| usize::from(*bit) < from);
                let run =
                    list[at..].iter().zip(from..).take_while(|(bit, place)| usize::from(**bit) == *place);
                Some(from + run.count()).filter(|bit| *bit < BITS)
            }
            Form::Bits(bits) => bits[from..].first_zero().map(|bit| from + bit),
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

    /// How many runs of set bits there are.
    pub fn run_count(&self) -> u64 {
        match &self.0 {
            Form::None => 0,
            Form::List(list) => list.chunk_by(|one, next| one + 1 == *next).count() as u64,
            Form::Bits(bits) => {
                let mut before = 0;
                let starts = bits.data.iter().map(|word| {
                    let starts = word & !(word << 1 | before);
                    before = word >> 63;
                    u64::from(starts.count_ones())
                });
                starts.sum()
            }
            Form::All => 1,
        }
    }

    /// The bytes to keep: a tag, then nothing (all); or for each run two numbers, its distance from the last
    /// run's end and its length − 1, seven bits a byte, lowest first, the top bit set on all but a number's
    /// last byte; or the bits themselves, block 0 the lowest of the first byte. Whichever is shorter. Nothing
    /// for no bits.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TAG_RUNS];
        match &self.0 {
            Form::None => return Vec::new(),
            Form::All => return vec![TAG_ALL],
            Form::List(list) => {
                // At most four bytes for each of few bits: the runs are always shorter.
                bytes.reserve_exact(4 * list.len());
                let mut end = 0;
                for run in list.chunk_by(|one, next| one + 1 == *next) {
                    let start = usize::from(run[0]);
                    put_number(&mut bytes, start - end);
                    put_number(&mut bytes, run.len() - 1);
                    end = start + run.len();
                }
                return bytes;
            }
            Form::Bits(_) => {}
        }
        let mut end = 0;
        for run in self.runs() {
            put_number(&mut bytes, run.start - end);
            put_number(&mut bytes, run.len() - 1);
            end = run.end;
            if bytes.len() > BITS / 8 {
                bytes.clear();
                bytes.push(TAG_BITS);
                bytes.extend(self.bits().data.iter().flat_map(|word| word.to_le_bytes()));
                break;
            }
        }
        bytes
    }

    /// Reads the output of [`ChunkBits::encode`]; `None` for any other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let Some((tag, mut rest)) = bytes.split_first() else { return Some(Self::default()) };
        match *tag {
            TAG_ALL if rest.is_empty() => Some(Self(Form::All)),
            TAG_RUNS => {
                let mut runs = Vec::with_capacity(rest.len() / 2);
                let mut end = 0;
                while !rest.is_empty() {
                    let start = end + take_number(&mut rest)?;
                    end = start + take_number(&mut rest)? + 1;
                    runs.push(start..end);
                }
                (end <= BITS).then(|| Self(of_runs(&runs)))
            }
            TAG_BITS if rest.len() == BITS / 8 => {
                let mut bits = Bits::ZERO;
                for (word, bytes) in bits.data.iter_mut().zip(rest.as_chunks::<8>().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
                Some(Self(form(&bits)))
            }
            _ => None,
        }
    }

    fn bits(&self) -> Bits {
        let mut bits = Bits::ZERO;
        match &self.0 {
            Form::None => {}
            Form::List(list) => list.iter().for_each(|bit| bits.set(usize::from(*bit), true)),
            Form::Bits(set) => bits.data.copy_from_slice(&set.data),
            Form::All => bits.data.fill(u64::MAX),
        }
        bits
    }

    fn join(&mut self, other: &Self, join: impl Fn(u64, u64) -> u64) {
        let mut bits = self.bits();
        for (ours, theirs) in bits.data.iter_mut().zip(&other.bits().data) {
            *ours = join(*ours, *theirs);
        }
        self.0 = form(&bits);
    }

    fn normalize(&mut self) {
        if let Form::Bits(bits) = &self.0 {
            let set = count(bits);
            if set <= LIST_MAX || set == BITS {
                self.0 = form(bits);
            }
        }
    }
}

fn count(bits: &Bits) -> usize {
    bits.data.iter().map(|word| word.count_ones() as usize).sum()
}

fn form(bits: &Bits) -> Form {
    match count(bits) {
        0 => Form::None,
        BITS => Form::All,
        set if set <= LIST_MAX => {
            let mut list = Vec::with_capacity(set);
            list.extend(bits.iter_ones().map(|bit| bit as u16));
            Form::List(Arc::new(list))
        }
        _ => Form::Bits(Arc::new(*bits)),
    }
}

/// Of runs in order, each after the last one's end.
fn of_runs(runs: &[Range<usize>]) -> Form {
    match runs.iter().map(Range::len).sum() {
        0 => Form::None,
        count if count <= LIST_MAX => {
            let mut list = Vec::with_capacity(count);
            for run in runs {
                list.extend(run.start as u16..run.end as u16);
            }
            Form::List(Arc::new(list))
        }
        _ => {
            let mut bits = Bits::ZERO;
            for run in runs {
                bits[run.clone()].fill(true);
            }
            form(&bits)
        }
    }
}

/// `number` is below 2¹⁴.
fn put_number(bytes: &mut Vec<u8>, number: usize) {
    if number >= 0x80 {
        bytes.push(number as u8 | 0x80);
    }
    bytes.push(if number >= 0x80 { number >> 7 } else { number } as u8);
}

/// At most two bytes, so below 2¹⁴.
fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 == 0 {
        *bytes = rest;
        return Some(usize::from(*first));
    }
    let (second, rest) = rest.split_first()?;
    *bytes = rest;
    (second & 0x80 == 0).then_some(usize::from(first & 0x7f) | usize::from(*second) << 7)
}
