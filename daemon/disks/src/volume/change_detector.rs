//! Whether another process used a file or device while it was read.
//!
//! Rule: it can show use, not the absence of use: a device does not keep the time of its last write, and a
//! program that takes no locks and has ended is not seen there.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{VolumeKind, error::VolumeError, identity::Identity, in_use};

const DEADLINE: Duration = Duration::from_mins(1);

/// The state of a file or device when reading began.
#[derive(Clone, Debug)]
pub struct ChangeDetector {
    path: PathBuf,
    seen: FileState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    identity: Identity,
    /// Of a file: its length, and when it was written to last.
    file: Option<(u64, SystemTime)>,
}

impl ChangeDetector {
    /// Its present state.
    pub async fn of(path: &Path) -> Result<Self, VolumeError> {
        let seen = within(path, look).await?;
        Ok(Self { path: path.to_owned(), seen })
    }

    /// Fails if another process has it locked now, wrote to it since, or replaced it.
    pub async fn check(&self) -> Result<(), VolumeError> {
        let before = self.seen;
        within(&self.path, move |path| {
            let now = look(path)?;
            if let Some(by) = in_use::range_locked(path).map_err(|error| failed(path, error))? {
                return Err(VolumeError::InUse { path: path.to_owned(), by, ours: false });
            }
            match now {
                now if now == before => Ok(()),
                now if now.identity == before.identity => {
                    Err(failed(path, io::Error::other("it was written to meanwhile")))
                }
                _ => Err(failed(path, io::Error::other("something else was put in its place meanwhile"))),
            }
        })
        .await
    }
}

fn look(path: &Path) -> Result<FileState, VolumeError> {
    let meta = std::fs::metadata(path).map_err(|error| failed(path, error))?;
    let identity =
        Identity::of(&meta).map_err(|what| VolumeError::NotAVolume { path: path.to_owned(), what })?;
    let file = match identity.kind {
        VolumeKind::File => Some((meta.len(), meta.modified().map_err(|error| failed(path, error))?)),
        VolumeKind::BlockDevice => None,
    };
    Ok(FileState { identity, file })
}

async fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let owned = path.to_owned();
    let lane = warmd_threads::on(path).map_err(|error| failed(path, error))?;
    lane.run_within(DEADLINE, move || work(&owned)).await.map_err(|error| failed(path, error))?
}

fn failed(path: &Path, error: io::Error) -> VolumeError {
    VolumeError::io("looking at", path, error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "how a test fails")]
mod tests {
    use std::{error::Error, fs};

    use rustix::fs::FlockOperation;

    use super::*;

    #[tokio::test]
    async fn lock_write_or_replacement_of_the_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![7; 8192]).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(long_ago).unwrap();
        let detector = ChangeDetector::of(&path).await.unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 8192);
        detector.check().await.unwrap();

        // As QEMU locks the disks of a running VM.
        rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
        let error = detector.check().await.unwrap_err();
        assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
        rustix::fs::fcntl_lock(&file, FlockOperation::Unlock).unwrap();
        detector.check().await.unwrap();

        fs::write(&path, vec![7; 8192]).unwrap();
        let error = detector.check().await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("written to"), "{error:?}");
        fs::rename(&path, dir.path().join("away")).unwrap();
        fs::write(&path, vec![7; 8192]).unwrap();
        let error = detector.check().await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("something else"), "{error:?}");
    }
}
