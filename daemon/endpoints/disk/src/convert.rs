//! Machines as messages of the provisioner contract.

use warmd_core::{
    model::machine::{Firmware, Machine},
    targets::CreateMachine,
};
use warmd_proto::provisioner::v1 as wire;
use warmd_storage::LocatedDisk;

pub(super) fn create(request: &CreateMachine, disks: &[LocatedDisk]) -> wire::CreateVmRequest {
    let disks = disks.iter().map(|disk| wire::Disk {
        key: disk.key.0.clone(),
        size_bytes: disk.size.0,
        boot_order: request.boot_order(&disk.key),
        location: disk.place.location(),
        format: "raw".to_owned(),
    });
    wire::CreateVmRequest {
        migration_id: request.owner.to_string(),
        name: request.name.clone(),
        machine: Some(machine(&request.machine)),
        disks: disks.collect(),
    }
}

fn machine(machine: &Machine) -> wire::Machine {
    let firmware = match machine.firmware {
        Firmware::Bios => wire::Firmware::Bios,
        Firmware::Uefi => wire::Firmware::Uefi,
        Firmware::UefiSecure => wire::Firmware::UefiSecure,
    };
    let nics = machine.nics.iter().map(|nic| wire::Nic {
        mac: nic.mac.clone(),
        network: nic.network.clone(),
        model: nic.model.clone(),
    });
    wire::Machine {
        name: machine.name.clone(),
        uuid: machine.uuid.clone(),
        firmware: firmware.into(),
        machine_type: machine.machine_type.clone(),
        architecture: machine.architecture.clone(),
        cpu: Some(wire::Cpu {
            sockets: machine.cpu.sockets,
            cores: machine.cpu.cores,
            threads: machine.cpu.threads,
        }),
        memory_bytes: machine.memory.0,
        nics: nics.collect(),
    }
}
