//! One open volume for blocking threads: whole reads and writes, zeroes, sync, and the reason why it broke.
//!
//! Rule: data goes past the page cache (O_DIRECT) wherever file system, offset and memory allow, so that
//! copying a terabyte does not evict the pages of the host's other programs; each page is written either
//! directly or through the cache, never both ways.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::{Advice, OFlags};
use warmd_cbt::{
    buffer::{ALIGNMENT, Buffer},
    disk::{Allocation, ErrorKind},
    units::{Extent, Length, Offset},
};

use super::{
    error::{NoRoom, VolumeError},
    identity::{Identity, VolumeKind, size_of, still_whole},
    in_use,
    own::Own,
    syscalls::Calls,
    users::{RelatedDevices, Uses},
    zeroes,
};

/// Bytes in a buffer for zeroes, written or read back.
pub(super) const SCRATCH: usize = 256 << 10;

/// Runs reported in one answer about allocation.
const MAX_RUNS: usize = 1024;

/// An open, locked volume.
pub(super) struct Volume {
    path: PathBuf,
    size: Length,
    identity: Identity,
    /// Dropped before the lock: once the lock is free, the next volume registers.
    own: Own,
    /// Through the page cache; holds the lock.
    cached: File,
    /// Past the page cache, where the file system supports it.
    direct: Option<File>,
    direct_works: AtomicBool,
    punches: AtomicBool,
    broken: OnceLock<Broken>,
    calls: Box<dyn Calls>,
}

/// Why a volume refuses all calls.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

impl Volume {
    /// Opens and locks the volume at `path`, which must have `size` bytes.
    pub(super) fn open(
        path: &Path,
        size: Length,
        direct: bool,
        calls: Box<dyn Calls>,
    ) -> Result<Self, VolumeError> {
        let failed = |doing, error| VolumeError::io(doing, path, error);
        // Checked before it is opened: opening a pipe would wait for its other end.
        let before = std::fs::metadata(path).map_err(|error| failed("looking at", error))?;
        let identity =
            Identity::of(&before).map_err(|what| VolumeError::NotAVolume { path: path.to_owned(), what })?;
        // A device that is mounted or part of another device refuses an exclusive opening.
        let exclusive = match identity.kind {
            VolumeKind::File => OFlags::empty(),
            VolumeKind::BlockDevice => OFlags::EXCL,
        };
        let cached = open_with(path, exclusive).map_err(|error| {
            if error.kind() != io::ErrorKind::ResourceBusy {
                return failed("opening", error);
            }
            let by = || {
                let user = RelatedDevices::of(identity).user(Uses::Writing);
                user.unwrap_or_else(|| "the device is mounted, or part of another device".to_owned())
            };
            // A device that this process has open refuses it too.
            in_use::refused(identity.number(), by).of(path)
        })?;
        let opened = cached.metadata().map_err(|error| failed("looking at", error))?;
        if Identity::of(&opened) != Ok(identity) {
            return Err(failed("opening", io::Error::other("it was replaced at this moment")));
        }
        in_use::lock(&cached, path, identity.number()).map_err(|error| error.of(path))?;
        let own = Own::note(identity.number());
        let is = size_of(&cached, identity.kind).map_err(|error| failed("measuring", error))?;
        if is != size {
            return Err(VolumeError::WrongSize { path: path.to_owned(), is, wanted: size });
        }
        // After the lock: the lock refuses a later opening by warmd itself.
        if let Some(by) = RelatedDevices::of(identity).user(Uses::Writing) {
            return Err(VolumeError::InUse { path: path.to_owned(), by, ours: false });
        }
        let direct = if direct { open_with(path, OFlags::DIRECT).ok() } else { None };
        // The path could have been given to another file between the two openings.
        let same = |file: &File| file.metadata().is_ok_and(|now| Identity::of(&now) == Ok(identity));
        let direct = direct.filter(same);
        Ok(Self {
            path: path.to_owned(),
            size,
            identity,
            cached,
            direct,
            direct_works: AtomicBool::new(true),
            punches: AtomicBool::new(true),
            broken: OnceLock::new(),
            own,
            calls,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size(&self) -> Length {
        self.size
    }

    pub(super) fn kind(&self) -> VolumeKind {
        self.identity.kind
    }

    pub(super) fn file(&self) -> &File {
        &self.cached
    }

    /// Its disk was dropped; a call of it may still run.
    pub(super) fn leave(&self) {
        self.own.left();
    }

    /// Why it broke, if it did.
    pub(super) fn broken(&self) -> Option<&Broken> {
        self.broken.get()
    }

    /// Refuses all calls from now on; the first reason stays.
    pub(super) fn break_off(&self, kind: ErrorKind, why: String) {
        if self.broken.set(Broken { kind, why }).is_ok() {
            tracing::warn!(volume = %self.path.display(), why = %self.broken().map_or("", |broken| &broken.why),
                "volume is not trusted until it is opened again");
        }
    }

    pub(super) fn punches(&self) -> bool {
        self.punches.load(Ordering::Relaxed)
    }

    pub(super) fn punch_no_more(&self) {
        self.punches.store(false, Ordering::Relaxed);
    }

    pub(super) fn punch(&self, extent: Extent) -> io::Result<()> {
        loop {
            match self.calls.punch(self.cached.as_fd(), extent) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
    }

    /// Fills all of `into`.
    pub(super) fn read_all(&self, into: &mut [u8], at: Offset) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let here = at.0 + done as u64;
            let NextWrite { file, len, direct } = self.way(&into[done..], here);
            match self.calls.pread(file.as_fd(), &mut into[done..done + len], here) {
                Ok(0) => return Err(io::Error::other(format!("the volume ends at {here}, it shrank"))),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `data`; the caller has checked that it ends within the volume.
    pub(super) fn write_all(&self, data: &[u8], at: Offset) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let here = at.0 + done as u64;
            let NextWrite { file, len, direct } = self.way(&data[done..], here);
            match self.calls.pwrite(file.as_fd(), &data[done..done + len], here) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        format!("no byte was taken at {here}"),
                    ));
                }
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_works.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fails, and marks the volume as broken, unless it still has its size; a write past a shrunk end would
    /// make it longer.
    pub(super) fn still_whole(&self) -> io::Result<()> {
        still_whole(&self.cached, self.kind(), self.size)
            .inspect_err(|error| self.break_off(ErrorKind::Refused, error.to_string()))
    }

    /// Makes durable what was written; any failure marks the volume as broken, because the kernel reports a
    /// lost write once.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.still_whole()?;
        self.identity
            .still_at(&self.path)
            .inspect_err(|error| self.break_off(ErrorKind::Refused, error.to_string()))?;
        loop {
            match self.calls.sync(self.cached.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = warmd_cbt::disk::DiskError::kind_of(&error);
                    self.break_off(kind, format!("a flush failed: {error}"));
                    return Err(error);
                }
                Ok(()) => break,
            }
        }
        if self.direct.is_none() || !self.direct_works.load(Ordering::Relaxed) {
            // Only advice: durable data need not stay in the page cache.
            rustix::fs::fadvise(&self.cached, 0, None, Advice::DontNeed).ok();
        }
        Ok(())
    }

