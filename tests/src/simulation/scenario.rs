//! The scenario of a seed: the VMs, the faults, their frequency and duration.

use std::time::Duration;

use warmd_cbt::{transfer::TransferSettings, units::BLOCK};
use warmd_core::model::{
    plan::{Plan, VerifyMode},
    verify::Amount,
};
use warmd_migration::audit::AuditAmount;

use super::{chance::Chance, groups};

/// One VM to be moved.
#[derive(Clone, Debug)]
pub(super) struct VmScene {
    pub(super) name: String,
    /// Sizes in bytes, by key.
    pub(super) disks: Vec<(String, u64)>,
    /// Whether it obeys a request to shut down.
    pub(super) heeds_shutdown: bool,
    /// Whether it is cancelled at the end, instead of being moved.
    pub(super) give_up: bool,
}

/// The scenario.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) vms: Vec<VmScene>,
    pub(super) plan: Plan,
    pub(super) settings: TransferSettings,
    pub(super) buffers: usize,
    pub(super) audit: AuditAmount,
    /// Whether fresh target disks are known to read as zeroes.
    pub(super) reads_zero: bool,
    /// How often a call fails, in 1000.
    pub(super) faults: u64,
    /// How often a commit of the store fails, in 1000.
    pub(super) store_faults: u64,
    /// How often the daemon dies.
    pub(super) crashes: u32,
    /// Whether the durable state is restored from an older copy between two lives of the daemon.
    pub(super) restores: bool,
    /// How long faults happen before all migrations run undisturbed to their end.
    pub(super) chaos: Duration,
    /// Whether others interfere: power, marks, the target's disks and its host.
    pub(super) meddling: bool,
    /// The longest time between two writes of a guest, in milliseconds.
    pub(super) guest_pause: u64,
}

impl Scenario {
    /// The scenario from `chance`; `together` decides about groups.
    pub(super) fn new(chance: &mut Chance, together: &mut Chance) -> Self {
        let vms: Vec<_> = (0..chance.weighted(&[(6, 1), (2, 2), (1, 3)])).map(|at| vm(at, chance)).collect();
        let verify = chance.one_of(&[VerifyMode::None, VerifyMode::Readback, VerifyMode::Compare]);
        let names: Vec<_> = vms.iter().map(|vm| format!("{:?}", vm.name)).collect();
        let (keys, tiers) = groups::keys(&names, together).unwrap_or_default();
        let text = format!(
            "name = \"plan\"\nsource = \"s\"\ntarget = \"t\"\nvms = [{}]\n[schedule]\ninterval = \"{}s\"\n[cutover]\n\
             graceful_shutdown = \"2s\"\nforce_power_off = {}\ndelta_deadline = \"{}s\"\nverify_deadline = \"60s\"\n\
             create_deadline = \"30s\"\nmin_uptime = \"{}s\"\n{keys}{tiers}",
            names.join(", "),
            chance.between(5, 90),
            chance.happens(500),
            chance.one_of(&[5, 30, 120]),
            chance.between(1, 10),
        );
        let mut plan: Plan = toml::from_str(&text).expect("the simulation's own plan");
        plan.verify.mode = verify;
        let settings = TransferSettings {
            chunk: chance.one_of(&[1, 2, 4]) * BLOCK as usize,
            buffers: chance.between(1, 6) as usize,
            reads_in_flight: chance.between(1, 8) as usize,
            writes_in_flight: chance.between(1, 8) as usize,
            batch_bytes: chance.one_of(&[1, 3, 8, 64]) * BLOCK,
            batch_time: chance.millis(5, 2000),
            window: chance.one_of(&[1, 4, 16, 1024]) * BLOCK,
            zero_request: chance.one_of(&[1, 2, 64]) * BLOCK,
            ..TransferSettings::default()
        };
        Self {
            vms,
            plan,
            settings,
            buffers: chance.between(2, 6) as usize,
            audit: AuditAmount {
                amount: chance.one_of(&[Amount::Share(0), Amount::Share(10_000), Amount::Share(1_000_000)]),
                ..AuditAmount::default()
            },
            reads_zero: chance.happens(500),
            faults: chance.weighted(&[(2, 0), (3, 10), (3, 40), (2, 150)]),
            store_faults: chance.weighted(&[(6, 0), (3, 5), (1, 40)]),
            crashes: chance.weighted(&[(3, 0), (3, 1), (2, 2), (1, 4)]),
            chaos: chance.millis(5000, 60_000),
            meddling: chance.happens(400),
            restores: chance.happens(300),
            guest_pause: chance.one_of(&[300, 3000, 15_000]),
        }
    }
}

fn vm(at: u64, chance: &mut Chance) -> VmScene {
    let disks = (0..chance.weighted(&[(5, 1), (3, 2), (1, 3)])).map(|disk| {
        let tail = if chance.happens(300) { 512 * chance.between(1, 127) } else { 0 };
        (format!("vd{}", (b'a' + disk) as char), chance.magnitude(12) * BLOCK + tail)
    });
    VmScene {
        name: format!("vm{at}"),
        disks: disks.collect(),
        heeds_shutdown: chance.happens(850),
        give_up: chance.happens(150),
    }
}
