//! Target `libvirt` keeps the contract of targets, and touches nothing that is not warmd's.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use warmd_cbt::units::Length;
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    machine::{CpuTopology, Firmware, Machine, Nic},
    rule::Rule,
};
use warmd_core::targets::{
    CreateMachine, DiskSpec, GuestSign, Incoming, MachineState, PreparedDisk, Target, TargetErrorKind as Kind,
};
use warmd_endpoint_libvirt::{
    libvirt::{DomainXml, LoaderFirmware},
    target::{DiskBus, LibvirtTarget, LibvirtTargetSettings},
};
use warmd_tests::{
    Console, Format, Guest, GuestSpec, Libvirtd, TestDir, asynchronous,
    contract::target::{Bench, EVEN, fails_with, machine, target_contract},
    guest::BOOT,
    run,
    scratch::Loop,
    tool,
};

fn settings(dir: &TestDir, libvirt: &Libvirtd) -> Result<LibvirtTargetSettings> {
    libvirt.target_settings(dir.join("disks"), DiskBus::Virtio)
}

fn domains(libvirt: &Libvirtd) -> Result<Vec<String>> {
    Ok(libvirt.virsh(["list", "--all", "--name"])?.split_whitespace().map(str::to_owned).collect())
}

/// A private libvirtd, and a target in it that keeps its disks in `DIR/disks`.
struct Fixture<'a> {
    dir: &'a TestDir,
    libvirt: Libvirtd,
    settings: LibvirtTargetSettings,
    target: LibvirtTarget,
}

/// Runs the body of a test with them.
fn with_target(body: impl AsyncFnOnce(Fixture<'_>) -> Result<()>) {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let settings = settings(dir, &libvirt)?;
        let target = LibvirtTarget::new(&settings)?;
        asynchronous(body(Fixture { dir, libvirt, settings, target }))
    });
}

/// A machine `moved` with these disks, prepared and created; returns the request and the disks.
async fn created<const N: usize>(
    target: &LibvirtTarget,
    keys: [&str; N],
) -> Result<(CreateMachine, Vec<PreparedDisk>)> {
    let size = Length(1 << 20);
    let disk = |key: &str| DiskSpec { key: DiskKey(key.to_owned()), size, place: None };
    let request = CreateMachine {
        owner: MigrationId::generate(),
        name: "moved".to_owned(),
        machine: machine("moved", keys.map(|key| (key, size))),
        disks: keys.map(disk).to_vec(),
    };
    let prepared = target.prepare(request.owner, &request.disks).await?;
    target.create(&request).await?;
    Ok((request, prepared))
}

#[test]
fn on_files() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let settings = settings(dir, &libvirt)?;
        let target = LibvirtTarget::new(&settings)?;
        asynchronous(async { target_contract(&target, &Bench::new("moved", EVEN)).await })?;
        ensure!(domains(&libvirt)?.is_empty(), "a domain is left");
        let left: Vec<_> =
            std::fs::read_dir(dir.join("disks"))?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    });
}

#[test]
fn in_two_storages() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let storages = ["fast", "slow"].map(|name| (name.to_owned(), dir.join(name)));
        for (_, directory) in &storages {
            std::fs::create_dir_all(directory)?;
        }
        let settings =
            LibvirtTargetSettings { storages: BTreeMap::from(storages.clone()), ..settings(dir, &libvirt)? };
        let target = LibvirtTarget::new(&settings)?;
        let bench = Bench::new("moved", EVEN).in_storages(["fast", "slow"]);
        asynchronous(async { target_contract(&target, &bench).await })?;
        for (_, directory) in &storages {
            let left: Vec<_> = std::fs::read_dir(directory)?.collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
        }
        Ok(())
    });
}

#[test]
fn on_block_devices() {
    run(|dir| {
        let devices = [Loop::new(&dir.join("a"), EVEN.0)?, Loop::new(&dir.join("b"), EVEN.0)?];
        let libvirt = Libvirtd::start(dir)?;
        let target = LibvirtTarget::new(&settings(dir, &libvirt)?)?;
        let bench = Bench::new("moved", EVEN).at([&devices[0].place(), &devices[1].place()]);
        asynchronous(async { target_contract(&target, &bench).await })
    });
}

