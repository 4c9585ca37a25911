//! What an operator may say of a target `libvirt`.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// The settings of a target `libvirt`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtTargetSettings {
    /// libvirt's connection URI. It must lead to this host: the disks are written here.
    #[serde(default = "default_uri")]
    pub uri: String,
    /// Where disks without a place of their own are kept: one folder for each migration. It must be there. Either this
    /// or `pool`.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The same by the name of a storage pool of kind `dir`, `fs` or `netfs`.
    #[serde(default)]
    pub pool: Option<String>,
    /// Other directories for disks, by the names that a plan's `[storage]` uses. They must be there.
    #[serde(default)]
    pub storages: BTreeMap<String, PathBuf>,
    #[serde(default)]
    pub domain_type: DomainType,
    #[serde(default)]
    pub disk_bus: DiskBus,
}

/// What executes the machine's processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainType {
    /// KVM if libvirt says that it is there, else emulation.
    #[default]
    Auto,
    Kvm,
    /// Emulation, also where KVM seems to be there.
    Qemu,
}

/// How disks are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// By virtio, whatever the source had.
    Virtio,
    /// As on the source; guests boot without virtio drivers.
    #[default]
    Keep,
}

fn default_uri() -> String {
    "qemu:///system".to_owned()
}
