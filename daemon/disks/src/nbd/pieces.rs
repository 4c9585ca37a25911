//! Cuts requests to a server's limits: its largest request, and multiples of its smallest block.
//!
//! Rule: pure. The pieces of a request touch, in order, and cover it exactly.

use std::ops::Range;

use super::option_reply::BlockSizes;

/// One request to a server, part of a larger read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadPiece {
    /// Straight into this part of the caller's buffer.
    Direct { offset: u64, place: Range<usize> },
    /// A whole block of the server's, of which only `wanted` goes to `place`: the caller's range begins or
    /// ends in it.
    Widened { offset: u64, length: u32, wanted: Range<usize>, place: Range<usize> },
}

/// The pieces of a read of `length` bytes at `offset`, which lies within `size`. The last block of a disk
/// whose size is no multiple of the server's block is requested in its short length.
pub(super) fn reads(offset: u64, length: usize, size: u64, blocks: BlockSizes) -> Vec<ReadPiece> {
    let block = u64::from(blocks.minimum);
    let end = offset + length as u64;
    let mut at = offset;
    let mut pieces = Vec::with_capacity(1);
    while at < end {
        let place = (at - offset) as usize;
        let block_start = at / block * block;
        let block_end = (block_start + block).min(size);
        let whole_end = if end == size { end } else { end / block * block };
        if at != block_start || whole_end <= at {
            let wanted_end = end.min(block_end);
            pieces.push(ReadPiece::Widened {
                offset: block_start,
                length: (block_end - block_start) as u32,
                wanted: (at - block_start) as usize..(wanted_end - block_start) as usize,
                place: place..(wanted_end - offset) as usize,
            });
            at = wanted_end;
        } else {
            let stop = whole_end.min(at + u64::from(blocks.maximum));
            pieces.push(ReadPiece::Direct { offset: at, place: place..(stop - offset) as usize });
            at = stop;
        }
    }
    pieces
}

/// Whether a change of `length` bytes at `offset` begins and ends at blocks of the server's, or at the disk's
/// end.
pub(super) fn is_aligned(offset: u64, length: u64, size: u64, minimum: u32) -> bool {
    let block = u64::from(minimum);
    let end = offset + length;
    offset.is_multiple_of(block) && (end.is_multiple_of(block) || end == size)
}

/// The range from `offset` cut into runs of at most `step` bytes: offset and length of each.
pub(super) fn steps(offset: u64, length: u64, step: u32) -> impl Iterator<Item = (u64, u32)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = (end - at).min(u64::from(step.max(1)));
        let from = at;
        at += piece;
        (piece > 0).then_some((from, piece as u32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn aligned_reads_are_one_request() {
        let blocks = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        let pieces = reads(4096, 65536, 1 << 30, blocks);
        assert_eq!(pieces, [ReadPiece::Direct { offset: 4096, place: 0..65536 }]);
    }

    #[test]
    fn changes_must_be_aligned_but_at_the_end() {
        assert!(is_aligned(512, 1024, 10_000, 512));
        assert!(is_aligned(9728, 272, 10_000, 512));
        assert!(!is_aligned(512, 1000, 10_000, 512));
        assert!(!is_aligned(1, 511, 10_000, 512));
    }

    proptest! {
        #[test]
        fn pieces_cover_the_read_and_keep_to_the_limits(
            shift in 0u32..17, factor in 1u32..9, size in 1u64..2_000_000,
            a in 0u64..2_000_000, b in 0u64..2_000_000,
        ) {
            let minimum = 1 << shift;
            let blocks = BlockSizes { minimum, preferred: minimum, maximum: minimum * factor };
            let (start, end) = ((a.min(b)) % size, (a.max(b) % size) + 1);
            prop_assume!(start < end);
            let mut filled = 0;
            for piece in reads(start, (end - start) as usize, size, blocks) {
                let (offset, length, skip, place) = match piece {
                    ReadPiece::Direct { offset, place } => (offset, place.len() as u64, 0, place),
                    ReadPiece::Widened { offset, length, wanted, place } => {
                        prop_assert!(wanted.end <= length as usize);
                        prop_assert_eq!(wanted.len(), place.len());
                        (offset, u64::from(length), wanted.start as u64, place)
                    }
                };
                prop_assert!(length > 0 && length <= u64::from(blocks.maximum));
                prop_assert!(is_aligned(offset, length, size, minimum));
                prop_assert!(offset + length <= size);
                prop_assert_eq!(place.start, filled);
                prop_assert_eq!(offset + skip, start + place.start as u64);
                filled = place.end;
            }
            prop_assert_eq!(filled as u64, end - start);
        }

        #[test]
        fn steps_cover_the_range(offset in 0u64..1 << 40, length in 0u64..1 << 20, step in 1000u32..1 << 20) {
            let mut at = offset;
            for (from, piece) in steps(offset, length, step) {
                prop_assert_eq!(from, at);
                prop_assert!(piece > 0 && piece <= step);
                at += u64::from(piece);
            }
            prop_assert_eq!(at, offset + length);
        }
    }
}
