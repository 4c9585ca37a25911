//! Whether a place is in use, by its identity and not by its name: by another migration, a VM or a process.
//!
//! Rule: checked before each opening for writing, so before a byte is written. An identity is claimed before
//! the place's own claim; a claim whose place is another volume by now (numbers of devices change when the
//! host starts) is no longer valid. A finished migration's claim is valid for as long as its disk, or the
//! claim beside the disks, is there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use warmd_core::{
    model::id::MigrationId,
    targets::{
        DiskSpec, TargetError, TargetErrorKind,
        host::{Host, LocationClaim, VmDisk, VmDisks},
    },
};
use warmd_disks::{
    nbd::{NbdAddress, NbdUri},
    volume::{RelatedDevices, Uses, VolumeError},
};

use super::volume_error::ForTarget as _;
use super::{Storage, blocking_on};

/// How long a short user of a volume, such as udev, is waited for.
const MOMENT: Duration = Duration::from_secs(5);

/// The deadline for checking the disks of VMs on one file system.
const NEIGHBOUR: Duration = Duration::from_secs(5);

/// The deadline for a name server.
const RESOLVE: Duration = Duration::from_secs(10);

impl Storage {
    /// Claims the volume for the migration's disk. Fails if another migration, a VM or a process has it.
    /// `is_new` says that it is a place which warmd did not create, and which this migration has not claimed
    /// yet.
    pub(super) async fn take(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        path: &Path,
        is_new: bool,
        doing: &str,
    ) -> Result<(), TargetError> {
        self.check_unused(path, is_new, doing).await?;
        self.check_vms(owner, path, is_new, doing).await?;
        self.claim_identity(owner, spec, path, doing).await
    }

    /// Claims the export for the migration's disk.
    pub(super) async fn take_export(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        uri: &str,
        doing: &str,
    ) -> Result<(), TargetError> {
        let Some(host) = self.host.get() else { return Ok(()) };
        let identity = export_name(uri).await;
        self.claim_as(host.as_ref(), owner, spec, identity, uri.to_owned(), doing).await
    }

    pub(super) async fn claim_identity(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        path: &Path,
        doing: &str,
    ) -> Result<(), TargetError> {
        let Some(host) = self.host.get() else { return Ok(()) };
        let Some(kin) = kin(path, doing).await? else { return Ok(()) };
        self.claim_as(host.as_ref(), owner, spec, kin.name(), path.display().to_string(), doing).await
    }

    async fn claim_as(
        &self,
        host: &dyn Host,
        owner: MigrationId,
        spec: &DiskSpec,
        identity: String,
        place: String,
        doing: &str,
    ) -> Result<(), TargetError> {
        self.check_held(owner, &place, &identity, doing).await?;
        let link = (!Self::is_own(spec)).then(|| self.claims.link(&place));
        let (disk, vm) = (spec.key.clone(), String::new());
        let claim = LocationClaim { identity, owner, disk, location: place, link, vm, finished: false };
        match host.claim(&claim).await? {
            None => Ok(()),
            Some(other) => Err(taken(&claim.location, &other, doing)),
        }
    }

    pub(super) async fn give_up_identity(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
    ) -> Result<(), TargetError> {
        match self.host.get() {
            Some(host) => host.give_up(owner, &spec.key).await,
            None => Ok(()),
        }
    }

    /// The other migration that has the place now. Claims that are no longer valid are deleted.
    async fn holder(
        &self,
        host: &dyn Host,
        owner: MigrationId,
        place: &str,
        identity: &str,
        doing: &str,
    ) -> Result<Option<LocationClaim>, TargetError> {
        let others = host.claims_of_others(owner).await?;
        // A whole device and its partition are two identities, and share bytes.
        let own = if place.starts_with('/') { kin(Path::new(place), doing).await? } else { None };
        let same = identity.to_owned();
        let on = if place.starts_with('/') { Path::new(place) } else { &self.directory };
        let (held, stale) = blocking_on(on, doing.to_owned(), move || {
            let mut stale = Vec::new();
            // Its link may be on another file system: it is read only where that matters.
            let gone =
                |of: &LocationClaim| of.finished && of.link.as_ref().is_some_and(|link| !link.is_symlink());
            for other in others {
                let is = is_now(&other, own.as_ref(), &same);
                match is {
                    IdentityMatch::Same if !gone(&other) => return Ok((Some(other), stale)),
                    IdentityMatch::Unknown if other.identity == same && !other.finished => {
                        return Ok((Some(other), stale));
                    }
                    IdentityMatch::Other | IdentityMatch::Unknown if other.identity != same => {}
                    IdentityMatch::Same | IdentityMatch::Other | IdentityMatch::Unknown => stale.push(other),
                }
            }
            Ok((None, stale))
        })
        .await?;
        for claim in stale {
            host.forget(&claim).await?;
        }
        Ok(held)
    }

