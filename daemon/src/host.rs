//! What the daemon knows of its host beyond one target, for targets that write to it: all VMs' disks, all places taken.
//!
//! Rule: here, at the root, endpoints of all kinds and the state are known together, so that targets need to know neither.
//! A libvirt that does not answer keeps nobody from writing: the processes of its running VMs are seen without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use roxmltree::Node;
use tokio::sync::Mutex;

use crate::{
    config::Config,
    libvirt::{DomainXml, Libvirt, LibvirtError, XmlForm, went_unanswered, xml},
    model::id::{DiskKey, MigrationId},
    sources::SourceSettings,
    store::{Store, StoreError},
    targets::{
        TargetError, TargetErrorKind, TargetSettings,
        storage::{Host, PlaceClaim, VmDisk},
    },
};

/// How long a list of disks serves: disks are opened in groups, and a VM that is started meanwhile is seen by its process.
const FRESH: Duration = Duration::from_secs(10);

/// For all that is asked of one libvirt.
const DEADLINE: Duration = Duration::from_secs(20);

/// The host of a daemon with this configuration.
pub(crate) fn open(config: &Config, store: Store) -> Arc<dyn Host> {
    let mut uris = BTreeSet::new();
    for endpoint in config.sources.values() {
        let SourceSettings::Libvirt(settings) = &endpoint.settings;
        uris.insert(settings.uri.as_str());
    }
    for endpoint in config.targets.values() {
        if let TargetSettings::Libvirt(settings) = &endpoint.settings {
            uris.insert(settings.uri.as_str());
        }
    }
    let endpoints = uris.into_iter().map(|uri| Libvirt::with_deadline(uri, DEADLINE)).collect();
    Arc::new(Known { endpoints, seen: Mutex::default(), store })
}

struct Known {
    endpoints: Vec<Libvirt>,
    seen: Mutex<Option<(Instant, Vec<VmDisk>)>>,
    store: Store,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({} endpoints)", self.endpoints.len())
    }
}

#[async_trait]
impl Host for Known {
    async fn vm_disks(&self) -> Vec<VmDisk> {
        let mut seen = self.seen.lock().await;
        if let Some((at, disks)) = &*seen
            && at.elapsed() < FRESH
        {
            return disks.clone();
        }
        let mut disks = Vec::new();
        for libvirt in &self.endpoints {
            let answer = tokio::time::timeout(DEADLINE, disks_at(libvirt)).await;
            match answer {
                Ok(Ok(found)) => disks.extend(found),
                Ok(Err(error)) => {
                    tracing::warn!(uri = libvirt.uri(), %error, "which disks its VMs have is not known")
                }
                Err(_) => tracing::warn!(
                    uri = libvirt.uri(),
                    "which disks its VMs have is not known: no answer in time"
                ),
            }
        }
        *seen = Some((Instant::now(), disks.clone()));
        disks
    }

    async fn claim(&self, claim: &PlaceClaim) -> Result<Option<PlaceClaim>, TargetError> {
        self.store.claim_place(claim.clone()).await.map_err(failed)
    }

    async fn claims_of_others(&self, owner: MigrationId) -> Result<Vec<PlaceClaim>, TargetError> {
        self.store.places_of_others(owner).await.map_err(failed)
    }

    async fn forget(&self, claim: &PlaceClaim) -> Result<(), TargetError> {
        self.store.forget_place(claim.clone()).await.map_err(failed)
    }

    async fn give_up(&self, owner: MigrationId, disk: &DiskKey) -> Result<(), TargetError> {
        self.store.give_up_place(owner, disk.clone()).await.map_err(failed)
    }
}

fn failed(error: StoreError) -> TargetError {
    TargetError::new(TargetErrorKind::Failed, "keeping whose a place is", error)
}

/// The disks of all domains there, by their live and by their persistent definitions.
async fn disks_at(libvirt: &Libvirt) -> Result<Vec<VmDisk>, LibvirtError> {
    let domains = libvirt.domains().await?;
    let mut disks = Vec::new();
    let mut volumes = BTreeMap::<(String, String), Vec<VmDisk>>::new();
    for (id, _) in domains {
        for form in [XmlForm::Current, XmlForm::Persistent] {
            match libvirt.dump_xml(id, form).await {
                Ok(text) => read(libvirt.uri(), &text, &mut disks, &mut volumes),
                Err(error) if went_unanswered(&error) => return Err(error),
                // Gone meanwhile, or without a persistent definition.
                Err(_) => {}
            }
        }
    }
    for ((pool, volume), mut of) in volumes {
        // A pool that is not active has no paths, and no VM that runs.
        if let Ok(found) = libvirt.volume(&pool, &volume).await {
            of.iter_mut().for_each(|disk| disk.path = PathBuf::from(&found.path));
            disks.append(&mut of);
        }
    }
    Ok(disks)
}

/// Adds the paths in a domain's XML: disks, the images under them, where they are being copied to.
fn read(
    uri: &str,
    text: &str,
    disks: &mut Vec<VmDisk>,
    volumes: &mut BTreeMap<(String, String), Vec<VmDisk>>,
) {
    let Ok(document) = xml::parse(text, "domain") else { return };
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
    let Some(devices) = xml::child(root, "devices") else { return };
    let sources = xml::children(devices, "disk").flat_map(|disk| disk.descendants());
    for source in sources.filter(|node| node.tag_name().name() == "source") {
        if let Some(path) = source.attribute("file").or_else(|| source.attribute("dev")) {
            disks.push(of(path));
        } else if let (Some(pool), Some(volume)) = (source.attribute("pool"), source.attribute("volume")) {
            volumes.entry((pool.to_owned(), volume.to_owned())).or_default().push(of(""));
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
        let (mut disks, mut volumes) = (Vec::new(), BTreeMap::new());
        read("qemu:///system", text, &mut disks, &mut volumes);
        let paths: Vec<_> = disks.iter().map(|disk| disk.path.display().to_string()).collect();
        assert_eq!(paths, ["/a", "/dev/b"]);
        assert_eq!(
            (disks[0].vm.as_str(), disks[0].moved_by.as_deref()),
            ("VM web1 of qemu:///system", Some("m"))
        );
        assert!(volumes.contains_key(&("p".to_owned(), "v".to_owned())));
        let clone = text.replace("<uuid>u<", "<uuid>other<");
        read("x", &clone, &mut disks, &mut volumes);
        assert_eq!(disks[2].moved_by, None, "a clone is not the migration's");
    }
}
