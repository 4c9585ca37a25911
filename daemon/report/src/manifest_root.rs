//! The manifest's root of a raw image or a block device, from its bytes alone: what an auditor runs.
//!
//! Rule: it knows no migration, no store and no daemon, so that its result is independent evidence. Memory is
//! bounded: each thread is at most a few pieces ahead of the one that is waited for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    num::NonZero,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::SystemTime,
};

use rustix::{fs::SeekFrom as Whence, io::Errno};
use warmd_cbt::{
    manifest::{BlockHash, RootHasher},
    units::{BLOCK, Length, MAX_DISK},
};

/// Bytes of disk that one thread works on at a time.
const PIECE: u64 = 256 * BLOCK;
/// Bytes of one read.
const READ: usize = 16 * BLOCK as usize;
/// Finished pieces that a thread may be ahead.
const AHEAD: usize = 4;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot {what} {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// The bytes from there on are unknown.
    #[error("cannot read {path} at byte {at}: {cause}")]
    Read {
        path: PathBuf,
        at: u64,
        #[source]
        cause: io::Error,
    },
    #[error("{path} is neither a file nor a block device")]
    NotADisk { path: PathBuf },
    #[error("{path} has {has} bytes, fewer than the disk's {wanted}")]
    TooShort { path: PathBuf, has: u64, wanted: u64 },
    #[error("{path} has {has} bytes, more than a disk can have")]
    TooLong { path: PathBuf, has: u64 },
    /// It changed since it was opened, so there is no moment that a root could describe.
    #[error("{path} was changed while it was read ({what}): see that no process uses it, and try again")]
    Changed { path: PathBuf, what: String },
}

/// A disk to be hashed; the open file, even if its name is removed.
#[derive(Debug)]
pub struct RawImage {
    path: PathBuf,
    file: File,
    size: Length,
    seen: FileState,
}

/// What shows that a file was changed.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    len: u64,
    /// A device does not keep the time of its last write.
    modified: Option<SystemTime>,
}

impl FileState {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let modified = meta.file_type().is_file().then(|| meta.modified()).transpose()?;
        let mut end = file;
        Ok(Self { len: end.seek(SeekFrom::End(0))?, modified })
    }
}

impl RawImage {
    /// The first `size` bytes of what is at `path`, or all of it.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self, RootError> {
        let io = |what| failed(what, path);
        // A pipe would wait for its other end.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io("open"))?;
        let kind = file.metadata().map_err(io("look at"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(RootError::NotADisk { path: path.to_owned() });
        }
        let seen = FileState::of(&file).map_err(io("look at"))?;
        let (has, wanted) = (seen.len, size.unwrap_or(seen.len));
        if wanted > has {
            return Err(RootError::TooShort { path: path.to_owned(), has, wanted });
        }
        if wanted > MAX_DISK {
            return Err(RootError::TooLong { path: path.to_owned(), has });
        }
        Ok(Self { path: path.to_owned(), file, size: Length(wanted), seen })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size.0
    }

    /// Whether it begins like a qcow2 image: then its root is most likely not the one that is looked for.
    pub fn looks_like_qcow2(&self) -> bool {
        let mut magic = [0; 4];
        self.file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"QFI\xfb"
    }

    /// The root in hexadecimal. `done` counts the bytes of disk that are done.
    ///
    /// A file that was written to, or whose length changed, since it was opened has none; whether a device
    /// was is not seen.
    pub fn root(&self, threads: NonZero<usize>, done: &AtomicU64) -> Result<String, RootError> {
        let pieces = self.size.0.div_ceil(PIECE);
        let mut root = RootHasher::new(self.size);
        let hashed = thread::scope(|scope| {
            let step = threads.get() as u64;
            let workers: Vec<_> = (0..step.min(pieces))
                .map(|first| {
                    let (sender, receiver) = mpsc::sync_channel(AHEAD);
                    scope.spawn(move || self.work(first, step, &sender));
                    receiver
                })
                .collect();
            // Pieces are dealt out in turn, so they are collected in turn too. An error ends the others:
            // their receiver is gone.
            for (piece, worker) in (0..pieces).zip(workers.iter().cycle()) {
                let ended = || failed("hash", &self.path)(io::Error::other("a thread ended early"));
                let hashes = worker.recv().map_err(|_| ended())??;
                root.update(&hashes);
                done.fetch_add(PIECE.min(self.size.0 - piece * PIECE), Relaxed);
            }
            Ok(())
        });
        // First: what cannot be read any more was cut off, perhaps.
        self.unchanged()?;
        hashed?;
        root.finish().ok_or_else(|| failed("hash", &self.path)(io::Error::other("blocks are missing")))
    }

