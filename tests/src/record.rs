//! The numbered, checksummed records by which a guest proves what its disks held.
//!
//! Rule: the guest acknowledges a record on its serial console only after it is durable on every disk, so
//! every surviving disk must hold every acknowledged record. The content of a record follows from its number
//! and the boot that wrote it; a lost, stale, torn or foreign byte cannot pass for a record.
//!
//! Std only: the guest's writer is compiled from this same file.

use std::fmt;

/// Bytes of one record, its closing newline included.
pub const RECORD: usize = 64;
/// Bytes of one ring block on an extra disk: a record, repeated.
pub const BLOCK: usize = 4096;
/// Blocks in the ring at the head of every extra disk.
pub const RING: u64 = 256;

/// An error in a log or a ring, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Byte offset in the log, or in the ring.
    pub offset: u64,
    /// The found content instead of the expected one.
    pub what: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for Bad {}

/// A good log: its records run from 1 to `last` without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Number of the last complete record; 0 for an empty log.
    pub last: u64,
    /// Bytes of an incomplete record after it: a guest that lost power may leave them.
    pub torn: usize,
    /// The boot that wrote the last record, counted from 1; 0 for an empty log.
    pub boot: u16,
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A hash of a number, for payloads and the guest's random offsets.
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Record number `seq` as boot number `boot` writes it.
pub fn encode(seq: u64, boot: u16) -> [u8; RECORD] {
    let body = format!("R {seq:012} {boot:04x} {:016x} ", mix(seq));
    let line = format!("{body}{:016x} ", fnv(body.as_bytes()));
    let mut out = [b'-'; RECORD];
    for (to, from) in out.iter_mut().zip(line.bytes()) {
        *to = from;
    }
    out[RECORD - 1] = b'\n';
    out
}

/// Number and boot of a record, or `None` if these bytes are not one.
pub fn decode(bytes: &[u8]) -> Option<(u64, u16)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut words = text.split(' ');
    let (tag, seq, boot) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    let boot = u16::from_str_radix(boot, 16).ok()?;
    (tag == "R" && bytes == encode(seq, boot)).then_some((seq, boot))
}

/// The log of the disk with the file system: every record from 1 on, in order, once.
pub fn verify_log(log: &[u8]) -> Result<Log, Bad> {
    let mut good = Log { last: 0, torn: log.len() % RECORD, boot: 0 };
    for (at, record) in log.chunks_exact(RECORD).enumerate() {
        let bad = |what| Bad { offset: (at * RECORD) as u64, what };
        let want = at as u64 + 1;
        match decode(record) {
            Some((seq, boot)) if seq == want && boot >= good.boot => {
                good = Log { last: seq, boot, ..good };
            }
            Some((seq, boot)) => return Err(bad(format!("record {seq} of boot {boot} instead of {want}"))),
            None => return Err(bad(format!("no record {want}: {:?}", String::from_utf8_lossy(record)))),
        }
    }
    Ok(good)
}

/// The block of the ring that holds record `seq`.
pub fn ring_block(seq: u64, boot: u16) -> Vec<u8> {
    encode(seq, boot).repeat(BLOCK / RECORD)
}

/// The byte offset of record `seq` in the ring.
pub fn ring_offset(seq: u64) -> u64 {
    (seq % RING) * BLOCK as u64
}

