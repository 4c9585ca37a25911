//! The needs of a VM's start beside its disks' bytes: files, devices, pools, networks, secrets, room.
//!
//! Rule: the check runs while the VM still runs, on the definition that a start will use. QEMU keeps files
//! open that it got long ago; that does not show whether they can be opened again. Only a surely missing
//! resource is an obstacle; one that is not readable, or does not answer, is a doubt, and reported as that.

use roxmltree::Node;
use warmd_core::{
    model::id::{DiskKey, MigrationId},
    sources::SourceError,
};
use warmd_disks::qemu_img::{ImageError, ImageErrorKind, image};

use crate::libvirt::{
    DiskSource, DomainId, Lane, LibvirtError, LibvirtErrorKind, XmlForm, memory, went_unanswered, xml,
};

use super::{
    LibvirtSource,
    error::{ErrorContext, blocked, refused},
    files::{self, Presence},
};

/// A need of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// A file or device, and the part of the VM that needs it.
    File {
        of: String,
        path: String,
    },
    /// The file of UEFI variables. A missing one is made from its template; without a template libvirt finds
    /// one for the loader.
    Nvram {
        own: Option<String>,
        template: Option<String>,
    },
    /// A qcow2 image with all images below it.
    Chain {
        of: String,
        path: String,
    },
    Volume {
        of: String,
        pool: String,
        volume: String,
    },
    Secret {
        of: String,
        uuid: String,
    },
    Network(String),
    /// Bytes.
    Memory(u64),
}

/// A reason against a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The resource is surely missing.
    Missing(String),
    /// The resource is unknown, because its storage does not answer.
    Unanswered(String),
    /// The same, because warmd may not read it; libvirt, which starts the VM, may.
    Hidden(String),
}

impl Obstacle {
    /// The result for a file.
    fn of(place: &str, presence: Presence) -> Option<Self> {
        match presence {
            Presence::There => None,
            Presence::Missing(error) => Some(Self::Missing(format!("{place}: {error}"))),
            Presence::Unknown(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Some(Self::Hidden(format!("{place}: {error}")))
            }
            Presence::Unknown(error) => Some(Self::Unanswered(format!("{place}: {error}"))),
        }
    }
}

impl LibvirtSource {
    /// Why the VM could not be started again, once it is off; empty if it can.
    pub(super) async fn obstacles(&self, domain: DomainId) -> Result<Vec<Obstacle>, LibvirtError> {
        let text = self.libvirt.dump_xml(domain, XmlForm::Persistent).await?;
        let needs = needs(&text).map_err(|error| {
            LibvirtError::new(LibvirtErrorKind::Malformed, format!("dumpxml {domain}"), error)
        })?;
        let mut obstacles = Vec::new();
        // Networks that cannot be listed are no obstacle.
        let networks = if needs.iter().any(|need| matches!(need, Need::Network(_))) {
            self.libvirt.active_networks().await.ok()
        } else {
            None
        };
        for need in needs {
            obstacles.extend(self.look_for(&need, networks.as_deref()).await?);
        }
        Ok(obstacles)
    }

    /// The missing part of this need; `active` are the active networks, where they are known.
    async fn look_for(
        &self,
        need: &Need,
        active: Option<&[String]>,
    ) -> Result<Option<Obstacle>, LibvirtError> {
        match need {
            Need::File { of, path } => Ok(look(of, path).await),
            Need::Nvram { own, template } => Ok(look_for_nvram(own.as_deref(), template.as_deref()).await),
            Need::Chain { of, path } => match look(of, path).await {
                None => Ok(of_chain(of, image::chain(path).await.err())),
                obstacle => Ok(obstacle),
            },
            Need::Volume { of, pool, volume } => {
                of_libvirt(of, self.libvirt.volume(pool, volume).await.err())
            }
            Need::Secret { of, uuid } => of_libvirt(of, self.libvirt.check_secret(uuid).await.err()),
            Need::Memory(bytes) => {
                let text = tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default();
                let missing = |total: u64| {
                    format!("it has {} MiB of memory, and this host {}", bytes >> 20, total >> 20)
                };
                let total = total(&text).filter(|total| total < bytes);
                Ok(total.map(|total| Obstacle::Missing(missing(total))))
            }
            Need::Network(name) => {
                let active = active.is_none_or(|active| active.contains(name));
                let missing = || format!("network {name:?} is not active (virsh net-start)");
                Ok((!active).then(|| Obstacle::Missing(missing())))
            }
        }
    }