    /// A gap-free prefix of `extent`: holes and data.
    pub(super) fn allocation(&self, extent: Extent) -> io::Result<Vec<Allocation>> {
        if self.kind() == VolumeKind::BlockDevice {
            return Ok(vec![Allocation { extent, zero: false }]);
        }
        let mut runs = Vec::new();
        let mut from = extent.start();
        while from < extent.end() && runs.len() < MAX_RUNS {
            let data = zeroes::next_data(self, from, extent.end())?;
            let hole_end = data.map_or(extent.end(), |data| data.start());
            runs.extend(Extent::between(from, hole_end).map(|extent| Allocation { extent, zero: true }));
            runs.extend(data.map(|extent| Allocation { extent, zero: false }));
            from = data.map_or(extent.end(), |data| data.end());
        }
        Ok(runs)
    }

    /// The error, with the known figures if space is missing.
    pub(super) fn explain(&self, error: io::Error) -> Box<dyn std::error::Error + Send + Sync> {
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            || self.kind() != VolumeKind::File
        {
            return error.into();
        }
        let (Ok(system), Ok(metadata)) = (rustix::fs::fstatvfs(&self.cached), self.cached.metadata()) else {
            return error.into();
        };
        let free = Length(system.f_bavail.saturating_mul(system.f_frsize));
        let growth = Length(self.size.0.saturating_sub(metadata.blocks().saturating_mul(512)));
        Box::new(NoRoom { free, growth, cause: error })
    }

    /// The file of the two that takes the next bytes of `data`.
    fn way(&self, data: &[u8], at: u64) -> NextWrite<'_> {
        let aligned =
            at.is_multiple_of(ALIGNMENT as u64) && (data.as_ptr() as usize).is_multiple_of(ALIGNMENT);
        match &self.direct {
            Some(file) if aligned && data.len() >= ALIGNMENT && self.direct_works.load(Ordering::Relaxed) => {
                NextWrite { file, len: data.len() / ALIGNMENT * ALIGNMENT, direct: true }
            }
            _ => NextWrite { file: &self.cached, len: data.len(), direct: false },
        }
    }
}

/// The next write: its file, and its length.
struct NextWrite<'a> {
    file: &'a File,
    len: usize,
    direct: bool,
}

/// Aligned zeroes, to write or to read into.
pub(super) fn scratch() -> Buffer {
    Buffer::unpooled(SCRATCH)
}

fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}
