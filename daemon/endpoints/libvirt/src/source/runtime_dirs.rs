//! A migration's private directories on this host, for its socket and its scratch files while a snapshot
//! runs.
//!
//! ```text
//! RUNTIME_DIR/MIGRATION/            warmd's own
//! RUNTIME_DIR/MIGRATION/q/SOCKET    0700, QEMU's: the NBD socket
//! SCRATCH_DIR/MIGRATION/N.scratch   0700, QEMU's: old contents of overwritten blocks
//! ```
//!
//! Rule: QEMU's user may be hostile (a guest that broke out); no file that warmd or libvirtd reads or creates
//! is in a directory of that user. All names contain the migration's full id, and all files are removed with
//! the snapshot.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use uuid::Uuid;
use warmd_core::model::id::MigrationId;

use super::settings::LibvirtSourceSettings;

/// The directories of one migration.
#[derive(Clone, Debug)]
pub(super) struct RuntimeDirs {
    runtime: PathBuf,
    scratch: PathBuf,
}

impl RuntimeDirs {
    pub(super) fn new(settings: &LibvirtSourceSettings, owner: MigrationId) -> Self {
        let owner = owner.to_string();
        Self { runtime: settings.runtime_dir.join(&owner), scratch: settings.scratch_dir.join(&owner) }
    }

    /// Creates them again; all earlier content is deleted. QEMU's user and group own their parts.
    pub(super) fn make(&self, runs_as: Option<(u32, u32)>) -> io::Result<()> {
        self.clear()?;
        for dir in [&self.runtime, &self.scratch] {
            if let Some(parent) = dir.parent() {
                DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
            }
        }
        DirBuilder::new().mode(0o711).create(&self.runtime)?;
        let (user, group) = runs_as.unzip();
        for dir in [&self.runtime.join("q"), &self.scratch] {
            DirBuilder::new().mode(0o700).create(dir)?;
            if user.is_some_and(|user| user != geteuid().as_raw()) {
                std::os::unix::fs::chown(dir, user, group)?;
            }
        }
        Ok(())
    }

    /// Removes them with their contents; missing ones are success.
    pub(super) fn clear(&self) -> io::Result<()> {
        for dir in [&self.runtime, &self.scratch] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A socket that was never used before: a client of an older snapshot must not find a newer one at its
    /// address.
    pub(super) fn socket(&self) -> PathBuf {
        let name = Uuid::now_v7().simple().to_string();
        self.runtime.join("q").join(&name[20..])
    }

    pub(super) fn scratch_file(&self, number: usize) -> PathBuf {
        self.scratch.join(format!("{number}.scratch"))
    }

    pub(super) fn scratch_dir(&self) -> &Path {
        &self.scratch
    }
}

/// Whether a path of a running backup job is in a directory of this migration, also under earlier settings.
pub(super) fn is_of(path: &str, owner: MigrationId) -> bool {
    let owner = owner.to_string();
    Path::new(path).components().any(|part| part.as_os_str() == owner.as_str())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn places_are_private_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (run, scratch) = (dir.path().join("run/deep"), dir.path().join("scratch"));
        let settings = LibvirtSourceSettings {
            runtime_dir: run.clone(),
            scratch_dir: scratch.clone(),
            ..LibvirtSourceSettings::default()
        };
        let owner = MigrationId::generate();
        let dirs = RuntimeDirs::new(&settings, owner);
        dirs.clear().unwrap();
        dirs.make(None).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let socket = dirs.socket();
        assert_eq!((mode(socket.parent().unwrap()), mode(dirs.scratch_dir())), (0o700, 0o700));
        assert_ne!(socket, dirs.socket());
        assert!(is_of(socket.to_str().unwrap(), owner) && !is_of("/run/other/nbd", owner));
        fs::write(dirs.scratch_file(0), "old").unwrap();
        dirs.make(None).unwrap();
        assert!(!dirs.scratch_file(0).exists(), "scratch of an earlier snapshot is still there");
        dirs.clear().unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count() + fs::read_dir(&scratch).unwrap().count(), 0);
    }
}
