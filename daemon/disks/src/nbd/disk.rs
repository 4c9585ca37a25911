//! An NBD export as a disk: requests of any size and place, cut to what the server takes.
//!
//! Rule: a request succeeds only after the server acknowledged every byte of it. A write that was retried
//! after a lost connection was written at the same place with the same bytes; a flush never spans a lost
//! connection.
//!
//! NBD cannot show whether a server that came back serves the same contents. Its size, flags and meta
//! contexts must be the same; the owner of the export must not let another take its address.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use warmd_cbt::{
    buffer::Buffer,
    units::{Extent, Offset},
};

use super::{
    call::{Call, CallReply, ContextRuns, Data},
    connection::reclaim,
    connection_pool::ConnectionPool,
    durability::LostWrites,
    error::{NbdCause, NbdError, RequestAt},
    late_changes::LateChanges,
    options::NbdOptions,
    payload::Payload,
    pieces::{self, ReadPiece},
    recheck::Recheck,
    wire::{ExportFlags, NbdCommand, request},
};

/// The most bytes that one request zeroes or trims: a server that really writes them must manage it in time.
const ZERO_STEP: u32 = 64 << 20;
/// The most bytes in one write of zeroes to a server that cannot zero.
const ZERO_WRITE: u32 = 1 << 20;
/// Writes of zeroes in flight for one range.
const ZERO_WRITES: usize = 4;

/// An open export. Clones share its connections; the last one dropped says goodbye to the server.
#[derive(Clone, Debug)]
pub struct NbdDisk {
    lanes: Arc<ConnectionPool>,
    /// The server refused to zero.
    refused_zeroing: Arc<AtomicBool>,
    recheck: Arc<Recheck>,
}

/// How [`NbdDisk::zero_range`] zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Keep the range allocated: no hole.
    pub no_hole: bool,
    /// Fail with ENOTSUP rather than be as slow as a write.
    pub fast: bool,
    /// Durable before the answer.
    pub fua: bool,
}

impl NbdDisk {
    /// Opens the export; one attempt, within the options' deadlines.
    ///
    /// # Errors
    /// If the server cannot be reached, breaks the protocol, refuses the export, or offers it read-only where
    /// `options` want to write. For writing also [`NbdCause::Timeout`], while the server owes the answer to a
    /// write of an earlier connection.
    pub async fn open(options: NbdOptions) -> Result<Self, NbdError> {
        let writable = options.writable;
        let lanes = ConnectionPool::open(options).await?;
        let suspects = if writable { lanes.late_changes().suspects() } else { Vec::new() };
        let recheck = Arc::new(Recheck::new(suspects));
        Ok(Self { lanes: Arc::new(lanes), refused_zeroing: Arc::default(), recheck })
    }

    /// Records that no earlier process has written to the export that `options` name, before it is opened for
    /// writing.
    pub fn has_no_past(options: &NbdOptions) {
        LateChanges::of(options).begin(0, false);
    }

    /// Waits until no change that this process sent to the export, by abandoned connections, can still be
    /// applied.
    ///
    /// # Errors
    /// [`NbdCause::Timeout`], if the server still owes an answer after `options.request_timeout`.
    pub async fn settled(options: &NbdOptions) -> Result<(), NbdError> {
        LateChanges::of(options).settled(options.request_timeout).await
    }

    /// Says goodbye to the server and waits until that is sent. Requests in flight of other clones fail, or
    /// open new connections.
    pub async fn close(self) {
        self.lanes.close().await;
    }

