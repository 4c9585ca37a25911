//! What a start of the VM needs beside its disks' bytes: files, devices, pools, networks, secrets, room.
//!
//! Rule: it is asked while the VM still runs, of the definition that a start will use. QEMU holds open what it was given
//! long ago; that says nothing of whether it can be opened again. A doubt is no obstacle: only what is surely missing.

use std::path::Path;

use roxmltree::Node;

use crate::{
    libvirt::{DiskSource, DomainId, LibvirtError, LibvirtErrorKind, XmlForm, image, went_unanswered, xml},
    model::id::{DiskKey, MigrationId},
    sources::SourceError,
};

use super::{
    LibvirtSource,
    error::{Context, refused},
};

/// Something that a start needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// A file or device, and what of the VM wants it.
    File {
        of: String,
        path: String,
    },
    /// A qcow2 image with all that lies below it.
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

impl LibvirtSource {
    /// Why the VM could not be started again, once it is off; empty if nothing speaks against it.
    pub(super) async fn obstacles(&self, domain: DomainId) -> Result<Vec<String>, LibvirtError> {
        let text = self.libvirt.dump_xml(domain, XmlForm::Persistent).await?;
        let needs = needs(&text).map_err(|error| {
            LibvirtError::new(LibvirtErrorKind::Malformed, format!("dumpxml {domain}"), error)
        })?;
        let mut obstacles = Vec::new();
        let mut networks = None;
        for need in needs {
            let met = match &need {
                Need::Network(name) => {
                    if networks.is_none() {
                        networks = self.libvirt.active_networks().await.ok();
                    }
                    let active = networks.as_ref().is_none_or(|active| active.contains(name));
                    if active {
                        Ok(())
                    } else {
                        Err(format!("network {name:?} is not active (virsh net-start)"))
                    }
                }
                need => self.look_for(need).await?,
            };
            obstacles.extend(met.err());
        }
        Ok(obstacles)
    }

    async fn look_for(&self, need: &Need) -> Result<Result<(), String>, LibvirtError> {
        let told = |of: &str, result: Result<(), LibvirtError>| match result {
            Err(error) if went_unanswered(&error) => Err(error),
            Err(error) => Ok(Err(format!("{of}: {}", error.cause.to_string().trim_start_matches("error: ")))),
            Ok(()) => Ok(Ok(())),
        };
        match need {
            Need::File { of, path } => Ok(look(of, path).await),
            Need::Chain { of, path } => match look(of, path).await {
                Err(why) => Ok(Err(why)),
                Ok(()) => match image::chain(path).await {
                    // What is below it is missing; other trouble is for the one who opens it to tell.
                    Err(error) if error.kind == LibvirtErrorKind::NoSuchImage => told(of, Err(error)),
                    _ => Ok(Ok(())),
                },
            },
            Need::Volume { of, pool, volume } => told(of, self.libvirt.volume(pool, volume).await.map(drop)),
            Need::Secret { of, uuid } => told(of, self.libvirt.check_secret(uuid).await),
            Need::Memory(bytes) => {
                let text = tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default();
                Ok(match total(&text) {
                    Some(total) if total < *bytes => {
                        Err(format!("it has {} MiB of memory, and this host {}", bytes >> 20, total >> 20))
                    }
                    _ => Ok(()),
                })
            }
            Need::Network(_) => Ok(Ok(())),
        }
    }

    /// See [`crate::sources::Source::can_finish`].
    pub(super) async fn check_finish(&self, domain: DomainId, disks: &[DiskKey]) -> Result<(), SourceError> {
        let doing =
            || format!("VM {domain}: looking whether it could be read and started again once it is off");
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        if let Some(gone) = disks.iter().find(|key| xml.disks.iter().all(|disk| disk.target != key.0)) {
            return Err(refused(doing(), format!("it has no disk {gone} (any more)")));
        }
        let obstacles = self.obstacles(domain).await.context(doing)?;
        if !obstacles.is_empty() {
            let why =
                format!("libvirt could not start it again: {}; nothing was stopped", obstacles.join("; "));
            return Err(refused(doing(), why));
        }
        // What the final snapshot makes, under an id that no migration has.
        self.in_nook(MigrationId::generate(), |nook| {
            nook.make(None)
                .and_then(|()| std::fs::write(nook.scratch_file(0), "room"))
                .and_then(|()| nook.clear())
        })
        .await
        .context(doing)
    }
}

async fn look(of: &str, path: &str) -> Result<(), String> {
    // On a file system that does not answer, the caller's deadline ends the waiting.
    match tokio::fs::metadata(Path::new(path)).await {
        Err(error) => Err(format!("{of}: {path}: {error}")),
        Ok(_) => Ok(()),
    }
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a domain's definition names.
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
        // A missing file of variables is made from its template.
        if let Some(nvram) = xml::child(os, "nvram") {
            let own = nvram.text().map(str::trim).filter(is_path);
            let template = nvram.attribute("template").filter(is_path);
            match (own, template) {
                (Some(own), _) if Path::new(own).exists() => {}
                (_, Some(template)) => needs.push(file("nvram template", template)),
                // Without either libvirt finds a template for the loader.
                _ => {}
            }
        }
    }
    if let Ok(Some(memory)) = memory(root) {
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

fn memory(root: Node<'_, '_>) -> Result<Option<u64>, xml::XmlError> {
    // libvirt itself always writes KiB.
    let in_kib = xml::child(root, "memory").is_some_and(|node| node.attribute("unit") == Some("KiB"));
    Ok(xml::number(root, "memory")?.filter(|_| in_kib).and_then(|kib| kib.checked_mul(1024)))
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
                file("nvram template", "/t"),
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

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert_eq!(total(""), None);
    }
}
