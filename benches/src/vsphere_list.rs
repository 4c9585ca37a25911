//! The case `vsphere-list-5000`: what a list of 5,001 VMs of a vCenter costs, over the rig of
//! `tests/vsphere`.
//!
//! Rule: there is no peer; the figures are compared with their bars. Each list is complete, and a change that
//! was made between two lists is in the second.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warmd_core::sources::Source as _;
use warmd_tests::{VsphereRig, vsphere::NAME};
use warmd_vsphere::source::VsphereSource;

use crate::{
    bars::{Bar, BarLimit},
    pairs::Bench,
    report::Row,
};

/// The case's name.
pub const NAME_OF_CASE: &str = "vsphere-list-5000";
const VMS: usize = 5000;
const QUICK: usize = 500;
/// Lists from memory.
const LISTS: usize = 10;
/// Bytes of the one VM with a disk.
const DISK: u64 = 1 << 20;

/// Runs it.
pub fn run(bench: &Bench) -> Result<(Vec<Row>, Vec<Bar>)> {
    let plain = if bench.quick { QUICK } else { VMS };
    let dir = tempfile::Builder::new().prefix("warmd-bench-").tempdir_in(&bench.below)?;
    let image = dir.path().join("disk");
    std::fs::File::create(&image)?.set_len(DISK)?;
    let rig = VsphereRig::over(dir.path(), &[image], &["-plain", &plain.to_string()])?;
    let (first_s, again_s) = tokio::runtime::Runtime::new()?.block_on(lists(&rig, plain + 1))?;
    println!("  {} VMs: the first list {first_s:.2} s, then from memory {again_s:.3} s", plain + 1);
    let bars = vec![Bar::new(NAME_OF_CASE, "a list from memory, in seconds", again_s, BarLimit::AtMost(5.0))];
    Ok((Vec::new(), bars))
}

/// Seconds of the first list, and of the slowest one from memory.
async fn lists(rig: &VsphereRig, count: usize) -> Result<(f64, f64)> {
    let source = VsphereSource::new(&rig.settings()?)?;
    let list = async || {
        let begun = Instant::now();
        let vms = source.vms().await?;
        ensure!(vms.len() == count, "{} of {count} VMs are listed", vms.len());
        anyhow::Ok((begun.elapsed().as_secs_f64(), vms))
    };
    let (first_s, _) = list().await?;
    let mut slowest = 0.0_f64;
    let mut name = NAME.to_owned();
    for number in 0..LISTS {
        let next = format!("{NAME}-{number}");
        rig.order("rename", &json!({"machine": name, "name": next}))?;
        name = next;
        let (took, vms) = list().await?;
        vms.iter().find(|vm| vm.name == name).context("a new name is not in the list")?;
        slowest = slowest.max(took);
    }
    Ok((first_s, slowest))
}
