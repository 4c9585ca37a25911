//! Target `libvirt`: disks on this host, the machine a domain of its libvirt.
//!
//! Rule: only the domain that carries the migration's id is ever touched (`owned.rs`), and removing it never
//! removes storage. "It surely does not run" is said only after libvirt answered and the domain was seen off,
//! and not because libvirt moved it to another host. A domain that has its disks without its mark (`lost.rs`)
//! never counts as absent.

mod carried;
mod cpu;
mod domain;
mod foreign;
mod guest;
mod isolation;
mod lost;
mod networks;
mod owned;
mod pci;
mod preflight;
mod settings;
mod state;
mod wire;
mod xml;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use tokio::sync::OnceCell;
use warmd_cbt::disk::WriteDisk;
use warmd_core::{
    model::{hardware::HardwareElement, id::MigrationId, rule::Objection},
    targets::{
        CreateMachine, DiskSpec, GuestSign, Incoming, LastWriter, MachineState, PreparedDisk, Target,
        TargetError, TargetErrorKind, conversion_overlay::ConversionOverlay, host::Host,
    },
};
use warmd_disks::volume::VolumeError;
use warmd_storage::{Storage, blocking_on};

pub use self::settings::{DiskBus, DomainType, LibvirtTargetSettings};
use self::{
    domain::{CONSOLE, DomainBuilder},
    isolation::IsolationQueries,
    networks::Networks,
    owned::Finder,
};
use crate::libvirt::{
    CurrentJob, DomainId, Lane, LibvirtClient, LibvirtError, LibvirtErrorKind, Reason, RunState,
    went_unanswered, xml as read,
};

/// Folders that QEMU's user may enter to reach its disks, and only warmd's user may list.
const FOLDER_MODE: u32 = 0o711;

/// The most attempts to remove a domain that comes back.
const DISCARDS: usize = 3;

/// The target.
#[derive(Debug)]
pub struct LibvirtTarget {
    settings: LibvirtTargetSettings,
    libvirt: LibvirtClient,
    storage: OnceCell<Storage>,
    host: OnceLock<Arc<dyn Host>>,
    finder: Finder,
}

impl LibvirtTarget {
    /// Checks the settings; connects to nothing.
    pub fn new(settings: &LibvirtTargetSettings) -> Result<Self, TargetError> {
        let storage = match (&settings.directory, &settings.pool) {
            (Some(directory), None) => {
                OnceCell::new_with(Some(Storage::new(directory, FOLDER_MODE)?.with(&settings.storages)?))
            }
            (None, Some(_)) => {
                // The pool's path is not known yet; what else is wrong is reported now.
                Storage::new("/".as_ref(), FOLDER_MODE)?.with(&settings.storages)?;
                OnceCell::new()
            }
            _ => {
                let why = "say either `directory` or `pool`, where disks are kept";
                return Err(TargetError::new(TargetErrorKind::Refused, settings.uri.clone(), why));
            }
        };
        Ok(Self {
            settings: settings.clone(),
            libvirt: LibvirtClient::new(&settings.uri),
            storage,
            host: OnceLock::new(),
            finder: Finder::default(),
        })
    }

    /// The storage for disks; a pool is asked for its path once.
    async fn storage(&self) -> Result<&Storage, TargetError> {
        self.storage
            .get_or_try_init(|| async {
                let pool = self.settings.pool.as_deref().unwrap_or_default();
                let doing = format!("asking {} for the pool {pool:?}", self.settings.uri);
                let text = self.libvirt.pool_xml(pool).await;
                let text = text.map_err(failed(&doing))?;
                let path =
                    pool_path(&text).map_err(|why| TargetError::new(TargetErrorKind::Refused, doing, why))?;
                let storage = Storage::new(&path, FOLDER_MODE)?.with(&self.settings.storages)?;
                if let Some(host) = self.host.get() {
                    storage.on(host);
                }
                Ok(storage)
            })
            .await
    }

    /// The migration's domain, if it exists.
    pub async fn domain_of(&self, owner: MigrationId) -> Result<Option<DomainId>, TargetError> {
        self.find(&format!("looking for the domain of migration {owner}"), owner).await
    }

    async fn find(&self, doing: &str, owner: MigrationId) -> Result<Option<DomainId>, TargetError> {
        match self.finder.find(&self.libvirt, owner).await.map_err(failed(doing))? {
            Ok(id) => Ok(Some(id)),
            Err(others) => {
                self.check_none_is_lost(doing, owner, others).await?;
                Ok(None)
            }
        }
    }

    async fn find_or_fail(&self, doing: &str, owner: MigrationId) -> Result<DomainId, TargetError> {
        self.find(doing, owner)
            .await?
            .ok_or_else(|| TargetError::new(TargetErrorKind::NotFound, doing, "there is no such domain"))
    }

