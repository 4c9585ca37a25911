//! Disks of a VM's snapshot behind nbdkit's vddk plugin, as the source `vsphere` reads them, over the rig of
//! `tests/vsphere`.
//!
//! Rule: one snapshot for all runs of a case; nbdkit is started again for each run, one for each disk, by the
//! same command for all sides.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use warmd_tests::{VsphereRig, vsphere::NAME};

use crate::servers::{Brake, Server};

/// A VM with these disks, and its snapshot.
#[derive(Debug)]
pub struct VddkSource {
    rig: VsphereRig,
    /// As the simulator knows it.
    machine: Value,
    snapshot: String,
}

impl VddkSource {
    /// Starts the rig over the images, in a new directory, and makes the snapshot of their present state.
    pub fn start(dir: &Path, images: &[PathBuf], brake: Brake) -> Result<Self> {
        let rig = VsphereRig::over(dir, images, &[])?;
        if brake.read_delay_ms > 0 {
            let settings = Path::new(rig.place("libdir")?).join("standin.conf");
            let text = std::fs::read_to_string(&settings)?;
            std::fs::write(&settings, format!("{text}latency_ms={}\n", brake.read_delay_ms))?;
        }
        // Names of files are those of the snapshot: the VM's own are another layer from then on.
        let machine = rig.machine()?;
        let made = rig.order("snapshot", &json!({"machine": NAME, "name": "bench"}))?;
        let snapshot = made["snapshot"].as_str().context("no snapshot")?.to_owned();
        Ok(Self { rig, machine, snapshot })
    }

    /// Serves a disk of the snapshot on a new socket.
    pub fn serve(&self, disk: usize, socket: PathBuf) -> Result<Server> {
        let place = |key: &str| self.rig.place(key);
        let known = |value: &Value| value.as_str().map(str::to_owned).context("the rig does not say it");
        let address = place("address")?;
        let (host, port) = address.rsplit_once(':').context("the rig's address has no port")?;
        let words = [
            "--readonly".to_owned(),
            "--filter=retry-request".to_owned(),
            "--filter=cacheextents".to_owned(),
            place("plugin")?.to_owned(),
            format!("libdir={}", place("libdir")?),
            format!("server={host}"),
            format!("port={port}"),
            format!("user={}", place("user")?),
            format!("password=+{}", place("password_file")?),
            format!("thumbprint={}", place("thumbprint_sha1")?),
            format!("vm=moref={}", known(&self.machine["id"])?),
            format!("snapshot={}", self.snapshot),
            "transports=nbdssl:nbd".to_owned(),
            "compression=none".to_owned(),
            format!("file={}", known(&self.machine["disks"][disk]["name"])?),
        ];
        Server::nbdkit(socket, words)
    }
}
