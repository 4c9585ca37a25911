//! Volumes: files and block devices of this host, as disks that are written and read back.
//!
//! Rule: bytes count as written only when the kernel said so at a flush. A volume that failed a flush, that
//! changed under warmd's hands, or whose call was abandoned while it ran, answers nothing any more until it
//! is opened again. No call ever makes a volume longer or shorter.
//!
//! ```text
//! FileDisk (disk.rs: async, deadlines, bound on threads)
//!    └─ Volume (body.rs: one open volume; runs on blocking threads)
//!         ├─ syscalls.rs  the system calls; faults are implementations of it
//!         ├─ zeroes.rs    holes, or zeroes written, and the check
//!         ├─ identity.rs  is it still the same file or device, of the same size
//!         ├─ in_use.rs    does another program hold its lock
//!         ├─ users.rs     does a process, a mount or a device use it, by any name, without a lock
//!         └─ own.rs       what this process has open itself
//! locked_volume.rs: locked against other processes while a QEMU program writes to it
//! image.rs: what is only read, and never was warmd's
//! change_detector.rs: was it used while it was read
//! make.rs: files that do not exist yet
//! ```

mod body;
mod change_detector;
mod disk;
mod error;
mod identity;
mod image;
mod in_use;
mod locked_volume;
mod make;
mod own;
mod syscalls;
mod users;
mod zeroes;

#[cfg(test)]
mod tests;

pub use self::{
    change_detector::ChangeDetector,
    disk::{FileDisk, VolumeOptions},
    error::{NoRoom, VolumeError, VolumeErrorKind},
    identity::VolumeKind,
    image::ImageFile,
    locked_volume::LockedVolume,
    make::{
        ExistingFile, find, make_directory, make_file, make_own_directory, remove_directory, remove_file,
        remove_files, remove_tree, remove_unused, sync_directory, write_file,
    },
    users::{RelatedDevices, Uses, unseen},
};
