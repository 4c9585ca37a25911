//! A domain with many kinds of hardware is the same after a move from libvirt to libvirt.

use anyhow::{Context as _, Result, ensure};
use warmd_core::model::{id::MigrationId, machine::Machine, rule::Rule};
use warmd_core::{
    sources::Source,
    targets::{CreateMachine, DiskSpec, Incoming, MachineState, Target, TargetErrorKind as Kind},
};
use warmd_endpoint_libvirt::{
    source,
    target::{DiskBus, LibvirtTarget, LibvirtTargetSettings},
};
use warmd_tests::{Libvirtd, TestDir, asynchronous, contract::target::fails_with, run};

const UUID: &str = "11111111-2222-4333-8444-555555555555";

/// Every part of a device that the test looks for on the target, as libvirt prints it.
const KEPT: [&str; 30] = [
    "<title>billing</title>",
    "ask the billing team",
    "http://microsoft.com/win/2k22",
    "<clock offset='localtime'>",
    "<timer name='rtc' tickpolicy='catchup'/>",
    "<bootmenu enable='yes' timeout='3000'/>",
    "<entry name='manufacturer'>Acme</entry>",
    "<smbios mode='sysinfo'/>",
    "<on_reboot>destroy</on_reboot>",
    "<currentMemory unit='KiB'>65536</currentMemory>",
    "<vmcoreinfo state='on'/>",
    "<iothreads>1</iothreads>",
    "<serial>SN-1</serial>",
    "<wwn>5000c50015ea71ad</wwn>",
    "<vendor>ACME</vendor>",
    "<total_iops_sec>300</total_iops_sec>",
    "<target dev='sda' bus='scsi'/>",
    "<target dev='vdb' bus='virtio'/>",
    "model='lsilogic'",
    "model='qemu-xhci'",
    "<model type='e1000'/>",
    "<link state='down'/>",
    "<filterref filter='warmd-test'>",
    "<parameter name='IP' value='10.0.0.7'/>",
    "<port isolated='yes'/>",
    "<watchdog model='i6300esb' action='poweroff'>",
    "<model type='vga' vram='16384' heads='1' primary='yes'/>",
    "<input type='tablet' bus='usb'>",
    "<sound model='ich6'>",
    "name='org.example.port'",
];

fn xml(dir: &TestDir) -> String {
    let dir = dir.join("");
    let dir = dir.display();
    format!(
        "<domain type='qemu'><name>rich</name><uuid>{UUID}</uuid><title>billing</title>
<description>ask the billing team</description>
<metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
  <libosinfo:os id='http://microsoft.com/win/2k22'/></libosinfo:libosinfo></metadata>
<memory unit='KiB'>131072</memory><currentMemory unit='KiB'>65536</currentMemory><vcpu>2</vcpu><iothreads>1</iothreads>
<sysinfo type='smbios'><system><entry name='manufacturer'>Acme</entry><entry name='uuid'>{UUID}</entry></system></sysinfo>
<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='cdrom'/><boot dev='hd'/>
  <bootmenu enable='yes' timeout='3000'/><smbios mode='sysinfo'/></os>
<features><acpi/><vmcoreinfo state='on'/></features>
<clock offset='localtime'><timer name='rtc' tickpolicy='catchup'/></clock>
<on_reboot>destroy</on_reboot>
<devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='ignore'/><source file='{dir}a.qcow2'/>
    <target dev='sda' bus='scsi'/><serial>SN-1</serial><wwn>5000c50015ea71ad</wwn><vendor>ACME</vendor>
    <iotune><total_iops_sec>300</total_iops_sec></iotune></disk>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><source file='{dir}b.qcow2'/>
    <target dev='vdb' bus='virtio'/><readonly/></disk>
  <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{dir}seed.iso'/>
    <target dev='hdc' bus='ide'/><readonly/></disk>
  <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
  <controller type='scsi' index='0' model='lsilogic'/>
  <controller type='usb' index='0' model='qemu-xhci'/>
  <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='BRIDGE'/><model type='e1000'/>
    <filterref filter='warmd-test'><parameter name='IP' value='10.0.0.7'/></filterref><port isolated='yes'/><link state='down'/>
    <address type='pci' domain='0x0000' bus='0x00' slot='0x0b' function='0x0'/></interface>
  <serial type='pty'><target port='0'/></serial>
  <channel type='unix'><target type='virtio' name='org.example.port'/></channel>
  <input type='tablet' bus='usb'/>
  <graphics type='vnc' port='5907' autoport='no' listen='0.0.0.0' passwd='geheim'/>
  <sound model='ich6'/><watchdog model='i6300esb' action='poweroff'/>
  <video><model type='vga' vram='16384' heads='1' primary='yes'/></video>
</devices></domain>"
    )
}

