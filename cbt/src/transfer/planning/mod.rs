//! The work of a pass: the pending blocks, in the disk's order, as pieces that fit a buffer.
//!
//! Rule: it plans a window at a time and prepares the next one while the last is worked on. Of each window it
//! knows which bytes the source says are holes, which hashes the trusted blocks have, and that the trusted
//! blocks that may be written are claimed, before it hands out the first piece.

mod expected;
mod holes;
mod window;

use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

use self::{holes::SourceHoles, window::Slice};
use crate::{
    disk::{DiskError, ErrorKind, Operation, ReadDisk},
    ledger::{Ledger, WriteGate},
    manifest::BlockHash,
    telemetry::Stage,
    transfer::{PassError, PassProgress, TransferSettings},
    units::{Extent, Offset},
};

/// One piece of work: block-aligned, within one extent of `pending`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PieceWork {
    /// Zero on both sides; only the ledger must learn it.
    Skip(Extent),
    /// Zero on the source, but perhaps not on the target.
    Zero(Extent),
    /// To be read. `expected` has for each block the hash of the target's known content; it is empty if
    /// nothing is known of any.
    Copy { extent: Extent, expected: Vec<Option<BlockHash>> },
}

/// The first window is small, so that the first read does not wait for a long plan; each next one is so much
/// larger. A small delta is one window all the same: each costs a commit before its first read.
const FIRST_WINDOW: u64 = 64 << 20;
const WINDOW_GROWTH: u64 = 4;

/// Hands out the pieces of one pass. Dropped, it leaves at most a claim that ends on its own, under the gate.
pub(crate) struct Planner {
    ledger: Arc<Ledger>,
    settings: TransferSettings,
    gate: WriteGate,
    progress: Arc<PassProgress>,
    holes: Option<SourceHoles>,
    at: Offset,
    window: u64,
    ready: std::vec::IntoIter<PieceWork>,
    ahead: Option<JoinHandle<Result<Prepared, PassError>>>,
}

struct Prepared {
    work: Vec<PieceWork>,
    holes: SourceHoles,
}

impl Planner {
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        source: Arc<dyn ReadDisk>,
        settings: TransferSettings,
        gate: WriteGate,
        progress: Arc<PassProgress>,
    ) -> Self {
        Self {
            holes: Some(SourceHoles::new(source, ledger.size())),
            ledger,
            settings,
            gate,
            progress,
            at: Offset(0),
            window: FIRST_WINDOW.min(settings.window),
            ready: Vec::new().into_iter(),
            ahead: None,
        }
    }

    /// The next piece; `None` after the last one. Dropping the wait loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<PieceWork>, PassError> {
        loop {
            if let Some(work) = self.ready.next() {
                return Ok(Some(work));
            }
            self.prepare_ahead();
            let Some(ahead) = &mut self.ahead else { return Ok(None) };
            let prepared = ahead.await;
            self.ahead = None;
            let prepared = prepared.map_err(planner_ended)??;
            self.holes = Some(prepared.holes);
            self.ready = prepared.work.into_iter();
            self.prepare_ahead();
        }
    }

    /// Ends the preparation. A claim that is aborted here is either durable or was never made.
    pub(crate) async fn close(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.abort();
            let _ = ahead.await;
        }
    }

    fn prepare_ahead(&mut self) {
        if self.ahead.is_some() {
            return;
        }
        let Some(slice) = Slice::take(&self.ledger, self.at, self.window) else { return };
        let Some(holes) = self.holes.take() else { return };
        self.at = slice.end();
        self.window = (self.window * WINDOW_GROWTH).min(self.settings.window);
        let (ledger, settings, gate) = (Arc::clone(&self.ledger), self.settings, Arc::clone(&self.gate));
        let progress = Arc::clone(&self.progress);
        let preparing = async move {
            let request = progress.meter().stage(Stage::Plan).begin();
            let bytes = slice.extents.iter().map(|extent| extent.len().0).sum();
            let prepared = prepare(&ledger, holes, slice, settings).await?;
            request.done(bytes);
            drop(gate);
            Ok(prepared)
        };
        self.ahead = Some(tokio::spawn(preparing.in_current_span()));
    }
}

async fn prepare(
    ledger: &Ledger,
    mut holes: SourceHoles,
    slice: Slice,
    settings: TransferSettings,
) -> Result<Prepared, PassError> {
    let (zero, expected) = futures::join!(holes.within(&slice), expected::hashes_of(ledger, &slice.trusted));
    let (work, claims) =
        slice.into_work(&zero.map_err(PassError::Source)?, expected?, settings.chunk, settings.zero_request);
    ledger.claim(&claims).await?;
    Ok(Prepared { work, holes })
}

fn planner_ended(cause: tokio::task::JoinError) -> PassError {
    PassError::Source(DiskError::new(ErrorKind::Protocol, Operation::Allocation, "plan", None, cause))
}
