//! The daemon's view of its host beyond one target, for targets that write to it: all VMs' disks, all claimed
//! volumes.
//!
//! Rule: here, at the root, endpoints of all kinds and the state are known together, so that targets need to
//! know neither. An endpoint that does not answer is reported, and never counts as one without VMs: only that
//! endpoint knows the disks of a VM that is off.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::join_all;
use roxmltree::Node;
use tokio::sync::Mutex;
use warmd_core::{
    model::id::{DiskKey, MigrationId},
    targets::{
        TargetError, TargetErrorKind,
        host::{Host, LocationClaim, VmDisk, VmDisks},
    },
};
use warmd_disks::volume::unseen;
use warmd_endpoint_libvirt::libvirt::{
    BytesAt, DomainXml, LibvirtClient, LibvirtError, LibvirtErrorKind, XmlForm, bytes_at, went_unanswered,
    xml,
};
use warmd_store::{Store, StoreError};

use crate::{
    config::Config,
    endpoints::{SourceSettings, TargetSettings},
};

/// How long a list of disks is valid: disks are opened in groups, and a VM that is started meanwhile is seen
/// by its process.
const FRESH: Duration = Duration::from_secs(10);

/// The deadline for all queries to one libvirt.
const DEADLINE: Duration = Duration::from_secs(20);

/// The host of a daemon with this configuration.
pub(crate) fn open_host(config: &Config, store: Store) -> Arc<dyn Host> {
    let mut uris = BTreeSet::new();
    for endpoint in config.sources.values() {
        // A vCenter's VMs have no disks on this host.
        if let SourceSettings::Libvirt(settings) = &endpoint.settings {
            uris.insert(settings.uri.as_str());
        }
    }
    for endpoint in config.targets.values() {
        if let TargetSettings::Libvirt(settings) = &endpoint.settings {
            uris.insert(settings.uri.as_str());
        }
    }
    let endpoints = uris.into_iter().map(|uri| LibvirtClient::with_deadline(uri, DEADLINE)).collect();
    Arc::new(Known { endpoints, seen: Mutex::default(), store })
}

struct Known {
    endpoints: Vec<LibvirtClient>,
    seen: Mutex<Option<(Instant, VmDisks)>>,
    store: Store,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({} endpoints)", self.endpoints.len())
    }
}

#[async_trait]
impl Host for Known {
    async fn vm_disks(&self) -> VmDisks {
        let mut seen = self.seen.lock().await;
        if let Some((at, disks)) = &*seen
            && at.elapsed() < FRESH
        {
            return disks.clone();
        }
        let answers = self.endpoints.iter().map(|libvirt| async move {
            match tokio::time::timeout(DEADLINE, disks_at(libvirt)).await {
                Ok(Ok(disks)) => disks,
                Ok(Err(error)) => unknown(format!("the VMs of {}: {error}", libvirt.uri())),
                Err(_) => {
                    let why = format!("the VMs of {}: no answer within {DEADLINE:?}", libvirt.uri());
                    unknown(why)
                }
            }
        });
        let mut disks = VmDisks::default();
        for mut answer in join_all(answers).await {
            disks.found.append(&mut answer.found);
            disks.unknown.append(&mut answer.unknown);
        }
        for unknown in &disks.unknown {
            tracing::warn!(unknown, "which disks VMs have is not known");
        }
        *seen = Some((Instant::now(), disks.clone()));
        disks
    }

    async fn unseen(&self) -> Option<String> {
        let looked = match warmd_threads::on(Path::new("/proc")) {
            Ok(lane) => lane.run(unseen).await,
            Err(error) => Err(error),
        };
        looked.unwrap_or_else(|error| Some(format!("processes are not looked at: {error}")))
    }

    async fn claim(&self, claim: &LocationClaim) -> Result<Option<LocationClaim>, TargetError> {
        self.store.claim_place(claim.clone()).await.map_err(failed)
    }

    async fn claims_of_others(&self, owner: MigrationId) -> Result<Vec<LocationClaim>, TargetError> {
        self.store.places_of_others(owner).await.map_err(failed)
    }

    async fn forget(&self, claim: &LocationClaim) -> Result<(), TargetError> {
        self.store.forget_place(claim.clone()).await.map_err(failed)
    }

    async fn give_up(&self, owner: MigrationId, disk: &DiskKey) -> Result<(), TargetError> {
        self.store.give_up_place(owner, disk.clone()).await.map_err(failed)
    }
}

fn failed(error: StoreError) -> TargetError {
    TargetError::new(TargetErrorKind::Failed, "keeping whose a place is", error)
}

fn unknown(what: String) -> VmDisks {
    VmDisks { found: Vec::new(), unknown: vec![what] }
}

