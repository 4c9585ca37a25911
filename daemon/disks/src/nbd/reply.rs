//! Checks a server's messages in the transmission phase: bytes in, typed headers or a [`Violation`] out.
//!
//! Rule: pure. Nothing here reads, waits or allocates by a number that the server sent; accepted values lie
//! inside the request, so that its user cannot write past a buffer or wait for bytes without end.

use thiserror::Error;

use super::{
    errno::Errno,
    wire::{CHUNK_MAGIC, MAX_STRING, SIMPLE_REPLY_MAGIC, chunk, take_u16, take_u32, take_u64},
};

/// How a server broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("it is no NBD server: the greeting has the magic {0:#018x}")]
    Greeting(u64),
    #[error("an option reply has the magic {0:#018x}")]
    OptionMagic(u64),
    #[error("it answered option {got} when asked for option {asked}")]
    OptionMismatch { asked: u32, got: u32 },
    #[error("an option reply of type {kind} claims {length} bytes")]
    OptionLength { kind: u32, length: u32 },
    #[error("an option reply of type {kind} to option {option} makes no sense")]
    OptionReply { option: u32, kind: u32 },
    #[error("option {option} was answered more than {limit} times without an end")]
    OptionEndless { option: u32, limit: usize },
    #[error("an option reply of type {kind} is garbled")]
    OptionGarbled { kind: u32 },
    #[error("the export was opened without a word on its size")]
    NoExportInfo,
    #[error("an export of {0} bytes")]
    ExportSize(u64),
    #[error("block sizes of {minimum} minimum and {maximum} maximum cannot be")]
    BlockSizes { minimum: u32, maximum: u32 },
    #[error("it granted the meta context \"{0}\", which was not asked for or which it granted before")]
    ContextGrant(String),
    #[error("a reply has the magic {0:#010x}")]
    ReplyMagic(u32),
    #[error("a reply to cookie {0:#x}, which no request in flight has")]
    UnknownCookie(u64),
    #[error("a structured reply, which was not negotiated")]
    NotNegotiated,
    #[error("a simple reply, where only a structured one can be")]
    SimpleReply,
    #[error("an unknown chunk type {0:#06x}")]
    ChunkType(u16),
    #[error("a chunk of type {0:#06x}, which does not answer that request")]
    ChunkMismatch(u16),
    #[error("a chunk of type {kind:#06x} claims {length} bytes")]
    ChunkLength { kind: u16, length: u32 },
    #[error("a chunk without content that does not end its reply")]
    EmptyChunk,
    #[error("a chunk of {length} bytes at {offset} lies outside its request")]
    OutsideRequest { offset: u64, length: u64 },
    #[error("a chunk of {length} bytes at {offset} repeats what was sent before")]
    Overlap { offset: u64, length: u64 },
    #[error("the reply ended with {missing} bytes of the request never sent")]
    Incomplete { missing: u64 },
    #[error("an error chunk without an error number")]
    ErrorZero,
    #[error("an error message of {0} bytes does not fit its chunk")]
    ErrorMessage(u16),
    #[error("block status of the context {0}, which was not negotiated or was told before")]
    StatusContext(u32),
    #[error("block status descriptors that are empty, or begin past the request's end")]
    StatusExtent,
    #[error("a block status without any context")]
    StatusMissing,
    #[error("a write was acknowledged before its data was sent")]
    EarlyAck,
}

/// The most descriptors in one block status chunk: 8 MiB of them, what nbdkit sends at the most.
const MAX_DESCRIPTORS: u32 = 1 << 20;

/// Bytes that every reply begins with.
pub(super) const HEAD_LEN: usize = 16;

/// The first bytes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Simple {
        errno: Errno,
        cookie: u64,
    },
    /// Four bytes with the chunk's length follow.
    Chunk {
        done: bool,
        kind: u16,
        cookie: u64,
    },
}

/// Reads the first bytes of a reply.
pub(super) fn head(bytes: &[u8; HEAD_LEN]) -> Result<Head, Violation> {
    let (magic, rest) = take_u32(bytes).ok_or(Violation::ReplyMagic(0))?;
    let (word, rest) = take_u32(rest).ok_or(Violation::ReplyMagic(magic))?;
    let (cookie, _) = take_u64(rest).ok_or(Violation::ReplyMagic(magic))?;
    match magic {
        SIMPLE_REPLY_MAGIC => Ok(Head::Simple { errno: Errno(word), cookie }),
        CHUNK_MAGIC => {
            let (flags, kind) = ((word >> 16) as u16, word as u16);
            Ok(Head::Chunk { done: flags & chunk::FLAG_DONE != 0, kind, cookie })
        }
        other => Err(Violation::ReplyMagic(other)),
    }
}

/// The kinds of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Only whether it was done.
    Nothing,
    Data,
    Status,
}

/// The content after a chunk's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkContent {
    Nothing,
    /// Eight bytes of offset, then this many of data.
    Data {
        length: u32,
    },
    /// Eight bytes of offset, then four with the hole's length.
    Hole,
    /// Four bytes of context, then this many descriptors of eight bytes.
    Status {
        descriptors: u32,
    },
    /// An error number and a message, together this many bytes.
    Error {
        length: u32,
    },
}

