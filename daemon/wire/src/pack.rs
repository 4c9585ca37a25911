//! Packing of data: zstd, level 1, each message apart.
//!
//! Rule: data that does not shrink is sent as it is, and what is unpacked has the length that was
//! announced.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

const LEVEL: i32 = 1;
/// Packing must save this part of the data, else unpacking is not worth it.
const SAVED: usize = 16;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The packed bytes, if they are fewer.
pub(super) fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(LEVEL).ok()?),
        };
        // One that does not fit is an error of zstd's, and sent as it is.
        let mut packed = vec![0; bytes.len() - bytes.len().div_ceil(SAVED)];
        let length = compressor.compress_to_buffer(bytes, packed.as_mut_slice()).ok()?;
        packed.truncate(length);
        Some(packed)
    })
}

/// Unpacks into all of `to`; whether that was right.
pub(super) fn unpack(bytes: &[u8], to: &mut [u8]) -> bool {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => match Decompressor::new() {
                Ok(new) => slot.insert(new),
                Err(_) => return false,
            },
        };
        let wanted = to.len();
        decompressor.decompress_to_buffer(bytes, to).is_ok_and(|length| length == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_bytes_come_back_and_noise_is_left_alone() {
        let text = b"the same line again\n".repeat(3000);
        let packed = pack(&text).unwrap();
        assert!(packed.len() < text.len() / 10, "{} bytes", packed.len());
        let mut back = vec![0; text.len()];
        assert!(unpack(&packed, &mut back));
        assert_eq!(back, text);
        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(pack(&noise), None);
        assert_eq!(pack(&[7]), None);
    }

    #[test]
    fn a_wrong_length_or_wrong_bytes_are_not_unpacked() {
        let packed = pack(&[5; 9000]).unwrap();
        assert!(!unpack(&packed, &mut [0; 8999]) && !unpack(&packed, &mut [0; 9001]));
        assert!(!unpack(b"no zstd at all", &mut [0; 9000]));
    }
}
