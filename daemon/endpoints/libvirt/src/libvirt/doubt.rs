//! Disks that other hosts may have too, and a domain that is off for an unknown reason: libvirt's daemon was
//! started since. It may have been migrated to another host, and run there.
//!
//! Rule: its images are checked where another host could have them too. A locked image is in use there:
//! QEMU's locks are seen through a shared file system. An image that cannot be checked is a doubt, which is
//! reported, and no obstacle: after each start of the host all its domains are in this state.

use std::{io, path::Path, time::Duration};

use warmd_disks::qemu_img::{ImageError, ImageErrorKind, image};

use super::{
    Disk, DiskSource, DomainId, DomainStatus, LibvirtClient, LibvirtError, LibvirtErrorKind, Reason, RunState,
};

/// A file system that does not report its type within this time does not answer.
const ANSWER: Duration = Duration::from_secs(30);

/// File systems that several hosts have at the same time, by `statfs`' numbers: NFS, CIFS, SMB2, Ceph, GFS2,
/// OCFS2, Lustre, GPFS, 9P, FUSE (Gluster, virtiofs and many others).
const SHARED: [u32; 10] = [
    0x6969,
    0xFF53_4D42,
    0xFE53_4D42,
    0x00C3_6400,
    0x0116_1970,
    0x7461_636F,
    0x0BD0_0BD0,
    0x4750_4653,
    0x0102_1997,
    0x6573_5546,
];

/// The place of a disk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// On this host alone.
    Local,
    /// A file that other hosts may have too, and that can be checked.
    SharedFile,
    /// A place that other hosts may have too, and that cannot be checked.
    Unseen,
}

impl LibvirtClient {
    /// Which of these disks other hosts may have too, each with the reason. For a block device that is
    /// unknown: it may be a disk of this host or one of a SAN, and is not named.
    pub async fn shared_disks(&self, disks: &[Disk]) -> Vec<String> {
        let mut shared = Vec::new();
        for disk in disks.iter().filter(|disk| !disk.readonly) {
            let place = match &disk.source {
                DiskSource::Network { .. } => {
                    shared.push(format!("{} ({}) is a network disk", disk.target, disk.source));
                    continue;
                }
                DiskSource::File(path) => path.clone(),
                // A pool that does not say has no path; that it is missing is reported elsewhere.
                DiskSource::Volume { pool, volume } => match self.volume(pool, volume).await {
                    Ok(volume) => volume.path,
                    Err(_) => continue,
                },
                DiskSource::Block(_) | DiskSource::Other(_) | DiskSource::Empty => continue,
            };
            if !place.starts_with('/') {
                // Its name in a pool of network storage.
                shared.push(format!("{} ({}) is a network disk", disk.target, disk.source));
                continue;
            }
            let what = match of_file_system(&file_system(&place).await) {
                Reach::Local => continue,
                Reach::SharedFile => "is on a file system that other hosts may have",
                Reach::Unseen => "is on a file system that does not answer",
            };
            shared.push(format!("{} ({place}) {what}", disk.target));
        }
        shared
    }

    /// Why another host surely runs a domain that is off here, if libvirt does not report the reason. A mere
    /// doubt is logged.
    pub async fn runs_elsewhere(
        &self,
        domain: DomainId,
        status: &DomainStatus,
    ) -> Result<Option<String>, LibvirtError> {
        if (status.state, status.reason) != (RunState::Off, Reason::Unknown) {
            return Ok(None);
        }
        let mut doubts = Vec::new();
        let disks = match self.domain(domain).await {
            // A domain with unreadable disks is started and removed all the same.
            Err(error) if error.kind == LibvirtErrorKind::Malformed => {
                doubts.push(error.to_string());
                Vec::new()
            }
            xml => xml?.disks,
        };
        for disk in disks {
            match (&disk.source, reach(&disk).await) {
                (_, Reach::Local) => {}
                (DiskSource::File(path), Reach::SharedFile) => {
                    match image::check_unlocked(path, &disk.format).await {
                        Ok(()) => {}
                        Err(error) if error.kind == ImageErrorKind::Busy => {
                            return Ok(Some(in_use(&disk, &error)));
                        }
                        Err(error) => doubts.push(format!("{}: {error}", disk.target)),
                    }
                }
                (source, _) => {
                    doubts.push(format!("{}: whether another host has {source} is not seen", disk.target));
                }
            }
        }
        if !doubts.is_empty() {
            tracing::warn!(
                %domain, doubts = doubts.join("; "),
                "libvirt does not say how this VM came to be off, as its daemon was started since: if it was migrated, it \
                 runs on another host"
            );
        }
        Ok(None)
    }
}

