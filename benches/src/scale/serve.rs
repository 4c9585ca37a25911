//! The daemon that is measured: warmd's own code over simulated endpoints in memory.
//!
//! Rule: the parent process sends commands on standard input (whether the guests write) and ends the daemon
//! by closing it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio_util::sync::CancellationToken;
use warmd_cbt::limit::Limit;
use warmd_core::control::EndpointInfo;
use warmd_daemon::{app, config::Config};
use warmd_migration::manager::{Endpoints, OpenEndpoint};
use warmd_tests::simulated::{Fleet, FleetSource, FleetTarget};

use super::{Size, plan};

/// How often guests write, and which share of them each time.
const BEAT: Duration = Duration::from_millis(250);
const PART: usize = 20;

/// The daemon's configuration.
pub fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "state_dir = \"{dir}/state\"\n[listen]\nsocket = \"{dir}/warmd.sock\"\n[log]\nlevel = \"warn\"\n\
         [engine]\nchunk = \"64KiB\"\n"
    )
}

/// Serves until standard input is closed.
pub fn serve(dir: &Path, size: Size) -> Result<()> {
    let config = Config::parse(&config(dir), "benches/scale")?;
    config.log.start();
    let vms = plan::vms(size);
    let names: Vec<_> = vms.iter().map(|vm| vm.name.clone()).collect();
    let fleet = Fleet::new(vms);
    let endpoint = |name: &str| EndpointInfo {
        name: name.to_owned(),
        kind: "simulated".to_owned(),
        address: "memory".to_owned(),
    };
    let limit = Limit::default();
    let mut endpoints = Endpoints::default();
    let handle = Arc::new(FleetSource(fleet.clone(), "s".to_owned())) as _;
    endpoints.sources.insert("s".to_owned(), OpenEndpoint { endpoint: endpoint("s"), limit, handle });
    let handle = Arc::new(FleetTarget(fleet.clone())) as _;
    endpoints.targets.insert("t".to_owned(), OpenEndpoint { endpoint: endpoint("t"), limit, handle });

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime
        .block_on(async {
            let (shutdown, writing) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
            tokio::spawn(guests(fleet, names, size.disks, Arc::clone(&writing)));
            let stop = shutdown.clone();
            std::thread::Builder::new().name("orders".to_owned()).spawn(move || orders(&writing, &stop))?;
            app::serve_over(config, endpoints, shutdown).await
        })
        .context("the daemon")
}

/// Executes the commands, one per line.
fn orders(writing: &AtomicBool, shutdown: &CancellationToken) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        writing.store(line == "write", Relaxed);
    }
    shutdown.cancel();
}

/// Lets the guests write in turn, each to one of its disks.
async fn guests(fleet: Fleet, names: Vec<String>, disks: usize, writing: Arc<AtomicBool>) {
    let mut beat = tokio::time::interval(BEAT);
    for at in 0_usize.. {
        beat.tick().await;
        if !writing.load(Relaxed) {
            continue;
        }
        for name in names.iter().skip(at % PART).step_by(PART) {
            let (disk, page) = (at / PART % disks, at as u64 % 16);
            fleet.world(name).guest_writes(&format!("vd{disk}"), page << 12, &[at as u8; 512]);
        }
    }
}