    /// Refuses a domain that runs on another host, or may.
    async fn check_here(&self, doing: &str, id: DomainId) -> Result<(), TargetError> {
        let status = match self.libvirt.state(id).await {
            Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => return Ok(()),
            status => status.map_err(failed(doing))?,
        };
        let refused = |why: String| Err(TargetError::new(TargetErrorKind::Refused, doing, why));
        if status.is_elsewhere() {
            return refused(state::ELSEWHERE.to_owned());
        }
        // A paused one after a failed migration is here.
        if status.is_migrating()
            && (status.reason == Reason::PostCopy
                || self.libvirt.job(id, Lane::Urgent).await.map_err(failed(doing))? != CurrentJob::None)
        {
            return refused(state::MIGRATING.to_owned());
        }
        match self.libvirt.runs_elsewhere(id, &status).await.map_err(failed(doing))? {
            Some(why) => refused(why),
            None => Ok(()),
        }
    }

    /// `kvm` or `qemu`.
    async fn domain_type(&self, architecture: &str) -> Result<&'static str, LibvirtError> {
        match self.settings.domain_type {
            DomainType::Kvm => Ok("kvm"),
            DomainType::Qemu => Ok("qemu"),
            DomainType::Auto => match self.libvirt.domain_capabilities("kvm", architecture, None).await {
                Ok(_) => Ok("kvm"),
                Err(error) if !went_unanswered(&error) => Ok("qemu"),
                Err(error) => Err(error),
            },
        }
    }

    /// The UUID that the new domain can have; the name must be free too.
    async fn free_id(&self, doing: &str, request: &CreateMachine) -> Result<DomainId, TargetError> {
        let domains = self.libvirt.domains().await.map_err(failed(doing))?;
        if let Some((id, name)) = domains.iter().find(|(_, name)| *name == request.name) {
            let why =
                format!("a domain {name:?} is here already ({id}): give the VM another `name` in the plan");
            return Err(TargetError::new(TargetErrorKind::Conflict, doing, why));
        }
        let is_free = |id: &DomainId| domains.iter().all(|(taken, _)| taken != id);
        // A source that has no UUID in libvirt's sense leaves the choice to warmd.
        let own = request.machine.uuid.parse().ok().filter(|id: &DomainId| !id.0.is_nil());
        let candidates = [own, Some(domain::substitute(request.owner))];
        candidates.into_iter().flatten().find(is_free).ok_or_else(|| {
            let why =
                format!("domains of others have both its UUID and {}", domain::substitute(request.owner));
            TargetError::new(TargetErrorKind::Conflict, doing, why)
        })
    }
}

#[async_trait]
impl Target for LibvirtTarget {
    fn on(&self, host: &Arc<dyn Host>) {
        self.host.set(Arc::clone(host)).ok();
        if let Some(storage) = self.storage.get() {
            storage.on(host);
        }
    }

    async fn check(&self) -> Result<String, TargetError> {
        let doing = format!("asking {}", self.settings.uri);
        let (version, _) = self.libvirt.version().await.map_err(failed(&doing))?;
        let kind = self.domain_type(std::env::consts::ARCH).await.map_err(failed(&doing))?;
        let networks = Networks::list(&self.libvirt).await.map_err(failed(&doing))?;
        let storage = self.storage().await?;
        let (room, storages) = (storage.room().await?, storage.others_in_words().await);
        Ok(format!(
            "{version}; domains of type {kind}; {} GiB free{storages}; active networks: {}",
            room.0 >> 30,
            networks.known()
        ))
    }

    async fn objections(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        self.object(machines).await
    }

