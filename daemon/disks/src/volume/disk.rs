//! A volume as the engine's disk: async, every call with a deadline, a bounded number of threads.
//!
//! Rule: a system call that hangs cannot be cancelled. Its thread keeps the volume open, and so its lock:
//! while an abandoned write may still happen, no caller opens the volume again, and stale bytes never land on
//! newer ones.

use std::{fmt, ops::Range, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::Semaphore, time::timeout};
use warmd_cbt::{
    buffer::{Buffer, BufferLoan},
    disk::{Allocation, DiskError, DiskLimits, ErrorKind, Operation, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};
use warmd_threads::DevicePool;

use super::{
    body::Volume,
    error::VolumeError,
    syscalls::{Calls, Kernel},
};

/// The most bytes zeroed in one blocking call, so that its deadline means something.
const ZERO_STEP: u64 = 256 << 20;

/// The settings of a volume.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Blocking calls at once; the others wait.
    pub in_flight: usize,
    /// How long opening waits for short users such as udev, and for its own calls.
    pub lock_wait: Duration,
    /// For each read, write and step of zeroing.
    pub deadline: Duration,
    /// For each flush, which may wait for the device's whole cache.
    pub flush_deadline: Duration,
    /// Past the page cache where possible.
    pub direct: bool,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            in_flight: 16,
            lock_wait: Duration::from_secs(5),
            deadline: Duration::from_mins(1),
            flush_deadline: Duration::from_mins(5),
            direct: true,
        }
    }
}

/// A file or block device of fixed size, read and written. Dropping it closes and unlocks it once its last
/// call ended.
pub struct FileDisk {
    volume: Arc<Volume>,
    threads: Arc<Semaphore>,
    /// The threads of its file system, or of its device.
    lane: Arc<DevicePool>,
    options: VolumeOptions,
}

impl FileDisk {
    /// Opens and locks the volume at `path`, which must be `size` bytes long.
    pub async fn open(path: &Path, size: Length, options: VolumeOptions) -> Result<Self, VolumeError> {
        Self::open_by(path, size, options, || Box::new(Kernel)).await
    }