    /// A file that shrank reads as if it were a hole from there on: its size is checked again at the end.
    fn unchanged(&self) -> Result<(), RootError> {
        let now = FileState::of(&self.file).map_err(failed("look at", &self.path))?;
        if now == self.seen {
            return Ok(());
        }
        let what = if now.len == self.seen.len {
            "it was written to".to_owned()
        } else {
            format!("it had {} bytes, and has {}", self.seen.len, now.len)
        };
        Err(RootError::Changed { path: self.path.clone(), what })
    }

    fn work(&self, first: u64, step: u64, to: &mpsc::SyncSender<Result<Vec<BlockHash>, RootError>>) {
        let mut reader = Reader { file: &self.file, buffer: vec![0; READ], sparse: true };
        let pieces = (first..).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        for start in pieces.map(|piece| piece * PIECE).take_while(|start| *start < self.size.0) {
            let hashes = reader.hashes(start, self.size.0.min(start + PIECE));
            let failed = hashes.is_err();
            let read = |(at, cause)| RootError::Read { path: self.path.clone(), at, cause };
            if to.send(hashes.map_err(read)).is_err() || failed {
                return;
            }
        }
    }
}

/// Threads share the file: its position, which each of them changes, is never used.
struct Reader<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// The file system can distinguish holes from data.
    sparse: bool,
}

impl Reader<'_> {
    /// The hashes of the blocks in `start..end`, which begins at a block's start; else where it failed.
    fn hashes(&mut self, start: u64, end: u64) -> Result<Vec<BlockHash>, (u64, io::Error)> {
        let mut hashes = Vec::with_capacity((end - start).div_ceil(BLOCK) as usize);
        let mut at = start;
        while at < end {
            let (from, to) = self.data(at, end).map_err(|cause| (at, cause))?;
            hashes.resize(((from - start) / BLOCK) as usize, BlockHash::ZERO);
            at = from;
            while at < to {
                let piece = &mut self.buffer[..READ.min((to - at) as usize)];
                fill(self.file, piece, at)?;
                hashes.extend(BlockHash::of_blocks(piece));
                at += piece.len() as u64;
            }
        }
        hashes.resize((end - start).div_ceil(BLOCK) as usize, BlockHash::ZERO);
        Ok(hashes)
    }

    /// The next run of whole blocks from `at` that may hold data; empty, at `end`, if only a hole is left.
    fn data(&mut self, at: u64, end: u64) -> io::Result<(u64, u64)> {
        if !self.sparse {
            return Ok((at, end));
        }
        let from = match rustix::fs::seek(self.file, Whence::Data(at)) {
            Ok(from) => from,
            // Nothing but a hole up to the file's end.
            Err(Errno::NXIO) => return Ok((end.next_multiple_of(BLOCK), end)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.sparse = false;
                return Ok((at, end));
            }
            Err(errno) => return Err(errno.into()),
        };
        if from >= end {
            return Ok((end.next_multiple_of(BLOCK), end));
        }
        let to = rustix::fs::seek(self.file, Whence::Hole(from))?;
        // Both ends are widened to whole blocks; `at` is one's start, so nothing is taken twice.
        Ok((from / BLOCK * BLOCK, to.max(from + 1).next_multiple_of(BLOCK).min(end)))
    }
}

