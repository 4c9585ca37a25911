//! Checkpoints and backup jobs: libvirt's side of changed-block tracking.
//!
//! Since libvirt 7 every checkpoint's bitmap records from its creation on, by itself: deleting one never takes anything
//! from another. Earlier ones merged a deleted bitmap into its parent's, which comes to the same.

use std::path::Path;

use super::{
    DomainId,
    calls::{Libvirt, already},
    error::{LibvirtError, LibvirtErrorKind},
    xml::{self, XmlError},
};

/// A checkpoint of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub name: String,
    pub description: String,
    /// Target names of the disks that have its bitmap.
    pub disks: Vec<String>,
}

/// A backup job that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupJob {
    /// The Unix socket of a pull-mode job.
    pub socket: Option<String>,
    /// The files that take the old contents of what the guest overwrites.
    pub scratch: Vec<String>,
}

/// What a domain is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CurrentJob {
    None,
    Backup(BackupJob),
    /// Another job, as libvirt names it: `Outgoing migration`.
    Other(String),
}

impl Libvirt {
    /// What the domain is busy with.
    pub async fn job(&self, domain: DomainId) -> Result<CurrentJob, LibvirtError> {
        // Asked first: the backup's description tells a backup from all else, whatever `domjobinfo` calls it.
        match self.about("backup-dumpxml", domain, &[]).await {
            Ok(text) => {
                return BackupJob::read(&text)
                    .map(CurrentJob::Backup)
                    .map_err(|error| LibvirtError::malformed(format!("backup-dumpxml {domain}"), error));
            }
            Err(error) if matches!(error.kind, LibvirtErrorKind::NoJob | LibvirtErrorKind::NotRunning) => {}
            Err(error) => return Err(error),
        }
        match self.about("domjobinfo", domain, &[]).await {
            Ok(text) => {
                let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
                Ok(match field("Job type:") {
                    None | Some("None") => CurrentJob::None,
                    Some(kind) => CurrentJob::Other(field("Operation:").unwrap_or(kind).to_owned()),
                })
            }
            Err(error) if matches!(error.kind, LibvirtErrorKind::NoJob | LibvirtErrorKind::NotRunning) => {
                Ok(CurrentJob::None)
            }
            Err(error) => Err(error),
        }
    }

    /// Begins a backup and, at the same moment, a checkpoint, from two files.
    pub async fn backup_begin(
        &self,
        domain: DomainId,
        backup: &Path,
        checkpoint: Option<&Path>,
    ) -> Result<(), LibvirtError> {
        let backup = path_text(backup)?;
        let mut args = vec!["--backupxml", backup];
        if let Some(checkpoint) = checkpoint {
            args.extend(["--checkpointxml", path_text(checkpoint)?]);
        }
        self.about("backup-begin", domain, &args).await.map(drop)
    }

    /// Tells the domain's job to end; none is success. It may still be ending on return: see [`Libvirt::job`].
    pub async fn abort_job(&self, domain: DomainId) -> Result<(), LibvirtError> {
        match already(self.about("domjobabort", domain, &[]).await, LibvirtErrorKind::NoJob) {
            Err(error) if error.kind == LibvirtErrorKind::NotRunning => Ok(()),
            result => result,
        }
    }

