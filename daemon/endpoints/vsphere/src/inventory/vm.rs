//! One VM, as its properties say.
//!
//! Rule: each property is taken separately, so that an update of one is like the first reading. What the
//! server does not say is `None`, and the caller that needs it reports so.

use crate::{
    error::{Result, VsphereError},
    soap::{Element, MoRef},
    vim::Object,
};

use super::{
    devices::{self, VirtualDisk, VirtualNic},
    names::plain,
    snapshots::{self, SnapshotNode},
};

/// What is asked of each VM.
pub(super) const PATHS: [&str; 30] = [
    "name",
    "parent",
    "recentTask",
    "snapshot",
    "capability.changeTrackingSupported",
    "config.annotation",
    "config.bootOptions",
    "config.changeTrackingEnabled",
    "config.firmware",
    "config.guestFullName",
    "config.guestId",
    "config.hardware.device",
    "config.hardware.memoryMB",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.instanceUuid",
    "config.keyId",
    "config.template",
    "config.uuid",
    "config.version",
    "guest.guestFullName",
    "guest.guestId",
    "guest.hostName",
    "guest.toolsRunningStatus",
    "guest.toolsVersionStatus2",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "runtime.powerState",
    "runtime.question",
];

/// Whose absence means "no" or "none".
const DECIDING: [&str; 8] = [
    "recentTask",
    "snapshot",
    "config.annotation",
    "config.changeTrackingEnabled",
    "config.instanceUuid",
    "runtime.consolidationNeeded",
    "runtime.host",
    "runtime.question",
];

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    pub of: MoRef,
    pub name: String,
    /// The path of its folder, as `/Datacenter/vm/Production`.
    pub folder: String,
    pub host: Option<String>,
    /// Whether vCenter reaches its host.
    pub host_connected: Option<bool>,
    pub cluster: Option<String>,
    /// Its power as the server last knew: it means something only while the VM is connected.
    pub power: Option<Power>,
    pub connection: Option<Connection>,
    /// A question that the VM waits on until a person answers it.
    pub question: Option<String>,
    /// The UUID that the guest sees.
    pub uuid: Option<String>,
    /// The UUID that vCenter gave it, which is unique.
    pub instance_uuid: Option<String>,
    pub template: bool,
    /// `vmx-19`.
    pub hardware_version: Option<String>,
    pub guest_id: Option<String>,
    pub guest_name: Option<String>,
    /// What the guest calls itself, as VMware Tools tell.
    pub host_name: Option<String>,
    pub tools: Tools,
    pub firmware: VmFirmware,
    pub secure_boot: bool,
    pub tpm: bool,
    pub encrypted: bool,
    pub cpus: Option<u32>,
    pub cores_per_socket: Option<u32>,
    pub memory_mib: Option<u64>,
    pub disks: Vec<VirtualDisk>,
    pub nics: Vec<VirtualNic>,
    /// Devices of the host that it has, by name.
    pub passed_through: Vec<String>,
    /// Device keys of disks in the order in which they are booted from, if one is set.
    pub boot_disks: Vec<i32>,
    pub snapshots: Vec<SnapshotNode>,
    pub tracking_supported: Option<bool>,
    pub tracking_enabled: bool,
    pub consolidation_needed: bool,
    pub annotation: String,
    pub recent_tasks: Vec<MoRef>,
    pub(crate) parent: Option<MoRef>,
    pub(crate) host_ref: Option<MoRef>,
}

/// A VM's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
    Suspended,
}

impl Power {
    /// By the API's word; another word is none of them.
    pub(crate) fn read(text: &str) -> Option<Self> {
        match text {
            "poweredOn" => Some(Self::On),
            "poweredOff" => Some(Self::Off),
            "suspended" => Some(Self::Suspended),
            _ => None,
        }
    }
}

/// Whether the server knows how a VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    Connected,
    /// `disconnected`, `inaccessible`, `invalid`, `orphaned`: what is said of it is old.
    Lost(String),
}

/// VMware Tools in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tools {
    Running,
    NotRunning,
    NotInstalled,
    #[default]
    Unknown,
}

/// What it boots by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmFirmware {
    #[default]
    Bios,
    Efi,
}

