//! Target `disk` keeps the contract of targets: on files, block devices and NBD exports, with and without a
//! provisioner.

use std::{collections::BTreeMap, path::Path, process::Child, time::Duration};

use anyhow::{Context as _, Result, ensure};
use warmd_cbt::units::Length;
use warmd_core::model::id::{DiskKey, MigrationId};
use warmd_core::targets::{CreateMachine, DiskSpec, MachineState, Target, TargetErrorKind as Kind};
use warmd_endpoint_disk::{DiskTarget, DiskTargetSettings, ProvisionerSettings};
use warmd_tests::{
    Libvirtd, TestDir, asynchronous,
    contract::target::{Bench, EVEN, ODD, fails_with, machine, target_contract},
    run,
    scratch::{Loop, NbdServer},
    wait_until,
};

fn settings(dir: &TestDir) -> Result<DiskTargetSettings> {
    let directory = dir.join("disks");
    std::fs::create_dir_all(&directory)?;
    Ok(DiskTargetSettings { directory, storages: BTreeMap::new(), provisioner: None })
}

/// The directory's content, at any depth, except the empty directory of claims.
fn left(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            names.extend(left(&path)?);
            if !path.ends_with(".claims") {
                names.push(path.display().to_string());
            }
        } else {
            names.push(path.display().to_string());
        }
    }
    Ok(names)
}

fn unmanaged(name: &str, size: Length) -> Bench {
    Bench { manages: false, ..Bench::new(name, size) }
}