    /// The names of its checkpoints, each after its parent.
    pub async fn checkpoint_names(&self, domain: DomainId) -> Result<Vec<String>, LibvirtError> {
        let list = self.about("checkpoint-list", domain, &["--name", "--topological"]).await?;
        Ok(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// One checkpoint.
    pub async fn checkpoint(&self, domain: DomainId, name: &str) -> Result<Checkpoint, LibvirtError> {
        let args = ["--checkpointname", name, "--no-domain"];
        let text = self.about("checkpoint-dumpxml", domain, &args).await?;
        Checkpoint::read(&text)
            .map_err(|error| LibvirtError::malformed(format!("checkpoint-dumpxml {domain} {name}"), error))
    }

    /// Deletes a checkpoint with its bitmaps; not there is success. The domain must have power.
    pub async fn delete_checkpoint(&self, domain: DomainId, name: &str) -> Result<(), LibvirtError> {
        let args = ["--checkpointname", name];
        already(self.about("checkpoint-delete", domain, &args).await, LibvirtErrorKind::NoSuchCheckpoint)
    }

    /// Makes libvirt forget a checkpoint, whatever became of its bitmaps; not there is success.
    pub async fn forget_checkpoint(&self, domain: DomainId, name: &str) -> Result<(), LibvirtError> {
        let args = ["--checkpointname", name, "--metadata"];
        already(self.about("checkpoint-delete", domain, &args).await, LibvirtErrorKind::NoSuchCheckpoint)
    }
}

fn path_text(path: &Path) -> Result<&str, LibvirtError> {
    path.to_str().ok_or_else(|| {
        let why = format!("the path {} is not UTF-8", path.display());
        LibvirtError::new(LibvirtErrorKind::Unsupported, "backup-begin", why)
    })
}

impl Checkpoint {
    /// Reads what `virsh checkpoint-dumpxml` prints.
    pub fn read(text: &str) -> Result<Self, XmlError> {
        let document = xml::parse(text, "domaincheckpoint")?;
        let root = document.root_element();
        let disks = xml::child(root, "disks").map(|disks| {
            xml::children(disks, "disk")
                .filter(|disk| disk.attribute("checkpoint") == Some("bitmap"))
                .filter_map(|disk| disk.attribute("name").map(str::to_owned))
                .collect()
        });
        Ok(Self {
            name: xml::text(root, "name").ok_or(XmlError::Missing("name"))?.to_owned(),
            description: xml::text(root, "description").unwrap_or_default().to_owned(),
            disks: disks.unwrap_or_default(),
        })
    }
}

impl BackupJob {
    /// Reads what `virsh backup-dumpxml` prints.
    pub fn read(text: &str) -> Result<Self, XmlError> {
        let document = xml::parse(text, "domainbackup")?;
        let root = document.root_element();
        let socket = xml::child(root, "server").and_then(|server| server.attribute("socket"));
        let scratch = xml::child(root, "disks").map(|disks| {
            xml::children(disks, "disk")
                .filter_map(|disk| xml::child(disk, "scratch"))
                .filter_map(|scratch| scratch.attribute("file").or(scratch.attribute("dev")))
                .map(str::to_owned)
                .collect()
        });
        Ok(Self { socket: socket.map(str::to_owned), scratch: scratch.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_job_says_its_files() {
        let text = "<domainbackup mode='pull'><server transport='unix' socket='/run/w/nbd'/><disks>\
            <disk name='vda'><scratch file='/s/0'/></disk><disk name='vdb'><scratch dev='/dev/s'/></disk>\
            </disks></domainbackup>";
        let job = BackupJob::read(text).unwrap();
        assert_eq!(job.socket.as_deref(), Some("/run/w/nbd"));
        assert_eq!(job.scratch, ["/s/0", "/dev/s"]);
        let push = BackupJob::read("<domainbackup mode='push'/>").unwrap();
        assert_eq!(push, BackupJob { socket: None, scratch: Vec::new() });
    }

    #[test]
    fn a_checkpoint_says_whose_it_is_and_which_disks_it_has() {
        let text = "<domaincheckpoint><name>a</name><description>b c</description><disks>\
            <disk name='vda' checkpoint='bitmap' bitmap='a'/><disk name='vdb' checkpoint='no'/>\
            </disks></domaincheckpoint>";
        let checkpoint = Checkpoint::read(text).unwrap();
        assert_eq!((checkpoint.description.as_str(), checkpoint.disks), ("b c", vec!["vda".to_owned()]));
        assert!(Checkpoint::read("<domaincheckpoint/>").is_err());
    }
}
