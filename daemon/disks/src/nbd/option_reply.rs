//! Checks a server's messages in the handshake: bytes in, typed replies or a [`Violation`] out.
//!
//! Rule: pure, as `reply` is, and bounded: no reply may be longer than [`MAX_REPLY`].

use super::{
    reply::Violation,
    wire::{ExportFlags, MAX_STRING, OPTION_REPLY_MAGIC, info, option_reply, plain_text},
    wire::{take_u16, take_u32, take_u64},
};

/// Bytes of an option reply's header.
pub(super) const HEADER_LEN: usize = 20;

/// Two of the longest strings and their lengths: no reply needs more.
pub(super) const MAX_REPLY: u32 = 2 * MAX_STRING as u32 + 64;

/// The header of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub kind: u32,
    /// Bytes that follow, at most [`MAX_REPLY`].
    pub length: u32,
}

impl OptionReply {
    /// Reads the header of a reply to the option `asked`.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN], asked: u32) -> Result<Self, Violation> {
        let (magic, rest) = take_u64(bytes).ok_or(Violation::OptionMagic(0))?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        let numbers = || {
            let (option, rest) = take_u32(rest)?;
            let (kind, rest) = take_u32(rest)?;
            Some((option, kind, take_u32(rest)?.0))
        };
        let (option, kind, length) = numbers().ok_or(Violation::OptionMagic(magic))?;
        if option != asked {
            return Err(Violation::OptionMismatch { asked, got: option });
        }
        if length > MAX_REPLY {
            return Err(Violation::OptionLength { kind, length });
        }
        Ok(Self { kind, length })
    }

    /// Whether it is a refusal.
    pub(super) fn is_refusal(self) -> bool {
        self.kind & option_reply::ERROR != 0
    }
}

/// The meaning of a refusal's number.
pub(super) fn refusal(kind: u32) -> &'static str {
    match kind & !option_reply::ERROR {
        1 => "it does not know the option",
        2 => "its policy forbids it",
        3 => "it takes the request for invalid",
        4 => "its platform does not support it",
        5 => "it demands TLS",
        6 => "it has no export of that name",
        7 => "it is shutting down",
        8 => "it demands that block sizes be honoured",
        9 => "the request is too big for it",
        _ => "it gives a reason that is not known",
    }
}

/// Block sizes that requests must keep to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two.
    pub minimum: u32,
    /// Multiples of this are fast.
    pub preferred: u32,
    /// The most data in one read or write.
    pub maximum: u32,
}

impl BlockSizes {
    /// The defaults where the server reports nothing.
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, maximum: 32 << 20 };

    /// The server's values, if they are possible; more than 32 MiB in one request is never used.
    fn checked(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, Violation> {
        let possible = minimum.is_power_of_two() && minimum <= 64 << 10 && maximum >= minimum;
        if !possible {
            return Err(Violation::BlockSizes { minimum, maximum });
        }
        let maximum = maximum.min(Self::DEFAULT.maximum) / minimum * minimum;
        Ok(Self { minimum, preferred: preferred.clamp(minimum, maximum), maximum })
    }
}

/// One piece of information on an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Info {
    Export { size: u64, flags: ExportFlags },
    BlockSize(BlockSizes),
    Other,
}

/// Reads the body of an information reply.
pub(super) fn parse_info(body: &[u8]) -> Result<Info, Violation> {
    let garbled = Violation::OptionGarbled { kind: option_reply::INFO };
    let (kind, rest) = take_u16(body).ok_or(garbled.clone())?;
    match kind {
        info::EXPORT => export_info(rest).map(|(size, flags)| Info::Export { size, flags }).ok_or(garbled),
        info::BLOCK_SIZE => {
            let numbers = || {
                let (minimum, rest) = take_u32(rest)?;
                let (preferred, rest) = take_u32(rest)?;
                let (maximum, rest) = take_u32(rest)?;
                rest.is_empty().then_some((minimum, preferred, maximum))
            };
            let (minimum, preferred, maximum) = numbers().ok_or(garbled)?;
            BlockSizes::checked(minimum, preferred, maximum).map(Info::BlockSize)
        }
        _ => Ok(Info::Other),
    }
}

