//! Guests that virt-v2v converts.
//!
//! With programs that take virt-v2v's and guestfish's place, all that warmd does around them. With the real
//! ones, a guest that looks as if it came from VMware is inspected, and is moved warm, converted and started
//! on virtio: that takes long without KVM, and is run by `tests/conversion`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use warmd_tests::{
    GuestSpec, Rig, RigSpec,
    daemon::program,
    guest::{appliance, vmware_kit},
    run, wait_until,
};

/// The longest time of a boot of the real guest, of its conversion, and of the whole cutover.
const LONG: Duration = Duration::from_mins(25);

/// virt-v2v's place: `fails` and `old` are files beside it.
const V2V: &str = r#"#!/bin/bash
here=$(dirname "$0")
if [[ $1 == --version ]]; then
    if [[ -e $here/old ]]; then echo virt-v2v-in-place 1.44.2; else echo virt-v2v-in-place 2.2.0; fi
    exit
fi
echo "$@" >"$here/arguments"
# Its sockets are in a folder there, and no path of a socket may have more than 107 bytes.
mkdir "$TMPDIR/v2v.XXXXXX" && ((${#TMPDIR} < 80)) || exit 8
xml=${*: -1}
cp "$xml" "$here/domain.xml"
disk=$(grep -o "source file='[^']*'" "$xml" | head -n 1 | cut -d"'" -f2)
echo "[   0.0] Setting up the source: -i libvirtxml $xml"
# Between the boot loader and the first partition.
qemu-io -f qcow2 -c 'write -q -P 0xcc 960k 64k' "$disk" || exit 9
if [[ -e $here/fails ]]; then
    echo "virt-v2v-in-place: error: no installed kernel packages were found." >&2
    echo "If reporting bugs, run virt-v2v with debugging enabled" >&2
    exit 1
fi
echo "[  40.0] virt-v2v-in-place: This guest has virtio drivers installed."
"#;

/// guestfish's place: a Debian with one interface; `no-grub` is a file beside it, and commands are kept in
/// `asked`.
const FISH: &str = r#"#!/bin/bash
here=$(dirname "$0")
while IFS= read -r line; do
    case $line in
        "echo "*) echo "${line#echo }" ;;
        inspect-os) echo /dev/sda1 ;;
        "-inspect-get-type "*) echo linux ;;
        "-inspect-get-distro "*) echo debian ;;
        "-inspect-get-product-name "*) echo "Debian 12" ;;
        "-inspect-get-mountpoints "*) echo "/: /dev/sda1" ;;
        '-exists "/boot/grub/grub.cfg"') [[ -e $here/no-grub ]] || echo true ;;
        '-is-dir "/etc/systemd"' | '-is-file "/etc/network/interfaces"') echo true ;;
        '-head-n "2000" "/etc/network/interfaces"') echo "iface ens192 inet static" ;;
        *) echo "$line" >>"$here/asked" ;;
    esac
