//! The operator's settings of a target `libvirt`.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// The settings of a target `libvirt`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtTargetSettings {
    /// libvirt's connection URI. It must be this host: the disks are written here.
    #[serde(default = "default_uri")]
    pub uri: String,
    /// Where disks without a place of their own are kept: one folder for each migration. It must exist.
    /// Either this or `pool`.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The same by the name of a storage pool of kind `dir`, `fs` or `netfs`.
    #[serde(default)]
    pub pool: Option<String>,
    /// Other directories for disks, by the names that a plan's `[storage]` uses. They must exist.
    #[serde(default)]
    pub storages: BTreeMap<String, PathBuf>,
    #[serde(default)]
    pub domain_type: DomainType,
    #[serde(default)]
    pub disk_bus: DiskBus,
}

/// The kind of virtualisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainType {
    /// KVM if libvirt reports it, else emulation.
    #[default]
    Auto,
    Kvm,
    /// Emulation, also where KVM seems available.
    Qemu,
}

/// How disks are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// By virtio, regardless of the source.
    Virtio,
    /// As on the source; for guests without virtio drivers.
    #[default]
    Keep,
}

fn default_uri() -> String {
    "qemu:///system".to_owned()
}