    /// Bytes on the disk.
    pub fn len(&self) -> u64 {
        self.lanes.export().size
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The result of the handshake.
    pub fn export(&self) -> &super::handshake::Export {
        self.lanes.export()
    }

    /// The names of the meta contexts that the server granted.
    pub fn contexts(&self) -> impl Iterator<Item = &str> {
        self.export().contexts.iter().map(|(_, name)| name.as_str())
    }

    /// The options that it was opened with.
    pub fn options(&self) -> &NbdOptions {
        self.lanes.options()
    }

    /// Connections that it was opened with.
    pub fn connections(&self) -> usize {
        self.lanes.count()
    }

    /// Fills all of `buffer` from `at`. Larger than the server's largest request, it is read piece after
    /// piece.
    ///
    /// With several connections only flushed writes are surely visible to a read, by the protocol; for the
    /// same reason a place must not be written twice without a flush in between.
    pub async fn read_at(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, NbdError> {
        let length = buffer.len();
        self.check_bounds(NbdCommand::Read, at.0, length as u64)?;
        for piece in pieces::reads(at.0, length, self.len(), self.export().blocks) {
            match piece {
                ReadPiece::Direct { offset, place } => {
                    buffer = self.read_piece(offset, buffer, place).await?;
                }
                ReadPiece::Widened { offset, length, wanted, place } => {
                    let whole = Buffer::unpooled(length as usize);
                    let whole = self.read_piece(offset, whole, 0..length as usize).await?;
                    buffer[place].copy_from_slice(&whole[wanted]);
                }
            }
        }
        Ok(buffer)
    }

    /// Writes `buffer[range]` at `at`; with `fua`, durable before the answer. Gives the buffer back.
    ///
    /// # Errors
    /// Also [`NbdCause::Misaligned`], if the range does not begin and end at the server's blocks.
    pub async fn write_at(
        &self,
        at: Offset,
        buffer: Buffer,
        range: Range<usize>,
        fua: bool,
    ) -> Result<Buffer, NbdError> {
        let flags = self.fua_flag(fua)?;
        self.check_change(NbdCommand::Write, at.0, range.len() as u64)?;
        let (data, whole) = (Arc::new(Payload::new(buffer)), range.clone());
        for (offset, length) in pieces::steps(at.0, range.len() as u64, self.export().blocks.maximum) {
            let from = range.start + (offset - at.0) as usize;
            let place = from..from + length as usize;
            let data = Data::From(Arc::clone(&data), place);
            self.call(Call { command: NbdCommand::Write, flags, offset, length, data }).await?;
        }
        let buffer = reclaim(data)?;
        self.recheck.wrote(at.0, &buffer, whole);
        Ok(buffer)
    }

    /// Makes the range read as zeroes by the server's own command, with holes unless `flags` forbid.
    ///
    /// # Errors
    /// Also [`NbdCause::Unsupported`], if the server lacks the command or the flag: see
    /// [`NbdDisk::write_zero_data`].
    pub async fn zero_range(&self, extent: Extent, flags: ZeroFlags) -> Result<(), NbdError> {
        let mut bits = self.fua_flag(flags.fua)?;
        self.check_offered(ExportFlags::WRITE_ZEROES, "WRITE_ZEROES")?;
        if flags.fast {
            self.check_offered(ExportFlags::FAST_ZERO, "WRITE_ZEROES with FAST_ZERO")?;
            bits |= request::FAST_ZERO;
        }
        if flags.no_hole {
            bits |= request::NO_HOLE;
        }
        self.change_range(NbdCommand::WriteZeroes, bits, extent).await?;
        self.recheck.zeroed(extent);
        Ok(())
    }

    /// Tells the server that the range's contents no longer matter.
    pub async fn trim(&self, extent: Extent, fua: bool) -> Result<(), NbdError> {
        let flags = self.fua_flag(fua)?;
        self.check_offered(ExportFlags::TRIM, "TRIM")?;
        self.change_range(NbdCommand::Trim, flags, extent).await
    }

    /// Whether the server does not offer to zero, or has refused to.
    pub(super) fn refuses_zeroing(&self) -> bool {
        !self.export().flags.has(ExportFlags::WRITE_ZEROES) || self.refused_zeroing.load(Relaxed)
    }

    /// A server that zeroes most ranges may refuse some: the last answer counts.
    pub(super) fn zeroing_was_refused(&self, refused: bool) {
        self.refused_zeroing.store(refused, Relaxed);
    }

    /// Makes the range read as zeroes by writing every byte of it.
    pub async fn write_zero_data(&self, extent: Extent) -> Result<(), NbdError> {
        let (start, length) = (extent.start().0, extent.len().0);
        self.check_change(NbdCommand::Write, start, length)?;
        let blocks = self.export().blocks;
        let most = ZERO_WRITE.min(blocks.maximum) / blocks.minimum * blocks.minimum;
        let zeroes = Arc::new(Payload::new(Buffer::unpooled(length.min(u64::from(most)) as usize)));
        stream::iter(pieces::steps(start, length, most).map(Ok))
            .try_for_each_concurrent(ZERO_WRITES, |(offset, length)| {
                let data = Data::From(Arc::clone(&zeroes), 0..length as usize);
                let write = Call { command: NbdCommand::Write, flags: 0, offset, length, data };
                async { self.call(write).await.map(|_| ()) }
            })
            .await?;
        self.recheck.zeroed(extent);
        Ok(())
    }

    /// Makes durable every write that had returned before.
    ///
    /// # Errors
    /// Also [`NbdCause::WritesLost`], once, after a connection was lost with writes not flushed;
    /// [`NbdCause::Overwritten`], if an older write replaced one of these; and [`NbdCause::Unsupported`] if
    /// the server has no FLUSH and the options do not trust it without. A disk that is open for reading only
    /// has nothing to flush.
    pub async fn sync(&self) -> Result<(), NbdError> {
        if !self.options().writable {
            return Ok(());
        }
        let at = RequestAt { command: NbdCommand::Flush, offset: 0, length: 0 };
        let lost = |LostWrites| NbdError::of(NbdCause::WritesLost).at(at);
        let durability = self.lanes.durability();
        let mark = durability.begin_flush().map_err(lost)?;
        let due = self.recheck.due();
        if self.export().flags.has(ExportFlags::FLUSH) {
            if let Err(error) = self.call(Call::plain(NbdCommand::Flush, 0, 0, 0)).await {
                durability.failed_flush(mark);
                return Err(error);
            }
        } else if !self.options().trust_without_flush {
            return Err(NbdError::of(NbdCause::Unsupported("FLUSH")).at(at));
        }
        if let Err(error) = due.check(self).await {
            durability.failed_flush(mark);
            return Err(error);
        }
        durability.end_flush(mark).map_err(lost)
    }

    /// One block status request: per context, by name, runs from the extent's start.
    pub(super) async fn status_once(
        &self,
        offset: u64,
        length: u32,
        one: bool,
    ) -> Result<Vec<(String, ContextRuns)>, NbdError> {
        let flags = if one { request::REQ_ONE } else { 0 };
        let call = Call::plain(NbdCommand::BlockStatus, flags, offset, length);
        let (answer, connection) = self.lanes.call(call).await?;
        let CallReply::Status(contexts) = answer else { return Ok(Vec::new()) };
        let name = |id| connection.export().contexts.iter().find(|(number, _)| *number == id);
        Ok(contexts
            .into_iter()
            .filter_map(|runs| name(runs.id).map(|(_, name)| (name.clone(), runs)))
            .collect())
    }

    /// Fails a range that reaches past the disk's end.
    pub(super) fn check_bounds(&self, command: NbdCommand, offset: u64, length: u64) -> Result<(), NbdError> {
        let size = self.len();
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(NbdError::of(NbdCause::PastEnd { size }).at(RequestAt { command, offset, length }))
    }

    async fn read_piece(&self, offset: u64, buffer: Buffer, place: Range<usize>) -> Result<Buffer, NbdError> {
        let length = place.len() as u32;
        let data = Data::Into(buffer, place);
        let call = Call { command: NbdCommand::Read, flags: 0, offset, length, data };
        let at = call.at();
        match self.call(call).await? {
            CallReply::Data(buffer) => Ok(buffer),
            CallReply::Done | CallReply::Status(_) => {
                Err(NbdError::of(NbdCause::Closed("a read lost its buffer")).at(at))
            }
        }
    }

    async fn change_range(&self, command: NbdCommand, flags: u16, extent: Extent) -> Result<(), NbdError> {
        let (start, length) = (extent.start().0, extent.len().0);
        self.check_change(command, start, length)?;
        let pieces = pieces::steps(start, length, ZERO_STEP);
        stream::iter(pieces)
            .map(|(offset, length)| self.call(Call::plain(command, flags, offset, length)))
            .buffer_unordered(self.options().in_flight.max(1))
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    async fn call(&self, call: Call) -> Result<CallReply, NbdError> {
        self.lanes.call(call).await.map(|(answer, _)| answer)
    }

    fn check_change(&self, command: NbdCommand, offset: u64, length: u64) -> Result<(), NbdError> {
        self.check_bounds(command, offset, length)?;
        let at = RequestAt { command, offset, length };
        if !self.options().writable {
            return Err(NbdError::of(NbdCause::ReadOnly).at(at));
        }
        let minimum = self.export().blocks.minimum;
        if !pieces::is_aligned(offset, length, self.len(), minimum) {
            return Err(NbdError::of(NbdCause::Misaligned { minimum }).at(at));
        }
        Ok(())
    }

    fn check_offered(&self, flag: ExportFlags, name: &'static str) -> Result<(), NbdError> {
        let offered = self.export().flags.has(flag);
        if offered { Ok(()) } else { Err(NbdError::of(NbdCause::Unsupported(name))) }
    }

    fn fua_flag(&self, fua: bool) -> Result<u16, NbdError> {
        if !fua {
            return Ok(0);
        }
        self.check_offered(ExportFlags::FUA, "FUA")?;
        Ok(request::FUA)
    }
}