/// Reads size and flags, which must be all of `bytes`.
pub(super) fn export_info(bytes: &[u8]) -> Option<(u64, ExportFlags)> {
    let (size, rest) = take_u64(bytes)?;
    let (flags, rest) = take_u16(rest)?;
    rest.is_empty().then_some((size, ExportFlags(flags)))
}

/// Reads the body of a grant of a meta context: its number and its name.
pub(super) fn parse_context(body: &[u8]) -> Result<(u32, String), Violation> {
    let garbled = || Violation::OptionGarbled { kind: option_reply::META_CONTEXT };
    let (id, name) = take_u32(body).ok_or_else(garbled)?;
    let name = std::str::from_utf8(name).map_err(|_| garbled())?;
    Ok((id, name.to_owned()))
}

/// An export in a server's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    pub name: String,
    /// What the server says for the log; often empty.
    pub description: String,
}

/// Reads the body of one entry of a list of exports.
pub(super) fn parse_listed(body: &[u8]) -> Result<ListedExport, Violation> {
    let garbled = || Violation::OptionGarbled { kind: option_reply::SERVER };
    let (length, rest) = take_u32(body).ok_or_else(garbled)?;
    let (name, description) = rest.split_at_checked(length as usize).ok_or_else(garbled)?;
    let name = std::str::from_utf8(name).map_err(|_| garbled())?;
    Ok(ListedExport { name: name.to_owned(), description: plain_text(description) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: u64, option: u32, kind: u32, length: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&magic.to_be_bytes());
        bytes[8..12].copy_from_slice(&option.to_be_bytes());
        bytes[12..16].copy_from_slice(&kind.to_be_bytes());
        bytes[16..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[test]
    fn headers_are_judged_before_their_body_is_read() {
        let good = header(OPTION_REPLY_MAGIC, 7, 1, 0);
        assert_eq!(OptionReply::parse(&good, 7), Ok(OptionReply { kind: 1, length: 0 }));
        assert_eq!(OptionReply::parse(&good, 8), Err(Violation::OptionMismatch { asked: 8, got: 7 }));
        assert_eq!(OptionReply::parse(&header(1, 7, 1, 0), 7), Err(Violation::OptionMagic(1)));
        let huge = header(OPTION_REPLY_MAGIC, 7, 1, u32::MAX);
        assert_eq!(OptionReply::parse(&huge, 7), Err(Violation::OptionLength { kind: 1, length: u32::MAX }));
    }

    #[test]
    fn block_sizes_that_cannot_be_are_refused() {
        assert_eq!(
            BlockSizes::checked(512, 4096, u32::MAX),
            Ok(BlockSizes { minimum: 512, preferred: 4096, maximum: 32 << 20 })
        );
        for (minimum, maximum) in [(0, 4096), (3, 4096), (1 << 17, 1 << 20), (4096, 512)] {
            assert!(BlockSizes::checked(minimum, 4096, maximum).is_err(), "{minimum} to {maximum}");
        }
    }

    #[test]
    fn garbled_bodies_are_refused() {
        assert!(parse_info(&[0]).is_err());
        assert!(parse_info(&[0, 0, 1, 2]).is_err());
        assert_eq!(parse_info(&[0, 99, 1]), Ok(Info::Other));
        assert!(parse_context(&[0, 0, 0]).is_err());
        assert!(parse_context(&[0, 0, 0, 1, 0xff]).is_err());
        assert!(parse_listed(&[0, 0, 0, 9, b'x']).is_err());
        let listed = parse_listed(&[0, 0, 0, 1, b'x', b'y']).unwrap();
        assert_eq!((listed.name.as_str(), listed.description.as_str()), ("x", "y"));
    }
}
