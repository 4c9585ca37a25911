//! Images of disks on this host, and behind NBD servers.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::{disk::ReadDisk, units::Length};
use warmd_core::images::{ImageWatch, OpenImages};
use warmd_disks::{
    nbd::{NbdDisk, NbdOptions, NbdUri},
    volume::{ChangeDetector, ImageFile},
};

/// Opens raw images, block devices and NBD exports.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskImages;

#[async_trait]
impl OpenImages for DiskImages {
    async fn open(&self, place: &str, size: Length) -> Result<Arc<dyn ReadDisk>, String> {
        if place.starts_with("nbd://") || place.starts_with("nbd+unix://") {
            let uri: NbdUri = place.parse().map_err(|error| format!("{error}"))?;
            let disk = NbdDisk::open(NbdOptions::from(uri)).await.map_err(|error| error.to_string())?;
            if disk.len() != size.0 {
                return Err(format!("it has {} bytes, the disk {size}", disk.len()));
            }
            return Ok(Arc::new(disk));
        }
        let path = Path::new(place);
        if !path.is_absolute() {
            return Err("it is neither an absolute path nor an nbd:// or nbd+unix:// URI".to_owned());
        }
        let image = ImageFile::open(path, size).await.map_err(|error| error.to_string())?;
        Ok(Arc::new(image))
    }

    async fn watch(&self, path: &Path) -> Result<Box<dyn ImageWatch>, String> {
        let detector = ChangeDetector::of(path).await.map_err(|error| error.to_string())?;
        Ok(Box::new(WatchedFile(detector)))
    }
}

#[derive(Debug)]
struct WatchedFile(ChangeDetector);

#[async_trait]
impl ImageWatch for WatchedFile {
    async fn check(&self) -> Result<(), String> {
        self.0.check().await.map_err(|error| error.to_string())
    }
}
