//! A VM's disks and network interfaces, out of its list of devices.
//!
//! Rule: a disk whose kind of backing is not known is a disk all the same, under the kind's name: a disk that
//! is not seen would be a disk that is not copied.

use warmd_cbt::units::Length;

use crate::soap::Element;

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualDisk {
    /// Its number in the VM now; it may be given to another disk later.
    pub key: i32,
    /// Its backing's UUID, which stays with it.
    pub uuid: Option<String>,
    /// `Hard disk 1`.
    pub label: String,
    pub controller: Controller,
    pub capacity: Length,
    /// `persistent`, `independent_persistent` and others.
    pub mode: String,
    /// Whether several VMs may write to it.
    pub multi_writer: bool,
    pub backing: Backing,
}

/// What a disk hangs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// `scsi`, `sata`, `ide`, `nvme`.
    pub bus: String,
    /// `pvscsi`, `lsilogic`, `lsisas`, `buslogic`, `ahci`, `ide`, `nvme`, or the API's name of another.
    pub model: String,
    pub number: i32,
    pub unit: i32,
    /// Whether the controller is shared with other VMs.
    pub shared: bool,
}

/// What a disk lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The API's type.
    pub kind: String,
    /// `[datastore] folder/name.vmdk`.
    pub file: String,
    pub datastore: Option<String>,
    pub thin: bool,
    /// Where the disk is a LUN.
    pub raw: Option<RawMapping>,
    /// Where changed-block tracking stands, if it tracks.
    pub change_id: Option<String>,
    /// Whether it is a redo log on another: a snapshot's, or a linked clone's.
    pub has_parent: bool,
    pub encrypted: bool,
}

/// How a LUN is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawMapping {
    /// Snapshots and tracking work.
    Virtual,
    /// The LUN itself: neither works.
    Physical,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualNic {
    pub key: i32,
    /// `vmxnet3`, `e1000`, `e1000e`, `pcnet32`, `sriov`, or the API's name of another.
    pub model: String,
    /// Six bytes in hexadecimal with colons.
    pub mac: String,
    /// The network's name.
    pub network: String,
    /// By what the network's name is found, where the interface does not have it.
    pub network_ref: Option<String>,
    pub connected: bool,
    /// Where it is on the VM's PCI bus, which names it in the guest.
    pub pci_slot: Option<u32>,
}

/// The disks in a list of devices, in the order of controller and unit.
pub(crate) fn disks(devices: &Element) -> Vec<VirtualDisk> {
    let mut all: Vec<VirtualDisk> = devices
        .children
        .iter()
        .filter(|device| device.is("VirtualDisk"))
        .map(|disk| read_disk(disk, devices))
        .collect();
    let rank =
        |bus: &str| ["ide", "scsi", "sata", "nvme"].iter().position(|known| *known == bus).unwrap_or(9);
    all.sort_by_key(|disk| {
        (rank(&disk.controller.bus), disk.controller.number, disk.controller.unit, disk.key)
    });
    all
}

fn read_disk(disk: &Element, devices: &Element) -> VirtualDisk {
    let text = |path: &str| disk.text_at(path).unwrap_or_default().to_owned();
    let bytes = disk
        .value_at::<u64>("capacityInBytes")
        .filter(|bytes| *bytes > 0)
        .or_else(|| disk.value_at::<u64>("capacityInKB")?.checked_mul(1024));
    let kind = disk.child("backing").and_then(|backing| backing.kind.clone()).unwrap_or_default();
    let file = text("backing.fileName");
    let raw = kind.starts_with("VirtualDiskRawDisk").then(|| {
        if text("backing.compatibilityMode") == "virtualMode" {
            RawMapping::Virtual
        } else {
            RawMapping::Physical
        }
    });
    VirtualDisk {
        key: disk.value_at("key").unwrap_or_default(),
        uuid: disk.text_at("backing.uuid").map(str::to_lowercase),
        label: text("deviceInfo.label"),
        controller: controller(disk, devices),
        capacity: Length(bytes.unwrap_or_default()),
        mode: text("backing.diskMode"),
        multi_writer: text("backing.sharing") == "sharingMultiWriter",
        backing: Backing {
            datastore: datastore(&file),
            kind,
            file,
            thin: disk.flag_at("backing.thinProvisioned") == Some(true),
            raw,
            change_id: disk.text_at("backing.changeId").map(str::to_owned),
            has_parent: disk.at("backing.parent").is_some(),
            encrypted: disk.at("backing.keyId").is_some(),
        },
    }
}

