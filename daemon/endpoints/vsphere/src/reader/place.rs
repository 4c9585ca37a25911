//! The folders of the children's sockets.
//!
//! Rule: each child has a folder that only the daemon's user can enter, named by the migration and a number.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

use tokio::fs;

use crate::snapshot::Owner;

/// Tells the folders of one process apart.
static NEXT: AtomicU16 = AtomicU16::new(0);
const ATTEMPTS: usize = 64;

/// A folder of a child; removed when it is dropped.
#[derive(Debug)]
pub(super) struct SocketDirectory(PathBuf);

impl SocketDirectory {
    /// A new one for the migration.
    pub(super) async fn make(runtime_dir: &Path, owner: &Owner) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(runtime_dir).await?;
        for _ in 0..ATTEMPTS {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = runtime_dir.join(format!("{owner}-{number:04x}"));
            match fs::DirBuilder::new().mode(0o700).create(&path).await {
                Ok(()) => return Ok(Self(path)),
                // Another process's, or one that a daemon left that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("nbd")
    }

    pub(super) fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        // Two small files on a file system in memory.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "a reader's folder is still there");
        }
    }
}

/// Removes what readers of the migration left whose daemon was killed: their processes have ended with it.
pub async fn clear(runtime_dir: &Path, owner: &Owner) -> io::Result<()> {
    for path in of_owner(runtime_dir, |name| name == owner.to_string()).await? {
        fs::remove_dir_all(&path).await?;
    }
    Ok(())
}

/// The folders of readers of migrations that are none of these.
pub async fn remains(runtime_dir: &Path, known: &[Owner]) -> io::Result<Vec<PathBuf>> {
    of_owner(runtime_dir, |name| !known.iter().any(|owner| owner.to_string() == name)).await
}

async fn of_owner(runtime_dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries = match fs::read_dir(runtime_dir).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        let Some((owner, number)) = name.to_str().and_then(|name| name.rsplit_once('-')) else { continue };
        let is_ours = number.len() == 4 && number.chars().all(|character| character.is_ascii_hexdigit());
        if is_ours && wanted(owner) && entry.file_type().await?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn a_folder_is_private_and_goes_with_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        let runtime_dir = dir.path().join("run");
        let owner = Owner::new("m-1");
        let place = SocketDirectory::make(&runtime_dir, &owner).await.unwrap();
        let other = SocketDirectory::make(&runtime_dir, &owner).await.unwrap();
        assert_ne!(place.socket(), other.socket());
        let folder = place.socket().parent().unwrap().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        drop(place);
        assert!(!folder.exists() && other.socket().parent().unwrap().exists());
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_found_by_its_migration() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["m-1-0000", "m-1-0001", "m-2-00ff", "other", "m-1-xyz1"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let owner = Owner::new("m-1");
        let others = remains(dir.path(), std::slice::from_ref(&owner)).await.unwrap();
        assert_eq!(others, [dir.path().join("m-2-00ff")]);
        clear(dir.path(), &owner).await.unwrap();
        assert!(!dir.path().join("m-1-0001").exists() && dir.path().join("m-2-00ff").exists());
        clear(&dir.path().join("gone"), &owner).await.unwrap();
    }
}
