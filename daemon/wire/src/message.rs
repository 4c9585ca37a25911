//! The messages between two movers, as bytes: length, kind, fields in big-endian order.
//!
//! Rule: every length is checked before it is used, and a message has no byte that its fields do not
//! explain. [`Hello`] keeps its form in all versions: it is what two versions agree by.
//!
//! ```text
//! reader ─▶ Hello ─▶ server        Welcome, or Refused and the end
//! reader ─▶ Read, Allocation, Digests ─▶ server        each with an id; replies come in any order of ids
//! server ─▶ Data, Zeroes … (of one id in the disk's order) | Allocated | Digests | Failed ─▶ reader
//! both   ─▶ Ping, Pong, Bye
//! ```

use warmd_cbt::{
    disk::{Allocation, ErrorKind},
    units::{Extent, Length, Offset},
};

use super::bytes::{Malformed, Reader, Writer};

/// The newest version of the messages that this side speaks.
pub const VERSION: u16 = 1;
/// The oldest one: with each new version, the one before it.
pub const OLDEST: u16 = 1;

/// The most bytes of a disk in one read, and in one message.
pub const MAX_READ: usize = 1 << 20;
/// The most bytes of a message after its length. Packed data is sent only if it is smaller than the data.
pub const MAX_MESSAGE: usize = MAX_READ + 64;
/// The most digests in one message.
pub const MAX_DIGESTS: usize = 512;
/// The most runs in one answer about allocation.
pub const MAX_RUNS: usize = 4096;
/// The block sizes whose digests can be asked for.
pub const DIGEST_BLOCKS: std::ops::RangeInclusive<u32> = 4096..=MAX_READ as u32;
/// The most bytes of an export's id, and of a text for people.
const MAX_TEXT: usize = 512;
const MAGIC: &[u8; 8] = b"warmd-wr";

/// The BLAKE3 of some bytes of a disk.
pub type Digest = [u8; 32];
/// The digest of a block of zeroes, in answers to [`Message::AskDigests`]. As in the manifest, no hash is
/// computed for it.
pub const ZERO_DIGEST: Digest = [0; 32];

/// The first message of a reader.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and the newest version that the reader speaks.
    pub versions: (u16, u16),
    /// The id of the export.
    pub export: String,
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &self.versions)
            .field("export", &self.export)
            .finish_non_exhaustive()
    }
}

/// The answer to a [`Hello`] that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version of all further messages.
    pub version: u16,
    /// Bytes on the disk.
    pub size: Length,
    /// The most bytes in a read.
    pub max_read: u32,
    /// The most requests in flight on this connection.
    pub in_flight: u32,
}

/// Why a [`Hello`] is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// No version is spoken by both sides.
    Version,
    /// There is no such export for this peer and secret.
    Export,
    /// The server has too many connections.
    Busy,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Hello(Hello),
    Welcome(Welcome),
    Refused {
        reason: RefusalReason,
        text: String,
    },
    /// Asks for the bytes of an extent; `pack`, to compress what shrinks.
    Read {
        id: u64,
        extent: Extent,
        pack: bool,
    },
    /// Bytes of a read, after what earlier messages of this id had; of `length` bytes once unpacked.
    Data {
        id: u64,
        digest: Digest,
        length: u32,
        is_packed: bool,
        bytes: &'a [u8],
    },
    /// So many zeroes of a read, after what earlier messages of this id had.
    Zeroes {
        id: u64,
        length: u32,
    },
    AskAllocation {
        id: u64,
        extent: Extent,
    },
    /// Known zeroes: runs without gaps from the start of the extent that was asked for.
    Allocated {
        id: u64,
        runs: Vec<Allocation>,
    },
    /// Asks for the digest of each `block` bytes of an extent, of which the last may be shorter.
    AskDigests {
        id: u64,
        extent: Extent,
        block: u32,
    },
    Digests {
        id: u64,
        digests: Vec<Digest>,
    },
    Failed {
        id: u64,
        kind: ErrorKind,
        text: String,
    },
    Ping,
    Pong,
    Bye,
}