/// Reads all of `piece` from `at` on; else says at which byte it failed.
fn fill(file: &File, piece: &mut [u8], at: u64) -> Result<(), (u64, io::Error)> {
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = piece.get_mut(filled..) {
        let here = at + filled as u64;
        match file.read_at(rest, here) {
            Ok(0) => return Err((here, io::Error::new(io::ErrorKind::UnexpectedEof, "it ends there"))),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((here, error)),
        }
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> RootError {
    move |cause| RootError::Io { what, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// As the definition says it, in the fewest words.
    fn defined(bytes: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"warmd manifest 1\n");
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&65_536_u64.to_le_bytes());
        for block in bytes.chunks(65_536) {
            let full = blake3::hash(block);
            let zero = block.iter().all(|byte| *byte == 0);
            hasher.update(if zero { &[0; 16] } else { &full.as_bytes()[..16] });
        }
        hasher.finalize().to_hex().to_string()
    }

    fn root(path: &Path, size: Option<u64>, threads: usize) -> Result<String, RootError> {
        let image = RawImage::open(path, size)?;
        let done = AtomicU64::new(0);
        let root = image.root(NonZero::new(threads).unwrap(), &done)?;
        assert_eq!(done.into_inner(), image.size());
        Ok(root)
    }

    #[test]
    fn it_is_the_definitions_root_however_it_is_read() {
        const MIB: usize = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        // Data that begins and ends within blocks, holes, written zeroes, a short last block, several pieces.
        let sets: &[(usize, &[(usize, usize)])] = &[
            (0, &[]),
            (1, &[(0, 1)]),
            (65_536, &[]),
            (
                40 * MIB + 512,
                &[(0, 1), (100_000, 70_000), (17 * MIB - 5, 10), (33 * MIB, 3 * MIB), (40 * MIB + 511, 1)],
            ),
            (20 * MIB, &[(4096, 4096), (16 * MIB - 1, 2)]),
            (33 * MIB, &[(0, MIB)]),
        ];
        for (size, writes) in sets {
            let mut bytes = vec![0; *size];
            let file = File::create(&path).unwrap();
            file.set_len(*size as u64).unwrap();
            for (at, len) in *writes {
                for (offset, byte) in bytes[*at..at + len].iter_mut().enumerate() {
                    *byte = (offset % 251 + 1) as u8;
                }
                file.write_all_at(&bytes[*at..at + len], *at as u64).unwrap();
            }
            if *size > 2 * MIB {
                file.write_all_at(&vec![0; 200_000], 20 * 65_536).unwrap();
                bytes[20 * 65_536..20 * 65_536 + 200_000].fill(0);
            }
            let wanted = defined(&bytes);
            for threads in [1, 2, 7] {
                assert_eq!(root(&path, None, threads).unwrap(), wanted, "{size} bytes, {threads} threads");
            }
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(root(&path, None, 2).unwrap(), wanted, "{size} bytes, written out");
            File::options().append(true).open(&path).unwrap().write_all(&vec![9; 70_000]).unwrap();
            assert_eq!(
                root(&path, Some(*size as u64), 2).unwrap(),
                wanted,
                "{size} bytes of a longer volume"
            );
            assert_ne!(root(&path, None, 2).unwrap(), wanted);
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_has_no_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let opened = || {
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(long_ago).unwrap();
            (file, RawImage::open(&path, None).unwrap())
        };
        let root = |image: &RawImage| image.root(NonZero::new(2).unwrap(), &AtomicU64::new(0));
        let changed = |image: &RawImage| match root(image) {
            Err(RootError::Changed { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let (_, image) = opened();
        root(&image).unwrap();

        // A missing part would count as a hole.
        let (file, image) = opened();
        file.set_len(1 << 19).unwrap();
        assert_eq!(changed(&image), "it had 1048576 bytes, and has 524288");
        file.set_len(1 << 20).unwrap();
        assert_eq!(changed(&image), "it was written to", "grown again, of zeroes");
        let (file, image) = opened();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(changed(&image), "it was written to");
        // Another file of that name is another file.
        let (_, image) = opened();
        let wanted = root(&image).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        assert_eq!(root(&image).unwrap(), wanted);
    }

    #[test]
    fn a_read_that_fails_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 40 << 20]).unwrap();
        // Open for writing only: every read of it fails.
        let image = RawImage {
            file: File::options().append(true).open(&path).unwrap(),
            ..RawImage::open(&path, None).unwrap()
        };
        let error = image.root(NonZero::new(1).unwrap(), &AtomicU64::new(0)).unwrap_err();
        assert!(matches!(error, RootError::Read { at: 0, .. }), "{error}");
        assert!(error.to_string().contains("at byte 0: "), "{error}");
        let mut piece = vec![0; 1 << 20];
        let (at, error) = fill(&File::open(&path).unwrap(), &mut piece, (40 << 20) - 1000).unwrap_err();
        assert_eq!((at, error.kind()), (40 << 20, io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(root(dir.path(), None, 1), Err(RootError::NotADisk { .. })));
        assert!(matches!(root(Path::new("/dev/null"), None, 1), Err(RootError::NotADisk { .. })));
        let path = dir.path().join("disk");
        assert!(matches!(root(&path, None, 1), Err(RootError::Io { what: "open", .. })));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(root(&pipe, None, 1), Err(RootError::NotADisk { .. })));
        std::fs::write(&path, b"QFI\xfb and more").unwrap();
        assert!(RawImage::open(&path, None).unwrap().looks_like_qcow2());
        assert!(matches!(root(&path, Some(1000), 1), Err(RootError::TooShort { has: 13, wanted: 1000, .. })));
    }
}