/// A foreign domain over a small disk.
fn foreign(libvirt: &Libvirtd, dir: &TestDir, name: &str) -> Result<String> {
    let image = dir.join(format!("{name}.raw"));
    std::fs::File::create(&image)?.set_len(1 << 20)?;
    let spec = GuestSpec { disks: vec![], ..GuestSpec::new(name) };
    Guest::define_over(libvirt, dir, &spec, vec![])?;
    libvirt.virsh(["domuuid", name])
}

#[test]
fn the_source_in_the_same_libvirt_is_safe() {
    with_target(async |Fixture { dir, libvirt, target, .. }| {
        let uuid = foreign(&libvirt, dir, "source")?;
        let before = libvirt.virsh(["dumpxml", "source"])?;
        let owner = MigrationId::generate();
        let disks = vec![DiskSpec { key: DiskKey("vda".to_owned()), size: Length(1 << 20), place: None }];
        target.prepare(owner, &disks).await?;
        let machine = Machine { uuid: uuid.clone(), ..machine("source", [("vda", Length(1 << 20))]) };
        let request = |name: &str| CreateMachine {
            owner,
            name: name.to_owned(),
            machine: machine.clone(),
            disks: disks.clone(),
        };
        fails_with(Kind::Conflict, "the source's name", target.create(&request("source")).await)?;
        target.create(&request("moved")).await?;
        target.create(&request("moved")).await?;
        let made = DomainXml::read(&libvirt.virsh(["dumpxml", "moved"])?)?;
        ensure!(made.uuid != uuid, "two domains with one UUID");
        ensure!(libvirt.virsh(["desc", "moved"])?.contains(&uuid), "it does not tell of the other UUID");
        target.start(owner).await?;
        target.discard_machine(owner).await?;
        ensure!(domains(&libvirt)? == ["source"], "{:?}", domains(&libvirt));
        ensure!(libvirt.virsh(["dumpxml", "source"])? == before, "the source's definition was changed");
        Ok(())
    });
}

#[test]
fn signs_of_life_are_those_of_this_machine() {
    with_target(async |Fixture { libvirt: _libvirt, target, settings, .. }| {
        let directory = settings.directory.context("no directory")?;
        let owner = MigrationId::generate();
        let machine = machine("moved", []);
        let request = CreateMachine { owner, name: "moved".to_owned(), machine, disks: Vec::new() };
        let serial = GuestSign::Serial("login:".to_owned());
        let console = directory.join(owner.to_string()).join("console.log");
        target.prepare(owner, &[]).await?;
        for time in 0..2 {
            target.create(&request).await?;
            target.start(owner).await?;
            ensure!(target.sign(owner, &serial).await.is_err(), "seen in console {time}, which is new");
            // There is a channel, and no agent at its other end.
            let agent = target.sign(owner, &GuestSign::Agent).await.err().context("an agent answers")?;
            ensure!(agent.to_string().contains("not connected"), "{agent}");
            let before = std::fs::read_to_string(&console)?;
            std::fs::write(&console, before + "web login: ")?;
            target.sign(owner, &serial).await?;
            target.discard_machine(owner).await?;
        }
        target.discard_disks(owner, &[]).await?;
        ensure!(!directory.join(owner.to_string()).exists(), "the consoles are left");
        Ok(())
    });
}

