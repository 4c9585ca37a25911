//! The state in its file: stored data is there again, whatever happens to the process, the file and the disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(clippy::single_range_in_vec_init, reason = "hashes are asked for by spans, often by a single one")]

mod chunks;
mod compaction;
mod conversions;
mod faults;
mod finished;
mod groups;
mod ledger;
mod location_claims;
mod open;
mod records;
mod telemetry;
mod thin;
mod unreadable;
mod verification;

use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;
use warmd_cbt::{store::DiskId, units::Length};
use warmd_core::model::{
    event_kind::EventKind,
    id::{DiskKey, MigrationId, VmId},
    machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic},
    state::State,
    view::EventView,
};
use warmd_store::{Created, NewDisk, NewMigration, Store};

/// A state directory and its open store.
struct Fixture {
    dir: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    /// As a restart of the daemon.
    async fn reopen(self) -> Self {
        self.store.close().await.unwrap();
        let store = Store::open(self.dir.path()).unwrap();
        Self { dir: self.dir, store }
    }
}

/// Times as the store keeps them, to the microsecond; each later than the one before.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_790_000_000_123_456).unwrap() + TimeDelta::seconds(seconds)
}

fn machine(name: &str) -> Machine {
    Machine {
        id: VmId(format!("id of {name}")),
        name: name.to_owned(),
        uuid: "8a1e6a0e-9a4e-4a39-8d4c-7cb6c92d2f5b".to_owned(),
        firmware: Firmware::UefiSecure,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 2, threads: 1 },
        memory: Length(256 << 20),
        disks: vec![MachineDisk {
            key: DiskKey("vda".to_owned()),
            size: Length(1 << 30),
            bus: "virtio".to_owned(),
            boot_order: 0,
            location: "/images/a.qcow2".to_owned(),
            untracked: None,
        }],
        hardware: None,
        host: None,
        nics: vec![Nic {
            mac: "52:54:00:12:34:56".to_owned(),
            network: "default".to_owned(),
            model: "virtio".to_owned(),
        }],
    }
}

fn new_migration(name: &str) -> NewMigration {
    let machine = machine(name);
    NewMigration {
        id: MigrationId::generate(),
        plan: "plan".to_owned(),
        source: "lab".to_owned(),
        target: "new".to_owned(),
        vm: machine.id.clone(),
        vm_name: name.to_owned(),
        target_name: format!("{name}-moved"),
        machine,
        state: State::Defined,
        created: at(0),
        warnings: vec!["no guest agent".to_owned()],
        events: Vec::new(),
    }
}

fn event(id: Option<MigrationId>, text: &str) -> EventView {
    EventView {
        at: at(1),
        migration: id,
        by: "warmd".to_owned(),
        kind: EventKind::State,
        text: text.to_owned(),
    }
}

fn new_disk(key: &str, size: u64, reads_zero: bool) -> NewDisk {
    NewDisk {
        key: DiskKey(key.to_owned()),
        size: Length(size),
        location: format!("/pool/{key}.raw"),
        requested_location: None,
        reads_zero,
    }
}

/// A migration of a VM of that name, made.
async fn migration(store: &Store, name: &str) -> MigrationId {
    match store.create_migration(new_migration(name)).await.unwrap() {
        Created::New(row) => row.id,
        Created::Exists(row) => panic!("{name} is moved already by {}", row.id),
    }
}

/// A disk of a migration of its own.
async fn disk(store: &Store, name: &str, size: u64, reads_zero: bool) -> (MigrationId, DiskId) {
    let id = migration(store, name).await;
    let rows = store.save_disks(id, vec![new_disk("vda", size, reads_zero)]).await.unwrap();
    (id, rows[0].id)
}
