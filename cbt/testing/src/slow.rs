//! A slow disk.

use std::{ops::Range, time::Duration};

use async_trait::async_trait;

use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};

/// Another disk, whose requests each take so much longer; for tests on a paused clock.
#[derive(Debug)]
pub struct SlowDisk<D> {
    pub disk: D,
    pub read: Duration,
    pub allocation: Duration,
    pub write: Duration,
    pub zero: Duration,
    pub flush: Duration,
    /// If it is less than the disk's own.
    pub in_flight: Option<usize>,
}

impl<D> SlowDisk<D> {
    /// Not slower than `disk` yet.
    pub fn new(disk: D) -> Self {
        let [read, allocation, write, zero, flush] = [Duration::ZERO; 5];
        Self { disk, read, allocation, write, zero, flush, in_flight: None }
    }
}

#[async_trait]
impl<D: ReadDisk> ReadDisk for SlowDisk<D> {
    fn size(&self) -> Length {
        self.disk.size()
    }

    fn limits(&self) -> DiskLimits {
        let limits = self.disk.limits();
        DiskLimits { in_flight: self.in_flight.unwrap_or(limits.in_flight), ..limits }
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        take(self.read).await;
        self.disk.read(at, buffer).await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        take(self.allocation).await;
        self.disk.allocation(extent).await
    }
}

#[async_trait]
impl<D: WriteDisk> WriteDisk for SlowDisk<D> {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        take(self.write).await;
        self.disk.write(at, buffer, range).await
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        take(self.zero).await;
        self.disk.write_zeroes(extent).await
    }

    fn zeroes_by_writing(&self) -> bool {
        self.disk.zeroes_by_writing()
    }

    async fn flush(&self) -> Result<(), DiskError> {
        take(self.flush).await;
        self.disk.flush().await
    }
}

/// A sleep of nothing would still be one of a timer's tick.
async fn take(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}