#[test]
fn a_clone_of_the_domain_is_not_ours() {
    with_target(async |Fixture { dir, libvirt, target, settings }| {
        let (request, _) = created(&target, []).await?;
        let owner = request.owner;
        let clone = libvirt
            .virsh(["dumpxml", "moved"])?
            .replacen("<name>moved</name>", "<name>clone</name>", 1)
            .replacen(&format!("<uuid>{}</uuid>", request.machine.uuid), "", 1)
            .replace(&request.machine.nics[0].mac, "52:54:00:00:00:7b");
        std::fs::write(dir.join("clone.xml"), clone)?;
        libvirt.virsh(["define", &dir.join("clone.xml").to_string_lossy()])?;
        target.discard_machine(owner).await?;
        ensure!(domains(&libvirt)? == ["clone"], "{:?}", domains(&libvirt));
        // Nor by a daemon that has just started without any memory of it.
        let again = LibvirtTarget::new(&settings)?;
        again.discard_machine(owner).await?;
        ensure!(again.look(owner).await? == MachineState::Absent, "the clone is taken for it");
        ensure!(domains(&libvirt)? == ["clone"], "{:?}", domains(&libvirt));
        Ok(())
    });
}

#[test]
fn the_machine_stays_what_it_was() {
    with_target(async |Fixture { libvirt, target, settings, .. }| {
        let owner = MigrationId::generate();
        let size = Length(1 << 20);
        let key = |key: &str| DiskSpec { key: DiskKey(key.to_owned()), size, place: None };
        let disks = vec![key("second"), key("first")];
        let machine = Machine {
            cpu: CpuTopology { sockets: 2, cores: 2, threads: 1 },
            machine_type: "pc-i440fx-7.2".to_owned(),
            ..machine("it's <mine> & \"odd\"", [("first", size), ("second", size)])
        };
        let request = CreateMachine {
            owner,
            name: machine.name.clone(),
            machine: machine.clone(),
            disks: disks.clone(),
        };
        target.prepare(owner, &disks).await?;
        target.create(&request).await?;
        let made = DomainXml::read(&libvirt.virsh(["dumpxml", &machine.uuid])?)?;
        ensure!(made.name == machine.name && made.uuid == machine.uuid, "{made:?}");
        ensure!(made.firmware == LoaderFirmware::Bios && made.machine.starts_with("pc-i440fx"), "{made:?}");
        ensure!(made.topology == Some((2, 2, 1)) && made.memory == machine.memory.0, "{made:?}");
        ensure!(made.nics[0].mac == machine.nics[0].mac, "{made:?}");
        ensure!(made.disks.len() == 2 && made.disks[0].boot_order == Some(1), "{made:?}");
        ensure!(format!("{:?}", made.disks[0].source).contains("first.raw"), "{made:?}");
        ensure!(libvirt.virsh(["dominfo", &machine.uuid])?.contains("Persistent:     yes"), "not persistent");
        // Another handle on the same target, as after a restart, knows it too. A later request may have
        // the machine that another conversion made.
        let again = LibvirtTarget::new(&settings)?;
        let cpu = CpuTopology { sockets: 1, cores: 1, threads: 2 };
        let other = CreateMachine { machine: Machine { cpu, ..machine.clone() }, ..request.clone() };
        again.create(&other).await?;
        let made = DomainXml::read(&libvirt.virsh(["dumpxml", &machine.uuid])?)?;
        ensure!(made.topology == Some((1, 1, 2)) && made.uuid == machine.uuid, "{made:?}");
        let all = libvirt.virsh(["list", "--all", "--uuid"])?;
        ensure!(all.trim() == machine.uuid, "there are: {all}");
        ensure!(again.look(owner).await? == MachineState::Stopped, "it is not there");
        again.discard_machine(owner).await?;
        again.discard_disks(owner, &disks).await?;
        Ok(())
    });
}

#[test]
fn a_network_that_is_not_there_is_refused() {
    with_target(async |Fixture { libvirt, target, .. }| {
        let owner = MigrationId::generate();
        let mut machine = machine("moved", []);
        machine.nics.push(Nic { network: "prod-17".to_owned(), ..machine.nics[0].clone() });
        target.prepare(owner, &[]).await?;
        let request = CreateMachine { owner, name: "moved".to_owned(), machine, disks: Vec::new() };
        let error = target.create(&request).await.err().context("it was created")?;
        ensure!(error.kind == Kind::Refused && error.to_string().contains("prod-17"), "{error}");
        ensure!(domains(&libvirt)?.is_empty(), "a domain was made");
        Ok(())
    });
}