    /// See [`warmd_core::sources::Source::can_finish`].
    pub(super) async fn check_finish(&self, domain: DomainId, disks: &[DiskKey]) -> Result<(), SourceError> {
        let doing =
            || format!("VM {domain}: looking whether it could be read and started again once it is off");
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        if let Some(gone) = disks.iter().find(|key| xml.disks.iter().all(|disk| disk.target != key.0)) {
            return Err(refused(doing(), format!("it has no disk {gone} (any more)")));
        }
        let (mut missing, mut unanswered) = (Vec::new(), Vec::new());
        for obstacle in self.obstacles(domain).await.context(doing)? {
            match obstacle {
                Obstacle::Missing(what) => missing.push(what),
                Obstacle::Unanswered(what) => unanswered.push(what),
                Obstacle::Hidden(what) => {
                    tracing::warn!(%domain, what, "whether a start would find it cannot be seen");
                }
            }
        }
        if !missing.is_empty() {
            let why =
                format!("libvirt could not start it again: {}; nothing was stopped", missing.join("; "));
            return Err(refused(doing(), why));
        }
        if !unanswered.is_empty() {
            let why = format!(
                "whether libvirt could start it again is not known: {}; nothing was stopped",
                unanswered.join("; ")
            );
            return Err(blocked(doing(), why));
        }
        // The permission for the hold-off: a refusal after the stop would have stopped the VM in vain.
        let starts = self.libvirt.autostart(domain, Lane::Urgent).await.context(doing)?;
        self.libvirt.set_autostart(domain, starts).await.context(doing)?;
        // The files of the final snapshot, under an id that no migration has.
        self.in_runtime_dirs(MigrationId::generate(), |dirs| {
            dirs.make(None)
                .and_then(|()| std::fs::write(dirs.scratch_file(0), "room"))
                .and_then(|()| dirs.clear())
        })
        .await
        .context(doing)
    }
}

async fn look(of: &str, path: &str) -> Option<Obstacle> {
    Obstacle::of(&format!("{of}: {path}"), files::presence(path).await)
}

async fn look_for_nvram(own: Option<&str>, template: Option<&str>) -> Option<Obstacle> {
    if let Some(own) = own {
        match look("nvram", own).await {
            Some(Obstacle::Missing(_)) => {}
            there_or_doubt => return there_or_doubt,
        }
    }
    match template {
        Some(template) => look("nvram template", template).await,
        None => None,
    }
}

/// An image below is missing; other faults are reported when it is opened.
fn of_chain(of: &str, error: Option<ImageError>) -> Option<Obstacle> {
    let error = error?;
    let told = format!("{of}: {}", error.cause);
    match error.kind {
        ImageErrorKind::NoSuchImage => Some(Obstacle::Missing(told)),
        ImageErrorKind::Timeout => Some(Obstacle::Unanswered(told)),
        _ => None,
    }
}