    pub(super) async fn open_by(
        path: &Path,
        size: Length,
        options: VolumeOptions,
        calls: impl Fn() -> Box<dyn Calls>,
    ) -> Result<Self, VolumeError> {
        let failed = |error| VolumeError::io("opening", path, error);
        let started = tokio::time::Instant::now();
        let lane = warmd_threads::on(path).map_err(failed)?;
        loop {
            let (place, calls) = (path.to_owned(), calls());
            let opening = move || Volume::open(&place, size, options.direct, calls);
            match lane.run_within(options.deadline, opening).await.map_err(failed).flatten() {
                Ok(volume) => {
                    let threads = Arc::new(Semaphore::new(options.in_flight.max(1)));
                    return Ok(Self { volume: Arc::new(volume), threads, lane, options });
                }
                Err(VolumeError::InUse { .. } | VolumeError::Hangs { .. })
                    if started.elapsed() < options.lock_wait =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it threads of its own, as if on its own file system.
    #[cfg(test)]
    pub(super) fn set_lane(&mut self, lane: Arc<DevicePool>) {
        self.lane = lane;
    }

    /// Changes its calls' deadline, which its opening had in full.
    #[cfg(test)]
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.options.deadline = deadline;
    }

    /// Runs `work` on a thread that may hang. `changes` says that abandoning it breaks the volume; `loan` is
    /// for the buffer that it uses, which is written off then.
    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        extent: Option<Extent>,
        changes: bool,
        loan: Option<BufferLoan>,
        work: impl FnOnce(&Volume) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, DiskError> {
        self.admit(operation, extent)?;
        let deadline = match operation {
            Operation::Flush => self.options.flush_deadline,
            _ => self.options.deadline,
        };
        let timed_out =
            |what| self.failed(ErrorKind::Timeout, operation, extent, format!("{what} within {deadline:?}"));
        let Ok(Ok(thread)) = timeout(deadline, Arc::clone(&self.threads).acquire_owned()).await else {
            return Err(timed_out("no earlier call ended"));
        };
        // Before the call's own deadline: a call that never began is not abandoned, and cannot happen later.
        let turn = match timeout(deadline, self.lane.turn()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(error)) => return Err(self.failed(ErrorKind::Timeout, operation, extent, error)),
            Err(_) => return Err(timed_out("it got no turn among the calls to its file system or device")),
        };
        // It may have broken while this call waited.
        self.admit(operation, extent)?;
        let volume = Arc::clone(&self.volume);
        let task = self.lane.run_in(turn, move || {
            let answer = work(&volume);
            drop(volume);
            drop(thread);
            answer
        });
        let abandoned = Abandoned { change: changes.then_some((&self.volume, operation)), loan };
        let answer = timeout(deadline, task).await;
        match answer {
            Ok(joined) => {
                abandoned.ended();
                let done = joined.unwrap_or_else(|join| {
                    if changes {
                        self.volume.break_off(ErrorKind::Media, format!("a {operation} ended in a panic"));
                    }
                    Err(join)
                });
                done.map_err(|error| {
                    // The fault found in the call says more than the call's errno.
                    let kind =
                        self.volume.broken().map_or_else(|| DiskError::kind_of(&error), |broken| broken.kind);
                    self.failed(kind, operation, extent, self.volume.explain(error))
                })
            }
            Err(_) => Err(timed_out("the system did not answer")),
        }
    }

    fn admit(&self, operation: Operation, extent: Option<Extent>) -> Result<(), DiskError> {
        if let Some(broken) = self.volume.broken() {
            let why = format!("not trusted since {}; open it again", broken.why);
            return Err(self.failed(broken.kind, operation, extent, why));
        }
        match extent {
            Some(extent) if !extent.within(self.volume.size()) => Err(self.failed(
                ErrorKind::Refused,
                operation,
                Some(extent),
                format!("past the end at {}", self.volume.size()),
            )),
            _ => Ok(()),
        }
    }

    fn extent(&self, operation: Operation, at: Offset, len: usize) -> Result<Option<Extent>, DiskError> {
        if len == 0 {
            return Ok(None);
        }
        Extent::new(at, Length(len as u64)).map(Some).ok_or_else(|| {
            self.failed(ErrorKind::Refused, operation, None, format!("no disk has {len} bytes at {at}"))
        })
    }

    fn failed(
        &self,
        kind: ErrorKind,
        operation: Operation,
        extent: Option<Extent>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> DiskError {
        DiskError::new(kind, operation, self.volume.path().display().to_string(), extent, cause)
    }
}

/// If the call that it watches is abandoned before its end, marks the volume as broken, and writes the call's
/// buffer off.
struct Abandoned<'a> {
    change: Option<(&'a Arc<Volume>, Operation)>,
    loan: Option<BufferLoan>,
}

impl Abandoned<'_> {
    fn ended(mut self) {
        (self.change, self.loan) = (None, None);
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(loan) = self.loan.take() {
            let replaced = loan.write_off();
            warmd_threads::buffer_written_off();
            tracing::warn!(replaced, "a call was abandoned, and its buffer is written off until it ends");
        }
        if let Some((volume, operation)) = self.change {
            volume.break_off(ErrorKind::Timeout, format!("a {operation} was abandoned and may still happen"));
        }
    }
}

#[async_trait]
impl ReadDisk for FileDisk {
    fn size(&self) -> Length {
        self.volume.size()
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { in_flight: self.options.in_flight, ..DiskLimits::default() }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let Some(extent) = self.extent(Operation::Read, at, buffer.len())? else { return Ok(buffer) };
        let loan = buffer.loan();
        self.run(Operation::Read, Some(extent), false, loan, move |volume| {
            volume.read_all(&mut buffer, at)?;
            Ok(buffer)
        })
        .await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        self.run(Operation::Allocation, Some(extent), false, None, move |volume| volume.allocation(extent))
            .await
    }
}

#[async_trait]
impl WriteDisk for FileDisk {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        if range.start > range.end || range.end > buffer.len() {
            let why = format!("bytes {range:?} of a buffer of {}", buffer.len());
            return Err(self.failed(ErrorKind::Refused, Operation::Write, None, why));
        }
        let Some(extent) = self.extent(Operation::Write, at, range.len())? else { return Ok(buffer) };
        let loan = buffer.loan();
        self.run(Operation::Write, Some(extent), true, loan, move |volume| {
            volume.still_whole()?;
            volume.write_all(&buffer[range], at)?;
            Ok(buffer)
        })
        .await
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        self.admit(Operation::WriteZeroes, Some(extent))?;
        for step in extent.split(ZERO_STEP) {
            self.run(Operation::WriteZeroes, Some(step), true, None, move |volume| {
                volume.still_whole()?;
                super::zeroes::make_zero(volume, step)
            })
            .await?;
        }
        Ok(())
    }

    fn zeroes_by_writing(&self) -> bool {
        !self.volume.punches()
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.run(Operation::Flush, None, true, None, Volume::sync).await
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.volume.leave();
    }
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileDisk({}, {} bytes)", self.volume.path().display(), self.volume.size())
    }
}
