//! The port to images of disks that are read for a verification.
//!
//! Rule: an image is only read, and one that another process uses is refused.

use std::{fmt::Debug, path::Path, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::{disk::ReadDisk, units::Length};

/// Opens images of disks, and watches files and devices for use. A failure is a text for the operator.
#[async_trait]
pub trait OpenImages: Send + Sync + Debug {
    /// The image at `place`, an absolute path or an NBD URI; `size` bytes long.
    async fn open(&self, place: &str, size: Length) -> Result<Arc<dyn ReadDisk>, String>;

    /// Watches the file or device at `path` from now on.
    async fn watch(&self, path: &Path) -> Result<Box<dyn ImageWatch>, String>;
}

/// Detects the use of a file or device.
#[async_trait]
pub trait ImageWatch: Send + Sync + Debug {
    /// Fails if another process uses it now, or has written to it or replaced it since.
    async fn check(&self) -> Result<(), String>;
}

/// Opens nothing, for programs without images.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoImages;

#[async_trait]
impl OpenImages for NoImages {
    async fn open(&self, _place: &str, _size: Length) -> Result<Arc<dyn ReadDisk>, String> {
        Err("this program opens no images".to_owned())
    }

    async fn watch(&self, _path: &Path) -> Result<Box<dyn ImageWatch>, String> {
        Err("this program opens no images".to_owned())
    }
}
