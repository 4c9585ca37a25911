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
    libvirt::{DomainId, Libvirt},
    model::id::MigrationId,
    sources::SourceError,
    threads,
};

use super::{
    error::{Context, blocked},
    leftovers::is_own,
};

const LOOK: Duration = Duration::from_secs(1);
/// A file system that does not tell its room within this time does not answer.
const ANSWER: Duration = Duration::from_secs(30);

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
                let Ok(free) = free(dir.clone()).await else { continue };
                if free >= reserve {
                    continue;
                }
                // The job may have ended by itself, and the room be somebody else's doing.
                match libvirt.job(domain).await {
                    Ok(job) if !is_own(&job, owner) => return,
                    _ => {}
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

/// Refuses if less than `reserve` bytes are free where `dir` is.
pub(super) async fn check_room(dir: &Path, reserve: u64) -> Result<(), SourceError> {
    let doing = || format!("looking for room in {}", dir.display());
    let free = free(dir.to_owned()).await.context(doing)?;
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

async fn free(dir: PathBuf) -> std::io::Result<u64> {
    let looking = threads::on(&dir)?;
    let looking = looking.run(move || {
        let room = rustix::fs::statvfs(&dir)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    });
    tokio::time::timeout(ANSWER, looking)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??
}