fn controller(disk: &Element, devices: &Element) -> Controller {
    let key = disk.text_at("controllerKey");
    let found = devices.children.iter().find(|device| key.is_some() && device.text_at("key") == key);
    let Some(found) = found else { return Controller::default() };
    let kind = found.kind.as_deref().unwrap_or_default();
    let (bus, model) = match kind {
        "ParaVirtualSCSIController" => ("scsi", "pvscsi"),
        "VirtualLsiLogicController" => ("scsi", "lsilogic"),
        "VirtualLsiLogicSASController" => ("scsi", "lsisas"),
        "VirtualBusLogicController" => ("scsi", "buslogic"),
        "VirtualAHCIController" => ("sata", "ahci"),
        "VirtualIDEController" => ("ide", "ide"),
        "VirtualNVMEController" => ("nvme", "nvme"),
        other if other.contains("SCSI") => ("scsi", other),
        other if other.contains("SATA") => ("sata", other),
        other => ("", other),
    };
    Controller {
        bus: bus.to_owned(),
        model: model.to_owned(),
        number: found.value_at("busNumber").unwrap_or_default(),
        unit: disk.value_at("unitNumber").unwrap_or_default(),
        shared: found.text_at("sharedBus").is_some_and(|sharing| sharing != "noSharing"),
    }
}

/// The datastore in `[datastore] folder/name.vmdk`.
fn datastore(file: &str) -> Option<String> {
    let (name, _) = file.strip_prefix('[')?.split_once(']')?;
    Some(name.to_owned())
}

/// The network interfaces in a list of devices, in their order.
pub(super) fn nics(devices: &Element) -> Vec<VirtualNic> {
    devices.children.iter().filter_map(read_nic).collect()
}

fn read_nic(device: &Element) -> Option<VirtualNic> {
    // Nothing else has a MAC address.
    let mac = device.text_at("macAddress")?.to_lowercase();
    let kind = device.kind.as_deref().unwrap_or_default();
    let model = match kind {
        "VirtualVmxnet3" | "VirtualVmxnet3Vrdma" => "vmxnet3",
        "VirtualVmxnet2" | "VirtualVmxnet" => "vmxnet",
        "VirtualE1000" => "e1000",
        "VirtualE1000e" => "e1000e",
        "VirtualPCNet32" => "pcnet32",
        "VirtualSriovEthernetCard" => "sriov",
        other => other,
    };
    let network_ref = ["backing.network", "backing.port.portgroupKey", "backing.opaqueNetworkId"];
    let network_ref = network_ref.iter().find_map(|path| device.text_at(path)).map(str::to_owned);
    Some(VirtualNic {
        key: device.value_at("key").unwrap_or_default(),
        model: model.to_owned(),
        mac,
        network: device
            .text_at("backing.deviceName")
            .or(network_ref.as_deref())
            .unwrap_or_default()
            .to_owned(),
        network_ref,
        connected: device.flag_at("connectable.connected") == Some(true),
        pci_slot: device.value_at("slotInfo.pciSlotNumber"),
    })
}

/// Whether the list has a virtual TPM.
pub(super) fn has_tpm(devices: &Element) -> bool {
    devices.children.iter().any(|device| device.is("VirtualTPM"))
}

