//! Watches over the room for scratch files while a snapshot of a running guest is held.
//!
//! Rule: the guest comes before the pass. QEMU copies old contents away before it lets the guest write; with no room
//! left for them the guest's own write would fail. The snapshot is given up before that.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};
use tracing::Instrument as _;

use crate::{
    libvirt::{DomainId, Libvirt},
    model::id::MigrationId,
    sources::SourceError,
    span,
};

use super::{
    error::{Context, refused},
    leftovers::is_own,
};

const LOOK: Duration = Duration::from_secs(1);

/// Looks until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    task: JoinHandle<()>,
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
                match libvirt.abort_job(domain).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!(%domain, %error, "the backup job could not be aborted; trying again");
                    }
                }
            }
        };
        Self { task: tokio::spawn(looking.in_current_span()) }
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
        return Err(refused(
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
    span::blocking(move || {
        let room = rustix::fs::statvfs(&dir)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    })
    .await
    .map_err(std::io::Error::other)?
}
