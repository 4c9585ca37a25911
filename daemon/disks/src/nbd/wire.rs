//! The NBD protocol's numbers, and the client's messages in the transmission phase.
//!
//! Source: the NetworkBlockDevice project's `doc/proto.md`. All integers are big-endian.

/// Opens every server's greeting.
pub(super) const GREETING: &[u8; 8] = b"NBDMAGIC";
/// Follows [`GREETING`] in newstyle servers, and opens every option of the client.
pub(super) const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
/// Opens every reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens every request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The longest string that the protocol allows: names, descriptions, messages.
pub(super) const MAX_STRING: usize = 4096;

/// Flags of both sides in the greeting.
pub(super) mod greeting {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the client.
pub(super) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub(super) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    /// Set in every refusal.
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR | 1;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR | 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR | 7;
}

/// Kinds of information in a reply to [`option::GO`].
pub(super) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// The features of an export, from the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFlags(pub u16);

impl ExportFlags {
    const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: Self = Self(1 << 1);
    pub const FLUSH: Self = Self(1 << 2);
    pub const FUA: Self = Self(1 << 3);
    pub const TRIM: Self = Self(1 << 5);
    pub const WRITE_ZEROES: Self = Self(1 << 6);
    pub const MULTI_CONN: Self = Self(1 << 8);
    pub const FAST_ZERO: Self = Self(1 << 11);

    /// Whether the server set this flag; no flag counts without HAS_FLAGS.
    pub fn has(self, flag: Self) -> bool {
        self.0 & Self::HAS_FLAGS != 0 && self.0 & flag.0 == flag.0
    }
}

/// Flags of a request.
pub(super) mod request {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Types of chunks in a structured reply.
pub(super) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    /// Set in every error chunk.
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
}

/// Bits of a block status descriptor.
pub(super) mod status {
    /// `base:allocation`: the bytes read as zeroes.
    pub(crate) const ALLOCATION_ZERO: u32 = 1 << 1;
    /// `qemu:dirty-bitmap:…`: the bytes changed.
    pub(crate) const DIRTY: u32 = 1 << 0;
}

/// The command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NbdCommand {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
}

impl NbdCommand {
    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// Whether it changes the disk, so that a flush is due.
    pub fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

impl std::fmt::Display for NbdCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Disconnect => "DISC",
            Self::Flush => "FLUSH",
            Self::Trim => "TRIM",
            Self::WriteZeroes => "WRITE_ZEROES",
            Self::BlockStatus => "BLOCK_STATUS",
        })
    }
}

/// Bytes in a request's header.
pub(super) const REQUEST_LEN: usize = 28;

/// A request's header; `length` bytes of data follow it if it is a write.
pub(super) fn request_header(
    command: NbdCommand,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_LEN] {
    let mut header = [0; REQUEST_LEN];
    let fields: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &command.number().to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    let mut at = 0;
    for field in fields {
        header[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    header
}

/// A big-endian number at the front of `bytes`, and the rest; `None` if there are too few bytes.
pub(super) fn take_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk().map(|(head, rest)| (u16::from_be_bytes(*head), rest))
}

/// As [`take_u16`].
pub(super) fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(head, rest)| (u32::from_be_bytes(*head), rest))
}

/// As [`take_u16`].
pub(super) fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    bytes.split_first_chunk().map(|(head, rest)| (u64::from_be_bytes(*head), rest))
}

/// Text from the server, made safe for a log line: no control characters, at most `MAX_STRING` bytes taken.
pub(super) fn plain_text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_STRING)];
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_protocol_says() {
        let header = request_header(NbdCommand::WriteZeroes, request::NO_HOLE, 0x0102, 0x10_0000, 0x2000);
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 2, 0, 6, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0,
            0x20, 0,
        ];
        assert_eq!(header, expected);
    }

    #[test]
    fn flags_without_the_flag_of_flags_count_for_nothing() {
        assert!(!ExportFlags(ExportFlags::FLUSH.0).has(ExportFlags::FLUSH));
        assert!(ExportFlags(ExportFlags::FLUSH.0 | 1).has(ExportFlags::FLUSH));
    }

    #[test]
    fn text_of_the_server_cannot_forge_log_lines() {
        assert_eq!(plain_text(b"no\nsuch\x1b[31m export\xff"), "no such [31m export\u{fffd}");
    }
}