fn settings(dir: &TestDir, libvirt: &Libvirtd) -> Result<LibvirtTargetSettings> {
    libvirt.target_settings(dir.join("disks"), DiskBus::Keep)
}

fn source(dir: &TestDir, libvirt: &Libvirtd) -> Result<source::LibvirtSource> {
    let (runtime_dir, scratch_dir) = (dir.join("runtime"), dir.join("scratch"));
    std::fs::create_dir_all(&scratch_dir)?;
    let uri = libvirt.uri().to_owned();
    let settings = source::LibvirtSourceSettings {
        uri,
        runtime_dir,
        scratch_dir,
        ..source::LibvirtSourceSettings::default()
    };
    Ok(source::LibvirtSource::new(&settings)?)
}

/// Defines the domain and the objects it needs, and reads the domain.
fn define(dir: &TestDir, libvirt: &Libvirtd, xml: &str) -> Result<()> {
    for image in ["a.qcow2", "b.qcow2"] {
        let path = dir.join(image);
        let done = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("1M")
            .status()?;
        ensure!(done.success(), "qemu-img failed");
    }
    std::fs::write(dir.join("seed.iso"), [0; 2048])?;
    std::fs::write(dir.join("rich.xml"), xml)?;
    libvirt.virsh(["define", &dir.join("rich.xml").to_string_lossy()])?;
    Ok(())
}

fn filter(dir: &TestDir, libvirt: &Libvirtd) -> Result<()> {
    std::fs::write(dir.join("filter.xml"), "<filter name='warmd-test' chain='root'/>")?;
    libvirt.virsh(["nwfilter-define", &dir.join("filter.xml").to_string_lossy()])?;
    Ok(())
}

fn request(owner: MigrationId, machine: &Machine) -> CreateMachine {
    let disks = machine.disks.iter();
    let disks = disks.map(|disk| DiskSpec { key: disk.key.clone(), size: disk.size, place: None }).collect();
    CreateMachine { owner, name: "moved".to_owned(), machine: machine.clone(), disks }
}

#[test]
fn a_rich_domain_stays_the_same() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        filter(dir, &libvirt)?;
        network(dir, &libvirt)?;
        define(dir, &libvirt, &xml(dir))?;
        let (source, target) = (source(dir, &libvirt)?, LibvirtTarget::new(&settings(dir, &libvirt)?)?);
        asynchronous(async {
            let machine = source.describe("rich").await?;
            let told = source.objections(&machine.id).await?;
            let found = |rule: Rule| {
                let found = told.iter().filter(|objection| objection.rule == rule);
                found.map(|objection| objection.found.clone()).collect::<Vec<_>>().join("; ")
            };
            ensure!(found(Rule::MediumBehind).contains("cdrom hdc"), "{told:?}");
            ensure!(found(Rule::HardwareChanged).contains("@passwd"), "{told:?}");
            ensure!(found(Rule::HardwareUnclassified).is_empty(), "{told:?}");
            let owner = MigrationId::generate();
            let mut request = request(owner, &machine);
            // Neither this bridge nor the network's exists: the domain is defined, never started.
            "lan".clone_into(&mut request.machine.nics[0].network);
            target.prepare(owner, &request.disks).await?;
            target.create(&request).await?;
            let made = libvirt.virsh(["dumpxml", "--inactive", "--security-info", "moved"])?;
            for part in KEPT {
                ensure!(made.contains(part), "{part} is not in {made}");
            }
            ensure!(made.matches("<readonly/>").count() == 2, "read-only disk and CD-ROM: {made}");
            for lost in ["geheim", "seed.iso", "0.0.0.0", "5907"] {
                ensure!(!made.contains(lost), "{lost} is in {made}");
            }
            ensure!(made.contains("<address type='drive'") && made.contains("device='floppy'"), "{made}");
            // The guest names the interface by its PCI slot, which libvirt would not choose.
            let had = nic_place(&libvirt.virsh(["dumpxml", "--inactive", "rich"])?).context("no place")?;
            ensure!(had.contains("slot='0x0b'"), "the source has it at {had}");
            ensure!(nic_place(&made).as_ref() == Some(&had), "{had} became another in {made}");
            let order = |device: &str| {
                let rest = made.split(&format!("<target dev='{device}'")).nth(1)?;
                rest.split("</disk>").next()?.split("<boot order='").nth(1)?.chars().next()
            };
            ensure!(
                (order("hdc"), order("sda"), order("vdb")) == (Some('1'), Some('2'), Some('3')),
                "{made}"
            );
            // After a second move it is still the same.
            let again = source.describe("moved").await?;
            let kept =
                |machine: &Machine| machine.hardware.as_ref().map(|hardware| hardware.disk("sda").cloned());
            let serial = kept(&again).flatten().and_then(|disk| disk.part("serial").cloned());
            ensure!(serial.context("no serial")?.text == "SN-1");
            target.discard_machine(owner).await?;
            target.discard_disks(owner, &request.disks).await?;
            Ok(())
        })
    });
}

