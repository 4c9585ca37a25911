//! The facts from disks' images: their virtual sizes, for VMs that run or are off; each one's file; whether
//! it stores bitmaps.
//!
//! Rule: libvirt is asked first, and one disk without an answer hides no other's size. A size that was once
//! seen is kept while its VM is off: the running QEMU knows more kinds of disks than libvirt does at rest.

use std::{
    collections::BTreeMap,
    io::{Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use warmd_disks::qemu_img::image;

use crate::libvirt::{
    Disk, DiskSource, DomainId, DomainXml, LibvirtError, LibvirtErrorKind, went_unanswered,
};

use super::{
    LibvirtSource, files,
    plan::{ImageFacts, ImageFactsByDisk, is_disk},
};

/// QEMU serves whole sectors: an image that ends within one reads as padded with zeroes.
const SECTOR: u64 = 512;

/// Sizes that were seen, by domain, target name and source.
pub(super) type KnownSizes = Arc<Mutex<BTreeMap<(DomainId, String, String), u64>>>;

/// By target name: the size in bytes, or why it is unknown.
pub(super) type Sizes = BTreeMap<String, Result<u64, String>>;

impl LibvirtSource {
    /// The sizes of all disks that have data of the machine.
    pub(super) async fn sizes(&self, domain: DomainId, xml: &DomainXml) -> Result<Sizes, LibvirtError> {
        let told = match self.libvirt.disk_sizes(domain, &xml.disks).await {
            Err(error) if went_unanswered(&error) || error.kind == LibvirtErrorKind::NoSuchDomain => {
                return Err(error);
            }
            // One disk of a VM that is off, or the medium of a drive, is enough for libvirt to report none.
            Err(_) => BTreeMap::new(),
            Ok(told) => told,
        };
        let mut sizes = Sizes::new();
        for disk in xml.disks.iter().filter(|disk| is_disk(disk)) {
            let known = told.get(&disk.target).copied().or_else(|| self.seen(domain, disk));
            let size = match known {
                Some(size) => Ok(size),
                None => self.size_at_rest(disk, xml.moved.is_some()).await,
            };
            let size = size.map(|size| size.next_multiple_of(SECTOR));
            if let Ok(size) = size {
                self.remember(domain, disk, size);
            }
            sizes.insert(disk.target.clone(), size);
        }
        Ok(sizes)
    }

    /// Reads the images' headers of all disks. An unreadable one is missing.
    pub(super) async fn look(&self, disks: &[Disk]) -> ImageFactsByDisk {
        let mut looks = ImageFactsByDisk::new();
        for disk in disks.iter().filter(|disk| is_disk(disk)) {
            let Ok(Some(path)) = self.path_of(&disk.source).await else { continue };
            let is_qcow2 = disk.format == "qcow2";
            // Its header alone is read: this runs for all VMs repeatedly.
            let looked = files::ask(Path::new(&path), move |path| {
                let version = if is_qcow2 { image::version(path).ok().flatten() } else { None };
                (identity(path), version)
            });
            let Ok((identity, version)) = looked.await else { continue };
            let untracked = (version == Some(image::OLD_VERSION)).then(|| {
                let quoted = files::quoted(&path);
                format!(
                    "its image is of qcow2's old version, which keeps no bitmaps; while the VM is off, `qemu-img amend \
                     -f qcow2 -o compat=1.1 {quoted}` makes it a new one"
                )
            });
            looks.insert(disk.target.clone(), ImageFacts { identity, untracked });
        }
        looks
    }

    fn seen(&self, domain: DomainId, disk: &Disk) -> Option<u64> {
        // If there is an image to read, it is read.
        if !matches!(disk.source, DiskSource::Network { .. } | DiskSource::Other(_)) {
            return None;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(domain, disk.target.clone(), disk.source.to_string())).copied()
    }

    pub(super) fn remember(&self, domain: DomainId, disk: &Disk, size: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert((domain, disk.target.clone(), disk.source.to_string()), size);
    }

    async fn size_at_rest(&self, disk: &Disk, is_moved: bool) -> Result<u64, String> {
        let path = match &disk.source {
            DiskSource::File(path) | DiskSource::Block(path) => path.clone(),
            DiskSource::Volume { pool, volume } => {
                let volume =
                    self.libvirt.volume(pool, volume).await.map_err(|error| error.cause.to_string())?;
                if !volume.path.starts_with('/') {
                    return Ok(volume.size);
                }
                volume.path
            }
            DiskSource::Network { .. } | DiskSource::Other(_) => {
                return Err(only_while_it_runs(&disk.source, is_moved));
            }
            DiskSource::Empty => return Err("it has no source".to_owned()),
        };
        if disk.format == "qcow2" {
            // Where the file system does not answer, no program is sent to wait for it.
            files::ask(Path::new(&path), |path| std::fs::metadata(path).map(drop))
                .await
                .flatten()
                .map_err(|error| format!("its image {path}: {error}"))?;
            let chain = image::chain(&path).await.map_err(|error| error.to_string())?;
            return chain.first().map(|top| top.size).ok_or_else(|| format!("{path} describes no image"));
        }
        if disk.format != "raw" {
            return Err(format!("its image {path} is {}, and libvirt cannot tell its size", disk.format));
        }
        let end =
            files::ask(Path::new(&path), |path| std::fs::File::open(path)?.seek(SeekFrom::End(0))).await;
        end.flatten().map_err(|error| format!("its image {path}: {error}"))
    }
}

/// A VM that was moved away may run there: no message says to start it here.
fn only_while_it_runs(source: &DiskSource, is_moved: bool) -> String {
    let advice = if is_moved {
        "the VM was moved away: do not start it here for that"
    } else {
        "start the VM, and ask again"
    };
    format!("its size ({source}) can be told only while the VM runs, and was never seen: {advice}")
}

/// What distinguishes a file from another at the same path: device nodes are created again with each start of
/// the host, and have none.
fn identity(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let made = metadata.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    Some(format!("{:x}-{:x}", metadata.ino(), made.map_or(0, |made| made.as_nanos())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_says_to_start_a_vm_that_was_moved() {
        let source = DiskSource::Network { protocol: "rbd".to_owned(), name: "p/i".to_owned() };
        assert!(only_while_it_runs(&source, false).contains("start the VM"));
        let moved = only_while_it_runs(&source, true);
        assert!(moved.contains("do not start it") && !moved.contains("start the VM"), "{moved}");
    }
}
