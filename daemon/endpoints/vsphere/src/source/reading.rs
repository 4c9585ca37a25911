//! A disk of a snapshot, as its reader serves it.
//!
//! Rule: which blocks are allocated saves reads, and no copy depends on it: where a reader cannot tell, all
//! is read. nbdkit 1.32 sometimes names blocks past the end of those that it was asked about, which the NBD
//! client refuses together with the connection.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, ReadDisk},
    units::{Extent, Length, Offset},
};
use warmd_disks::nbd::NbdDisk;

/// Each failure costs a connection: after so many the reader is not asked any more.
const FAILURES: u32 = 8;

/// A disk that is read through its reader's socket.
#[derive(Debug)]
pub(super) struct ReaderDisk {
    disk: NbdDisk,
    failures: AtomicU32,
}

impl ReaderDisk {
    pub(super) fn new(disk: NbdDisk) -> Self {
        Self { disk, failures: AtomicU32::new(0) }
    }
}

#[async_trait]
impl ReadDisk for ReaderDisk {
    fn size(&self) -> Length {
        self.disk.size()
    }

    fn limits(&self) -> DiskLimits {
        self.disk.limits()
    }

    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError> {
        self.disk.read(at, buffer).await
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        if self.failures.load(Relaxed) < FAILURES {
            match self.disk.allocation(extent).await {
                Ok(known) => return Ok(known),
                Err(error) => {
                    let count = self.failures.fetch_add(1, Relaxed) + 1;
                    tracing::info!(%error, count, "allocated blocks not known: all of these are read");
                }
            }
        }
        Ok(vec![Allocation { extent, zero: false }])
    }
}