    async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.storage().await?.prepare(owner, disks).await
    }

    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        self.storage().await?.open(owner, disk).await
    }

    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError> {
        let doing = format!("creating the domain {:?} of migration {}", request.name, request.owner);
        let refused = |why| TargetError::new(TargetErrorKind::Refused, doing.clone(), why);
        let storage = self.storage().await?;
        let disks = storage.locate(request.owner, &request.disks).await?;
        let id = match self.find(&doing, request.owner).await? {
            // Defined again while it is off, it matches the present request: another conversion may have made
            // another machine.
            Some(id) => {
                self.check_here(&doing, id).await?;
                let status = self.libvirt.state(id).await.map_err(failed(&doing))?;
                if state::machine_state(&status) != MachineState::Stopped {
                    return Ok(());
                }
                id
            }
            None => self.free_id(&doing, request).await?,
        };
        let networks = Networks::list(&self.libvirt).await.map_err(failed(&doing))?;
        let links = request.machine.nics.iter().map(|nic| networks.link(nic)).collect::<Result<Vec<_>, _>>();
        let links = links.map_err(|why| refused(why.to_string()))?;
        let mut asked = IsolationQueries::default();
        let lacks = isolation::lacks(&self.libvirt, &request.machine, &links, &mut asked).await;
        let lacks = lacks.map_err(failed(&doing))?;
        let waived = request.machine.hardware.as_ref().is_some_and(HardwareElement::waives_isolation);
        if let Some(lack) = lacks.first().filter(|_| !waived) {
            return Err(refused(format!("{}: the plan does not accept `isolation-lost`", lack.found)));
        }
        let machine = isolation::without(request.machine.clone(), &lacks);
        let request = &CreateMachine { machine, ..request.clone() };
        let kind = self.domain_type(&request.machine.architecture).await.map_err(failed(&doing))?;
        // The console's file needs it, also if every disk has a place of its own.
        let folder = storage.make_folder(request.owner).await?;
        let there = folder.clone();
        blocking_on(&folder, format!("putting the console in {} aside", folder.display()), move || {
            guest::set_aside(&there)
        })
        .await?;
        let disk_bus = self.settings.disk_bus;
        let domain =
            DomainBuilder { request, id, kind, disks: &disks, disk_bus, links: &links, folder: &folder };
        let xml = domain.xml().map_err(|why| refused(why.to_string()))?;
        self.libvirt.define(&xml).await.map_err(failed(&doing))?;
        self.finder.remember(request.owner, id);
        Ok(())
    }

    async fn start(&self, owner: MigrationId) -> Result<(), TargetError> {
        let doing = format!("starting the domain of migration {owner}");
        let id = self.find_or_fail(&doing, owner).await?;
        self.check_here(&doing, id).await?;
        let Err(error) = self.libvirt.start(id).await else { return Ok(()) };
        // A libvirt that did not answer may still be about to start it.
        if went_unanswered(&error) || error.kind == LibvirtErrorKind::Busy {
            return Err(failed(&doing)(error));
        }
        match self.libvirt.state(id).await {
            Ok(status) if status.state == RunState::Off => {
                Err(TargetError::new(TargetErrorKind::Refused, doing, error))
            }
            _ => Err(TargetError::new(TargetErrorKind::Failed, doing, error)),
        }
    }

    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError> {
        let doing = format!("looking at the domain of migration {owner}");
        let Some(id) = self.find(&doing, owner).await? else { return Ok(MachineState::Absent) };
        match self.libvirt.state(id).await {
            Ok(status) => Ok(state::machine_state(&status)),
            Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => Ok(MachineState::Absent),
            Err(error) => Err(failed(&doing)(error)),
        }
    }

    fn sees_guests(&self) -> bool {
        true
    }

    async fn sign(&self, owner: MigrationId, sign: &GuestSign) -> Result<(), TargetError> {
        let doing = format!("looking for a sign of life of the guest of migration {owner}");
        let not_yet = |why: String| Err(TargetError::new(TargetErrorKind::Failed, doing.clone(), why));
        match sign {
            GuestSign::Serial(text) => {
                let console = self.storage().await?.folder(owner).join(CONSOLE);
                let (text, file) = (text.clone(), console.clone());
                let says = blocking_on(&console, doing.clone(), move || {
                    guest::says(&file, &text).map_err(|error| VolumeError::io("reading", &file, error))
                });
                if says.await? { Ok(()) } else { not_yet(format!("it is not in {}", console.display())) }
            }
            GuestSign::Agent => match self.find(&doing, owner).await? {
                None => not_yet("there is no such domain".to_owned()),
                Some(id) => self.libvirt.ping_agent(id).await.map_err(failed(&doing)),
            },
        }
    }

    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError> {
        let doing = format!("removing the domain of migration {owner}");
        let Some(id) = self.find(&doing, owner).await? else { return Ok(()) };
        // A start whose caller has stopped waiting may still happen: undefined while it runs, a domain only
        // loses its definition. So it counts as gone only when libvirt says so.
        for _ in 0..DISCARDS {
            // Before the power cut, which may come when it runs on the other host already, and after it: a
            // domain that is off then may be off for that reason.
            self.check_here(&doing, id).await?;
            match self.libvirt.destroy(id).await {
                Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => {}
                answer => answer.map_err(failed(&doing))?,
            }
            self.check_here(&doing, id).await?;
            self.libvirt.undefine(id).await.map_err(failed(&doing))?;
            match self.libvirt.state(id).await {
                Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => {
                    self.finder.forget(owner);
                    return Ok(());
                }
                answer => drop(answer.map_err(failed(&doing))?),
            }
        }
        Err(TargetError::new(
            TargetErrorKind::Failed,
            doing,
            "it was started again and again while it was removed",
        ))
    }

    fn keeps_autostart(&self) -> bool {
        true
    }

    async fn set_autostart(&self, owner: MigrationId, on: bool) -> Result<(), TargetError> {
        let doing = format!("setting the autostart of the domain of migration {owner}");
        let id = self.find_or_fail(&doing, owner).await?;
        self.libvirt.set_autostart(id, on).await.map_err(failed(&doing))
    }

    async fn tidy(&self, owner: MigrationId) -> Result<(), TargetError> {
        let folder = self.storage().await?.folder(owner);
        let there = folder.clone();
        blocking_on(&folder, format!("removing earlier consoles in {}", folder.display()), move || {
            guest::forget_earlier(&there)
        })
        .await
    }

    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        if self.look(owner).await? != MachineState::Absent {
            return Err(TargetError::new(
                TargetErrorKind::Refused,
                format!("discarding the disks of migration {owner}"),
                "its domain exists: discard the machine first",
            ));
        }
        self.storage().await?.discard(owner, disks, guest::is_console).await
    }

    async fn conversion_overlay(&self) -> Result<Option<&dyn ConversionOverlay>, TargetError> {
        Ok(Some(self.storage().await?))
    }

    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError> {
        self.storage().await?.note_writer(owner, writer).await
    }

    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        self.storage().await?.noted_writer(owner).await
    }
}