/// Checks a chunk's header against the request it answers, `asked` bytes long, before anything of it is read.
pub(super) fn body(
    done: bool,
    kind: u16,
    length: u32,
    expect: Expect,
    asked: u32,
) -> Result<ChunkContent, Violation> {
    let wrong_length = Violation::ChunkLength { kind, length };
    match (kind, expect) {
        (chunk::NONE, _) if length != 0 => Err(wrong_length),
        (chunk::NONE, _) if !done => Err(Violation::EmptyChunk),
        (chunk::NONE, _) => Ok(ChunkContent::Nothing),
        (chunk::OFFSET_DATA, Expect::Data) => match length.checked_sub(8) {
            Some(data @ 1..) if data <= asked => Ok(ChunkContent::Data { length: data }),
            _ => Err(wrong_length),
        },
        (chunk::OFFSET_HOLE, Expect::Data) if length == 12 => Ok(ChunkContent::Hole),
        (chunk::OFFSET_HOLE, Expect::Data) => Err(wrong_length),
        (chunk::BLOCK_STATUS, Expect::Status) => match length.checked_sub(4) {
            Some(bytes @ 8..) if bytes % 8 == 0 && bytes / 8 <= asked.min(MAX_DESCRIPTORS) => {
                Ok(ChunkContent::Status { descriptors: bytes / 8 })
            }
            _ => Err(wrong_length),
        },
        (chunk::OFFSET_DATA | chunk::OFFSET_HOLE | chunk::BLOCK_STATUS, _) => {
            Err(Violation::ChunkMismatch(kind))
        }
        (error, _) if error & chunk::ERROR_BIT != 0 => {
            // An offset may follow the message; unknown kinds of errors begin like the known ones.
            let most = 6 + MAX_STRING as u32 + 8;
            if (6..=most).contains(&length) { Ok(ChunkContent::Error { length }) } else { Err(wrong_length) }
        }
        (other, _) => Err(Violation::ChunkType(other)),
    }
}

/// Reads the body of an error chunk: the number and the message.
pub(super) fn error_body(bytes: &[u8]) -> Result<(Errno, String), Violation> {
    let (number, rest) = take_u32(bytes).ok_or(Violation::ErrorZero)?;
    let (length, rest) = take_u16(rest).ok_or(Violation::ErrorZero)?;
    if number == 0 {
        return Err(Violation::ErrorZero);
    }
    let message = rest.get(..usize::from(length)).ok_or(Violation::ErrorMessage(length))?;
    Ok((Errno(number), super::wire::plain_text(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_apart_by_their_magic() {
        let simple = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(head(&simple), Ok(Head::Simple { errno: Errno::EIO, cookie: 7 }));
        let chunk = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(head(&chunk), Ok(Head::Chunk { done: true, kind: chunk::OFFSET_HOLE, cookie: 9 }));
        assert_eq!(head(&[0; 16]), Err(Violation::ReplyMagic(0)));
    }

    #[test]
    fn chunks_longer_than_what_was_asked_are_refused_unread() {
        let data = |length| body(true, chunk::OFFSET_DATA, length, Expect::Data, 512);
        assert_eq!(data(8 + 512), Ok(ChunkContent::Data { length: 512 }));
        for length in [0, 8, 8 + 513, u32::MAX] {
            assert_eq!(data(length), Err(Violation::ChunkLength { kind: chunk::OFFSET_DATA, length }));
        }
        let status = |length, asked| body(true, chunk::BLOCK_STATUS, length, Expect::Status, asked);
        assert_eq!(status(4 + 16, 512), Ok(ChunkContent::Status { descriptors: 2 }));
        for (length, asked) in [(4, 512), (4 + 12, 512), (4 + 16, 1), (u32::MAX - 3, u32::MAX)] {
            assert!(status(length, asked).is_err(), "status of {length} bytes for {asked}");
        }
        assert!(body(true, chunk::ERROR_BIT | 1, 5, Expect::Nothing, 0).is_err());
        assert!(body(true, chunk::ERROR_BIT | 1, 100_000, Expect::Nothing, 0).is_err());
    }

    #[test]
    fn chunks_answer_only_their_own_kind_of_request() {
        let kinds = [chunk::OFFSET_DATA, chunk::OFFSET_HOLE, chunk::BLOCK_STATUS];
        for kind in kinds {
            assert_eq!(body(true, kind, 12, Expect::Nothing, 512), Err(Violation::ChunkMismatch(kind)));
        }
        assert_eq!(body(true, 77, 12, Expect::Nothing, 512), Err(Violation::ChunkType(77)));
        assert_eq!(body(false, chunk::NONE, 0, Expect::Data, 512), Err(Violation::EmptyChunk));
    }

    #[test]
    fn error_messages_stay_inside_their_chunk() {
        assert_eq!(
            error_body(&[0, 0, 0, 28, 0, 4, b'f', b'u', b'l', b'l']),
            Ok((Errno::ENOSPC, "full".into()))
        );
        assert_eq!(error_body(&[0, 0, 0, 28, 0, 5, b'f']), Err(Violation::ErrorMessage(5)));
        assert_eq!(error_body(&[0, 0, 0, 0, 0, 0]), Err(Violation::ErrorZero));
    }
}