done
"#;

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Lines of a plan.
fn policy(conversion: &str) -> String {
    format!("graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"\n\n{conversion}\n")
}

#[test]
fn a_virt_v2v_that_fails_costs_no_copy_and_the_next_one_moves() {
    run(|dir| {
        let tools = dir.join("tools");
        fs::create_dir(&tools)?;
        write_program(&tools.join("virt-v2v-in-place"), V2V)?;
        write_program(&tools.join("guestfish"), FISH)?;
        let path = std::env::var("PATH").context("no PATH")?;
        let mut spec = RigSpec::new("converted", 4);
        spec.env = vec![("PATH".to_owned(), format!("{}:{path}", tools.display()))];
        (spec.guest.machine, spec.guest.nic) = ("pc", "e1000");
        for disk in &mut spec.guest.disks {
            disk.bus = "ide";
        }
        let mut rig = Rig::running(dir, &spec)?;
        rig.write_plan(&policy("[conversion]\ntool = \"virt-v2v\"\nroot = \"first\"\ntimeout = \"2m\""))?;
        rig.daemon.start()?;

        // A program that is too old is found before anything is copied.
        fs::write(tools.join("old"), "")?;
        let plan = rig.plan.to_string_lossy().into_owned();
        let refused = rig.ctl().outcome(&["plan", "apply", "-f", &plan], Duration::from_mins(1))?;
        let said = refused.stdout + &refused.stderr;
        ensure!(refused.code != Some(0), "an old virt-v2v is accepted");
        ensure!(said.contains("conversion-missing") && said.contains("1.44 is too old"), "it says {said}");
        ensure!(said.contains("apt-get install virt-v2v"), "what to install is not said: {said}");
        fs::remove_file(tools.join("old"))?;

        // What the inspection finds prevents a cutover, and is a pre-flight finding from then on.
        fs::write(tools.join("no-grub"), "")?;
        rig.apply()?;
        rig.wait_for("synced")?;
        let warnings = rig.show()?["warnings"].to_string();
        ensure!(
            warnings.contains("no boot loader") && warnings.contains("guest-not-convertible"),
            "{warnings}"
        );
        // Inspected while the source runs: nothing of it is left, and nothing is converted.
        ensure!(!tools.join("arguments").exists(), "virt-v2v ran before the cutover");
        rig.assert_no_overlays()?;
        let validated = rig.ctl().outcome(&["plan", "validate", "-f", &plan], Duration::from_mins(1))?;
        ensure!(
            validated.code != Some(0) && validated.stdout.contains("guest-not-convertible"),
            "{}",
            validated.stdout
        );
        let out = rig.try_verb("cutover", &[])?;
        ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        ensure!(out.stderr.contains("the source VM was not stopped: no boot loader"), "{}", out.stderr);
        rig.wait_for("synced")?;
        ensure!(rig.guest.console.boots()?.len() == 1, "the source was stopped");
        fs::remove_file(tools.join("no-grub"))?;
        rig.daemon.stop()?;
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        rig.verb("sync")?;
        let warnings = rig.show()?["warnings"].to_string();
        ensure!(!warnings.contains("inspected") && !warnings.contains("guest-"), "{warnings}");

        fs::write(tools.join("fails"), "")?;
        let out = rig.try_verb("cutover", &[])?;
        ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        ensure!(out.stderr.contains("no installed kernel packages were found"), "no reason: {}", out.stderr);
        rig.wait_for("synced")?;
        ensure!(rig.guest.state(&rig.old)? == "running", "the source is not on again");
        rig.assert_no_overlays()?;
        // The replica takes deltas: the next one copies what the guest wrote, and not everything.
        let before = rig.passes()?.len();
        let acked = rig.guest.console.acked()?;
        rig.guest.console.wait_for_acked(acked + 20, Duration::from_mins(1))?;
        rig.verb("sync")?;
        let passes = rig.passes()?;
        ensure!(passes.len() > before, "no pass after the failed conversion");
        let last = passes.last().context("no pass")?;
        let whole = passes.first().map_or(0, |pass| pass.pending);
        ensure!(last.error.is_none() && !last.unknown && last.pending < whole / 2, "{passes:#?}");

        fs::remove_file(tools.join("fails"))?;
        rig.verb("cutover")?;
        rig.assert_moved()?;
        rig.assert_no_overlays()?;
        let arguments = fs::read_to_string(tools.join("arguments"))?;
        ensure!(
            arguments.starts_with("-i libvirtxml --root first /"),
            "virt-v2v was called with {arguments}"
        );
        let domain = fs::read_to_string(tools.join("domain.xml"))?;
        ensure!(domain.contains("type='e1000'") && domain.matches("<disk ").count() == 2, "it read {domain}");
        let asked = fs::read_to_string(tools.join("asked"))?;
        let link =
            "write \"/etc/systemd/network/10-warmd-ens192.link\" \"[Match]\\nMACAddress=52:54:00:77:61:01\\n";
        ensure!(asked.contains(link), "the interface's name is not kept: {asked}");
        let xml = rig.new.virsh(["dumpxml", "converted"])?;
        ensure!(xml.matches("bus='virtio'").count() >= 2 && !xml.contains("bus='ide'"), "its disks: {xml}");
        ensure!(xml.contains("<model type='virtio'/>") && !xml.contains("e1000"), "its interface: {xml}");
        let conversion = &rig.report()?["conversion"];
        ensure!(conversion["command"][0] == "virt-v2v", "the report has {conversion}");
        ensure!(conversion["disks"][0]["changed"] == 64 * 1024, "it changed {conversion}");
        Ok(())
    });
}

#[test]
#[ignore = "guestfish takes minutes without KVM: tests/conversion"]
fn a_guest_from_vmware_is_seen_to_need_virtio() {
    run(|dir| {
        let disk = dir.join("disk.qcow2");
        fs::copy(vmware_kit("vmware-guest")?.join("disk.qcow2"), &disk)?;
        let before = fs::read(&disk)?;
        let guest = inspect(dir.path(), &disk)?;
        ensure!(guest["kind"] == "linux" && guest["distribution"] == "debian", "it is {guest}");
        ensure!(guest["roots"] == json!(["/dev/sda1"]) && guest["host_name"] == "shop", "it is {guest}");
        ensure!(guest["boot_loader"] == "grub2" && guest["vmware_tools"] == true, "it is {guest}");
        ensure!(guest["boots_on_virtio"] == false, "it is {guest}");
        ensure!(guest["named_by_place"] == json!(["/dev/sda2 (none)"]), "it is {guest}");
        ensure!(guest["unknown_interfaces"] == json!([]), "it is {guest}");
        ensure!(guest["rooms"][0]["free"].as_u64() > Some(100 << 20), "it is {guest}");
        ensure!(fs::read(&disk)? == before, "the inspection has written to the disk");
        Ok(())
    });
}

/// Runs the daemon's child as the daemon does.
fn inspect(dir: &Path, disk: &Path) -> Result<Value> {
    let answer = dir.join("guest.json");
    let input = json!({
        "disks": [{"key": "sda", "size": fs::metadata(disk)?.len(), "path": disk, "format": "qcow2"}],
        "machine": {
            "id": "1", "name": "shop", "uuid": "11111111-2222-4333-8444-555555555555", "firmware": "bios",
            "machine_type": "pc", "architecture": "x86_64", "cpu": {"sockets": 1, "cores": 1, "threads": 1},
            "memory": 512 << 20,
            "disks": [{"key": "sda", "size": 1, "bus": "scsi", "boot_order": 0, "location": "x", "untracked": null}],
            "nics": [{"mac": "52:54:00:77:61:01", "network": "default", "model": "vmxnet3"}],
        },
        "answer": answer,
    });
    let log = fs::File::create(dir.join("inspection.log"))?;
    let mut command = Command::new(program("warmd")?);
    command.args(["virt-v2v", "--inspect"]).envs(appliance()?);
    let mut child = command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
    child.stdin.take().context("no input")?.write_all(input.to_string().as_bytes())?;
    let ended = wait_until("the inspection", LONG, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
    }
    let status = ended?;
    let said = fs::read_to_string(dir.join("inspection.log"))?;
    ensure!(status.success(), "the inspection ended with {status}: {said}");
    Ok(serde_json::from_slice(&fs::read(answer)?)?)
}

#[test]
#[ignore = "virt-v2v takes minutes without KVM: tests/conversion"]
fn a_guest_from_vmware_boots_on_virtio_with_its_address() {
    run(|dir| {
        let mut spec = RigSpec::new("shop", 0);
        spec.guest = GuestSpec::from_vmware("shop")?;
        spec.env = appliance()?;
        let rig = Rig::off(dir, &spec)?;
        let took = moved(rig)?;
        for (what, seconds) in took {
            println!("{what:<32} {seconds:6.1} s");
        }
        Ok(())
    });
}

/// Moves the guest warm with three passes; returns what took how long.
fn moved(mut rig: Rig) -> Result<Vec<(&'static str, f64)>> {
    let mut took = Vec::new();
    let mut since = Instant::now();
    let mut lap = |what: &'static str| {
        took.push((what, since.elapsed().as_secs_f64()));
        since = Instant::now();
    };
    rig.old.virsh(["start", "shop"])?;
    rig.guest.console.wait_for_boot(1, LONG)?;
    lap("boot of the source");
    let said = rig.guest.console.text()?;
    ensure!(said.contains("root=/dev/sda1") && said.contains("driver=vmxnet3"), "not from VMware: {said}");
    ensure!(said.contains("nic=ens3") && said.contains("address=10.0.2.77/24"), "no address: {said}");

    rig.write_plan(&policy("[conversion]\ntool = \"virt-v2v\"\ntimeout = \"20m\""))?;
    rig.daemon.start()?;
    rig.apply()?;
    long_wait(&rig, "synced")?;
    lap("first pass, and inspection");
    let journal = journal(&rig)?;
    ensure!(journal.contains("no virtio in its initramfs"), "the guest was not inspected: {journal}");
    for pass in 0..2 {
        let acked = rig.guest.console.acked()?;
        rig.guest.console.wait_for_acked(acked + 20, LONG)?;
        rig.verb("sync").with_context(|| format!("delta {pass}"))?;
    }
    lap("two deltas");
    rig.try_verb("cutover", &["--no-wait"])?;
    long_wait(&rig, "done")?;
    lap("cutover with conversion");
    rig.target_console()?.wait_for_boot(1, LONG)?;
    lap("first record on the target");
    rig.assert_moved()?;
    let said = rig.target_console()?.text()?;
    ensure!(said.contains("root=/dev/vda1") && said.contains("driver=virtio_net"), "not on virtio: {said}");
    ensure!(
        said.contains("nic=ens3") && said.contains("address=10.0.2.77/24"),
        "its address is lost: {said}"
    );
    ensure!(said.contains("swap=/dev/vda2"), "its fstab names the old disk: {said}");
    let conversion = &rig.report()?["conversion"];
    let changed = conversion["disks"][0]["changed"].as_u64().context("nothing is said to have changed")?;
    ensure!(changed < 256 << 20, "free space counts as changed: {changed} bytes");
    println!("virt-v2v changed {} MiB", changed >> 20);
    Ok(took)
}

fn long_wait(rig: &Rig, state: &str) -> Result<()> {
    wait_until(&format!("the migration to be {state}"), LONG, || {
        let view = rig.show()?;
        ensure!(view["state"] != "failed", "it failed: {}", view["reason"]);
        ensure!(view["cutover"]["failure"].is_null(), "it was undone: {}", view["cutover"]["failure"]);
        Ok((view["state"] == state).then_some(()))
    })
}

fn journal(rig: &Rig) -> Result<String> {
    rig.ctl().text(&["events", "--limit", "1000"])
}