/// The PCI address of the first network interface.
fn nic_place(xml: &str) -> Option<String> {
    let nic = xml.split("<interface").nth(1)?.split("</interface>").next()?;
    Some(nic.split("<address type='pci'").nth(1)?.split("/>").next()?.to_owned())
}

#[test]
fn an_interface_behind_a_later_root_port_stays_there() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        network(dir, &libvirt)?;
        let ports =
            (1..=5).map(|index| format!("<controller type='pci' index='{index}' model='pcie-root-port'/>"));
        let xml = format!(
            "<domain type='qemu'><name>rich</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<controller type='pci' index='0' model='pcie-root'/>{}
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/><model type='virtio'/>
  <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></interface>
</devices></domain>",
            ports.collect::<String>(),
            dir.join("a.qcow2").display()
        );
        define(dir, &libvirt, &xml)?;
        let (source, target) = (source(dir, &libvirt)?, LibvirtTarget::new(&settings(dir, &libvirt)?)?);
        asynchronous(async {
            let owner = MigrationId::generate();
            let request = request(owner, &source.describe("rich").await?);
            target.prepare(owner, &request.disks).await?;
            target.create(&request).await?;
            let made = libvirt.virsh(["dumpxml", "--inactive", "moved"])?;
            let had = nic_place(&libvirt.virsh(["dumpxml", "--inactive", "rich"])?).context("no place")?;
            ensure!(had.contains("bus='0x05'"), "the source has it at {had}");
            ensure!(nic_place(&made).as_ref() == Some(&had), "{had} became another in {made}");
            target.discard_machine(owner).await?;
            target.discard_disks(owner, &request.disks).await?;
            Ok(())
        })
    });
}

/// An active network over a bridge, which libvirt first needs at a start.
fn network(dir: &TestDir, libvirt: &Libvirtd) -> Result<()> {
    let xml = "<network><name>lan</name><forward mode='bridge'/><bridge name='warmd-none'/></network>";
    std::fs::write(dir.join("lan.xml"), xml)?;
    libvirt.virsh(["net-define", &dir.join("lan.xml").to_string_lossy()])?;
    libvirt.virsh(["net-start", "lan"])?;
    Ok(())
}

#[test]
fn isolation_is_never_lost_without_consent() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        filter(dir, &libvirt)?;
        define(dir, &libvirt, &xml(dir))?;
        let (source, target) = (source(dir, &libvirt)?, LibvirtTarget::new(&settings(dir, &libvirt)?)?);
        asynchronous(async {
            let owner = MigrationId::generate();
            let mut request = request(owner, &source.describe("rich").await?);
            "user".clone_into(&mut request.machine.nics[0].network);
            let incoming = Incoming {
                owner: None,
                name: request.name.clone(),
                machine: request.machine.clone(),
                disks: request.disks.clone(),
            };
            let told = target.objections(&[incoming]).await?;
            let found: Vec<_> = told.iter().filter(|(_, it)| it.rule == Rule::IsolationLost).collect();
            ensure!(found.len() == 2 && found[0].1.found.contains("filterref"), "{told:?}");
            target.prepare(owner, &request.disks).await?;
            fails_with(Kind::Refused, "without consent", target.create(&request).await)?;
            ensure!(target.look(owner).await? == MachineState::Absent, "it was made all the same");
            let plan: warmd_core::model::plan::Plan = toml::from_str(
                "name = 'p'\nsource = 's'\ntarget = 't'\nvms = ['rich']\naccept = ['isolation-lost']",
            )?;
            request.machine = plan.mapped(request.machine);
            target.create(&request).await?;
            let made = libvirt.virsh(["dumpxml", "moved"])?;
            ensure!(!made.contains("filterref") && made.contains("<link state='down'/>"), "{made}");
            target.start(owner).await?;
            target.discard_machine(owner).await.context("discarding")
        })
    });
}

