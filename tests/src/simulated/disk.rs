//! A disk in memory whose writes are lost unless they were flushed.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::Buffer,
    disk::{DiskError, ErrorKind, Operation, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};

use super::faults::Faults;

/// Clones are handles on the same disk.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    name: String,
    contents: Arc<Mutex<Contents>>,
    faults: Faults,
    /// No read succeeds.
    broken: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Contents {
    seen: Vec<u8>,
    durable: Vec<u8>,
}

static HELD: AtomicU64 = AtomicU64::new(0);

/// The bytes of all contents in this process: the memory of the simulated machines, which is not the
/// daemon's.
pub fn held_bytes() -> u64 {
    HELD.load(Relaxed)
}

impl Contents {
    fn new(bytes: Vec<u8>) -> Self {
        let contents = Self { seen: bytes.clone(), durable: bytes };
        HELD.fetch_add(contents.bytes(), Relaxed);
        contents
    }

    fn bytes(&self) -> u64 {
        (self.seen.len() + self.durable.len()) as u64
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes(), Relaxed);
    }
}

impl MemoryDisk {
    /// A disk with the durable content `bytes`. Its faults have the names `NAME.read`, `NAME.write`,
    /// `NAME.flush`.
    pub fn new(name: &str, bytes: Vec<u8>, faults: Faults) -> Self {
        Self {
            name: name.to_owned(),
            contents: Arc::new(Mutex::new(Contents::new(bytes))),
            faults,
            broken: Arc::default(),
        }
    }

    /// The content after a power cut.
    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// Makes every read of this disk fail, or ends that.
    pub fn break_reads(&self, broken: bool) {
        self.broken.store(broken, Relaxed);
    }

    /// Changes the disk without any report.
    pub fn corrupt(&self, at: usize, bytes: &[u8]) {
        let mut contents = self.lock();
        contents.seen[at..at + bytes.len()].copy_from_slice(bytes);
        contents.durable[at..at + bytes.len()].copy_from_slice(bytes);
    }

    async fn strike(&self, operation: Operation, extent: Option<Extent>) -> Result<(), DiskError> {
        let call = match operation {
            Operation::Read | Operation::Allocation | Operation::Open => "read",
            Operation::Write | Operation::WriteZeroes => "write",
            Operation::Flush => "flush",
        };
        let fail = |kind| DiskError::new(kind, operation, &self.name, extent, "a fault of the test");
        if self.broken.load(Relaxed) && operation == Operation::Read {
            return Err(fail(ErrorKind::Media));
        }
        match self.faults.strike(&format!("{}.{call}", self.name)).await {
            Ok(false) => Ok(()),
            Ok(true) | Err(true) => Err(fail(ErrorKind::Media)),
            Err(false) => Err(fail(ErrorKind::NoSpace)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ReadDisk for MemoryDisk {
    fn size(&self) -> Length {
        Length(self.lock().seen.len() as u64)
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        self.strike(Operation::Read, Extent::new(at, Length(buffer.len() as u64))).await?;
        let start = at.0 as usize;
        let end = start + buffer.len();
        buffer.copy_from_slice(&self.lock().seen[start..end]);
        Ok(buffer)
    }
}

#[async_trait]
impl WriteDisk for MemoryDisk {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        self.strike(Operation::Write, Extent::new(at, Length(range.len() as u64))).await?;
        let start = at.0 as usize;
        self.lock().seen[start..start + range.len()].copy_from_slice(&buffer[range]);
        Ok(buffer)
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        self.strike(Operation::WriteZeroes, Some(extent)).await?;
        self.lock().seen[extent.start().0 as usize..extent.end().0 as usize].fill(0);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        self.strike(Operation::Flush, None).await?;
        let mut contents = self.lock();
        let Contents { seen, durable } = &mut *contents;
        durable.clone_from(seen);
        Ok(())
    }
}
