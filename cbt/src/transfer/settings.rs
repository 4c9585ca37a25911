//! The settings of a pass.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    disk::{DiskError, DiskLimits, ErrorKind, Operation},
    units::BLOCK,
};

/// The settings of one disk's pass. Memory is the pool's; the rest bounds the requests in flight and the cost
/// of a crash.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferSettings {
    /// The most buffers that this disk may hold at once; the pool may be shared and smaller.
    pub buffers: usize,
    /// Bytes in one piece of work, at least [`BLOCK`]; cut to the limits of the pool's buffers and both
    /// disks.
    pub chunk: usize,
    /// The most requests to the source at once; cut to [`DiskLimits::in_flight`]. The number is measured: as
    /// many as raise the rate.
    pub reads_in_flight: usize,
    /// Requests to the target at once; cut to [`DiskLimits::in_flight`].
    pub writes_in_flight: usize,
    /// Bytes moved after which a batch is flushed and committed.
    pub batch_bytes: u64,
    /// Time after which a batch is flushed and committed, of any size.
    pub batch_time: Duration,
    /// Bytes of pending disk that are planned, and claimed, at a time: the amount that a crash causes to be
    /// written again even if the target already has it. At least one chunk.
    pub window: u64,
    /// The most bytes in one zeroing request.
    pub zero_request: u64,
    /// When reads take this many times as long as the disk's reads used to, warmd backs off: production
    /// first. `None` never does.
    pub read_latency_factor: Option<f64>,
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self {
            buffers: 64,
            chunk: 512 << 10,
            reads_in_flight: 64,
            writes_in_flight: 64,
            batch_bytes: 1 << 30,
            batch_time: Duration::from_secs(2),
            window: 256 << 20,
            zero_request: 64 << 20,
            read_latency_factor: Some(8.0),
        }
    }
}

impl TransferSettings {
    /// Cut to the limits of pool and disks; an error if one of them is below a block.
    pub(crate) fn fit(
        mut self,
        pool: usize,
        source: DiskLimits,
        target: DiskLimits,
    ) -> Result<Self, DiskError> {
        let most = self.chunk.min(pool).min(source.max_request).min(target.max_request);
        self.chunk = most / BLOCK as usize * BLOCK as usize;
        if self.chunk == 0 {
            let cause = format!("requests of {most} bytes are too small: a block has {BLOCK}");
            return Err(DiskError::new(ErrorKind::Refused, Operation::Open, "transfer", None, cause));
        }
        self.buffers = self.buffers.max(1);
        self.reads_in_flight = self.reads_in_flight.min(source.in_flight).max(1);
        self.writes_in_flight = self.writes_in_flight.min(target.in_flight).max(1);
        self.window = self.window.max(self.chunk as u64);
        self.zero_request = self.zero_request.max(BLOCK) / BLOCK * BLOCK;
        self.batch_time = self.batch_time.min(Duration::from_hours(24));
        self.batch_bytes = self.batch_bytes.max(self.chunk as u64).max(self.zero_request);
        Ok(self)
    }
}
