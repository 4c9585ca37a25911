//! A virtual machine in platform-neutral terms.
//!
//! Rule: a source describes a machine and a target creates it; neither knows the other.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::units::Length;

use super::{
    hardware::HardwareElement,
    id::{DiskKey, VmId},
};

/// A VM's hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its id on the source.
    pub id: VmId,
    pub name: String,
    /// The UUID that the guest sees.
    pub uuid: String,
    pub firmware: Firmware,
    /// The chipset family: `q35`, `pc`, or another name of the platform.
    pub machine_type: String,
    /// The architecture in the kernel's spelling, such as `x86_64`.
    pub architecture: String,
    pub cpu: CpuTopology,
    /// In bytes.
    pub memory: Length,
    pub disks: Vec<MachineDisk>,
    pub nics: Vec<Nic>,
    /// What the other fields cannot express, in libvirt's terms, if the source knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareElement>,
    /// The hypervisor's host that it was on, if the source has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// The machine's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    Bios,
    Uefi,
    UefiSecure,
}

/// Virtual processors: sockets × cores × threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTopology {
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
}

impl CpuTopology {
    /// All virtual processors.
    pub fn vcpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

/// One virtual disk. CD-ROMs and floppies are not disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDisk {
    pub key: DiskKey,
    pub size: Length,
    /// The bus on the source: `virtio`, `scsi`, `sata`, `ide`, `nvme`, `usb`; or the SCSI controller, where
    /// the source's platform has several: `pvscsi`, `lsisas`, `lsilogic`, `buslogic`.
    pub bus: String,
    /// 0 boots first.
    pub boot_order: u32,
    /// Its location on the source, for messages.
    pub location: String,
    /// Why the source cannot track its changes; `None` if it can.
    pub untracked: Option<String>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Six bytes in hexadecimal with colons.
    pub mac: String,
    /// The network's or bridge's name on the source; after the plan's map, on the target.
    pub network: String,
    pub model: String,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    Running,
    /// Suspended by an operator or by an error.
    Paused,
    Off,
}

/// A source's VMs at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    pub vms: Vec<VmSummary>,
    pub seen: DateTime<Utc>,
    /// Why the list could not be refreshed, if it is older than it should be.
    pub stale: Option<String>,
}

/// A line in the list of a source's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSummary {
    pub id: VmId,
    pub name: String,
    pub power: PowerState,
    pub disks: u32,
    /// Sum of the disks' sizes.
    pub bytes: Length,
    /// The number of disks whose changes the source can track.
    pub tracked: u32,
    /// The number of its snapshots.
    pub snapshots: u32,
    /// What prevents a warm migration, in words; empty if nothing does.
    pub warnings: Vec<String>,
}