    /// Fails if a process, a mount or another device uses the volume, also after a short wait.
    async fn check_unused(&self, path: &Path, is_new: bool, doing: &str) -> Result<(), TargetError> {
        if is_new && let Some(unseen) = self.unseen().await {
            let why = format!("whether a process uses {} is not known: {unseen}", path.display());
            return Err(TargetError::new(TargetErrorKind::Refused, doing, why));
        }
        let (there, uses) = (path.to_owned(), if is_new { Uses::All } else { Uses::Writing });
        #[expect(clippy::disallowed_methods, reason = "on a thread that may block")]
        let looking = move || {
            let Some(kin) = RelatedDevices::at(&there) else { return Ok(()) };
            let begun = Instant::now();
            while let Some(by) = kin.user(uses) {
                if begun.elapsed() > MOMENT {
                    return Err(VolumeError::InUse { path: there, by, ours: false });
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        };
        blocking_on(path, doing.to_owned(), looking).await
    }

    /// Why places that a plan names cannot be used, with the remedy.
    pub(super) async fn unseen(&self) -> Option<String> {
        let unseen = self.host.get()?.unseen().await?;
        Some(format!(
            "{unseen}: let warmd run as root with CAP_SYS_PTRACE, as its unit does, or let it make the disks itself"
        ))
    }

    /// Fails if the volume is a disk of a VM, or is under one; except for the VM that the migration made of
    /// it. Of a place that the migration has not claimed yet all VMs must be known: only its definition shows
    /// the disks of a VM that is off.
    pub(super) async fn check_vms(
        &self,
        owner: MigrationId,
        path: &Path,
        is_new: bool,
        doing: &str,
    ) -> Result<(), TargetError> {
        let Some(host) = self.host.get() else { return Ok(()) };
        let Some(kin) = kin(path, doing).await? else { return Ok(()) };
        let VmDisks { found, unknown } = host.vm_disks().await;
        let owner = owner.to_string();
        let others = found.into_iter().filter(|disk| disk.moved_by.as_deref() != Some(owner.as_str()));
        let found = first_of(kin, path, others.collect()).await;
        if let Some(disk) = found.map_err(|error| TargetError::new(TargetErrorKind::Timeout, doing, error))? {
            let by = format!("it is a disk of the {}, as {}", disk.vm, disk.path.display());
            let in_use = VolumeError::InUse { path: path.to_owned(), by, ours: false };
            return Err(in_use.for_target(doing));
        }
        if is_new && !unknown.is_empty() {
            let why = format!(
                "whether {} is a disk of a VM that is off is not known, and nothing is written to it before that: {}",
                path.display(),
                unknown.join("; ")
            );
            return Err(TargetError::new(TargetErrorKind::Unreachable, doing, why));
        }
        Ok(())
    }

    /// The obstacles of a place; nothing is changed. `is_new` says that it is not yet claimed.
    pub(super) async fn check_neighbours(
        &self,
        owner: MigrationId,
        is_new: bool,
        path: &Path,
        doing: &str,
    ) -> Result<(), TargetError> {
        self.check_vms(owner, path, is_new, doing).await?;
        let Some(kin) = kin(path, doing).await? else { return Ok(()) };
        self.check_held(owner, &path.display().to_string(), &kin.name(), doing).await?;
        self.check_unused(path, is_new, doing).await
    }

    /// Whether another migration owns the identity.
    pub(super) async fn check_held(
        &self,
        owner: MigrationId,
        place: &str,
        identity: &str,
        doing: &str,
    ) -> Result<(), TargetError> {
        let Some(host) = self.host.get() else { return Ok(()) };
        match self.holder(host.as_ref(), owner, place, identity, doing).await? {
            Some(other) => Err(taken(place, &other, doing)),
            None => Ok(()),
        }
    }

    fn is_own(spec: &DiskSpec) -> bool {
        spec.place.as_deref().is_none_or(|place| warmd_core::model::storage::named(place).is_some())
    }
}

/// The present identity of a claimed place, compared with the requested one.
enum IdentityMatch {
    Same,
    Other,
    Unknown,
}

fn is_now(claim: &LocationClaim, own: Option<&RelatedDevices>, identity: &str) -> IdentityMatch {
    if !claim.location.starts_with('/') {
        return if claim.identity == identity { IdentityMatch::Same } else { IdentityMatch::Other };
    }
    let there = if claim.identity == identity || claim.location.starts_with("/dev/") {
        RelatedDevices::at(Path::new(&claim.location))
    } else {
        // Files keep their numbers, and a check of them might hang.
        return IdentityMatch::Other;
    };
    match (there, own) {
        (Some(there), Some(own)) if there.meets(own) => IdentityMatch::Same,
        (Some(_), _) => IdentityMatch::Other,
        (None, _) => IdentityMatch::Unknown,
    }
}

fn taken(place: &str, by: &LocationClaim, doing: &str) -> TargetError {
    let remove = match &by.link {
        Some(link) if by.finished => {
            format!(", or, if nothing on it is needed any more, remove the link {}", link.display())
        }
        _ => String::new(),
    };
    let why = format!(
        "{place} is disk {} of migration {} ({}) already, which calls it {}: name another place{remove}",
        by.disk, by.owner, by.vm, by.location
    );
    TargetError::new(TargetErrorKind::Conflict, doing, why)
}

pub(super) async fn kin(path: &Path, doing: &str) -> Result<Option<RelatedDevices>, TargetError> {
    let there = path.to_owned();
    blocking_on(path, doing.to_owned(), move || Ok(RelatedDevices::at(&there))).await
}

/// The first of the disks that shares bytes with the volume at `path`. Those of each file system are checked
/// on its own threads, and one that does not answer is skipped, unless the volume is on it too.
async fn first_of(kin: RelatedDevices, path: &Path, disks: Vec<VmDisk>) -> std::io::Result<Option<VmDisk>> {
    let mut places = BTreeMap::<PathBuf, Vec<VmDisk>>::new();
    let mounts = warmd_threads::Mounts::now();
    let own = mounts.of(path);
    for disk in disks {
        places.entry(mounts.of(&disk.path)).or_default().push(disk);
    }
    let looks = places.into_iter().map(|(place, disks)| {
        let (kin, own) = (kin.clone(), &own);
        async move {
            let looked = match warmd_threads::named(place.clone()) {
                Ok(lane) => {
                    let look = move || disks.into_iter().find(|disk| kin.has(&disk.path));
                    lane.run_within(NEIGHBOUR, look).await
                }
                Err(error) => Err(error),
            };
            match looked {
                Err(error) if place != *own => {
                    tracing::warn!(place = %place.display(), %error, "disks of VMs there are not looked at");
                    Ok(None)
                }
                looked => looked,
            }
        }
    });
    Ok(try_join_all(looks).await?.into_iter().flatten().next())
}

/// An NBD export, the same for all names of its server: this host by any of its addresses is `localhost`.
pub(super) async fn export_name(uri: &str) -> String {
    let Ok(NbdUri { address, export }) = uri.parse() else { return uri.to_owned() };
    match address {
        NbdAddress::Tcp { host, port } => format!("nbd {} {port} {export}", host_name(&host, port).await),
        NbdAddress::Unix(path) => {
            let there = path.clone();
            let name = match warmd_threads::on(&path) {
                Ok(lane) => lane.run(move || socket_name(&there)).await.flatten(),
                Err(error) => Err(error),
            };
            let name = name.unwrap_or_else(|_| path.display().to_string());
            format!("nbd socket {name} {export}")
        }
    }
}

/// A socket by its directory and its name there: a restarted server creates another file.
fn socket_name(path: &Path) -> std::io::Result<String> {
    let path = path.canonicalize()?;
    let directory = path.parent().unwrap_or(Path::new("/")).metadata()?;
    let name = path.file_name().unwrap_or_default().display();
    Ok(format!("{}:{} {name}", directory.dev(), directory.ino()))
}

async fn host_name(host: &str, port: u16) -> String {
    let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
    let mut addresses: Vec<IpAddr> = match found {
        Ok(Ok(found)) => found.map(|found| found.ip().to_canonical()).collect(),
        _ => return host.to_ascii_lowercase(),
    };
    addresses.sort();
    if addresses.iter().any(|address| is_here(*address)) {
        return "localhost".to_owned();
    }
    addresses.first().map_or_else(|| host.to_ascii_lowercase(), ToString::to_string)
}

/// Whether the address is this host's: only then a socket can be bound to it.
fn is_here(address: IpAddr) -> bool {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    address.is_loopback() || any.contains(&address) || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_export_has_one_name() {
        let name = export_name("nbd://localhost/vm").await;
        for same in ["nbd://127.0.0.1/vm", "nbd://[::1]/vm", "nbd://127.0.0.1:10809/vm", "nbd://127.9.9.9/vm"]
        {
            assert_eq!(export_name(same).await, name, "{same}");
        }
        for other in ["nbd://localhost/vm2", "nbd://localhost:10810/vm", "nbd://192.0.2.1/vm"] {
            assert_ne!(export_name(other).await, name, "{other}");
        }
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("s"), dir.path().join("l"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let uri = |path: &Path| format!("nbd+unix:///vm?socket={}", path.display());
        assert_eq!(export_name(&uri(&socket)).await, export_name(&uri(&link)).await);
    }
}
