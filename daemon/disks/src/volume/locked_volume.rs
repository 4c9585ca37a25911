//! A volume that is locked against other processes while a QEMU program, started here, writes to it.
//!
//! Rule: the program gets a handle on the same open file, and so on its lock: any other opening of the volume
//! is refused for as long as the program lives, also when the daemon that started it is gone.

use std::{fmt, fs::File, path::Path};

use warmd_cbt::units::Length;

use super::{body::Volume, error::VolumeError, syscalls::Kernel};

/// An open, locked volume that is written by another program.
pub struct LockedVolume(Volume);

impl LockedVolume {
    /// Opens and locks the volume at `path`, which must be `size` bytes long and in no other use. Blocks.
    pub fn open(path: &Path, size: Length) -> Result<Self, VolumeError> {
        Volume::open(path, size, false, Box::new(Kernel)).map(Self)
    }

    /// The file that the program keeps open.
    pub fn handle(&self) -> Result<File, VolumeError> {
        let failed = |error| VolumeError::io("opening", self.0.path(), error);
        self.0.file().try_clone().map_err(failed)
    }

    /// Makes durable what was written since it was opened, by any writer. Blocks.
    pub fn sync(&self) -> Result<(), VolumeError> {
        self.0.sync().map_err(|error| VolumeError::io("flushing", self.0.path(), error))
    }
}

impl fmt::Debug for LockedVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({}, {} bytes)", self.0.path().display(), self.0.size())
    }
}