/// The disks of all domains there, by their live and by their persistent definitions.
async fn disks_at(libvirt: &LibvirtClient) -> Result<VmDisks, LibvirtError> {
    let domains = libvirt.domains().await?;
    let mut seen = EndpointDefinitions::default();
    for (id, name) in domains {
        for form in [XmlForm::Current, XmlForm::Persistent] {
            match libvirt.dump_xml(id, form).await {
                Ok(text) => seen.read(libvirt.uri(), &name, &text),
                // Gone meanwhile.
                Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => {}
                Err(error) if went_unanswered(&error) => return Err(error),
                Err(error) => seen.disks.unknown.push(format!("VM {name} of {}: {error}", libvirt.uri())),
            }
        }
    }
    let EndpointDefinitions { mut disks, volumes } = seen;
    for ((pool, volume), mut of) in volumes {
        match libvirt.volume(&pool, &volume).await {
            Ok(found) => {
                for disk in &mut of {
                    disk.path = PathBuf::from(&found.path);
                }
                disks.found.append(&mut of);
            }
            Err(error) if went_unanswered(&error) => return Err(error),
            // A pool that is not active has no paths, and no VM that runs.
            Err(_) => {}
        }
    }
    Ok(disks)
}

/// The contents of the definitions at one endpoint.
#[derive(Default)]
struct EndpointDefinitions {
    disks: VmDisks,
    /// Disks without a path yet, by pool and volume.
    volumes: BTreeMap<(String, String), Vec<VmDisk>>,
}

impl EndpointDefinitions {
    /// Adds the paths in a domain's XML: disks, the images under them, where they are being copied to.
    fn read(&mut self, uri: &str, listed_as: &str, text: &str) {
        let document = match xml::parse(text, "domain") {
            Ok(document) => document,
            Err(error) => {
                self.disks.unknown.push(format!("VM {listed_as} of {uri}: its definition: {error}"));
                return;
            }
        };
        let root = document.root_element();
        let name = xml::text(root, "name").unwrap_or("without a name");
        let is_tag = |node: &Node<'_, '_>| {
            node.tag_name().namespace() == Some(DomainXml::TAG_NAMESPACE)
                && node.tag_name().name() == DomainXml::MOVED_HERE
        };
        let tag = xml::child(root, "metadata").and_then(|metadata| metadata.children().find(is_tag));
        // A clone has its original's tag.
        let tag = tag.filter(|tag| tag.attribute("domain") == xml::text(root, "uuid"));
        let of = |path: &str| VmDisk {
            path: path.into(),
            vm: format!("VM {name} of {uri}"),
            moved_by: tag.and_then(|tag| tag.attribute("owner")).map(str::to_owned),
        };
        for place in bytes_at(root) {
            match place {
                BytesAt::Path(path) => self.disks.found.push(of(&path)),
                BytesAt::Volume { pool, volume } => {
                    self.volumes.entry((pool, volume)).or_default().push(of(""));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_their_bases_and_volumes_are_read() {
        let text = "<domain><name>web1</name><uuid>u</uuid>
            <metadata><w:target xmlns:w='urn:warmd:domain:1' owner='m' domain='u'/></metadata>
            <devices><disk><source file='/a'><x/></source><backingStore><source dev='/dev/b'/></backingStore></disk>
            <disk><source pool='p' volume='v'/></disk><interface><source dev='eth0'/></interface></devices></domain>";
        let mut seen = EndpointDefinitions::default();
        seen.read("qemu:///system", "web1", text);
        let disks = &seen.disks.found;
        let paths: Vec<_> = disks.iter().map(|disk| disk.path.display().to_string()).collect();
        assert_eq!(paths, ["/a", "/dev/b"]);
        assert_eq!(
            (disks[0].vm.as_str(), disks[0].moved_by.as_deref()),
            ("VM web1 of qemu:///system", Some("m"))
        );
        assert!(seen.volumes.contains_key(&("p".to_owned(), "v".to_owned())));
        let clone = text.replace("<uuid>u<", "<uuid>other<");
        seen.read("x", "web1", &clone);
        assert_eq!(seen.disks.found[2].moved_by, None, "a clone is not the migration's");
    }

    #[test]
    fn a_definition_that_is_no_xml_is_told_of() {
        let mut seen = EndpointDefinitions::default();
        seen.read("qemu:///system", "web1", "<domain><name>web1</na");
        assert!(seen.disks.found.is_empty());
        assert!(seen.disks.unknown[0].starts_with("VM web1 of qemu:///system: its definition"));
    }

    #[tokio::test]
    async fn an_endpoint_that_does_not_answer_is_not_one_without_vms() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = format!("qemu+unix:///system?socket={}", dir.path().join("none").display());
        let endpoints = vec![LibvirtClient::with_deadline(&nowhere, DEADLINE)];
        let store = Store::open(&dir.path().join("state")).unwrap();
        let known = Known { endpoints, seen: Mutex::default(), store };
        for _ in 0..2 {
            let disks = known.vm_disks().await;
            assert!(disks.found.is_empty());
            assert!(disks.unknown[0].contains(&nowhere), "{disks:?}");
        }
    }
}