impl<'a> Message<'a> {
    /// Appends the message, its length in front.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let mut writer = Writer::begin(to);
        match self {
            Self::Hello(Hello { versions, export, secret }) => {
                writer.u8(1).bytes(MAGIC).u16(versions.0).u16(versions.1).text(export).bytes(secret);
            }
            Self::Welcome(Welcome { version, size, max_read, in_flight }) => {
                writer.u8(2).u16(*version).u64(size.0).u32(*max_read).u32(*in_flight);
            }
            Self::Refused { reason, text } => {
                writer.u8(3).u8(refusal_code(*reason)).text(cut(text));
            }
            Self::Read { id, extent, pack } => {
                writer.u8(4).u64(*id).extent(*extent).u8(u8::from(*pack));
            }
            Self::Data { id, digest, length, is_packed, bytes } => {
                data_fields(&mut writer, *id, digest, *length, *is_packed);
                writer.bytes(bytes);
            }
            Self::Zeroes { id, length } => {
                writer.u8(6).u64(*id).u32(*length);
            }
            Self::AskAllocation { id, extent } => {
                writer.u8(7).u64(*id).extent(*extent);
            }
            Self::Allocated { id, runs } => {
                let start = runs.first().map_or(0, |run| run.extent.start().0);
                writer.u8(8).u64(*id).u64(start).u32(runs.len() as u32);
                for run in runs {
                    writer.u64(run.extent.len().0).u8(u8::from(run.zero));
                }
            }
            Self::AskDigests { id, extent, block } => {
                writer.u8(9).u64(*id).extent(*extent).u32(*block);
            }
            Self::Digests { id, digests } => {
                writer.u8(10).u64(*id).u32(digests.len() as u32);
                for digest in digests {
                    writer.bytes(digest);
                }
            }
            Self::Failed { id, kind, text } => {
                writer.u8(11).u64(*id).u8(kind_code(*kind)).text(cut(text));
            }
            Self::Ping => drop(writer.u8(12)),
            Self::Pong => drop(writer.u8(13)),
            Self::Bye => drop(writer.u8(14)),
        }
        writer.end();
    }

    /// The message in `bytes`, its length taken off.
    ///
    /// # Errors
    /// If a field is missing, is outside its bounds, or bytes are left.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            1 => {
                if reader.array::<8>()? != *MAGIC {
                    return Err(Malformed("the first message is no hello of a mover"));
                }
                let versions = (reader.u16()?, reader.u16()?);
                let hello = Hello { versions, export: reader.text(MAX_TEXT)?, secret: reader.array()? };
                // A newer reader may say more.
                reader.rest();
                Self::Hello(hello)
            }
            2 => Self::Welcome(Welcome {
                version: reader.u16()?,
                size: Length(reader.u64()?),
                max_read: reader.u32()?,
                in_flight: reader.u32()?,
            }),
            3 => Self::Refused { reason: refusal(reader.u8()?)?, text: reader.text(MAX_TEXT)? },
            4 => Self::Read { id: reader.u64()?, extent: read_extent(&mut reader)?, pack: reader.flag()? },
            5 => {
                let (id, digest, length) = (reader.u64()?, reader.array()?, reader.u32()?);
                let (is_packed, bytes) = (reader.flag()?, reader.rest());
                let fits =
                    if is_packed { bytes.len() < length as usize } else { bytes.len() == length as usize };
                if !fits || bytes.is_empty() || length as usize > MAX_READ {
                    return Err(Malformed("the length of data does not fit its bytes"));
                }
                Self::Data { id, digest, length, is_packed, bytes }
            }
            6 => {
                let (id, length) = (reader.u64()?, reader.u32()?);
                if length == 0 || length as usize > MAX_READ {
                    return Err(Malformed("a run of zeroes is empty or too long"));
                }
                Self::Zeroes { id, length }
            }
            7 => Self::AskAllocation { id: reader.u64()?, extent: reader.extent()? },
            8 => Self::Allocated { id: reader.u64()?, runs: runs(&mut reader)? },
            9 => {
                let (id, extent, block) = (reader.u64()?, reader.extent()?, reader.u32()?);
                if !DIGEST_BLOCKS.contains(&block)
                    || extent.len().0.div_ceil(u64::from(block)) > MAX_DIGESTS as u64
                {
                    return Err(Malformed("digests are asked for of too many blocks, or of a wrong size"));
                }
                Self::AskDigests { id, extent, block }
            }
            10 => {
                let (id, count) = (reader.u64()?, reader.u32()? as usize);
                if count > MAX_DIGESTS {
                    return Err(Malformed("there are too many digests in a message"));
                }
                let digests = (0..count).map(|_| reader.array()).collect::<Result<_, _>>()?;
                Self::Digests { id, digests }
            }
            11 => Self::Failed { id: reader.u64()?, kind: kind(reader.u8()?)?, text: reader.text(MAX_TEXT)? },
            12 => Self::Ping,
            13 => Self::Pong,
            14 => Self::Bye,
            _ => return Err(Malformed("the kind of the message is unknown")),
        };
        reader.end()?;
        Ok(message)
    }
}

