//! Watches the free space for scratch files while a snapshot of a running guest is open.
//!
//! Rule: the guest comes before the pass. QEMU copies old contents away before it lets the guest write; with
//! no room left for them the guest's own write would fail. The snapshot is ended before that: while there is
//! room for the writes until the job has ended.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::sleep};
use tracing::Instrument as _;
use warmd_core::{model::id::MigrationId, sources::SourceError};

use crate::libvirt::{CurrentJob, DomainId, Lane, LibvirtClient, LibvirtError};

use super::{
    error::{ErrorContext, blocked},
    files,
    leftovers::is_own,
    room::{FreeSpaceSample, Need, Rates, Trend},
};

const LOOK: Duration = Duration::from_secs(1);

/// Checks until it is dropped.
#[derive(Debug)]
pub(super) struct ScratchMonitor {
    task: JoinHandle<()>,
    why: Arc<OnceLock<String>>,
}

impl ScratchMonitor {
    /// Aborts the migration's job as soon as the file system of `dir` has less free space than needed:
    /// `reserve` bytes, or the space filled until the job has ended. The growth of the VM's scratch files is
    /// reported to `rates`.
    pub(super) fn watch(
        libvirt: LibvirtClient,
        domain: DomainId,
        owner: MigrationId,
        dir: PathBuf,
        reserve: u64,
        rates: Rates,
    ) -> Self {
        let why = Arc::new(OnceLock::new());
        let telling = Arc::clone(&why);
        let looking = async move {
            let mut trend = Trend::default();
            loop {
                sleep(LOOK).await;
                let Ok(look) = look(&dir).await else { continue };
                trend.add(look);
                rates.measured(domain, trend.growth(), look.at);
                let (free, need) = (look.free, Need::at(reserve, trend.loss()));
                if !need.exceeds(free) {
                    continue;
                }
                // The job may have ended on its own, and another program may have taken the room. A job that
                // is not known as this migration's is not ended: it may be another tool's by now.
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
                    %domain, free, needed = need.bytes, rate = trend.loss(), dir = %dir.display(),
                    "the snapshot is ended early: its scratch files leave too little room, and the guest's writes come first"
                );
                telling.get_or_init(|| {
                    format!(
                        "the snapshot was ended early because its scratch files left {} MiB free in {}, and {need}: the \
                         guest's writes come first; {}",
                        free >> 20,
                        dir.display(),
                        need.advice(),
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

impl Drop for ScratchMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the job is the migration's, and so may be ended; `None` if unknown.
fn is_to_end(job: &Result<CurrentJob, LibvirtError>, owner: MigrationId) -> Option<bool> {
    job.as_ref().ok().map(|job| is_own(job, owner))
}

/// Refuses if the file system of `dir` has less free space than needed.
pub(super) async fn check_room(dir: &Path, need: Need) -> Result<(), SourceError> {
    let doing = || format!("looking for room in {}", dir.display());
    let free = look(dir).await.context(doing)?.free;
    if need.exceeds(free) {
        // Space becomes free, on its own or by an operator's work.
        return Err(blocked(doing(), format!("{} MiB are free, and {need}: {}", free >> 20, need.advice())));
    }
    Ok(())
}

/// The free space of the file system of `dir`, and the size of the files in it.
async fn look(dir: &Path) -> io::Result<FreeSpaceSample> {
    let look = |dir: &Path| -> io::Result<FreeSpaceSample> {
        let room = rustix::fs::statvfs(dir)?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        // An unreadable directory, or a file that disappears, costs the VM's own figure and not the check.
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let taken =
            files.filter_map(|file| file.metadata().ok()).map(|file| file.blocks().saturating_mul(512));
        Ok(FreeSpaceSample { at: Instant::now(), free, scratch: taken.fold(0, u64::saturating_add) })
    };
    files::ask(dir, look).await.flatten()
}

#[cfg(test)]
mod tests {
    use crate::libvirt::{BackupJob, LibvirtErrorKind};

    use super::*;

    #[tokio::test]
    async fn a_look_sees_what_the_files_take() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()).await.unwrap().scratch, 0);
        let file = std::fs::File::create(dir.path().join("0.scratch")).unwrap();
        file.set_len(1 << 30).unwrap();
        let hole = look(dir.path()).await.unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let full = look(dir.path()).await.unwrap();
        assert!(hole.scratch < 1 << 20 && (1 << 20..1 << 30).contains(&full.scratch), "{hole:?}, {full:?}");
        let error = check_room(dir.path(), Need::at(0, u64::MAX)).await.unwrap_err();
        assert!(error.to_string().contains("MiB a second"), "{error}");
        check_room(dir.path(), Need::at(1, 0)).await.unwrap();
    }

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