/// The rules that the target reports for one machine, in order, with their messages.
async fn objections(target: &LibvirtTarget, incoming: &Incoming) -> Result<(Vec<Rule>, String)> {
    let found = target.objections(std::slice::from_ref(incoming)).await?;
    let mut rules: Vec<_> = found.iter().map(|(_, objection)| objection.rule).collect();
    rules.sort_unstable();
    Ok((rules, format!("{found:?}")))
}

#[test]
fn what_is_in_the_way_of_a_machine_is_told_and_nothing_is_made() {
    with_target(async |Fixture { dir, libvirt, target, .. }| {
        foreign(&libvirt, dir, "there")?;
        let there = DomainXml::read(&libvirt.virsh(["dumpxml", "there"])?)?;
        let size = Length(1 << 20);
        let disk = |place: Option<String>| DiskSpec { key: DiskKey("vda".to_owned()), size, place };
        let good = Incoming {
            owner: None,
            name: "free".to_owned(),
            machine: machine("free", [("vda", size)]),
            disks: vec![disk(None)],
        };
        let (rules, told) = objections(&target, &good).await?;
        ensure!(rules.is_empty(), "{told}");

        let mut taken = Incoming { name: "there".to_owned(), ..good.clone() };
        let (rules, told) = objections(&target, &taken).await?;
        ensure!(rules == [Rule::NameTaken], "{told}");
        for nic in &there.nics {
            taken.machine.nics.push(Nic { mac: nic.mac.to_uppercase(), ..good.machine.nics[0].clone() });
        }
        let (rules, told) = objections(&target, &taken).await?;
        ensure!(
            rules.len() == 1 + there.nics.len() && rules.iter().skip(1).all(|rule| *rule == Rule::MacTaken),
            "{told}"
        );

        let mut odd = good.clone();
        odd.machine.nics[0].network = "prod-17".to_owned();
        let (rules, told) = objections(&target, &odd).await?;
        ensure!(rules == [Rule::NetworkUnknown] && told.contains("prod-17"), "{told}");
        for (architecture, machine_type, firmware) in [
            ("vax", "q35", Firmware::Bios),
            ("x86_64", "bigbox", Firmware::Bios),
            ("x86_64", "pc", Firmware::UefiSecure),
        ] {
            let mut odd = good.clone();
            odd.machine.architecture = architecture.to_owned();
            odd.machine.machine_type = machine_type.to_owned();
            odd.machine.firmware = firmware;
            let (rules, told) = objections(&target, &odd).await?;
            ensure!(rules == [Rule::HardwareUnmapped], "{architecture} {machine_type}: {told}");
        }

        let mut huge = good.clone();
        huge.disks[0].size = Length(1 << 50);
        let (rules, told) = objections(&target, &huge).await?;
        ensure!(rules == [Rule::Capacity] && told.contains("1.00 PiB"), "{told}");
        let small = dir.join("small");
        std::fs::File::create(&small)?.set_len(size.0 - 512)?;
        for place in [small, dir.join("none")] {
            let odd = Incoming { disks: vec![disk(Some(place.display().to_string()))], ..good.clone() };
            let (rules, told) = objections(&target, &odd).await?;
            ensure!(rules == [Rule::LocationUnusable], "{told}");
        }
        ensure!(domains(&libvirt)? == ["there"], "a domain was made");
        ensure!(std::fs::read_dir(dir.join("disks"))?.next().is_none(), "something was made");

        // A migration's own domain and disks are no conflict.
        let owner = MigrationId::generate();
        target.prepare(owner, &good.disks).await?;
        let (name, machine, disks) = (good.name.clone(), good.machine.clone(), good.disks.clone());
        target.create(&CreateMachine { owner, name, machine, disks }).await?;
        let (rules, told) = objections(&target, &good).await?;
        ensure!(rules.contains(&Rule::NameTaken), "{told}");
        let (rules, told) = objections(&target, &Incoming { owner: Some(owner), ..good }).await?;
        ensure!(rules.is_empty(), "{told}");
        Ok(())
    });
}