#[test]
fn a_processor_that_the_target_cannot_give_stands_in_the_way() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        filter(dir, &libvirt)?;
        let (source, target) = (source(dir, &libvirt)?, LibvirtTarget::new(&settings(dir, &libvirt)?)?);
        // Emulation has no AVX-512, and has all features of the simplest model.
        let of = |check: &str, model: &str| {
            let cpu = format!(
                "<cpu mode='custom' match='exact' check='{check}'><model fallback='forbid'>{model}</model></cpu>"
            );
            xml(dir).replace("<devices>", &format!("{cpu}<devices>"))
        };
        asynchronous(async {
            for (check, model, wanted) in [
                ("partial", "Icelake-Server", Some(Rule::HardwareUnmapped)),
                ("none", "Icelake-Server", Some(Rule::HardwareChanged)),
                ("partial", "qemu64", None),
            ] {
                define(dir, &libvirt, &of(check, model))?;
                let mut machine = source.describe("rich").await?;
                let told = |machine: Machine| async {
                    let disks = request(MigrationId::generate(), &machine).disks;
                    let incoming = Incoming { owner: None, name: "moved".to_owned(), machine, disks };
                    let told = target.objections(&[incoming]).await?;
                    let told = told.into_iter().map(|(_, objection)| objection);
                    Ok::<_, anyhow::Error>(
                        told.filter(|it| it.found.contains("its processor")).collect::<Vec<_>>(),
                    )
                };
                ensure!(told(machine.clone()).await?.is_empty(), "it has run on this very host");
                // As if it came from another host.
                "99999999-2222-4333-8444-555555555555".clone_into(&mut machine.uuid);
                let found = told(machine).await?;
                ensure!(found.first().map(|it| it.rule) == wanted, "{check} {model}: {found:?}");
            }
            Ok(())
        })
    });
}

#[test]
fn a_disk_of_one_definition_alone_is_told() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let plain = format!(
            "<domain type='qemu'><name>rich</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>
</devices><seclabel type='none'/></domain>",
            dir.join("a.qcow2").display()
        );
        define(dir, &libvirt, &plain)?;
        let source = source(dir, &libvirt)?;
        libvirt.virsh(["start", "rich"])?;
        let rules =
            |told: &[warmd_core::model::rule::Objection]| told.iter().map(|it| it.rule).collect::<Vec<_>>();
        asynchronous(async {
            let vm = source.describe("rich").await?.id;
            ensure!(source.objections(&vm).await?.is_empty(), "{:?}", source.objections(&vm).await?);
            let image = dir.join("b.qcow2").to_string_lossy().into_owned();
            libvirt.virsh([
                "attach-disk",
                "rich",
                &image,
                "vdb",
                "--driver",
                "qemu",
                "--subdriver",
                "qcow2",
                "--config",
            ])?;
            libvirt.virsh(["setmaxmem", "rich", "131072", "--config"])?;
            let told = source.objections(&vm).await?;
            ensure!(rules(&told) == [Rule::DiskInOneDefinition, Rule::DefinitionsDiffer], "{told:?}");
            ensure!(told[0].found.contains("vdb") && told[1].found.contains("128 MiB"), "{told:?}");
            let machine = source.describe("rich").await?;
            ensure!(machine.disks.len() == 1, "what is not there is to be copied: {machine:?}");
            ensure!(machine.memory.0 == 128 << 20, "the target is not made by the definition: {machine:?}");
            libvirt.virsh(["destroy", "rich"])?;
            ensure!(source.objections(&vm).await?.is_empty(), "it differs while it is off");
            Ok(())
        })
    });
}
