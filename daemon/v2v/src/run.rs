//! The child process: reads its input, runs the tools, and writes the answer.
//!
//! ```text
//! convert: guestfish (names of interfaces) ─▶ virt-v2v-in-place ─▶ virt-customize (scripts) ─▶ machine
//! inspect: guestfish, read-only ─▶ guest
//! ```
//!
//! Rule: standard output and error are progress for people. The result is the answer's file alone, written
//! last; an error ends the process with another code than 0, and leaves the disks to the daemon.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    process::ExitCode,
};

use warmd_core::model::machine::Machine;

use crate::{
    appliance::Appliance,
    arguments, domain,
    fish::Fish,
    guest::Guest,
    input::Input,
    interfaces, read_guest, result,
    tools::{self, Version},
};

/// The name of the daemon's subcommand that calls [`main`].
pub const SUBCOMMAND: &str = "virt-v2v";
/// The argument with which it inspects, and does not convert.
pub const INSPECT: &str = "--inspect";

/// The most bytes of a machine that virt-v2v writes.
const MOST: u64 = 1 << 20;
/// The most bytes of a line of its output.
const LINE: u64 = 1 << 16;

/// The child's work; returns its exit code.
pub fn main(inspects: bool) -> ExitCode {
    let done = if inspects { inspect() } else { convert() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // After the tools' own lines, which say why.
            eprintln!("warmd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn input() -> io::Result<(Input, Appliance)> {
    let mut json = String::new();
    io::stdin().read_to_string(&mut json)?;
    let input: Input = serde_json::from_str(&json)?;
    let appliance = Appliance::prepare(input.folder()?)?;
    Ok((input, appliance))
}

fn convert() -> io::Result<()> {
    let (input, appliance) = input()?;
    let options = &input.virt_v2v;
    let version = tools::ready(!options.first_boot.is_empty()).map_err(io::Error::other)?;
    say("reading the guest")?;
    keep_names(&input, &appliance)?;
    let machine = in_place(&input, &appliance, version)?;
    first_boot(&input, &appliance)?;
    serde_json::to_writer(fs::File::create(&input.answer)?, &machine)?;
    Ok(())
}

fn inspect() -> io::Result<()> {
    let (input, appliance) = input()?;
    tools::ready_to_inspect().map_err(io::Error::other)?;
    let mut fish = fish(&input, &appliance, "--ro")?;
    let mut guest = read_guest::mount(&mut fish, &input.virt_v2v)?;
    if !guest.kind.is_empty() {
        read_guest::read(&mut fish, &mut guest, &input.machine, &input.virt_v2v)?;
    }
    fish.finish()?;
    serde_json::to_writer(fs::File::create(&input.answer)?, &guest)?;
    say(&guest.summary())
}

fn fish(input: &Input, appliance: &Appliance, mode: &str) -> io::Result<Fish> {
    let mut arguments = vec![mode.to_owned()];
    for disk in domain::in_order(&input.machine, &input.disks) {
        arguments.extend([format!("--format={}", disk.format), "-a".to_owned()]);
        arguments.push(disk.path.display().to_string());
    }
    let keys = arguments::keys(&input.virt_v2v);
    if !keys.is_empty() {
        arguments.extend(keys);
        arguments.push("-i".to_owned());
    }
    Fish::start(appliance, &arguments)
}

/// Writes the files that keep the names of a Linux guest's interfaces. Before virt-v2v, which makes a
/// new initramfs: this has the interface's driver then, and needs the name too.
fn keep_names(input: &Input, appliance: &Appliance) -> io::Result<()> {
    let mut fish = fish(input, appliance, "--rw")?;
    let guest = read_guest::mount(&mut fish, &input.virt_v2v)?;
    if guest.kind == "linux" {
        write_links(&mut fish, input, &guest)?;
    }
    fish.finish()
}

fn write_links(fish: &mut Fish, input: &Input, guest: &Guest) -> io::Result<()> {
    let files = read_guest::network_files(fish)?;
    let names = interfaces::names(&input.virt_v2v.interfaces, &input.machine.nics, &files);
    say(&format!("{} runs {}", guest.host_name, guest.system()))?;
    for name in &names.unknown {
        say(&format!(
            "warning: the MAC address of interface {name} is not known, and its name may change: name it in `interfaces`"
        ))?;
    }
    if names.kept.is_empty() {
        return Ok(());
    }
    if fish.ask(&["is-dir", "/etc/systemd"])?.trim() != "true" {
        return say("warning: the guest has no systemd, and names of its interfaces may change");
    }
    fish.must(&["mkdir-p", "/etc/systemd/network"])?;
    for (mac, name) in &names.kept {
        let (path, text) = interfaces::link(mac, name);
        fish.must(&["write", &path, &text])?;
        say(&format!("interface {mac} keeps the name {name}"))?;
    }
    Ok(())
}

/// Runs virt-v2v; returns the machine as it is now.
fn in_place(input: &Input, appliance: &Appliance, version: Version) -> io::Result<Machine> {
    let folder = input.folder()?;
    let (domain, back) = (folder.join("domain.xml"), folder.join("converted.xml"));
    let text = domain::xml(&input.machine, &input.disks).map_err(|error| io::Error::other(error.0))?;
    fs::write(&domain, text)?;
    say(&format!("virt-v2v {version} converts the guest"))?;
    let (output, said) = io::pipe()?;
    let mut command = appliance.command(tools::IN_PLACE);
    command.args(arguments::in_place(&input.virt_v2v, version, &domain, &back));
    let mut child = command.stdout(said.try_clone()?).stderr(said).spawn()?;
    // It keeps this end of the pipe open.
    drop(command);
    let (mut output, mut has_virtio, mut fault) = (BufReader::new(output), None, None);
    loop {
        let mut line = Vec::new();
        if output.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line);
        has_virtio = result::has_virtio(&line).or(has_virtio);
        if line.contains(": error: ") {
            fault = Some(line.trim().to_owned());
        }
        say(line.trim_end())?;
    }
    let status = child.wait()?;
    if !status.success() {
        // Its last lines say how to report bugs; the error is before them.
        let fault = fault.unwrap_or_else(|| format!("{} ended with {status}", tools::IN_PLACE));
        return Err(io::Error::other(fault));
    }
    if back.exists() {
        let mut text = String::new();
        fs::File::open(&back)?.take(MOST).read_to_string(&mut text)?;
        let order = domain::in_order(&input.machine, &input.disks);
        let keys: Vec<_> = order.into_iter().map(|disk| &disk.key).collect();
        return result::by_xml(&input.machine, &keys, &text).map_err(io::Error::other);
    }
    let has_virtio = has_virtio.ok_or_else(|| {
        io::Error::other(
            "virt-v2v does not say whether the guest has virtio drivers now: warmd does not support this version",
        )
    })?;
    Ok(result::by_drivers(&input.machine, has_virtio))
}

/// Installs the plan's scripts for the first start.
fn first_boot(input: &Input, appliance: &Appliance) -> io::Result<()> {
    if input.virt_v2v.first_boot.is_empty() {
        return Ok(());
    }
    say("installing the scripts of the first start")?;
    let mut command = appliance.command(tools::CUSTOMIZE);
    command.args(["--no-network", "--no-selinux-relabel"]);
    for disk in domain::in_order(&input.machine, &input.disks) {
        command.arg(format!("--format={}", disk.format)).arg("-a").arg(&disk.path);
    }
    command.args(arguments::keys(&input.virt_v2v));
    for script in &input.virt_v2v.first_boot {
        command.arg("--firstboot").arg(script);
    }
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} ended with {status}", tools::CUSTOMIZE)))
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
