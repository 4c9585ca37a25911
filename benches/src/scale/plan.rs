//! The VMs, and the plan that moves them.

use std::fmt::Write as _;

use warmd_tests::simulated::FleetVm;

use super::Size;

/// The plan's name.
pub const PLAN: &str = "wave";
/// Bytes of each disk. A pass and a restart cost by what has changed, not by the size of a disk.
const DISK: u64 = 64 << 10;
const HOSTS: usize = 16;
const STORES: usize = 8;

/// The VMs of `size`, spread over hosts and datastores.
pub fn vms(size: Size) -> Vec<FleetVm> {
    let vm = |at: usize| FleetVm {
        name: name(at),
        plan: PLAN.to_owned(),
        source: "s".to_owned(),
        host: format!("host-{}", at % HOSTS),
        disks: (0..size.disks)
            .map(|disk| (format!("vd{disk}"), DISK, format!("store-{}", (at + disk) % STORES)))
            .collect(),
    };
    (0..size.vms).map(vm).collect()
}

/// A plan with a pass every `seconds` seconds.
pub fn often(size: Size, seconds: u64) -> String {
    text(size, &format!("interval = \"{seconds}s\""), "")
}

/// A plan with every kind of schedule setting, and no pass soon.
pub fn rare(size: Size) -> String {
    let times = "adaptive = { rpo = \"20h\", shortest = \"10h\", longest = \"20h\" }\nzone = \"Europe/Berlin\"\n\
                 holidays = [\"12-25\", \"01-01\"]\n\
                 [schedule.copy]\nblackouts = [\"Mon-Fri except holidays 03:00–03:01\"]\n\
                 [schedule.cutover]\nwindows = [\"1999-01-01\", \"2099-01-01\"]\nblackouts = [\"holidays\"]\n\
                 [[schedule.quotas]]\nwindow = \"Mon-Fri 06:00–20:00\"\nbytes_per_second = \"1GiB\"\n\
                 [[schedule.quotas]]\npasses = 64";
    text(size, times, "mode = \"auto\"\nmax_downtime = \"5m\"")
}

fn text(size: Size, schedule: &str, cutover: &str) -> String {
    let names: Vec<_> = (0..size.vms).map(|at| format!("\"{}\"", name(at))).collect();
    let mut text = String::new();
    write!(
        text,
        "name = \"{PLAN}\"\nsource = \"s\"\ntarget = \"t\"\nvms = [{}]\n[schedule]\n{schedule}\n[cutover]\n{cutover}\n",
        names.join(", ")
    )
    .ok();
    text
}

fn name(at: usize) -> String {
    format!("vm-{at:04}")
}
