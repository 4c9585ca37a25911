//! A virtual machine as no platform in particular sees it.
//!
//! Rule: what a source describes and a target creates meet here, and neither knows the other.

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
    /// The chipset family: `q35`, `pc`, or what else the platform says.
    pub machine_type: String,
    /// `x86_64` and the like, in the kernel's spelling.
    pub architecture: String,
    pub cpu: CpuTopology,
    /// In bytes.
    pub memory: Length,
    pub disks: Vec<MachineDisk>,
    pub nics: Vec<Nic>,
    /// What the other fields have no words for, in libvirt's, if the source speaks them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<HardwareElement>,
}

/// What the machine boots by.
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
    /// The bus on the source: `virtio`, `scsi`, `sata`, `ide`, `nvme`, `usb`.
    pub bus: String,
    /// 0 boots first.
    pub boot_order: u32,
    /// Where it is on the source, for people.
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
    /// Stopped in the middle of running, by a person or by an error.
    Paused,
    Off,
}

/// What a source has, as it was seen at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    pub vms: Vec<VmSummary>,
    pub seen: DateTime<Utc>,
    /// Why it could not be seen anew, if it is older than it should be.
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
    /// Of the disks, those whose changes the source can track.
    pub tracked: u32,
    /// Snapshots that it has.
    pub snapshots: u32,
    /// What stands in the way of a warm migration, in words; empty if nothing does.
    pub warnings: Vec<String>,
}
