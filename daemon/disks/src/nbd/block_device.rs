//! An NBD export as a disk of the engine.

use std::ops::Range;

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, Operation, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};

use super::{
    disk::{NbdDisk, ZeroFlags},
    errno::Errno,
    error::{NbdCause, NbdError},
    options::BASE_ALLOCATION,
    status::StatusRun,
    wire::{ExportFlags, status},
};

impl NbdDisk {
    fn failed(&self, operation: Operation, extent: Option<Extent>, error: NbdError) -> DiskError {
        let disk = format!("{} of {}", self.options().export, self.options().address);
        let mut failed = error.into_disk_error(operation, disk);
        failed.extent = failed.extent.or(extent);
        failed
    }
}

#[async_trait]
impl ReadDisk for NbdDisk {
    fn size(&self) -> Length {
        Length(self.len())
    }

    fn limits(&self) -> DiskLimits {
        let largest = self.export().blocks.maximum as usize;
        DiskLimits {
            max_request: self.options().max_request.clamp(1, largest),
            in_flight: self.options().in_flight.max(1) * self.connections(),
        }
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64));
        self.read_at(at, buffer).await.map_err(|error| self.failed(Operation::Read, extent, error))
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        if !self.contexts().any(|name| name == BASE_ALLOCATION) {
            return Ok(vec![Allocation { extent, zero: false }]);
        }
        let runs = self.status_of(BASE_ALLOCATION, extent).await;
        let runs = runs.map_err(|error| self.failed(Operation::Allocation, Some(extent), error))?;
        let zero =
            |StatusRun { extent, flags }| Allocation { extent, zero: flags & status::ALLOCATION_ZERO != 0 };
        Ok(runs.into_iter().map(zero).collect())
    }
}

#[async_trait]
impl WriteDisk for NbdDisk {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(range.len() as u64));
        let written = self.write_at(at, buffer, range, false).await;
        written.map_err(|error| self.failed(Operation::Write, extent, error))
    }

    /// Where the server refuses to zero, every byte of the extent is written: a part of it may have been
    /// zeroed by then, which does no harm.
    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        let zeroed = if self.export().flags.has(ExportFlags::WRITE_ZEROES) {
            self.zero_range(extent, ZeroFlags::default()).await
        } else {
            Err(NbdError::of(NbdCause::Unsupported("WRITE_ZEROES")))
        };
        let zeroed = match zeroed {
            Err(error) if cannot_zero(&error) => {
                self.zeroing_was_refused(true);
                self.write_zero_data(extent).await
            }
            other => {
                if other.is_ok() {
                    self.zeroing_was_refused(false);
                }
                other
            }
        };
        zeroed.map_err(|error| self.failed(Operation::WriteZeroes, Some(extent), error))
    }

    fn zeroes_by_writing(&self) -> bool {
        self.refuses_zeroing()
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.sync().await.map_err(|error| self.failed(Operation::Flush, None, error))
    }
}

fn cannot_zero(error: &NbdError) -> bool {
    matches!(error.cause, NbdCause::Unsupported(_))
        || error.errno().is_some_and(|errno| errno.is_unsupported() || errno == Errno::EINVAL)
}