async fn keeps_the_contract(settings: &DiskTargetSettings, bench: &Bench) -> Result<()> {
    let target = DiskTarget::new(settings)?;
    target_contract(&target, bench).await?;
    let left = left(&settings.directory)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn on_files() {
    run(|dir| {
        let settings = settings(dir)?;
        asynchronous(async { keeps_the_contract(&settings, &unmanaged("files", ODD)).await })
    });
}

#[test]
fn on_block_devices() {
    run(|dir| {
        let settings = settings(dir)?;
        let devices = [Loop::new(&dir.join("a"), EVEN.0)?, Loop::new(&dir.join("b"), EVEN.0)?];
        let bench = unmanaged("devices", EVEN).at([&devices[0].place(), &devices[1].place()]);
        asynchronous(async { keeps_the_contract(&settings, &bench).await })
    });
}

#[test]
fn on_files_that_the_operator_made() {
    run(|dir| {
        let settings = settings(dir)?;
        let paths = ["a", "b"].map(|name| dir.join(name).display().to_string());
        for path in &paths {
            std::fs::File::create(path)?.set_len(ODD.0)?;
        }
        let bench = unmanaged("existing", ODD).at([&paths[0], &paths[1]]);
        asynchronous(async { keeps_the_contract(&settings, &bench).await })?;
        ensure!(paths.iter().all(|path| Path::new(path).exists()), "the operator's files were removed");
        Ok(())
    });
}

#[test]
fn on_nbd_exports() {
    run(|dir| {
        let settings = settings(dir)?;
        let servers = [
            NbdServer::qemu(dir, "a", EVEN.0)?,
            NbdServer::nbdkit(dir, "b", ["memory", &EVEN.0.to_string()])?,
        ];
        let bench = unmanaged("exports", EVEN).at([&servers[0].uri(), &servers[1].uri()]);
        asynchronous(async { keeps_the_contract(&settings, &Bench { locks: false, ..bench }).await })
    });
}

#[test]
fn in_two_storages() {
    run(|dir| {
        let storages = ["fast", "slow"].map(|name| (name.to_owned(), dir.join(name)));
        for (_, directory) in &storages {
            std::fs::create_dir_all(directory)?;
        }
        let settings = DiskTargetSettings { storages: BTreeMap::from(storages.clone()), ..settings(dir)? };
        let bench = unmanaged("storages", ODD).in_storages(["fast", "slow"]);
        asynchronous(async { keeps_the_contract(&settings, &bench).await })?;
        for (_, directory) in &storages {
            let left = left(directory)?;
            ensure!(left.is_empty(), "left behind: {left:?}");
        }
        Ok(())
    });
}

#[test]
fn an_export_that_cannot_flush_is_refused() {
    run(|dir| {
        let settings = settings(dir)?;
        let script = "case \"$1\" in get_size) echo 1048576;; can_write) exit 0;; can_flush) exit 3;; pread) dd \
                      if=/dev/zero bs=$3 count=1 2>/dev/null;; pwrite) cat >/dev/null;; *) exit 2;; esac";
        let server = NbdServer::nbdkit(
            dir,
            "s",
            [
                "eval",
                &format!("get_size={script}"),
                &format!("pread={script}"),
                &format!("pwrite={script}"),
                &format!("can_write={script}"),
                &format!("can_flush={script}"),
            ],
        )?;
        let key = DiskKey("vda".to_owned());
        let disk = DiskSpec { key, size: Length(1 << 20), place: Some(server.uri()) };
        asynchronous(async {
            let target = DiskTarget::new(&settings)?;
            fails_with(Kind::Refused, "no FLUSH", target.prepare(MigrationId::generate(), &[disk]).await)
        })
    });
}

#[test]
fn the_machine_is_described_beside_its_disks() {
    run(|dir| {
        let settings = settings(dir)?;
        asynchronous(async {
            let target = DiskTarget::new(&settings)?;
            let owner = MigrationId::generate();
            let size = Length(1 << 20);
            let disks = vec![DiskSpec { key: DiskKey("vda".to_owned()), size, place: None }];
            let prepared = target.prepare(owner, &disks).await?;
            let machine = machine("source", [("vda", size)]);
            target
                .create(&CreateMachine { owner, name: "moved".to_owned(), machine, disks: disks.clone() })
                .await?;
            let path = settings.directory.join(owner.to_string()).join("machine.json");
            let text = std::fs::read_to_string(&path).context("no description")?;
            let json: serde_json::Value = serde_json::from_str(&text)?;
            ensure!(json["migration"] == owner.to_string() && json["name"] == "moved", "{text}");
            ensure!(json["disks"][0]["location"] == prepared[0].location.as_str(), "{text}");
            ensure!(json["machine"]["nics"][0]["mac"] == "52:54:00:00:00:7a", "{text}");
            ensure!(target.look(owner).await? == MachineState::NotManaged, "it is managed");
            Ok(())
        })
    });
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    run(|dir| {
        let settings = DiskTargetSettings { directory: dir.join("not mounted"), ..settings(dir)? };
        asynchronous(async {
            let target = DiskTarget::new(&settings)?;
            fails_with(Kind::Refused, "check", target.check().await)?;
            let disks = Bench::new("x", ODD).disks;
            fails_with(Kind::Refused, "prepare", target.prepare(MigrationId::generate(), &disks).await)?;
            ensure!(!settings.directory.exists(), "it was made");
            Ok(())
        })
    });
}

/// The example provisioner as a separate process.
struct Provisioner {
    child: Child,
    address: String,
}

impl Provisioner {
    fn start(dir: &TestDir, libvirt: &Libvirtd) -> Result<Self> {
        let socket = dir.join("provisioner.sock");
        let directory = dir.join("provisioner");
        std::fs::create_dir_all(&directory)?;
        let address = format!("unix:{}", socket.display());
        let log = std::fs::File::options().create(true).append(true).open(dir.join("provisioner.log"))?;
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_provisioner"))
            .args(["--listen", &address, "--uri", libvirt.uri(), "--domain-type", "qemu", "--directory"])
            .arg(directory)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let provisioner = Self { child, address };
        wait_until("the provisioner to listen", Duration::from_mins(2), || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        Ok(provisioner)
    }

    fn settings(&self, dir: &TestDir, deadline: Duration) -> Result<DiskTargetSettings> {
        let provisioner = Some(ProvisionerSettings { address: self.address.clone(), deadline });
        Ok(DiskTargetSettings { provisioner, ..settings(dir)? })
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn with_a_provisioner() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let provisioner = Provisioner::start(dir, &libvirt)?;
        let settings = provisioner.settings(dir, Duration::from_mins(1))?;
        let mut bench = Bench::new("provisioned", EVEN);
        // Only machines whose disks the provisioner knows occupy the name.
        bench.machine.memory = Length(64 << 20);
        asynchronous(async { keeps_the_contract(&settings, &bench).await })?;
        ensure!(libvirt.virsh(["list", "--all", "--name"])?.trim().is_empty(), "a domain is left");
        Ok(())
    });
}

#[test]
fn a_provisioner_that_ends_and_comes_back() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let provisioner = Provisioner::start(dir, &libvirt)?;
        let settings = provisioner.settings(dir, Duration::from_secs(20))?;
        asynchronous(async {
            let target = DiskTarget::new(&settings)?;
            let owner = MigrationId::generate();
            let bench = Bench::new("comes-back", EVEN);
            target.prepare(owner, &bench.disks).await?;
            let request =
                CreateMachine { owner, name: bench.name, machine: bench.machine, disks: bench.disks };
            target.create(&request).await?;
            drop(provisioner);
            fails_with(Kind::Unreachable, "nobody listens", target.create(&request).await)?;
            fails_with(Kind::Unreachable, "nobody listens", target.start(owner).await)?;
            let _provisioner = Provisioner::start(dir, &libvirt)?;
            target.create(&request).await.context("the same machine after a restart")?;
            target.start(owner).await?;
            ensure!(target.look(owner).await? == MachineState::Running, "it does not run");
            ensure!(libvirt.virsh(["list", "--all", "--name"])?.trim() == "comes-back", "not one domain");
            Ok(())
        })
    });
}

#[test]
fn a_provisioner_that_says_nothing_costs_a_deadline() {
    run(|dir| {
        let socket = dir.join("deaf.sock");
        let _deaf = std::os::unix::net::UnixListener::bind(&socket)?;
        let address = format!("unix:{}", socket.display());
        let provisioner = Some(ProvisionerSettings { address, deadline: Duration::from_millis(300) });
        let settings = DiskTargetSettings { provisioner, ..settings(dir)? };
        asynchronous(async {
            let target = DiskTarget::new(&settings)?;
            fails_with(Kind::Timeout, "a deaf provisioner", target.start(MigrationId::generate()).await)
        })
    });
}
