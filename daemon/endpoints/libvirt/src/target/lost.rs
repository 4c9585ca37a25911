//! Domains without a mark of warmd that have a migration's disks: its own domain, whose definition another
//! user changed.
//!
//! Rule: while there is one, the migration's domain does not count as absent: it may run, and the source must
//! not run beside it. Only an operator may touch it.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use warmd_core::{
    model::id::MigrationId,
    targets::{TargetError, TargetErrorKind, host::LocationClaim},
};
use warmd_disks::volume::RelatedDevices;
use warmd_storage::blocking_on;

use super::{LibvirtTarget, failed};
use crate::libvirt::{BytesAt, LibvirtErrorKind, bytes_at, xml};

/// A domain that belongs to no migration, and its disks' locations.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ForeignDomain {
    name: String,
    /// Files and devices: disks, and the images under them.
    paths: Vec<PathBuf>,
    /// Volumes, by pool and name.
    volumes: Vec<(String, String)>,
}

impl ForeignDomain {
    /// Reads a domain's XML; an unreadable one has no known locations.
    pub(super) fn read(name: String, text: &str) -> Self {
        let mut other = Self { name, ..Self::default() };
        let Ok(document) = xml::parse(text, "domain") else { return other };
        for place in bytes_at(document.root_element()) {
            match place {
                BytesAt::Path(path) => other.paths.push(path.into()),
                BytesAt::Volume { pool, volume } => other.volumes.push((pool, volume)),
            }
        }
        other
    }
}

impl LibvirtTarget {
    /// Fails if a domain without a mark has the migration's disks.
    pub(super) async fn check_none_is_lost(
        &self,
        doing: &str,
        owner: MigrationId,
        mut others: Vec<ForeignDomain>,
    ) -> Result<(), TargetError> {
        others.retain(|other| !other.paths.is_empty() || !other.volumes.is_empty());
        if others.is_empty() {
            return Ok(());
        }
        for other in &mut others {
            for (pool, volume) in &other.volumes {
                match self.libvirt.volume(pool, volume).await {
                    Ok(found) => other.paths.push(found.path.into()),
                    // A pool that is not active has no paths, and no VM that runs.
                    Err(error) if error.kind == LibvirtErrorKind::Failed => {}
                    Err(error) if error.kind == LibvirtErrorKind::WrongState => {}
                    Err(error) => return Err(failed(doing)(error)),
                }
            }
        }
        let mut folders = vec![self.storage().await?.folder(owner)];
        folders.extend(self.settings.storages.values().map(|directory| directory.join(owner.to_string())));
        let claims = match self.host.get() {
            // No migration has the nil id, so these are the claims of all.
            Some(host) => host.claims_of_others(MigrationId(Uuid::nil())).await?,
            None => Vec::new(),
        };
        let places = claims.into_iter().filter(|claim| claim.owner == owner).filter_map(path_of).collect();
        let own = self.storage().await?.folder(owner);
        let looking = blocking_on(&own, doing.to_owned(), move || Ok(lost(others, &folders, places)));
        let found = looking.await?;
        let Some((name, path)) = found else { return Ok(()) };
        let why = format!(
            "the domain {name:?} uses the disk {} and has lost warmd's mark: stop it by hand and undefine it, or put the \
             mark back into its definition; until then the migration's VM is taken to be there, and the source is not \
             started",
            path.display()
        );
        Err(TargetError::new(TargetErrorKind::Conflict, doing, why))
    }
}

fn path_of(claim: LocationClaim) -> Option<PathBuf> {
    claim.location.starts_with('/').then(|| claim.location.into())
}

/// The first domain that has a path below one of the folders, or one of the locations under any name. Blocks.
fn lost(others: Vec<ForeignDomain>, folders: &[PathBuf], places: Vec<PathBuf>) -> Option<(String, PathBuf)> {
    let places: Vec<_> = places.into_iter().map(|place| (RelatedDevices::at(&place), place)).collect();
    let is_device = |path: &Path| path.starts_with("/dev");
    let is_at = |path: &Path| {
        folders.iter().any(|folder| path.starts_with(folder))
            || places.iter().any(|(kin, place)| {
                // Other names of a device are below /dev too; other users' files there are not read.
                place == path
                    || is_device(place) == is_device(path) && kin.as_ref().is_some_and(|kin| kin.has(path))
            })
    };
    others.into_iter().find_map(|other| {
        let path = other.paths.into_iter().find(|path| is_at(path))?;
        Some((other.name, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_has_the_disks_is_found_by_whatever_name() {
        let text = "<domain><devices><disk><source file='/a'/><backingStore><source dev='/dev/b'/></backingStore></disk>
            <disk><source pool='p' volume='v'/></disk><interface><source dev='eth0'/></interface></devices></domain>";
        let read = || ForeignDomain::read("web".to_owned(), text);
        assert_eq!(read().paths, [Path::new("/a"), Path::new("/dev/b")]);
        assert_eq!(read().volumes, [("p".to_owned(), "v".to_owned())]);
        assert_eq!(ForeignDomain::read("web".to_owned(), "noise").paths, Vec::<PathBuf>::new());
        let found = |folder: &str, place: &str| lost(vec![read()], &[folder.into()], vec![place.into()]);
        assert_eq!(found("/b", "/c"), None);
        assert_eq!(found("/b", "/dev/b"), Some(("web".to_owned(), "/dev/b".into())));
        assert_eq!(found("/", "/c"), Some(("web".to_owned(), "/a".into())));

        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("disk"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::fs::hard_link(&file, &link).unwrap();
        let other = || vec![ForeignDomain { paths: vec![link.clone()], ..ForeignDomain::default() }];
        assert_eq!(lost(other(), &[], vec![file]), Some((String::new(), link.clone())));
        assert_eq!(lost(other(), &[], vec![dir.path().join("none")]), None);
    }
}