fn in_use(disk: &Disk, error: &ImageError) -> String {
    format!(
        "its disk {} ({}) is open on another host, which so runs it: migrate it back, or shut it down there ({})",
        disk.target, disk.source, error.cause
    )
}

async fn reach(disk: &Disk) -> Reach {
    match &disk.source {
        // It is never written to, and any number of VMs may have it.
        _ if disk.readonly => Reach::Local,
        DiskSource::File(path) if path.starts_with('/') => of_file_system(&file_system(path).await),
        DiskSource::Empty => Reach::Local,
        DiskSource::File(_)
        | DiskSource::Block(_)
        | DiskSource::Volume { .. }
        | DiskSource::Network { .. }
        | DiskSource::Other(_) => Reach::Unseen,
    }
}

async fn file_system(path: &str) -> io::Result<u32> {
    let (lane, path) = (warmd_threads::on(Path::new(path))?, path.to_owned());
    let kind = lane.run_within(ANSWER, move || rustix::fs::statfs(&path)).await??.f_type;
    // It is a signed number that not every file system fills alike.
    u32::try_from(kind & 0xFFFF_FFFF).map_err(io::Error::other)
}

/// By its number. A file that is not there keeps the start from succeeding; of a file system that does not
/// answer (calls on it hang, so that no more are made) nothing is known.
fn of_file_system(kind: &io::Result<u32>) -> Reach {
    match kind {
        Ok(kind) if SHARED.contains(kind) => Reach::SharedFile,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Reach::Unseen,
        Ok(_) | Err(_) => Reach::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_of_several_hosts_are_known() {
        assert_eq!(of_file_system(&Ok(0x6969)), Reach::SharedFile);
        assert_eq!(of_file_system(&Ok(0xFF53_4D42)), Reach::SharedFile);
        assert_eq!(of_file_system(&Ok(0xEF53)), Reach::Local);
        assert_eq!(of_file_system(&Err(io::ErrorKind::NotFound.into())), Reach::Local);
    }

    #[tokio::test]
    async fn network_disks_and_files_of_several_hosts_are_named() {
        let libvirt = LibvirtClient::new("qemu:///none");
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("a.qcow2").display().to_string();
        let disk = |target: &str, source: DiskSource, readonly| Disk {
            target: target.to_owned(),
            device: "disk".to_owned(),
            bus: "virtio".to_owned(),
            format: "qcow2".to_owned(),
            source,
            readonly,
            shareable: false,
            transient: false,
            boot_order: None,
        };
        std::fs::write(&local, "").unwrap();
        let rbd = || DiskSource::Network { protocol: "rbd".to_owned(), name: "p/i".to_owned() };
        let disks = [
            disk("vda", DiskSource::File(local), false),
            disk("vdb", rbd(), false),
            disk("vdc", rbd(), true),
            disk("vdd", DiskSource::Block("/dev/null".to_owned()), false),
            disk("vde", DiskSource::Empty, false),
        ];
        assert_eq!(libvirt.shared_disks(&disks).await, ["vdb (rbd:p/i) is a network disk"]);
    }

    #[test]
    fn a_file_system_that_does_not_answer_is_not_taken_for_local() {
        assert_eq!(of_file_system(&Err(io::ErrorKind::TimedOut.into())), Reach::Unseen);
    }
}