/// The path of a pool whose volumes are files in a directory.
fn pool_path(text: &str) -> Result<PathBuf, String> {
    let document = read::parse(text, "pool").map_err(|error| error.to_string())?;
    let root = document.root_element();
    let kind = root.attribute("type").unwrap_or_default();
    if !matches!(kind, "dir" | "fs" | "netfs") {
        return Err(format!(
            "it is of kind {kind:?}: only `dir`, `fs` and `netfs` pools hold files; name the volumes as \
                            the disks' places in the plan instead"
        ));
    }
    let target = read::child(root, "target").and_then(|target| read::text(target, "path"));
    target.map(PathBuf::from).ok_or_else(|| "it has no target path".to_owned())
}

/// A libvirt error as a target's.
fn failed(doing: &str) -> impl FnOnce(LibvirtError) -> TargetError {
    move |error| {
        use LibvirtErrorKind as K;
        let kind = match error.kind {
            K::Unreachable => TargetErrorKind::Unreachable,
            K::Timeout => TargetErrorKind::Timeout,
            K::NoSuchDomain => TargetErrorKind::NotFound,
            K::Exists => TargetErrorKind::Conflict,
            K::NoSpace => TargetErrorKind::NoSpace,
            K::MissingTool | K::Denied | K::Unsupported => TargetErrorKind::Refused,
            K::WrongState
            | K::AlreadyActive
            | K::Busy
            | K::NoSuchCheckpoint
            | K::CheckpointExists
            | K::CheckpointInconsistent
            | K::NoSuchBitmap
            | K::BitmapExists
            | K::NoJob
            | K::NoSuchMetadata
            | K::Malformed
            | K::Failed => TargetErrorKind::Failed,
        };
        TargetError::new(kind, doing, error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn pools_of_files_have_a_path() {
        let pool = |kind: &str| format!("<pool type='{kind}'><target><path>/srv/p</path></target></pool>");
        assert_eq!(pool_path(&pool("dir")), Ok("/srv/p".into()));
        assert!(pool_path(&pool("logical")).is_err());
        assert!(pool_path("<pool type='dir'/>").is_err());
        assert!(pool_path("").is_err());
    }

    #[test]
    fn one_place_for_disks_is_needed() {
        let settings = |directory: Option<&str>, pool: Option<&str>| LibvirtTargetSettings {
            uri: "test:///default".to_owned(),
            directory: directory.map(PathBuf::from),
            pool: pool.map(str::to_owned),
            storages: BTreeMap::new(),
            domain_type: DomainType::Auto,
            disk_bus: DiskBus::Virtio,
        };
        assert!(LibvirtTarget::new(&settings(Some("/d"), None)).is_ok());
        assert!(LibvirtTarget::new(&settings(None, Some("p"))).is_ok());
        for wrong in [settings(None, None), settings(Some("/d"), Some("p")), settings(Some("d"), None)] {
            assert_eq!(LibvirtTarget::new(&wrong).unwrap_err().kind, TargetErrorKind::Refused);
        }
        for (name, place) in [("fast", "srv/fast"), ("default", "/srv/fast"), ("a b", "/srv"), ("", "/srv")] {
            for good in [settings(Some("/d"), None), settings(None, Some("p"))] {
                let storages = BTreeMap::from([(name.to_owned(), PathBuf::from(place))]);
                let error = LibvirtTarget::new(&LibvirtTargetSettings { storages, ..good }).unwrap_err();
                assert!(
                    error.kind == TargetErrorKind::Refused && error.to_string().contains(place),
                    "{error}"
                );
            }
        }
    }
}
