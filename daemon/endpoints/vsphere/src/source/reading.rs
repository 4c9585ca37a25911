//! A disk of a snapshot, as its reader serves it.
//!
//! Rule: a read that fails with EIO is repeated with another child: the session of the one that failed may
//! have expired, or its server was restarted. Which blocks are allocated saves reads, and no copy depends on
//! it: where a reader cannot tell, all is read.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, ErrorKind, Operation, ReadDisk},
    units::{Extent, Length, Offset},
};
use warmd_disks::nbd::NbdDisk;

use crate::reader::Health;

/// Looks at allocated blocks that may fail: after so many the reader is not asked any more.
const FAILURES: u32 = 8;
/// Children that a read may fail with after the first: what fails with all of them is the disk's fault.
const RENEWALS: u32 = 3;

/// A disk that is read through its reader's socket.
#[derive(Debug)]
pub(super) struct ReaderDisk {
    disk: NbdDisk,
    /// Of our own child.
    health: Option<Health>,
    failures: AtomicU32,
}

impl ReaderDisk {
    pub(super) fn new(disk: NbdDisk, health: Option<Health>) -> Self {
        Self { disk, health, failures: AtomicU32::new(0) }
    }

    /// Reads, with another child where one fails.
    async fn read_healthy(
        &self,
        health: &Health,
        at: Offset,
        mut buffer: Buffer,
    ) -> Result<Buffer, DiskError> {
        let length = buffer.len();
        let mut renewals = 0;
        loop {
            let child = health.child();
            let read = tokio::select! {
                biased;
                read = self.disk.read(at, buffer) => read,
                // Else it would go on trying to reach a child that is not started any more.
                () = health.has_ended() => Err(gone(health, at, length)),
            };
            match read {
                Ok(read) => {
                    health.record_read(child);
                    return Ok(read);
                }
                Err(error) if error.kind == ErrorKind::Media && renewals < RENEWALS => {
                    renewals += 1;
                    tracing::info!(%error, renewals, "a read failed; it is repeated with another nbdkit");
                    if health.renew(child).await.is_err() {
                        return Err(error);
                    }
                    // The buffer was lost with the failure.
                    buffer = Buffer::unpooled(length);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn gone(health: &Health, at: Offset, length: usize) -> DiskError {
    let why = health.gave_up().map_or_else(|| "it is not served any more".to_owned(), |why| why.said);
    let extent = Extent::new(at, Length(length as u64));
    DiskError::new(ErrorKind::Connection, Operation::Read, "the snapshot's disk", extent, why)
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
        match &self.health {
            Some(health) => self.read_healthy(health, at, buffer).await,
            None => self.disk.read(at, buffer).await,
        }
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
