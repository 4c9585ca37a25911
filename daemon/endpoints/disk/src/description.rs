//! The machine as a JSON file beside its disks, for an operator who creates it without a provisioner.

use serde::Serialize;
use warmd_cbt::units::Length;
use warmd_core::{
    model::{id::MigrationId, machine::Machine},
    targets::CreateMachine,
};
use warmd_storage::LocatedDisk;

/// The file's name in the migration's folder.
pub(super) const DESCRIPTION: &str = "machine.json";

/// The form of the file. Fields are added, never changed.
#[derive(Serialize)]
struct Description<'a> {
    /// The version of the form.
    version: u32,
    migration: MigrationId,
    /// Its name on the target.
    name: &'a str,
    machine: &'a Machine,
    disks: Vec<Disk<'a>>,
}

#[derive(Serialize)]
struct Disk<'a> {
    key: &'a str,
    size: Length,
    /// 0 boots first.
    boot_order: u32,
    /// A path or an NBD URI.
    location: String,
    format: &'static str,
}

/// The file's text.
pub(super) fn machine_description(
    request: &CreateMachine,
    disks: &[LocatedDisk],
) -> Result<String, serde_json::Error> {
    let boot_order = |disk: &LocatedDisk| request.boot_order(&disk.key);
    let disks = disks.iter().map(|disk| Disk {
        key: &disk.key.0,
        size: disk.size,
        boot_order: boot_order(disk),
        location: disk.place.location(),
        format: "raw",
    });
    serde_json::to_string_pretty(&Description {
        version: 1,
        migration: request.owner,
        name: &request.name,
        machine: &request.machine,
        disks: disks.collect(),
    })
}