/// The ring of an extra disk: the last `RING` records, each complete and at its position. Returns the
/// last one's number, 0 for an untouched ring.
pub fn verify_ring(ring: &[u8]) -> Result<u64, Bad> {
    let mut found = Vec::new();
    for (slot, block) in ring.chunks_exact(BLOCK).take(RING as usize).enumerate() {
        let bad = |what: &str| Bad { offset: (slot * BLOCK) as u64, what: what.to_owned() };
        let Some(first) = block.get(..RECORD) else { return Err(bad("block too short")) };
        match decode(first) {
            Some((seq, _)) if ring_offset(seq) != (slot * BLOCK) as u64 => {
                return Err(bad(&format!("record {seq} does not belong here")));
            }
            Some(_) if block.chunks_exact(RECORD).any(|r| r != first) => return Err(bad("torn block")),
            Some((seq, _)) => found.push(seq),
            None if block.iter().all(|&b| b == 0) => {}
            None => return Err(bad("neither a record nor zeroes")),
        }
    }
    found.sort_unstable();
    let Some(&last) = found.last() else { return Ok(0) };
    let first = last.saturating_sub(RING - 1).max(1);
    match (first..=last).find(|seq| found.binary_search(seq).is_err()) {
        Some(lost) => {
            Err(Bad { offset: ring_offset(lost), what: format!("record {lost} of {first}..={last} is lost") })
        }
        None if found.first().is_some_and(|&f| f < first) => {
            Err(Bad { offset: 0, what: format!("stale record, older than {first}") })
        }
        None => Ok(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(n: u64) -> Vec<u8> {
        (1..=n).flat_map(|seq| encode(seq, 1 + (seq / 10) as u16)).collect()
    }

    fn ring(n: u64) -> Vec<u8> {
        let mut ring = vec![0; RING as usize * BLOCK];
        for seq in 1..=n {
            let at = ring_offset(seq) as usize;
            ring[at..at + BLOCK].copy_from_slice(&ring_block(seq, 1));
        }
        ring
    }

    #[test]
    fn a_record_is_one_line_and_reads_back() {
        let record = encode(4711, 3);
        assert_eq!(record.split(|&b| b == b'\n').count(), 2);
        assert_eq!(record[RECORD - 1], b'\n');
        assert_eq!(decode(&record), Some((4711, 3)));
    }

    #[test]
    fn every_single_flipped_bit_is_noticed() {
        let record = encode(42, 1);
        for bit in 0..RECORD * 8 {
            let mut bytes = record;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_log_ends_at_its_last_whole_record() {
        let mut bytes = log(25);
        assert_eq!(verify_log(&bytes), Ok(Log { last: 25, torn: 0, boot: 3 }));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(verify_log(&bytes), Ok(Log { last: 24, torn: RECORD - 1, boot: 3 }));
        assert_eq!(verify_log(&[]), Ok(Log { last: 0, torn: 0, boot: 0 }));
    }

    #[test]
    fn gaps_repeats_zeroes_and_older_boots_are_bad() {
        let whole = log(25);
        let mut gap = whole.clone();
        gap.drain(5 * RECORD..6 * RECORD);
        assert_eq!(verify_log(&gap).unwrap_err().offset, 5 * RECORD as u64);
        let mut stale = whole.clone();
        stale.copy_within(3 * RECORD..4 * RECORD, 9 * RECORD);
        assert_eq!(verify_log(&stale).unwrap_err().offset, 9 * RECORD as u64);
        let mut zeroed = whole.clone();
        zeroed[20 * RECORD..21 * RECORD].fill(0);
        assert!(verify_log(&zeroed).unwrap_err().what.starts_with("no record 21"));
        let older = [&encode(1, 2)[..], &encode(2, 1)[..]].concat();
        assert_eq!(verify_log(&older).unwrap_err().offset, RECORD as u64);
    }

    #[test]
    fn a_ring_holds_exactly_the_last_records() {
        for n in [0, 1, 5, RING - 1, RING, RING + 1, 3 * RING + 17] {
            assert_eq!(verify_ring(&ring(n)), Ok(n), "{n} records");
        }
    }

    #[test]
    fn stale_torn_and_misplaced_ring_blocks_are_bad() {
        let n = 2 * RING + 40;
        let at = |seq| ring_offset(seq) as usize;
        let mut stale = ring(n);
        stale[at(n - 3)..at(n - 3) + BLOCK].copy_from_slice(&ring_block(n - 3 - RING, 1));
        assert_eq!(verify_ring(&stale).unwrap_err().offset, ring_offset(n - 3));
        let mut torn = ring(n);
        torn[at(n) + BLOCK / 2..at(n) + BLOCK].copy_from_slice(&ring_block(n - RING, 1)[BLOCK / 2..]);
        assert_eq!(verify_ring(&torn).unwrap_err().what, "torn block");
        let mut moved = ring(n);
        moved[at(n)..at(n) + BLOCK].copy_from_slice(&ring_block(n - 1, 1));
        assert!(verify_ring(&moved).unwrap_err().what.contains("does not belong"));
        let mut zeroed = ring(n);
        zeroed[at(n - 7)..at(n - 7) + BLOCK].fill(0);
        assert!(verify_ring(&zeroed).unwrap_err().what.contains("is lost"));
    }
}
