//! The migration that owns a place named by a plan: without claims a second plan with the same place would
//! overwrite the disk of a VM that was moved.
//!
//! Rule: a claim is a symbolic link named after the place, as the plan spells it, that leads to the
//! migration's id: it is created at once or not at all, and only where there is none. It outlives the
//! migration, as the VM does.

use std::{io, path::PathBuf};

use warmd_core::model::id::MigrationId;

use super::{VolumeError, safe_name, volume};

/// The claims of one target.
#[derive(Clone, Debug)]
pub(super) struct Claims {
    directory: PathBuf,
}

/// Why a place may not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimConflict {
    #[error("{place} was not prepared for this migration")]
    Unclaimed { place: String },
    #[error(
        "{place} belongs to migration {by}: name another place, or, if nothing on it is needed any more, remove the \
         link {}",
        link.display()
    )]
    Taken { place: String, by: String, link: PathBuf },
}

impl Claims {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Claims the place; an own claim already there is success. Blocks.
    pub(super) fn claim(
        &self,
        owner: MigrationId,
        place: &str,
    ) -> Result<Result<(), ClaimConflict>, VolumeError> {
        let link = self.link(place);
        volume::make_directory(&self.directory, 0o700)?;
        match std::os::unix::fs::symlink(owner.to_string(), &link) {
            Ok(()) => volume::sync_directory(&self.directory)
                .map(Ok)
                .map_err(|error| VolumeError::io("claiming", &link, error)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.check(owner, place),
            Err(error) => Err(VolumeError::io("claiming", &link, error)),
        }
    }

    /// Whether this migration owns the place. Blocks.
    pub(super) fn check(
        &self,
        owner: MigrationId,
        place: &str,
    ) -> Result<Result<(), ClaimConflict>, VolumeError> {
        let link = self.link(place);
        let place = place.to_owned();
        match std::fs::read_link(&link) {
            Ok(by) if by.as_os_str() == owner.to_string().as_str() => Ok(Ok(())),
            Ok(by) => Ok(Err(ClaimConflict::Taken { place, by: by.display().to_string(), link })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Err(ClaimConflict::Unclaimed { place }))
            }
            Err(error) => Err(VolumeError::io("looking at", &link, error)),
        }
    }

    /// Removes the claim if it is this migration's. Blocks.
    pub(super) fn give_up(&self, owner: MigrationId, place: &str) -> Result<(), VolumeError> {
        match self.check(owner, place)? {
            Ok(()) => volume::remove_file(&self.link(place)),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn link(&self, place: &str) -> PathBuf {
        self.directory.join(safe_name(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_one_owner_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path().join(".claims"));
        let (first, second) = (MigrationId::generate(), MigrationId::generate());
        assert!(matches!(claims.check(first, "/dev/a").unwrap(), Err(ClaimConflict::Unclaimed { .. })));
        claims.claim(first, "/dev/a").unwrap().unwrap();
        claims.claim(first, "/dev/a").unwrap().unwrap();
        assert!(matches!(claims.claim(second, "/dev/a").unwrap(), Err(ClaimConflict::Taken { .. })));
        claims.give_up(second, "/dev/a").unwrap();
        claims.check(first, "/dev/a").unwrap().unwrap();
        claims.give_up(first, "/dev/a").unwrap();
        claims.claim(second, "/dev/a").unwrap().unwrap();
    }
}
