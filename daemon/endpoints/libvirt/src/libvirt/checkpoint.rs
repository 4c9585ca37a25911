//! Checkpoints and backup jobs: libvirt's side of changed-block tracking.
//!
//! Since libvirt 7 every checkpoint's bitmap records independently from its creation on: deleting one never
//! removes data of another. Earlier ones merged a deleted bitmap into its parent's, with the same result.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method is not general enough over the lifetime of its connection"
)]

use super::{
    DomainId,
    calls::{LibvirtClient, already},
    domain_status::RunState,
    error::{LibvirtError, LibvirtErrorKind},
    ffi::LibvirtDomain,
    link::Lane,
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
    /// The files that take the old contents of blocks that the guest overwrites.
    pub scratch: Vec<String>,
}

/// The present job of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CurrentJob {
    None,
    Backup(BackupJob),
    /// Another job, as libvirt names it: `Outgoing migration`.
    Other(String),
}

/// `VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL`.
const TOPOLOGICAL: u32 = 2;
/// `VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN`.
const NO_DOMAIN: u32 = 2;
/// `VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY`.
const METADATA_ONLY: u32 = 2;

/// `virDomainJobOperation`, in words for messages.
const OPERATIONS: [&str; 11] = [
    "Unknown",
    "Start",
    "Save",
    "Restore",
    "Incoming migration",
    "Outgoing migration",
    "Snapshot",
    "Snapshot revert",
    "Dump",
    "Backup",
    "Snapshot delete",
];

impl LibvirtClient {
    /// The domain's present job; none if it is off.
    pub async fn job(&self, domain: DomainId, lane: Lane) -> Result<CurrentJob, LibvirtError> {
        use LibvirtErrorKind as K;
        // Asked first: the backup's description distinguishes a backup from all other jobs, regardless of the
        // job's name.
        match self.about(lane, "backup-dumpxml", domain, |domain| domain.backup()).await {
            Ok(text) => {
                return BackupJob::read(&text)
                    .map(CurrentJob::Backup)
                    .map_err(|error| LibvirtError::malformed(format!("backup-dumpxml {domain}"), error));
            }
            Err(error) if matches!(error.kind, K::NoJob | K::WrongState | K::Unsupported) => {}
            Err(error) => return Err(error),
        }
        match self.about(lane, "domjobinfo", domain, |domain| domain.job()).await {
            Ok((0, _)) => Ok(CurrentJob::None),
            Ok((_, operation)) => {
                let name = usize::try_from(operation).ok().and_then(|number| OPERATIONS.get(number));
                Ok(CurrentJob::Other(
                    name.map_or_else(|| format!("job {operation}"), |name| (*name).to_owned()),
                ))
            }
            Err(error) if matches!(error.kind, K::NoJob | K::Unsupported) => Ok(CurrentJob::None),
            // An off domain has none; for one that is on, this would be no answer.
            Err(error) if error.kind == K::WrongState => match self.state(domain).await?.state {
                RunState::Off => Ok(CurrentJob::None),
                RunState::Running | RunState::Paused => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Begins a backup and, at the same moment, a checkpoint, from their XML.
    pub async fn backup_begin(
        &self,
        domain: DomainId,
        backup: &str,
        checkpoint: Option<&str>,
    ) -> Result<(), LibvirtError> {
        let (backup, xml) = (backup.to_owned(), checkpoint.map(str::to_owned));
        let begun = self.about(Lane::Work, "backup-begin", domain, move |domain| {
            domain.begin_backup(&backup, xml.as_deref())
        });
        let Err(error) = begun.await else { return Ok(()) };
        // libvirt has no number of its own for a name that is taken: the list says it.
        if error.kind == LibvirtErrorKind::Failed
            && let Some(name) = checkpoint.and_then(|xml| Checkpoint::read(xml).ok()).map(|new| new.name)
            && self.checkpoint_names(domain).await.is_ok_and(|names| names.contains(&name))
        {
            return Err(LibvirtError { kind: LibvirtErrorKind::CheckpointExists, ..error });
        }
        Err(error)
    }

    /// Requests the end of the domain's job; without a job that is success. It may still be ending on return:
    /// see [`LibvirtClient::job`].
    pub async fn abort_job(&self, domain: DomainId) -> Result<(), LibvirtError> {
        match self.about(Lane::Urgent, "domjobabort", domain, |domain| domain.abort_job()).await {
            Err(error) if error.kind == LibvirtErrorKind::NoJob => Ok(()),
            Err(error) if error.kind == LibvirtErrorKind::WrongState => {
                match self.job(domain, Lane::Urgent).await? {
                    CurrentJob::None => Ok(()),
                    CurrentJob::Backup(_) | CurrentJob::Other(_) => Err(error),
                }
            }
            result => result,
        }
    }

    /// The names of its checkpoints, each after its parent; none where the driver has no checkpoints.
    pub async fn checkpoint_names(&self, domain: DomainId) -> Result<Vec<String>, LibvirtError> {
        let names = self.about(Lane::Look, "checkpoint-list", domain, |domain| {
            domain.checkpoints(TOPOLOGICAL)?.iter().map(|checkpoint| checkpoint.name()).collect()
        });
        match names.await {
            Err(error) if error.kind == LibvirtErrorKind::Unsupported => Ok(Vec::new()),
            result => result,
        }
    }

    /// One checkpoint.
    pub async fn checkpoint(&self, domain: DomainId, name: &str) -> Result<Checkpoint, LibvirtError> {
        let call = format!("checkpoint-dumpxml {name}");
        let name = name.to_owned();
        let ask = move |domain: &LibvirtDomain<'_>| domain.checkpoint(&name)?.xml(NO_DOMAIN);
        let text = self.about(Lane::Look, &call, domain, ask).await?;
        Checkpoint::read(&text).map_err(|error| LibvirtError::malformed(format!("{call} {domain}"), error))
    }

    /// Deletes a checkpoint with its bitmaps; a missing one is success. The domain must have power.
    pub async fn delete_checkpoint(&self, domain: DomainId, name: &str) -> Result<(), LibvirtError> {
        match self.delete(domain, name, 0).await {
            // libvirt has no number for a bitmap that is not there, but its sentence names the bitmap in any
            // language. QEMU's refusals, which name it too, come with the command that was refused.
            Err(error)
                if error.kind == LibvirtErrorKind::Failed
                    && error.names(name)
                    && !error.names("transaction") =>
            {
                Err(LibvirtError { kind: LibvirtErrorKind::NoSuchBitmap, ..error })
            }
            result => already(result, LibvirtErrorKind::NoSuchCheckpoint),
        }
    }

    /// Makes libvirt forget a checkpoint, regardless of its bitmaps; a missing one is success.
    pub async fn forget_checkpoint(&self, domain: DomainId, name: &str) -> Result<(), LibvirtError> {
        already(self.delete(domain, name, METADATA_ONLY).await, LibvirtErrorKind::NoSuchCheckpoint)
    }

    async fn delete(&self, domain: DomainId, name: &str, flags: u32) -> Result<(), LibvirtError> {
        let name = name.to_owned();
        self.about(Lane::Work, "checkpoint-delete", domain, move |domain| {
            domain.checkpoint(&name)?.delete(flags)
        })
        .await
    }
}

impl Checkpoint {
    /// Reads a checkpoint's XML.
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
    /// Reads a backup job's XML.
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
