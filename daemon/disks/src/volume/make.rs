//! Files that do not exist yet, and the directories that hold them.
//!
//! Rule: a file has its final name only when it has its final length and both are durable; an interrupted
//! call leaves a temporary name that the next call removes. An existing file is never resized,
//! emptied or replaced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, SeekFrom},
    io::Errno,
};
use warmd_cbt::units::Length;

use super::{
    error::VolumeError,
    identity::{Identity, VolumeKind, size_of},
    in_use,
};

/// An existing volume of the right size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExistingFile {
    pub kind: VolumeKind,
    /// Whether every byte of it is known to read as zero.
    pub reads_zero: bool,
    /// What distinguishes it from every other volume of this host, regardless of their paths.
    pub number: (u64, u64),
}

/// The volume at `path`, which must be `size` bytes long. Blocks.
pub fn find(path: &Path, size: Length) -> Result<ExistingFile, VolumeError> {
    let failed = |doing, error| VolumeError::io(doing, path, error);
    let metadata = fs::metadata(path).map_err(|error| failed("looking at", error))?;
    let identity =
        Identity::of(&metadata).map_err(|what| VolumeError::NotAVolume { path: path.to_owned(), what })?;
    let file = File::open(path).map_err(|error| failed("opening", error))?;
    let is = size_of(&file, identity.kind).map_err(|error| failed("measuring", error))?;
    if is != size {
        return Err(VolumeError::WrongSize { path: path.to_owned(), is, wanted: size });
    }
    let reads_zero = identity.kind == VolumeKind::File
        && matches!(rustix::fs::seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
    Ok(ExistingFile { kind: identity.kind, reads_zero, number: identity.number() })
}

/// Creates a sparse file of `size` bytes at `path`, readable by its owner only, or finds the existing one.
/// Its directory must exist. Blocks.
pub fn make_file(path: &Path, size: Length) -> Result<ExistingFile, VolumeError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => return find(path, size),
        Ok(_) => {
            let what = "not a plain file, where only warmd's own should be";
            return Err(VolumeError::NotAVolume { path: path.to_owned(), what });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(VolumeError::io("looking at", path, error)),
    }
    let failed = |error| VolumeError::io("making", path, error);
    let fresh = Fresh::create(path).map_err(failed)?;
    fresh.file.set_len(size.0).map_err(failed)?;
    fresh.file.sync_all().map_err(failed)?;
    let metadata = fresh.file.metadata().map_err(failed)?;
    let identity =
        Identity::of(&metadata).map_err(|what| VolumeError::NotAVolume { path: path.to_owned(), what })?;
    fresh.name_it(path, true).map_err(failed)?;
    Ok(ExistingFile { kind: VolumeKind::File, reads_zero: true, number: identity.number() })
}

/// Puts `content` at `path` as a whole or not at all, durably, readable by its owner only. Blocks.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("writing", path, error);
    let mut fresh = Fresh::create(path).map_err(failed)?;
    fresh.file.write_all(content).map_err(failed)?;
    fresh.file.sync_all().map_err(failed)?;
    fresh.name_it(path, false).map_err(failed)
}

/// Creates the directory `path` with `mode`, whose parent must exist, durably. An existing one keeps its
/// mode. Blocks.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("making", path, error);
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // The process's umask may have removed bits.
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
            sync_directory_of(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(path).map_err(failed)?;
            if metadata.is_dir() { Ok(()) } else { Err(failed(io::ErrorKind::NotADirectory.into())) }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Creates the directory `path`, which must not exist, for its owner only. Its parent must exist. Blocks.
pub fn make_own_directory(path: &Path) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("making the directory", path, error);
    DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    sync_directory_of(path).map_err(failed)
}

/// Removes a directory with its contents, durably, and follows no link; a missing one is success. Blocks.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("removing", path, error);
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    fs::remove_dir_all(path).map_err(failed)?;
    sync_directory_of(path).map_err(failed)
}

/// Removes a file, and the remains of an interrupted call, durably; a missing one is success. Blocks.
pub fn remove_file(path: &Path) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("removing", path, error);
    let mut removed = false;
    for path in [path.to_owned(), temporary(path)] {
        match fs::remove_file(path) {
            Ok(()) => removed = true,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if removed { sync_directory_of(path).map_err(failed) } else { Ok(()) }
}

/// Removes the files of these names in a directory; missing files and a missing directory are success.
/// Blocks.
pub fn remove_files(directory: &Path, are_called: impl Fn(&str) -> bool) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("looking into", directory, error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name.to_str().is_some_and(&are_called) {
            remove_file(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Removes a volume's file that no process has open, durably; a missing one is success. Blocks.
pub fn remove_unused(path: &Path) -> Result<(), VolumeError> {
    match File::open(path) {
        Ok(file) => {
            let metadata = file.metadata().map_err(|error| VolumeError::io("looking at", path, error))?;
            let number = (metadata.dev(), metadata.ino());
            in_use::lock(&file, path, number).map_err(|error| error.of(path))?;
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(VolumeError::io("opening", path, error)),
    }
    remove_file(path)
}

/// Removes a directory if it is empty; a missing or non-empty one is success. Blocks.
pub fn remove_directory(path: &Path) -> Result<(), VolumeError> {
    let failed = |error| VolumeError::io("removing", path, error);
    match fs::remove_dir(path) {
        Ok(()) => sync_directory_of(path).map_err(failed),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the names in a directory durable. Blocks.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// A file under its temporary name; dropped without a final one it is removed.
struct Fresh {
    file: File,
    at: Option<PathBuf>,
}

impl Fresh {
    fn create(path: &Path) -> io::Result<Self> {
        let at = temporary(path);
        match fs::remove_file(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&at)?;
        Ok(Self { file, at: Some(at) })
    }

    /// Gives it its final name, which must be free if it is to be `new`, and makes that durable.
    fn name_it(mut self, path: &Path, new: bool) -> io::Result<()> {
        let Some(at) = &self.at else { return Ok(()) };
        if new {
            match rustix::fs::renameat_with(CWD, at, CWD, path, RenameFlags::NOREPLACE) {
                // A file system without such a rename: a link does the same, it never replaces.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    fs::hard_link(at, path)?;
                    fs::remove_file(at)?;
                }
                answer => answer?,
            }
        } else {
            fs::rename(at, path)?;
        }
        self.at = None;
        sync_directory_of(path)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(at) = &self.at {
            fs::remove_file(at).ok();
        }
    }
}