#[test]
fn what_becomes_of_the_machine_is_told() {
    with_target(async |Fixture { mut libvirt, target, .. }| {
        let owner = created(&target, []).await?.0.owner;
        target.start(owner).await?;
        ensure!(target.look(owner).await? == MachineState::Running, "it does not run");
        libvirt.virsh(["suspend", "moved"])?;
        let paused = target.look(owner).await?;
        ensure!(matches!(&paused, MachineState::Failed(why) if why.contains("paused")), "{paused:?}");
        libvirt.virsh(["destroy", "moved"])?;
        let off = target.look(owner).await?;
        ensure!(matches!(&off, MachineState::Failed(why) if why.contains("shut off")), "{off:?}");
        libvirt.kill()?;
        fails_with(Kind::Unreachable, "no libvirtd", target.look(owner).await)?;
        fails_with(Kind::Unreachable, "no libvirtd", target.start(owner).await)?;
        fails_with(Kind::Unreachable, "no libvirtd", target.discard_machine(owner).await)?;
        libvirt.resume()?;
        target.start(owner).await?;
        target.discard_machine(owner).await?;
        ensure!(target.look(owner).await? == MachineState::Absent, "it is still there");
        Ok(())
    });
}

#[test]
fn machine_migrated_to_another_host_is_not_taken_for_off() {
    with_target(async |Fixture { dir, libvirt, target, .. }| {
        let other = Libvirtd::start_at(dir.join("other"))?;
        let (request, _) = created(&target, []).await?;
        let owner = request.owner;
        target.start(owner).await?;
        libvirt.migrate("moved", &other)?;
        ensure!(libvirt.virsh(["domstate", "--reason", "moved"])? == "shut off (migrated)");
        let state = target.look(owner).await?;
        ensure!(
            matches!(&state, MachineState::Failed(why) if why.contains("it runs there")
                && !why.contains("rollback")),
            "{state:?}"
        );
        fails_with(Kind::Refused, "removing it", target.discard_machine(owner).await)?;
        fails_with(Kind::Refused, "starting it", target.start(owner).await)?;
        fails_with(Kind::Refused, "creating it", target.create(&request).await)?;
        ensure!(domains(&libvirt)? == ["moved"], "its definition is gone");
        ensure!(other.virsh(["domstate", "moved"])? == "running", "it does not run there");
        // After it was migrated back, it works as before.
        other.migrate("moved", &libvirt)?;
        ensure!(target.look(owner).await? == MachineState::Running, "it does not run");
        target.discard_machine(owner).await?;
        ensure!(target.look(owner).await? == MachineState::Absent, "it is still there");
        Ok(())
    });
}

#[test]
fn a_domain_that_has_the_disks_without_the_mark_is_never_absent() {
    with_target(async |Fixture { dir, libvirt, target, .. }| {
        let (request, _) = created(&target, ["vda"]).await?;
        let owner = request.owner;
        // Like a tool that defines domains from its own templates.
        let text = libvirt.virsh(["dumpxml", "moved"])?;
        let (before, rest) = text.split_once("<metadata>").context("no metadata")?;
        let (_, after) = rest.split_once("</metadata>").context("no metadata")?;
        let define = |text: &str| -> Result<()> {
            std::fs::write(dir.join("moved.xml"), text)?;
            libvirt.virsh(["define", &dir.join("moved.xml").to_string_lossy()]).map(drop)
        };
        define(&[before, after].concat())?;
        libvirt.virsh(["start", "moved"])?;
        let error = target.look(owner).await.err().context("it is taken for absent")?;
        ensure!(error.kind == Kind::Conflict && error.to_string().contains("moved"), "{error}");
        fails_with(Kind::Conflict, "removing it", target.discard_machine(owner).await)?;
        fails_with(Kind::Conflict, "creating another", target.create(&request).await)?;
        fails_with(Kind::Conflict, "removing its disks", target.discard_disks(owner, &request.disks).await)?;
        ensure!(libvirt.virsh(["domstate", "moved"])? == "running", "it was stopped");
        ensure!(target.look(MigrationId::generate()).await? == MachineState::Absent, "nobody else's");
        // With its mark restored, it belongs to the migration again.
        libvirt.virsh(["destroy", "moved"])?;
        define(&text)?;
        target.discard_machine(owner).await?;
        target.discard_disks(owner, &request.disks).await?;
        Ok(())
    });
}

