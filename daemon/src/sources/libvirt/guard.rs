//! Watches over the room for scratch files while a snapshot of a running guest is held.
//!
//! Rule: the guest comes before the pass. QEMU copies old contents away before it lets the guest write; with no room
//! left for them the guest's own write would fail. The snapshot is given up before that.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};
use tracing::Instrument as _;

use crate::{
    libvirt::{CurrentJob, DomainId, Lane, Libvirt, LibvirtError},
    model::id::MigrationId,
    sources::SourceError,
};

use super::{
    error::{Context, blocked},
    files,
    leftovers::is_own,
};

const LOOK: Duration = Duration::from_secs(1);

/// Looks until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    task: JoinHandle<()>,
    why: Arc<OnceLock<String>>,
}

impl Guard {
    /// Aborts the migration's job as soon as less than `reserve` bytes are free where `dir` is.
    pub(super) fn watch(
        libvirt: Libvirt,
        domain: DomainId,
        owner: MigrationId,
        dir: PathBuf,
        reserve: u64,
    ) -> Self {
        let why = Arc::new(OnceLock::new());
        let telling = Arc::clone(&why);
        let looking = async move {
            loop {
                sleep(LOOK).await;
                let Ok(free) = free(&dir).await else { continue };
                if free >= reserve {
                    continue;
                }
                // The job may have ended by itself, and something else may have taken the room. What is not seen to be this
                // migration's job is not ended: it may be another tool's by now.
                let job = libvirt.job(domain, Lane::Urgent).await;
                match is_to_end(&job, owner) {
                    Some(true) => {}
                    Some(false) => return,
                    None => {
                        tracing::warn!(%domain, ?job, "not known whose backup job runs; looking again");
                        continue;
                    }
                }
                tracing::warn!(
                    %domain, free, reserve, dir = %dir.display(),
                    "the snapshot is given up: its scratch files leave too little room, and the guest's writes come first"
                );
                telling.get_or_init(|| {
                    format!(
                        "the snapshot was given up because its scratch files left {} MiB free in {}, and {} must be: the \
                         guest's writes come first; make room, set `scratch_dir` to a larger file system, or lower \
                         `scratch_reserve_mib`",
                        free >> 20,
                        dir.display(),
                        reserve >> 20
                    )
                });
                match libvirt.abort_job(domain).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!(%domain, %error, "the backup job could not be aborted; trying again");
                    }
                }
            }
        };
        Self { task: tokio::spawn(looking.in_current_span()), why }
    }

    /// Why the job was aborted, if it was.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the job is the migration's, and so may be ended; `None` if that is not known.
fn is_to_end(job: &Result<CurrentJob, LibvirtError>, owner: MigrationId) -> Option<bool> {
    job.as_ref().ok().map(|job| is_own(job, owner))
}

/// Refuses if less than `reserve` bytes are free where `dir` is.
pub(super) async fn check_room(dir: &Path, reserve: u64) -> Result<(), SourceError> {
    let doing = || format!("looking for room in {}", dir.display());
    let free = free(dir).await.context(doing)?;
    if free < reserve {
        let mib = |bytes: u64| bytes >> 20;
        // Room comes back, by itself or by a person's doing.
        return Err(blocked(
            doing(),
            format!(
                "{} MiB are free, {} must be: make room, set `scratch_dir` to a larger file system, or lower \
                 `scratch_reserve_mib`",
                mib(free),
                mib(reserve)
            ),
        ));
    }
    Ok(())
}

/// The bytes that are free where `dir` is.
async fn free(dir: &Path) -> std::io::Result<u64> {
    let look = |dir: &Path| -> std::io::Result<u64> {
        let room = rustix::fs::statvfs(dir)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    };
    files::ask(dir, look).await.flatten()
}

#[cfg(test)]
mod tests {
    use crate::libvirt::{BackupJob, LibvirtErrorKind};

    use super::*;

    #[test]
    fn only_a_job_that_is_seen_to_be_ones_own_is_ended() {
        let owner = MigrationId::generate();
        let job =
            |socket: String| Ok(CurrentJob::Backup(BackupJob { socket: Some(socket), scratch: Vec::new() }));
        let own = job(format!("/run/warmd/{owner}/nbd"));
        assert_eq!(is_to_end(&own, owner), Some(true));
        assert_eq!(is_to_end(&own, MigrationId::generate()), Some(false));
        assert_eq!(is_to_end(&job("/run/other".to_owned()), owner), Some(false));
        assert_eq!(is_to_end(&Ok(CurrentJob::None), owner), Some(false));
        let unknown = Err(LibvirtError::new(LibvirtErrorKind::Timeout, "backup-dumpxml", "no answer"));
        assert_eq!(is_to_end(&unknown, owner), None);
    }
}