impl Vm {
    pub(super) fn new(of: MoRef) -> Self {
        Self {
            of,
            name: String::new(),
            folder: String::new(),
            host: None,
            host_connected: None,
            cluster: None,
            power: None,
            connection: None,
            question: None,
            uuid: None,
            instance_uuid: None,
            template: false,
            hardware_version: None,
            guest_id: None,
            guest_name: None,
            host_name: None,
            tools: Tools::default(),
            firmware: VmFirmware::default(),
            secure_boot: false,
            tpm: false,
            encrypted: false,
            cpus: None,
            cores_per_socket: None,
            memory_mib: None,
            disks: Vec::new(),
            nics: Vec::new(),
            passed_through: Vec::new(),
            boot_disks: Vec::new(),
            snapshots: Vec::new(),
            tracking_supported: None,
            tracking_enabled: false,
            consolidation_needed: false,
            annotation: String::new(),
            recent_tasks: Vec::new(),
            parent: None,
            host_ref: None,
        }
    }

    /// Its folder's path and its name.
    pub fn path(&self) -> String {
        format!("{}/{}", self.folder, self.name)
    }

    /// A backing UUID that two of its disks have: one was copied as a file. They cannot be told apart.
    pub fn shared_uuid(&self) -> Option<&str> {
        let mut seen = std::collections::BTreeSet::new();
        self.disks.iter().filter_map(|disk| disk.uuid.as_deref()).find(|uuid| !seen.insert(*uuid))
    }

    /// The disk with this backing UUID.
    pub fn disk(&self, uuid: &str) -> Option<&VirtualDisk> {
        self.disks.iter().find(|disk| disk.uuid.as_deref() == Some(uuid))
    }

    /// Refuses a VM of which the server gave too little to say what it has.
    pub(super) fn judge_reading(&self, object: &Object) -> Result<()> {
        // A VM whose files cannot be read has no settings; that is not one without disks.
        if let Some(Connection::Lost(state)) = &self.connection
            && object.get("config.hardware.device").is_none()
        {
            let why = format!("it is {state}: see that its host and its datastore answer");
            return Err(VsphereError::blocked(format!("VM {}", self.of.id), why));
        }
        for needed in ["name", "config.hardware.device", "runtime.powerState", "runtime.connectionState"] {
            object.need(needed)?;
        }
        // Without a value these say that nothing is in the way. One that could not be read says nothing.
        DECIDING.iter().find_map(|path| object.unread(path)).map_or(Ok(()), Err)
    }

