//! A disk in a domain's XML.

use std::fmt;

use roxmltree::Node;

use super::xml::{self, XmlError};

/// One `<disk>` of a domain, CD-ROMs and floppies too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its stable name on the domain: `vda`.
    pub target: String,
    /// `disk`, `cdrom`, `floppy`, `lun`.
    pub device: String,
    /// `virtio`, `scsi`, `sata`, `ide`, `usb`.
    pub bus: String,
    /// `qcow2`, `raw`.
    pub format: String,
    pub source: DiskSource,
    pub readonly: bool,
    pub shareable: bool,
    pub transient: bool,
    /// Its own place in the boot order, from 1.
    pub boot_order: Option<u32>,
}

/// The location of a disk's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    File(String),
    Block(String),
    Volume {
        pool: String,
        volume: String,
    },
    Network {
        protocol: String,
        name: String,
    },
    /// Another type, named as libvirt does.
    Other(String),
    /// No medium.
    Empty,
}

/// A location of a domain's disks' bytes, from its definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BytesAt {
    /// A file or a device.
    Path(String),
    /// A volume whose path its pool knows.
    Volume { pool: String, volume: String },
}

/// All locations of disks' bytes in the definition of a domain, `root`: disks, the images under them, and
/// the targets of running copies.
pub fn bytes_at(root: Node<'_, '_>) -> Vec<BytesAt> {
    let Some(devices) = xml::child(root, "devices") else { return Vec::new() };
    let sources = xml::children(devices, "disk").flat_map(|disk| disk.descendants());
    sources
        .filter(|node| node.has_tag_name("source"))
        .filter_map(|source| {
            let named = |attribute| source.attribute(attribute).map(str::to_owned);
            match named("file").or_else(|| named("dev")) {
                Some(path) => Some(BytesAt::Path(path)),
                None => Some(BytesAt::Volume { pool: named("pool")?, volume: named("volume")? }),
            }
        })
        .collect()
}

impl Disk {
    /// Reads a `<disk>` element.
    pub(super) fn read(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let target = xml::child(node, "target").ok_or(XmlError::Missing("target"))?;
        let name = target.attribute("dev").ok_or(XmlError::Missing("target dev"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(XmlError::Value { element: "target", value: name.to_owned() });
        }
        let boot_order = xml::child(node, "boot")
            .and_then(|boot| boot.attribute("order"))
            .map(|order| {
                order.parse().map_err(|_| XmlError::Value { element: "boot", value: order.to_owned() })
            })
            .transpose()?;
        let format = xml::child(node, "driver").and_then(|driver| driver.attribute("type"));
        let has = |name| xml::child(node, name).is_some();
        Ok(Self {
            target: name.to_owned(),
            device: node.attribute("device").unwrap_or("disk").to_owned(),
            bus: target.attribute("bus").unwrap_or("unknown").to_owned(),
            // libvirt treats a disk without a format as raw.
            format: format.unwrap_or("raw").to_owned(),
            source: DiskSource::read(node),
            readonly: has("readonly"),
            shareable: has("shareable"),
            transient: has("transient"),
            boot_order,
        })
    }

    /// Why its changes cannot be tracked across passes; `None` if they can.
    pub fn untracked(&self) -> Option<String> {
        if self.shareable {
            Some("it is shareable: another VM may write to it unseen".to_owned())
        } else if self.readonly {
            Some("it is read-only: its image cannot hold a bitmap".to_owned())
        } else if self.transient {
            Some("it is transient: its changes are thrown away at power-off".to_owned())
        } else if self.format == "qcow2" {
            None
        } else {
            Some(format!("its image is {}: only qcow2 keeps a bitmap of changes", self.format))
        }
    }
}

impl DiskSource {
    /// Reads the source of a `<disk>` element.
    pub fn read(node: Node<'_, '_>) -> Self {
        let kind = node.attribute("type").unwrap_or("file");
        let Some(source) = xml::child(node, "source") else { return Self::Empty };
        let named = |attribute| source.attribute(attribute).unwrap_or_default().to_owned();
        match kind {
            "file" if source.has_attribute("file") => Self::File(named("file")),
            "block" if source.has_attribute("dev") => Self::Block(named("dev")),
            "volume" => Self::Volume { pool: named("pool"), volume: named("volume") },
            "network" => Self::Network { protocol: named("protocol"), name: named("name") },
            "file" | "block" => Self::Empty,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Block(path) => f.write_str(path),
            Self::Volume { pool, volume } => write!(f, "volume:{pool}/{volume}"),
            Self::Network { protocol, name } => write!(f, "{protocol}:{name}"),
            Self::Other(kind) => write!(f, "({kind})"),
            Self::Empty => f.write_str("(no medium)"),
        }
    }
}
