//! Ends a migration's leftover jobs and VMs on the hypervisor: after each pass and after a crash.
//!
//! Rule: only what carries this migration's id is touched. Another tool's backup job is never aborted, a VM
//! that others paused is never destroyed: one that warmd started is warmd's only until its guest executes an
//! instruction.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use warmd_core::{
    model::id::MigrationId,
    sources::{Leftover, SourceError, SourceErrorKind},
};

use crate::libvirt::{
    BackupJob, Checkpoint, CurrentJob, DomainId, Lane, LibvirtError, LibvirtErrorKind, RunState,
};

use super::{
    LibvirtSource,
    error::ErrorContext,
    files, marks,
    runtime_dirs::{self, RuntimeDirs},
    tag::TAG,
};

const JOB_END: Duration = Duration::from_mins(1);
/// The deadline of each file operation.
const FILE_DEADLINE: Duration = Duration::from_mins(1);
/// The same for the files of an ended snapshot: a cutover or its undo may wait for it.
const CLEARING: Duration = Duration::from_secs(10);
/// Younger files may belong to a snapshot that has just begun.
const YOUNG: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(50);

/// The outcome for a VM that was started only to read its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CleanupResult {
    /// There was no such VM.
    AsItShould,
    /// It was as warmd had started it, its guest never ran, and it is off.
    AtRest,
    /// It was resumed from outside; it belongs to the user who did so, also if it is paused again.
    Resumed,
}

