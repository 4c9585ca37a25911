//! The daemon's view of endpoints in memory, independent of their behaviour.

use std::sync::Arc;

use warmd_cbt::{limit::Limit, units::Length};
use warmd_core::{
    control::EndpointInfo,
    model::{
        id::{DiskKey, VmId},
        machine::{CpuTopology, Firmware, Machine, MachineDisk},
    },
    sources::Source,
    targets::Target,
};
use warmd_migration::manager::{Endpoints, OpenEndpoint};

/// One source `s` and one target `t`.
pub(crate) fn endpoints(source: Arc<dyn Source>, target: Arc<dyn Target>) -> Endpoints {
    let endpoint = |name: &str| EndpointInfo {
        name: name.to_owned(),
        kind: "simulated".to_owned(),
        address: "memory".to_owned(),
    };
    let mut endpoints = Endpoints::default();
    let source = OpenEndpoint { endpoint: endpoint("s"), limit: Limit::default(), handle: source };
    let target = OpenEndpoint { endpoint: endpoint("t"), limit: Limit::default(), handle: target };
    endpoints.sources.insert("s".to_owned(), source);
    endpoints.targets.insert("t".to_owned(), target);
    endpoints
}

/// A machine with disks of these keys and sizes in bytes.
pub(crate) fn machine(id: &str, name: &str, disks: impl Iterator<Item = (String, u64)>) -> Machine {
    let disks = disks.enumerate().map(|(order, (key, size))| MachineDisk {
        size: Length(size),
        bus: "virtio".to_owned(),
        boot_order: order as u32,
        location: format!("memory:{key}"),
        untracked: None,
        key: DiskKey(key),
    });
    Machine {
        id: VmId(id.to_owned()),
        name: name.to_owned(),
        uuid: "00000000-0000-0000-0000-000000000001".to_owned(),
        firmware: Firmware::Bios,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
        memory: Length(1 << 28),
        disks: disks.collect(),
        nics: Vec::new(),
        hardware: None,
        host: None,
    }
}