#[test]
fn a_machine_that_cannot_start_surely_does_not_run() {
    with_target(async |Fixture { libvirt, target, .. }| {
        let (request, prepared) = created(&target, ["vda"]).await?;
        std::fs::remove_file(&prepared[0].location)?;
        fails_with(Kind::Refused, "a disk is gone", target.start(request.owner).await)?;
        ensure!(libvirt.virsh(["domstate", "moved"])? == "shut off", "it runs");
        Ok(())
    });
}

#[test]
fn disks_are_kept_in_a_pool() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let path = dir.join("pool");
        std::fs::create_dir(&path)?;
        let xml = format!(
            "<pool type='dir'><name>warm</name><target><path>{}</path></target></pool>",
            path.display()
        );
        std::fs::write(dir.join("pool.xml"), xml)?;
        libvirt.virsh(["pool-create", &dir.join("pool.xml").to_string_lossy()])?;
        let settings = |pool: &str| -> Result<LibvirtTargetSettings> {
            Ok(LibvirtTargetSettings {
                directory: None,
                pool: Some(pool.to_owned()),
                ..settings(dir, &libvirt)?
            })
        };
        asynchronous(async {
            let target = LibvirtTarget::new(&settings("warm")?)?;
            let prepared = target.prepare(MigrationId::generate(), &Bench::new("x", EVEN).disks).await?;
            ensure!(prepared[0].location.starts_with(&path.display().to_string()), "{prepared:?}");
            let none = LibvirtTarget::new(&settings("none")?)?;
            ensure!(none.check().await.is_err(), "a pool that is not there");
            Ok(())
        })
    });
}

/// A whole migration with a guest that proves its records: its disks' bytes go through the target's writers.
#[test]
fn a_guest_boots_from_what_was_written() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let mut spec = GuestSpec::new("source");
        spec.disks.truncate(1);
        spec.disks[0].format = Format::Raw;
        let source = Guest::start(&libvirt, dir, &spec)?;
        source.shut_down(&libvirt)?;
        let acked = source.console.acked()?;
        let size = Length(std::fs::metadata(&source.disks[0])?.len());
        let target = LibvirtTarget::new(&settings(dir, &libvirt)?)?;
        let owner = MigrationId::generate();
        let disks = vec![DiskSpec { key: DiskKey("vda".to_owned()), size, place: None }];
        asynchronous(async {
            target.prepare(owner, &disks).await?;
            let disk = target.open(owner, &disks[0]).await?;
            let image = std::fs::read(&source.disks[0])?;
            for (nth, piece) in image.chunks(1 << 20).enumerate() {
                let mut buffer = warmd_cbt::buffer::Buffer::unpooled(piece.len());
                buffer.copy_from_slice(piece);
                disk.write(warmd_cbt::units::Offset((nth as u64) << 20), buffer, 0..piece.len()).await?;
            }
            disk.flush().await?;
            drop(disk);
            let machine = machine("source", [("vda", size)]);
            target
                .create(&CreateMachine { owner, name: "moved".to_owned(), machine, disks: disks.clone() })
                .await?;
            target.start(owner).await.map_err(Into::into)
        })?;
        let console = Console::new(dir.join("disks").join(owner.to_string()).join("console.log"));
        console.wait_for_acked(acked + 1, BOOT).context("the moved guest does not count on")?;
        tool::call("virsh", ["-c", libvirt.uri(), "destroy", "moved"])?;
        Ok(())
    });
}