    /// Takes one property; without a value, it is not set.
    pub(super) fn apply(&mut self, property: &str, value: Option<&Element>) {
        let text = || value.map(|value| value.text.trim().to_owned()).filter(|text| !text.is_empty());
        let is_set = || value.and_then(Element::flag) == Some(true);
        let number = || text().and_then(|text| text.parse().ok());
        match property {
            "name" => self.name = plain(&text().unwrap_or_default()),
            "parent" => self.parent = value.and_then(Element::moref),
            "recentTask" => {
                let tasks = value.into_iter().flat_map(|value| value.children.iter());
                self.recent_tasks = tasks.filter_map(Element::moref).collect();
            }
            "snapshot" => self.snapshots = snapshots::read(value),
            "capability.changeTrackingSupported" => self.tracking_supported = value.and_then(Element::flag),
            "config.annotation" => {
                self.annotation = value.map(|value| value.text.clone()).unwrap_or_default();
            }
            "config.bootOptions" => {
                self.secure_boot =
                    value.and_then(|value| value.flag_at("efiSecureBootEnabled")) == Some(true);
                let order = value.into_iter().flat_map(|value| value.all("bootOrder"));
                self.boot_disks = order.filter_map(|entry| entry.value_at("deviceKey")).collect();
            }
            "config.changeTrackingEnabled" => self.tracking_enabled = is_set(),
            "config.firmware" => {
                self.firmware =
                    if text().as_deref() == Some("efi") { VmFirmware::Efi } else { VmFirmware::Bios };
            }
            // What the guest tells goes before what was chosen when the VM was made.
            "guest.guestId" if value.is_some() => self.guest_id = text(),
            "guest.guestFullName" if value.is_some() => self.guest_name = text(),
            "config.guestId" => self.guest_id = self.guest_id.take().or_else(text),
            "config.guestFullName" => self.guest_name = self.guest_name.take().or_else(text),
            "config.hardware.device" => {
                let none = Element::default();
                let list = value.unwrap_or(&none);
                self.disks = devices::disks(list);
                self.nics = devices::nics(list);
                self.tpm = devices::has_tpm(list);
                self.passed_through = devices::passed_through(list);
            }
            "config.hardware.memoryMB" => self.memory_mib = number(),
            "config.hardware.numCPU" => self.cpus = text().and_then(|text| text.parse().ok()),
            "config.hardware.numCoresPerSocket" => {
                self.cores_per_socket = text().and_then(|text| text.parse().ok());
            }
            "config.instanceUuid" => self.instance_uuid = text(),
            "config.keyId" => self.encrypted = value.is_some(),
            "config.template" => self.template = is_set(),
            "config.uuid" => self.uuid = text(),
            "config.version" => self.hardware_version = text(),
            "guest.hostName" => self.host_name = text(),
            "guest.toolsRunningStatus" => match text().as_deref() {
                Some("guestToolsRunning" | "guestToolsExecutingScripts") => self.tools = Tools::Running,
                Some("guestToolsNotRunning") if self.tools != Tools::NotInstalled => {
                    self.tools = Tools::NotRunning;
                }
                _ => {}
            },
            "guest.toolsVersionStatus2" if text().as_deref() == Some("guestToolsNotInstalled") => {
                self.tools = Tools::NotInstalled;
            }
            "runtime.connectionState" => {
                self.connection = text().map(|state| match state.as_str() {
                    "connected" => Connection::Connected,
                    _ => Connection::Lost(state),
                });
            }
            "runtime.consolidationNeeded" => self.consolidation_needed = is_set(),
            "runtime.host" => self.host_ref = value.and_then(Element::moref),
            "runtime.powerState" => self.power = text().as_deref().and_then(Power::read),
            "runtime.question" => {
                self.question = value.and_then(|value| value.text_at("text")).map(str::to_owned);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::soap::{Fault, FaultKind};

    pub(crate) fn value(text: &str) -> Element {
        Element::read(format!("<val xmlns:xsi='u'>{text}</val>").as_bytes()).unwrap()
    }

    /// A VM that is on, with two disks.
    pub(crate) fn vm() -> Vm {
        let mut vm = Vm::new(MoRef::vm("vm-57"));
        vm.apply("config.hardware.device", Some(&super::devices::tests::devices()));
        for (property, text) in [
            ("name", "web1"),
            ("runtime.powerState", "poweredOn"),
            ("runtime.connectionState", "connected"),
            ("capability.changeTrackingSupported", "true"),
            ("config.version", "vmx-19"),
        ] {
            vm.apply(property, Some(&value(text)));
        }
        vm
    }

    #[test]
    fn properties_are_set_and_unset_one_by_one() {
        let mut vm = vm();
        assert_eq!((vm.power, vm.disks.len(), vm.tpm), (Some(Power::On), 2, true));
        vm.apply("config.bootOptions", Some(&value("<efiSecureBootEnabled>true</efiSecureBootEnabled>\
            <bootOrder xsi:type='VirtualMachineBootOptionsBootableDiskDevice'><deviceKey>2001</deviceKey></bootOrder>")));
        assert!(vm.secure_boot);
        assert_eq!(vm.boot_disks, [2001]);
        vm.apply("runtime.question", Some(&value("<id>1</id><text>Did you move it?</text>")));
        assert_eq!(vm.question.as_deref(), Some("Did you move it?"));
        vm.apply("runtime.question", None);
        vm.apply("runtime.powerState", None);
        vm.apply("config.hardware.device", None);
        assert_eq!((vm.question.clone(), vm.power, vm.disks.len()), (None, None, 0));
    }

    #[test]
    fn an_unknown_power_state_is_not_off() {
        let mut vm = vm();
        vm.apply("runtime.powerState", Some(&value("hibernating")));
        assert_eq!(vm.power, None);
    }

    #[test]
    fn a_property_that_could_not_be_read_is_not_none() {
        let read = |unread: Option<&str>| {
            let mut object = Object::new(MoRef::vm("vm-57"));
            let needed = ["name", "config.hardware.device", "runtime.powerState", "runtime.connectionState"];
            for path in needed {
                object.set(path, value("x"));
            }
            let kind = FaultKind::NoPermission { privilege: None, object: None };
            let fault = Fault { kind, message: String::new() };
            object.missing.extend(unread.map(|path| (path.to_owned(), fault)));
            vm().judge_reading(&object)
        };
        read(None).unwrap();
        read(Some("guest.hostName")).unwrap();
        for path in DECIDING {
            let error = read(Some(path)).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        // What is above it could not be read.
        assert!(read(Some("config")).is_err() && read(Some("runtime")).is_err());
    }

    #[test]
    fn a_vm_that_cannot_be_read_is_not_one_without_disks() {
        let object = Object::new(MoRef::vm("vm-57"));
        let mut vm = Vm::new(MoRef::vm("vm-57"));
        assert!(vm.judge_reading(&object).is_err());
        vm.apply("runtime.connectionState", Some(&value("inaccessible")));
        let error = vm.judge_reading(&object).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Blocked);
        assert!(error.to_string().contains("inaccessible"), "{error}");
    }
}
