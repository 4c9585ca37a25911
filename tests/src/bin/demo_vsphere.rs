//! The demo of the way out of VMware: a running Debian, on a simulated vCenter, is moved warm, converted by
//! virt-v2v, and boots on virtio under libvirt, without a loss and with its address.
//!
//! The simulated vCenter's disk is the guest's real disk: QEMU runs the guest over it, with VMware's
//! controller and network card, and warmd reads it through nbdkit's real vddk plugin.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use warmd_tests::{
    Console, Daemon, Libvirtd, TestDir, VsphereRig,
    demonstration::{self, check_log, say, show, target_console, wait_synced},
    guest::{appliance, vmware_kit},
    tool,
};

/// For each step: without KVM a conversion takes minutes.
const LONG: Duration = Duration::from_mins(25);
const MAC: &str = "00:50:56:77:61:01";

fn main() -> ExitCode {
    demonstration::run("demo-vsphere", demo)
}

/// The VM, as the simulator describes machines.
fn machine(disk: &Path) -> Value {
    json!({
        "name": "shop", "cpus": 1, "memory_mb": 512, "guest_id": "debian12_64Guest",
        "disks": [{"file": disk, "controller": "pvscsi"}],
        "networks": [{"type": "vmxnet3", "mac": MAC, "network": "VM Network"}],
    })
}

fn demo(dir: &TestDir) -> Result<()> {
    say(
        "a vCenter (simulated) with a Debian that writes all the time: pvscsi, vmxnet3, no virtio in its initramfs",
    );
    let kit = vmware_kit("vmware-guest")?;
    let disk = dir.join("shop.raw");
    let convert = ["convert", "-O", "raw"].map(Path::new);
    tool::call("qemu-img", convert.into_iter().chain([kit.join("disk.qcow2").as_path(), disk.as_path()]))?;
    let vcenter = VsphereRig::start_with_guest(dir, &machine(&disk))?;
    let source = vcenter.guest_console()?;
    source.wait_for_boot(1, LONG)?;
    let acked = source.wait_for_acked(20, LONG)?;
    print_guest(&source)?;
    println!("{acked} records acknowledged so far");

    say("warmd serve");
    let new = Libvirtd::start_at(dir.join("new"))?;
    let volumes = dir.join("volumes");
    fs::create_dir(&volumes)?;
    let config = config(dir, &vcenter, &new, &volumes)?;
    let mut daemon = Daemon::configure(dir, dir.join("warmd.sock"), &config)?.with_env(appliance()?);
    daemon.start()?;
    let ctl = daemon.ctl();
    show(&ctl, LONG, &["source", "vms", "old"])?;

    say("warmctl plan apply -f plan.toml");
    let plan = dir.join("plan.toml");
    fs::write(&plan, PLAN)?;
    print!("{PLAN}");
    show(&ctl, LONG, &["plan", "apply", "-f", &plan.to_string_lossy()])?;
    wait_synced(&ctl, "shop", LONG)?;
    show(&ctl, LONG, &["migration", "show", "shop"])?;
    let journal = ctl.text(&["events", "--wide", "shop"])?;
    let read = journal.lines().find(|line| line.contains("no virtio in its initramfs"));
    println!("{}", read.context("the guest was not inspected")?);

    say("two deltas, while the guest goes on writing");
    for more in [30, 60] {
        source.wait_for_acked(acked + more, LONG)?;
        show(&ctl, LONG, &["migration", "sync", "shop"])?;
    }

    say("warmctl migration cutover shop");
    let began = Instant::now();
    show(&ctl, LONG, &["migration", "cutover", "shop"])?;
    println!("the cutover took {:.0} s", began.elapsed().as_secs_f64());
    let last = source.acked()?;
    println!("the source is off; the last record that it acknowledged is {last}");

    say("the target guest, booted from the converted disk");
    let console = target_console(&volumes, LONG)?;
    let found = check_log(&console, last, LONG)?;
    print_guest(&console)?;
    let text = console.text()?;
    ensure!(text.contains("driver=virtio_net") && text.contains("root=/dev/vda1"), "it is not on virtio");
    ensure!(text.contains("address=10.0.2.77/24"), "its address is lost");
    println!("its log is complete up to record {found}: nothing that was acknowledged is lost");
    let on = console.wait_for_acked(found + 10, LONG)?;
    println!("it goes on counting: record {on} is acknowledged by the target guest");

    vcenter.assert_clean()?;
    let power = &vcenter.machine()?["power"];
    ensure!(power == "poweredOff", "the source VM is {power} after the cutover");
    let report: Value =
        serde_json::from_str(&ctl.text(&["migration", "report", "shop", "--format", "json"])?)?;
    let passes = report["passes"].as_array().map_or(0, Vec::len);
    ensure!(passes >= 3, "only {passes} passes are in the report");
    let downtime = report["downtime"].as_f64().context("the report has no downtime")?;
    let phases = report["cutover"].as_array().context("the report has no phases")?;
    let converted = phases.iter().find(|phase| phase["phase"] == "convert").context("no conversion")?;
    println!("convert: {}", converted["outcome"].as_str().unwrap_or_default());
    say(&format!(
        "moved from the vCenter in {passes} passes with {downtime:.1} s of downtime, no record lost: the demo PASSED"
    ));
    daemon.stop()?;
    Ok(())
}

/// What the guest says that it runs on.
fn print_guest(console: &Console) -> Result<()> {
    for line in console.text()?.lines().filter(|line| line.starts_with("GUEST ")) {
        println!("{}", line.trim_end());
    }
    Ok(())
}

const PLAN: &str = r#"name = "shop"
source = "old"
target = "new"
vms = ["shop"]
conversion = "virt-v2v"

[schedule]
interval = "1h"

[cutover]
graceful_shutdown = "5m"
force_power_off = false
min_uptime = "5s"

[verify]
mode = "compare"

[networks]
"VM Network" = "user"
"#;

fn config(dir: &TestDir, vcenter: &VsphereRig, new: &Libvirtd, volumes: &Path) -> Result<String> {
    let here = dir.path().display();
    Ok(format!(
        "state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/warmd.sock\"\n\n{}\n\
         [[target]]\nname = \"new\"\nkind = \"libvirt\"\nuri = \"{}\"\ndirectory = \"{}\"\ndomain_type = \"qemu\"\n",
        vcenter.config()?,
        new.uri(),
        volumes.display()
    ))
}
