//! The system calls that read and write an open volume.
//!
//! Rule: an interface without logic of its own. Faults are implementations of it; nothing else in this folder
//! knows of tests.

use std::{io, os::fd::BorrowedFd};

use rustix::fs::FallocateFlags;
use warmd_cbt::units::Extent;

/// One call each, as the kernel offers it: it may do less than it was asked for.
pub(super) trait Calls: Send + Sync {
    fn pread(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> io::Result<usize>;
    fn pwrite(&self, file: BorrowedFd<'_>, data: &[u8], at: u64) -> io::Result<usize>;
    /// Makes the extent a hole and keeps the length.
    fn punch(&self, file: BorrowedFd<'_>, extent: Extent) -> io::Result<()>;
    /// Makes data and what is needed to find it durable.
    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()>;
}

/// The kernel itself.
pub(super) struct Kernel;

impl Calls for Kernel {
    fn pread(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(file, into, at)?)
    }

    fn pwrite(&self, file: BorrowedFd<'_>, data: &[u8], at: u64) -> io::Result<usize> {
        Ok(rustix::io::pwrite(file, data, at)?)
    }

    fn punch(&self, file: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, mode, extent.start().0, extent.len().0)?)
    }

    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsync(file)?)
    }
}
