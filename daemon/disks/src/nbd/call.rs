//! One request, queued by the disk for a connection, and queued again if the connection breaks.

use std::{ops::Range, sync::Arc};

use warmd_cbt::buffer::Buffer;

use super::{
    error::{NbdError, RequestAt},
    payload::Payload,
    reply::Expect,
    wire::NbdCommand,
};

/// A request with its data. Its bounds were checked against the disk.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: NbdCommand,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) data: Data,
}

/// The data of a request.
#[derive(Debug)]
pub(super) enum Data {
    None,
    /// Where a read's bytes go: the request's length of this buffer.
    Into(Buffer, Range<usize>),
    /// The data of a write.
    From(Arc<Payload>, Range<usize>),
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum CallReply {
    Done,
    /// The read's buffer, filled.
    Data(Buffer),
    Status(Vec<ContextRuns>),
}

/// Block status in one context, as far as the server reported it: descriptors in order from the request's
/// start, equal neighbours joined, cut at the request's end.
#[derive(Debug, Default)]
pub(super) struct ContextRuns {
    pub(super) id: u32,
    /// Bytes and flags.
    pub(super) runs: Vec<(u32, u32)>,
}

/// A request that failed; the call comes back if it can be repeated.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: NbdError,
    pub(super) call: Option<Call>,
}

impl Call {
    /// A request without data.
    pub(super) fn plain(command: NbdCommand, flags: u16, offset: u64, length: u32) -> Self {
        Self { command, flags, offset, length, data: Data::None }
    }

    /// The request as errors name it.
    pub(super) fn at(&self) -> RequestAt {
        RequestAt { command: self.command, offset: self.offset, length: u64::from(self.length) }
    }

    /// The kind of its answer.
    pub(super) fn expect(&self) -> Expect {
        match self.command {
            NbdCommand::Read => Expect::Data,
            NbdCommand::BlockStatus => Expect::Status,
            _ => Expect::Nothing,
        }
    }
}