/// Devices that cannot go along, by name: a host's own PCI and USB devices.
pub(super) fn passed_through(devices: &Element) -> Vec<String> {
    let is_hosts = |device: &&Element| {
        device.is("VirtualPCIPassthrough")
            || device.is("VirtualUSB") && device.at("backing").is_some()
            || device.is("VirtualSCSIPassthrough")
    };
    let label =
        |device: &Element| device.text_at("deviceInfo.label").unwrap_or("a device of the host").to_owned();
    devices.children.iter().filter(is_hosts).map(label).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::inventory) fn devices() -> Element {
        let text = "<val xmlns:xsi='u' xsi:type='ArrayOfVirtualDevice'>\
            <VirtualDevice xsi:type='VirtualIDEController'><key>200</key><busNumber>0</busNumber></VirtualDevice>\
            <VirtualDevice xsi:type='ParaVirtualSCSIController'><key>1000</key><busNumber>0</busNumber>\
            <sharedBus>noSharing</sharedBus></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualLsiLogicSASController'><key>1001</key><busNumber>1</busNumber>\
            <sharedBus>physicalSharing</sharedBus></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualDisk'><key>2001</key><deviceInfo><label>Hard disk 2</label></deviceInfo>\
            <backing xsi:type='VirtualDiskRawDiskMappingVer1BackingInfo'><fileName>[SAN 2] web1/rdm.vmdk</fileName>\
            <compatibilityMode>physicalMode</compatibilityMode><diskMode>independent_persistent</diskMode>\
            <uuid>6000C29A-0002</uuid><sharing>sharingMultiWriter</sharing></backing><controllerKey>1001</controllerKey>\
            <unitNumber>0</unitNumber><capacityInKB>1024</capacityInKB></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualDisk'><key>2000</key><deviceInfo><label>Hard disk 1</label></deviceInfo>\
            <backing xsi:type='VirtualDiskFlatVer2BackingInfo'><fileName>[DS 1] web1/web1-000001.vmdk</fileName>\
            <diskMode>persistent</diskMode><thinProvisioned>true</thinProvisioned><uuid>6000C29A-0001</uuid>\
            <changeId>52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81</changeId>\
            <parent><fileName>[DS 1] web1/web1.vmdk</fileName></parent></backing>\
            <controllerKey>1000</controllerKey><unitNumber>0</unitNumber><capacityInKB>2048</capacityInKB>\
            <capacityInBytes>2097664</capacityInBytes></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualVmxnet3'><key>4000</key><backing \
            xsi:type='VirtualEthernetCardDistributedVirtualPortBackingInfo'><port><switchUuid>x</switchUuid>\
            <portgroupKey>dvportgroup-12</portgroupKey></port></backing><connectable><connected>true</connected>\
            </connectable><slotInfo><pciSlotNumber>192</pciSlotNumber></slotInfo>\
            <macAddress>00:50:56:AA:BB:CC</macAddress></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualTPM'><key>11000</key></VirtualDevice>\
            <VirtualDevice xsi:type='VirtualPCIPassthrough'><key>13000</key><deviceInfo><label>PCI device 0</label>\
            </deviceInfo></VirtualDevice></val>";
        Element::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn disks_are_read_with_all_that_decides_about_them() {
        let disks = disks(&devices());
        let [first, second] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!((first.key, first.capacity.0), (2000, 2_097_664));
        assert_eq!(first.uuid.as_deref(), Some("6000c29a-0001"));
        assert_eq!((first.controller.bus.as_str(), first.controller.model.as_str()), ("scsi", "pvscsi"));
        assert_eq!(first.backing.datastore.as_deref(), Some("DS 1"));
        assert!(first.backing.thin && first.backing.has_parent && first.backing.raw.is_none());
        assert!(first.backing.change_id.as_ref().unwrap().ends_with("/81"));
        assert_eq!(second.backing.raw, Some(RawMapping::Physical));
        assert!(second.multi_writer && second.controller.shared);
        assert_eq!(second.capacity.0, 1 << 20);
    }

    #[test]
    fn interfaces_and_what_cannot_go_along_are_read() {
        let devices = devices();
        let nics = nics(&devices);
        assert_eq!(nics.len(), 1);
        assert_eq!((nics[0].model.as_str(), nics[0].mac.as_str()), ("vmxnet3", "00:50:56:aa:bb:cc"));
        assert_eq!((nics[0].network_ref.as_deref(), nics[0].pci_slot), (Some("dvportgroup-12"), Some(192)));
        assert!(nics[0].connected && has_tpm(&devices));
        assert_eq!(passed_through(&devices), ["PCI device 0"]);
    }

    #[test]
    fn a_disk_of_an_unknown_kind_is_still_a_disk() {
        let text = "<val xmlns:xsi='u'><VirtualDevice xsi:type='VirtualDisk'><key>2000</key>\
            <backing xsi:type='VirtualDiskFromTheFuture'/></VirtualDevice></val>";
        let disks = disks(&Element::read(text.as_bytes()).unwrap());
        assert_eq!(disks[0].backing.kind, "VirtualDiskFromTheFuture");
        assert_eq!((disks[0].uuid.clone(), disks[0].capacity.0), (None, 0));
    }
}
