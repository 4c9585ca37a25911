//! Answers one request about a disk that lies here.
//!
//! Rule: zeroes are not sent, and each run of data has its digest. Memory is a buffer of the pool for each
//! request, and as many bytes again where it is packed.

use std::{ops::Range, sync::Arc};

use tokio::sync::OwnedSemaphorePermit;
use warmd_cbt::{
    buffer::{Buffer, BufferPool},
    disk::{Allocation, DiskError, ErrorKind, ReadDisk},
    manifest::is_zero,
    units::{BLOCK, Extent, Length},
};

use super::{
    message::{Digest, MAX_RUNS, Message, ZERO_DIGEST, data_head},
    pack::pack,
};

/// Bytes to be sent, in order.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) head: Vec<u8>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    None,
    Packed(Vec<u8>, #[allow(dead_code, reason = "held while the bytes are")] Arc<OwnedSemaphorePermit>),
    Raw(Arc<Loaded>, Range<usize>),
}

/// What was read, and its share of what the connection may have in memory.
#[derive(Debug)]
struct Loaded {
    buffer: Buffer,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Outgoing {
    pub(super) fn of(message: &Message<'_>) -> Self {
        let mut head = Vec::new();
        message.encode(&mut head);
        Self { head, body: Body::None }
    }

    pub(super) fn failed(id: u64, kind: ErrorKind, text: String) -> Self {
        Self::of(&Message::Failed { id, kind, text })
    }

    pub(super) fn body(&self) -> &[u8] {
        match &self.body {
            Body::None => &[],
            Body::Packed(bytes, _) => bytes,
            Body::Raw(loaded, range) => &loaded.buffer[range.clone()],
        }
    }
}

fn failure(id: u64, error: &DiskError) -> Outgoing {
    Outgoing::failed(id, error.kind, error.to_string())
}

/// The bytes of `extent` in runs of data and of zeroes. The permit is given back when all of them are sent.
pub(super) async fn read(
    disk: &dyn ReadDisk,
    pool: &BufferPool,
    permit: OwnedSemaphorePermit,
    (id, extent, pack): (u64, Extent, bool),
) -> Vec<Outgoing> {
    let buffer = pool.take(extent.len().0 as usize).await;
    let buffer = match disk.read(extent.start(), buffer).await {
        Ok(buffer) => buffer,
        Err(error) => return vec![failure(id, &error)],
    };
    let loaded = Loaded { buffer, permit: Arc::new(permit) };
    if !pack {
        return parts(id, extent, loaded, false);
    }
    // Packing takes a millisecond or so: too long for a thread on which other connections wait.
    let packed = tokio::task::spawn_blocking(move || parts(id, extent, loaded, true)).await;
    packed.unwrap_or_else(|error| vec![Outgoing::failed(id, ErrorKind::Protocol, error.to_string())])
}

fn parts(id: u64, extent: Extent, loaded: Loaded, is_packing: bool) -> Vec<Outgoing> {
    let loaded = Arc::new(loaded);
    let runs = runs(extent, &loaded.buffer);
    let part = |(range, zero): (Range<usize>, bool)| {
        let length = range.len() as u32;
        if zero {
            return Outgoing::of(&Message::Zeroes { id, length });
        }
        let bytes = &loaded.buffer[range.clone()];
        let digest = *blake3::hash(bytes).as_bytes();
        let packed = if is_packing { pack(bytes) } else { None };
        let head = data_head(id, &digest, length, packed.as_ref().map(Vec::len));
        let body = match packed {
            Some(packed) => Body::Packed(packed, Arc::clone(&loaded.permit)),
            None => Body::Raw(Arc::clone(&loaded), range),
        };
        Outgoing { head, body }
    };
    runs.into_iter().map(part).collect()
}

/// Runs of data and of zeroes, cut at the disk's blocks.
fn runs(extent: Extent, bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for piece in extent.split(BLOCK) {
        let start = (piece.start().0 - extent.start().0) as usize;
        let range = start..start + piece.len().0 as usize;
        let zero = is_zero(&bytes[range.clone()]);
        match runs.last_mut() {
            Some((last, was_zero)) if *was_zero == zero => last.end = range.end,
            _ => runs.push((range, zero)),
        }
    }
    runs
}

/// The known zeroes from the start of `extent`, as many runs as a message takes.
pub(super) async fn allocation(disk: &dyn ReadDisk, id: u64, extent: Extent) -> Outgoing {
    match known(disk, extent).await {
        Ok(runs) => Outgoing::of(&Message::Allocated { id, runs }),
        Err(error) => failure(id, &error),
    }
}

async fn known(disk: &dyn ReadDisk, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
    let mut runs: Vec<Allocation> = Vec::new();
    let mut rest = Some(extent);
    while let Some(open) = rest {
        let some = match disk.allocation(open).await {
            Ok(some) => some,
            // What is known already is an answer.
            Err(_) if !runs.is_empty() => break,
            Err(error) => return Err(error),
        };
        let mut at = open.start();
        for run in some {
            let Some(piece) = Extent::between(at, run.extent.end().min(open.end())) else { continue };
            at = piece.end();
            let is_full = runs.len() == MAX_RUNS;
            match runs.last_mut() {
                Some(last) if last.zero == run.zero => {
                    last.extent = Extent::between(last.extent.start(), at).unwrap_or(last.extent);
                }
                _ if is_full => return Ok(runs),
                _ => runs.push(Allocation { extent: piece, zero: run.zero }),
            }
        }
        if at == open.start() {
            // Against the interface: nothing is known then.
            runs.push(Allocation { extent: open, zero: false });
            break;
        }
        rest = Extent::between(at, open.end());
    }
    Ok(runs)
}

/// The digest of each block of `extent`; holes are not read.
pub(super) async fn digests(
    disk: &dyn ReadDisk,
    pool: &BufferPool,
    max_read: u32,
    (id, extent, block): (u64, Extent, u32),
) -> Outgoing {
    if block > max_read {
        let text = format!(
            "digests of blocks of {block} bytes are asked for; here {max_read} bytes are read at once"
        );
        return Outgoing::failed(id, ErrorKind::Refused, text);
    }
    let holes = known(disk, extent).await.unwrap_or_default();
    let step = max_read / block * block;
    let mut digests = Vec::new();
    let mut at = extent.start();
    while let Some(piece) = Extent::between(at, extent.end().min(at + Length(u64::from(step)))) {
        at = piece.end();
        let covers =
            |run: &Allocation| run.zero && run.extent.start() <= piece.start() && at <= run.extent.end();
        if holes.iter().any(covers) {
            digests.resize(digests.len() + piece.len().0.div_ceil(u64::from(block)) as usize, ZERO_DIGEST);
            continue;
        }
        match disk.read(piece.start(), pool.take(piece.len().0 as usize).await).await {
            Ok(bytes) => digests.extend(bytes.chunks(block as usize).map(digest_of)),
            Err(error) => return failure(id, &error),
        }
    }
    Outgoing::of(&Message::Digests { id, digests })
}

/// The digest of a block: [`ZERO_DIGEST`] or its BLAKE3.
pub fn digest_of(block: &[u8]) -> Digest {
    if is_zero(block) { ZERO_DIGEST } else { *blake3::hash(block).as_bytes() }
}
