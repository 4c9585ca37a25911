//! A raw image or block device that is only read, and never written by warmd: a snapshot of a volume.
//!
//! Rule: it is opened for reading only, and refused while a program's locks show that it is in use. An
//! image in another format is refused too: its bytes are not the disk's.

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rustix::fs::OFlags;
use tokio::{sync::Semaphore, time::timeout};
use warmd_cbt::{
    buffer::Buffer,
    disk::{DiskError, DiskLimits, ErrorKind, Operation, ReadDisk},
    units::{Extent, Length, Offset},
};
use warmd_threads::DevicePool;

use super::{error::VolumeError, identity::Identity, identity::size_of, in_use};

/// For each call.
const DEADLINE: Duration = Duration::from_mins(1);
const IN_FLIGHT: usize = 16;

/// The first bytes of formats other than raw.
const FORMATS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"QED\0", "qed")];

/// An image that is open for reading.
pub struct ImageFile {
    file: Arc<File>,
    path: PathBuf,
    size: Length,
    threads: Arc<Semaphore>,
    lane: Arc<DevicePool>,
}

impl ImageFile {
    /// Opens the image at `path`, which must be `size` bytes long.
    pub async fn open(path: &Path, size: Length) -> Result<Self, VolumeError> {
        let place = path.to_owned();
        let failed = |error| VolumeError::io("opening", path, error);
        let lane = warmd_threads::on(path).map_err(failed)?;
        let file = lane.run_within(DEADLINE, move || open(&place, size)).await.map_err(failed)??;
        let threads = Arc::new(Semaphore::new(IN_FLIGHT));
        Ok(Self { file: Arc::new(file), path: path.to_owned(), size, threads, lane })
    }

    fn failed(&self, kind: ErrorKind, extent: Option<Extent>, cause: impl fmt::Display) -> DiskError {
        let name = self.path.display().to_string();
        DiskError::new(kind, Operation::Read, name, extent, cause.to_string())
    }
}

fn open(path: &Path, size: Length) -> Result<File, VolumeError> {
    let failed = |doing, error| VolumeError::io(doing, path, error);
    let wrong = |what| VolumeError::NotAVolume { path: path.to_owned(), what };
    let before = std::fs::metadata(path).map_err(|error| failed("looking at", error))?;
    let identity = Identity::of(&before).map_err(wrong)?;
    // A pipe in its place would wait for its other end.
    let flags = (OFlags::CLOEXEC | OFlags::NONBLOCK).bits().cast_signed();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| failed("opening", error))?;
    let opened = file.metadata().map_err(|error| failed("looking at", error))?;
    if Identity::of(&opened) != Ok(identity) {
        return Err(failed("opening", io::Error::other("it was replaced at this moment")));
    }
    if let Some(by) = in_use::range_locked(path).map_err(|error| failed("looking for locks of", error))? {
        return Err(VolumeError::InUse { path: path.to_owned(), by, ours: false });
    }
    let is = size_of(&file, identity.kind).map_err(|error| failed("measuring", error))?;
    let mut head = [0; 8];
    let read = file.read_at(&mut head, 0).map_err(|error| failed("reading", error))?;
    let head = head.get(..read).unwrap_or_default();
    // Also where its length is the disk's: the length alone is no evidence.
    if let Some((_, name)) = FORMATS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let what = format!("it is {name}, not a raw image: offer it by qemu-nbd, and give its nbd:// URI");
        return Err(failed("opening", io::Error::other(what)));
    }
    if is != size {
        return Err(VolumeError::WrongSize { path: path.to_owned(), is, wanted: size });
    }
    Ok(file)
}

#[async_trait]
impl ReadDisk for ImageFile {
    fn size(&self) -> Length {
        self.size
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { in_flight: IN_FLIGHT, ..DiskLimits::default() }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64));
        let reading = async {
            let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
            let file = Arc::clone(&self.file);
            let reading = self.lane.run(move || {
                let read = file.read_exact_at(&mut buffer, at.0).map(|()| buffer);
                drop(thread);
                read
            });
            reading.await?
        };
        match timeout(DEADLINE, reading).await {
            Ok(Ok(buffer)) => Ok(buffer),
            Ok(Err(error)) => Err(self.failed(DiskError::kind_of(&error), extent, error)),
            Err(_) => Err(self.failed(ErrorKind::Timeout, extent, format!("no answer within {DEADLINE:?}"))),
        }
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageFile({}, {} bytes)", self.path.display(), self.size)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "how a test fails")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_unused_raw_images_of_the_right_size_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions).unwrap();
        let image = ImageFile::open(&path, Length(8192)).await.unwrap();
        let buffer = warmd_cbt::buffer::BufferPool::new(1, 4096).take(4096).await;
        assert!(image.read(Offset(4096), buffer).await.unwrap().iter().all(|byte| *byte == 7));

        let error = ImageFile::open(&path, Length(4096)).await.unwrap_err();
        assert!(matches!(error, VolumeError::WrongSize { .. }), "{error}");
        let error = ImageFile::open(dir.path(), Length(4096)).await.unwrap_err();
        assert!(matches!(error, VolumeError::NotAVolume { .. }), "{error}");

        let qcow2 = dir.path().join("qcow2");
        std::fs::write(&qcow2, b"QFI\xfb\0\0\0\x03").unwrap();
        for size in [4096, 8] {
            let error = ImageFile::open(&qcow2, Length(size)).await.unwrap_err();
            let why = std::error::Error::source(&error).unwrap().to_string();
            assert!(why.contains("qcow2"), "also if its length is right: {error:?}");
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = ImageFile::open(&pipe, Length(4096)).await.unwrap_err();
        assert!(matches!(error, VolumeError::NotAVolume { .. }), "{error}");
    }
}