/// libvirt's answer on one of its objects, if it answers.
fn of_libvirt(of: &str, error: Option<LibvirtError>) -> Result<Option<Obstacle>, LibvirtError> {
    let Some(error) = error else { return Ok(None) };
    if went_unanswered(&error) {
        return Err(error);
    }
    let told = format!("{of}: {}", error.cause);
    Ok(Some(match error.kind {
        LibvirtErrorKind::Busy => Obstacle::Unanswered(told),
        LibvirtErrorKind::Denied => Obstacle::Hidden(told),
        _ => Obstacle::Missing(told),
    }))
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The resources that a domain's definition names.
fn needs(text: &str) -> Result<Vec<Need>, xml::XmlError> {
    let document = xml::parse(text, "domain")?;
    let root = document.root_element();
    let mut needs = Vec::new();
    let is_path = |path: &&str| path.starts_with('/');
    let file = |of: &str, path: &str| Need::File { of: of.to_owned(), path: path.to_owned() };
    if let Some(os) = xml::child(root, "os") {
        for name in ["kernel", "initrd", "dtb", "loader"] {
            if let Some(path) = xml::text(os, name).map(str::trim).filter(is_path) {
                needs.push(file(name, path));
            }
        }
        if let Some(nvram) = xml::child(os, "nvram") {
            let own = nvram.text().map(str::trim).filter(is_path).map(str::to_owned);
            let template = nvram.attribute("template").filter(is_path).map(str::to_owned);
            needs.push(Need::Nvram { own, template });
        }
    }
    if let Ok(memory) = memory(root) {
        needs.push(Need::Memory(memory));
    }
    let Some(devices) = xml::child(root, "devices") else { return Ok(needs) };
    if let Some(emulator) = xml::text(devices, "emulator").map(str::trim).filter(is_path) {
        needs.push(file("emulator", emulator));
    }
    for disk in xml::children(devices, "disk") {
        of_disk(disk, &mut needs);
    }
    for nic in xml::children(devices, "interface") {
        let network = xml::child(nic, "source").and_then(|source| source.attribute("network"));
        needs.extend(network.map(|network| Need::Network(network.to_owned())));
    }
    for folder in xml::children(devices, "filesystem") {
        let dir = xml::child(folder, "source").and_then(|source| source.attribute("dir"));
        needs.extend(dir.filter(is_path).map(|dir| file("shared folder", dir)));
    }
    for kind in ["serial", "parallel", "console"] {
        for port in xml::children(devices, kind).filter(|port| port.attribute("type") == Some("dev")) {
            let path = xml::child(port, "source").and_then(|source| source.attribute("path"));
            needs.extend(path.filter(is_path).map(|path| file(kind, path)));
        }
    }
    Ok(needs)
}

fn of_disk(disk: Node<'_, '_>, needs: &mut Vec<Need>) {
    let target = xml::child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or("?");
    let of = format!("{} {target}", disk.attribute("device").unwrap_or("disk"));
    let Some(source) = xml::child(disk, "source") else { return };
    // A drive whose medium may be missing starts empty.
    let is_optional = source.attribute("startupPolicy") == Some("optional");
    let format = xml::child(disk, "driver").and_then(|driver| driver.attribute("type"));
    if !is_optional {
        match DiskSource::read(disk) {
            DiskSource::File(path) | DiskSource::Block(path) if format == Some("qcow2") => {
                needs.push(Need::Chain { of: of.clone(), path });
            }
            DiskSource::File(path) | DiskSource::Block(path) => {
                needs.push(Need::File { of: of.clone(), path });
            }
            DiskSource::Volume { pool, volume } => {
                needs.push(Need::Volume { of: of.clone(), pool, volume });
            }
            DiskSource::Network { .. } | DiskSource::Other(_) | DiskSource::Empty => {}
        }
    }
    // Of encryption and of authentication, in the disk or in its source.
    for secret in disk.descendants().filter(|node| node.has_tag_name("secret")) {
        if let Some(uuid) = secret.attribute("uuid") {
            needs.push(Need::Secret { of: of.clone(), uuid: uuid.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_start_opens_is_named() {
        let text = "<domain><memory unit='KiB'>2048</memory><os><kernel>/k</kernel><initrd>/i</initrd>\
            <loader type='pflash'>/l</loader><nvram template='/t'>/nonexistent/n</nvram></os><devices>\
            <emulator>/e</emulator>\
            <disk type='file' device='disk'><driver type='qcow2'/><source file='/a'><encryption format='luks'>\
            <secret type='passphrase' uuid='u'/></encryption></source><target dev='vda'/></disk>\
            <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdb'/></disk>\
            <disk type='file' device='cdrom'><source file='/m'/><target dev='sda'/></disk>\
            <disk type='file' device='cdrom'><source file='/o' startupPolicy='optional'/><target dev='sdb'/></disk>\
            <disk type='file' device='cdrom'><target dev='sdc'/></disk>\
            <interface type='network'><source network='lan'/></interface>\
            <filesystem><source dir='/f'/></filesystem></devices></domain>";
        let file = |of: &str, path: &str| Need::File { of: of.to_owned(), path: path.to_owned() };
        let text_of = str::to_owned;
        assert_eq!(
            needs(text).unwrap(),
            [
                file("kernel", "/k"),
                file("initrd", "/i"),
                file("loader", "/l"),
                Need::Nvram { own: Some(text_of("/nonexistent/n")), template: Some(text_of("/t")) },
                Need::Memory(2 << 20),
                file("emulator", "/e"),
                Need::Chain { of: text_of("disk vda"), path: text_of("/a") },
                Need::Secret { of: text_of("disk vda"), uuid: text_of("u") },
                Need::Volume { of: text_of("disk vdb"), pool: text_of("p"), volume: text_of("v") },
                file("cdrom sda", "/m"),
                Need::Network(text_of("lan")),
                file("shared folder", "/f"),
            ]
        );
    }

    #[tokio::test]
    async fn a_missing_file_of_variables_is_made_from_its_template() {
        let (there, gone) = (Some("/proc/self/status"), Some("/nonexistent/n"));
        for (own, template) in [(there, gone), (gone, there), (gone, None), (None, None)] {
            assert_eq!(look_for_nvram(own, template).await, None, "{own:?} {template:?}");
        }
        let told = look_for_nvram(gone, gone).await;
        assert!(matches!(&told, Some(Obstacle::Missing(what)) if what.contains("template")), "{told:?}");
    }

    #[test]
    fn a_doubt_is_not_taken_for_missing() {
        use std::io::{Error, ErrorKind};

        use LibvirtErrorKind as L;

        let of = |kind: ErrorKind| Obstacle::of("x", Presence::Unknown(Error::from(kind))).unwrap();
        assert!(matches!(of(ErrorKind::PermissionDenied), Obstacle::Hidden(_)));
        assert!(matches!(of(ErrorKind::TimedOut), Obstacle::Unanswered(_)));
        assert!(matches!(of(ErrorKind::Other), Obstacle::Unanswered(_)));
        let chain = |kind| of_chain("x", Some(ImageError::new(kind, "c", "why")));
        assert!(matches!(chain(ImageErrorKind::NoSuchImage), Some(Obstacle::Missing(_))));
        assert!(matches!(chain(ImageErrorKind::Timeout), Some(Obstacle::Unanswered(_))));
        assert_eq!(chain(ImageErrorKind::Failed), None);
        let kept = |kind| of_libvirt("x", Some(LibvirtError::new(kind, "c", "why")));
        assert_eq!(kept(L::Failed).unwrap(), Some(Obstacle::Missing("x: why".to_owned())));
        assert!(matches!(kept(L::Denied), Ok(Some(Obstacle::Hidden(_)))));
        assert!(matches!(kept(L::Busy), Ok(Some(Obstacle::Unanswered(_)))));
        assert!(kept(L::Timeout).is_err() && kept(L::Unreachable).is_err());
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert_eq!(total(""), None);
    }
}