impl LibvirtSource {
    /// Ends the migration's backup job, cuts the power of a VM that was started for it, and removes its
    /// files.
    pub(super) async fn end(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<CleanupResult, SourceError> {
        let ended = match self.end_on_domain(domain, owner).await {
            Err(error) if error.kind == SourceErrorKind::NotFound => CleanupResult::AsItShould,
            result => result?,
        };
        // What stopped the guest is gone; files are no reason to leave a VM off. The next snapshot removes
        // them first.
        let clearing = self.in_runtime_dirs(owner, |dirs| dirs.clear());
        let why = match tokio::time::timeout(CLEARING, clearing).await {
            Ok(Ok(())) => return Ok(ended),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "their file system does not answer".to_owned(),
        };
        tracing::warn!(%domain, %owner, why, "the files of a snapshot that has ended are still there");
        Ok(ended)
    }

    async fn end_on_domain(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<CleanupResult, SourceError> {
        let doing = || format!("VM {domain}: ending the snapshot");
        self.end_own_job(domain, owner).await?;
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        if xml.tagged(TAG) != Some(owner.to_string().as_str()) {
            return Ok(CleanupResult::AsItShould);
        }
        match self.libvirt.state(domain).await.context(doing)?.state {
            RunState::Off => return Ok(CleanupResult::AsItShould),
            RunState::Paused if self.libvirt.never_ran(domain).await.context(doing)? => {
                self.libvirt.destroy(domain).await.context(doing)?;
                return Ok(CleanupResult::AtRest);
            }
            RunState::Paused | RunState::Running => {}
        }
        // It belongs to that user now: without the tag it is never treated as warmd's again.
        self.libvirt.remove_live_tag(domain).await.context(doing)?;
        Ok(CleanupResult::Resumed)
    }

    /// Ends this migration's backup job, also one of an earlier daemon; returns whether there was one.
    pub(super) async fn end_own_job(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<bool, SourceError> {
        let doing = || format!("VM {domain}: ending the snapshot");
        if !is_own(&self.libvirt.job(domain, Lane::Urgent).await.context(doing)?, owner) {
            return Ok(false);
        }
        self.libvirt.abort_job(domain).await.context(doing)?;
        let deadline = Instant::now() + JOB_END;
        while is_own(&self.libvirt.job(domain, Lane::Urgent).await.context(doing)?, owner) {
            if Instant::now() > deadline {
                let why = format!("the backup job has not ended within {} s", JOB_END.as_secs());
                return Err(SourceError::new(SourceErrorKind::Timeout, doing(), why));
            }
            sleep(POLL).await;
        }
        Ok(true)
    }

    /// Runs a file operation, off the runtime's threads.
    pub(super) async fn in_runtime_dirs<T: Send + 'static>(
        &self,
        owner: MigrationId,
        act: impl FnOnce(RuntimeDirs) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let settings = Arc::clone(&self.settings);
        let acting = move |_: &Path| act(RuntimeDirs::new(&settings, owner));
        files::ask_within(FILE_DEADLINE, &self.settings.scratch_dir, acting).await.flatten()
    }

    /// The files of snapshots of all other migrations.
    pub(super) async fn files_left(&self, known: &[MigrationId]) -> Vec<Leftover> {
        let mut left = Vec::new();
        for dir in [&self.settings.runtime_dir, &self.settings.scratch_dir] {
            let known = known.to_vec();
            let listing = files::ask(dir, move |dir| strays(dir, &known)).await;
            match listing.flatten() {
                Ok(strays) => left.extend(strays.into_iter().map(|path| Leftover {
                    what: format!("the files of a snapshot in {path}"),
                    why: "they are of no migration that this warmd has at work".to_owned(),
                    remedy: format!("`rm -r {}`", files::quoted(&path)),
                })),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => left.push(Leftover {
                    what: format!("what snapshots left in {}", dir.display()),
                    why: format!("it cannot be looked at: {error}"),
                    remedy: "see that its file system answers, and ask again".to_owned(),
                }),
            }
        }
        left
    }

    /// The migration's checkpoints, each after its parent.
    pub(super) async fn own_checkpoints(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<Vec<Checkpoint>, LibvirtError> {
        let (prefix, owner) = (marks::prefix(owner), owner.to_string());
        let mut own = Vec::new();
        for name in self.libvirt.checkpoint_names(domain).await? {
            if !name.starts_with(&prefix) {
                continue;
            }
            match self.libvirt.checkpoint(domain, &name).await {
                Ok(checkpoint) if checkpoint.description.contains(&owner) => own.push(checkpoint),
                Ok(_) => {}
                // Gone since it was listed.
                Err(error) if error.kind == LibvirtErrorKind::NoSuchCheckpoint => {}
                Err(error) => return Err(error),
            }
        }
        Ok(own)
    }

    /// Deletes those of `checkpoints` (in order, each after its parent) that are not in `keep`, from a domain
    /// that has power. The newest go first: libvirt then merges into an older parent that stays.
    pub(super) async fn delete_checkpoints(
        &self,
        domain: DomainId,
        checkpoints: &[Checkpoint],
        keep: &[&str],
    ) -> Result<(), LibvirtError> {
        for Checkpoint { name, .. } in checkpoints.iter().rev() {
            if keep.contains(&name.as_str()) {
                continue;
            }
            match self.libvirt.delete_checkpoint(domain, name).await {
                Err(error)
                    if matches!(
                        error.kind,
                        LibvirtErrorKind::NoSuchBitmap | LibvirtErrorKind::CheckpointInconsistent
                    ) =>
                {
                    self.libvirt.forget_checkpoint(domain, name).await?;
                }
                result => result?,
            }
        }
        Ok(())
    }
}

/// The files in `dir` under the id of a migration that is not listed. Blocks.
fn strays(dir: &Path, known: &[MigrationId]) -> std::io::Result<Vec<String>> {
    let mut strays = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(Ok(owner)) = name.to_str().map(str::parse::<MigrationId>) else { continue };
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if !known.contains(&owner) && age >= YOUNG {
            strays.push(entry.path().to_string_lossy().into_owned());
        }
    }
    Ok(strays)
}

/// Whether a job is this migration's.
pub(super) fn is_own(job: &CurrentJob, owner: MigrationId) -> bool {
    match job {
        CurrentJob::Backup(BackupJob { socket, scratch }) => {
            socket.iter().chain(scratch).any(|path| runtime_dirs::is_of(path, owner))
        }
        CurrentJob::None | CurrentJob::Other(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::*;

    #[test]
    fn old_files_of_unknown_migrations_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let [known, old, young] = [0; 3].map(|_| MigrationId::generate());
        let long_ago = SystemTime::now() - 2 * YOUNG;
        for (name, age) in [
            (known.to_string(), long_ago),
            (old.to_string(), long_ago),
            (young.to_string(), SystemTime::now()),
            ("other".to_owned(), long_ago),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            File::open(&path).unwrap().set_modified(age).unwrap();
        }
        let found = strays(dir.path(), &[known]).unwrap();
        assert_eq!(found, [dir.path().join(old.to_string()).to_string_lossy()]);
        assert!(strays(&dir.path().join("gone"), &[]).is_err());
    }
}
