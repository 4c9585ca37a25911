//! Bytes in hexadecimal.

use std::fmt::Write;

pub(super) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Exactly `N` bytes, in digits of either case.
pub(super) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(decode::<3>(&encode(&[0, 0xa5, 0xff])), Some([0, 0xa5, 0xff]));
        assert_eq!(decode::<1>("A5"), Some([0xa5]));
        for wrong in ["", "a", "abc", "g0", "0x", " a", "é"] {
            assert_eq!(decode::<1>(wrong), None, "{wrong:?}");
        }
    }
}