/// All of a [`Message::Data`] but its bytes, which follow from where they lie.
pub(super) fn data_head(id: u64, digest: &Digest, length: u32, packed: Option<usize>) -> Vec<u8> {
    let mut head = Vec::with_capacity(64);
    let mut writer = Writer::begin(&mut head);
    data_fields(&mut writer, id, digest, length, packed.is_some());
    writer.end_before(packed.unwrap_or(length as usize));
    head
}

fn data_fields(writer: &mut Writer<'_>, id: u64, digest: &Digest, length: u32, is_packed: bool) {
    writer.u8(5).u64(id).bytes(digest).u32(length).u8(u8::from(is_packed));
}

fn read_extent(reader: &mut Reader<'_>) -> Result<Extent, Malformed> {
    let extent = reader.extent()?;
    if extent.len().0 > MAX_READ as u64 {
        return Err(Malformed("a read is too long"));
    }
    Ok(extent)
}

fn runs(reader: &mut Reader<'_>) -> Result<Vec<Allocation>, Malformed> {
    let (mut at, count) = (Offset(reader.u64()?), reader.u32()? as usize);
    if count == 0 || count > MAX_RUNS {
        return Err(Malformed("an answer about allocation has no runs, or too many"));
    }
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let length = Length(reader.u64()?);
        let extent = Extent::new(at, length).ok_or(Malformed("a run of an allocation is on no disk"))?;
        runs.push(Allocation { extent, zero: reader.flag()? });
        at = extent.end();
    }
    Ok(runs)
}

/// A text for people, cut to what a message takes.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn refusal_code(reason: RefusalReason) -> u8 {
    match reason {
        RefusalReason::Version => 1,
        RefusalReason::Export => 2,
        RefusalReason::Busy => 3,
    }
}

fn refusal(code: u8) -> Result<RefusalReason, Malformed> {
    Ok(match code {
        1 => RefusalReason::Version,
        2 => RefusalReason::Export,
        3 => RefusalReason::Busy,
        _ => return Err(Malformed("the reason of a refusal is unknown")),
    })
}

fn kind_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Connection => 1,
        ErrorKind::Timeout => 2,
        ErrorKind::Media => 3,
        ErrorKind::NoSpace => 4,
        ErrorKind::Refused => 5,
        ErrorKind::Protocol => 6,
    }
}

fn kind(code: u8) -> Result<ErrorKind, Malformed> {
    Ok(match code {
        1 => ErrorKind::Connection,
        2 => ErrorKind::Timeout,
        3 => ErrorKind::Media,
        4 => ErrorKind::NoSpace,
        5 => ErrorKind::Refused,
        6 => ErrorKind::Protocol,
        _ => return Err(Malformed("the kind of a failure is unknown")),
    })
}
