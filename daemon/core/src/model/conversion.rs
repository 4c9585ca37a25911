//! Conversion: virt-v2v, or a command of the plan, changes the target's disks before the VM is created from
//! them.
//!
//! Rule: like a hook, a conversion is a program and its arguments, never a shell command line. The machine
//! that it returns is outside data: the machine may differ in its hardware, never in its identity or its set
//! of disks.

mod virt_v2v;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

pub use self::virt_v2v::{VirtV2v, is_interface};
use super::{id::DiskKey, machine::Machine, plan::duration};

/// The longest allowed timeout of a conversion.
const LONGEST: Duration = Duration::from_hours(24);
/// The longest name or similar text in a returned machine, in bytes.
const LONGEST_WORD: usize = 1024;
/// The most virtual processors of a returned machine.
const MOST_VCPUS: u32 = 4096;
/// The most network interfaces of a returned machine.
const MOST_NICS: usize = 256;

/// The plan's setting for conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Conversion {
    /// The disks are handed over as copied.
    #[default]
    None,
    /// virt-v2v, run by warmd.
    VirtV2v(VirtV2v),
    Command(Converter),
}

/// virt-v2v's name in a plan, a report and the journal.
pub const VIRT_V2V: &str = "virt-v2v";

/// The command that converts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Converter {
    /// The program's absolute path, then its arguments.
    pub command: Vec<String>,
    /// How long it may take.
    #[serde(with = "duration", default = "an_hour")]
    pub timeout: Duration,
}

fn an_hour() -> Duration {
    Duration::from_hours(1)
}

impl Conversion {
    /// Whether nothing is converted.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The command of the plan, if there is one.
    pub fn converter(&self) -> Option<&Converter> {
        match self {
            Self::None | Self::VirtV2v(_) => None,
            Self::Command(converter) => Some(converter),
        }
    }

    /// The command lines, and the files of the daemon's host that reach a guest.
    pub fn programs(&self) -> Vec<Vec<String>> {
        match self {
            Self::None => Vec::new(),
            Self::Command(converter) => vec![converter.command.clone()],
            // Without `..`: each new setting is a decision whether it names a file.
            Self::VirtV2v(VirtV2v { root: _, keys, first_boot, interfaces: _, addresses: _, timeout: _ }) => {
                let given = |option: &str, file: &std::path::Path| {
                    vec![VIRT_V2V.to_owned(), option.to_owned(), file.display().to_string()]
                };
                let scripts = first_boot.iter().map(|file| given("--firstboot", file));
                scripts.chain(keys.values().map(|file| given("--key", file))).collect()
            }
        }
    }

    /// virt-v2v's settings, if it converts.
    pub fn virt_v2v(&self) -> Option<&VirtV2v> {
        match self {
            Self::VirtV2v(options) => Some(options),
            Self::None | Self::Command(_) => None,
        }
    }

    /// How long it may take; `None` if nothing is converted.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::VirtV2v(options) => Some(options.timeout),
            Self::Command(converter) => Some(converter.timeout),
        }
    }

    /// The problems of the setting as written; `name` is its name in the plan.
    pub(super) fn problems(&self, name: &str) -> Vec<String> {
        let mut problems = match self {
            Self::None => return Vec::new(),
            Self::VirtV2v(options) => options.problems(name),
            Self::Command(converter) => converter.problems(name),
        };
        if self.timeout().is_some_and(|timeout| timeout.is_zero() || timeout > LONGEST) {
            problems.push(format!("`{name}.timeout` must be more than nothing and at most 24h"));
        }
        problems
    }
}

impl Converter {
    fn problems(&self, name: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.program().starts_with('/') {
            problems.push(format!(
                "`{name}.command` is {:?}: begin it with the absolute path of a program; no shell reads it",
                self.command
            ));
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            problems.push(format!("`{name}.command` has a null character: no program can be given one"));
        }
        problems
    }

    pub fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }
}

impl Serialize for Conversion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::VirtV2v(options) if *options == VirtV2v::default() => serializer.serialize_str(VIRT_V2V),
            Self::VirtV2v(options) => Tool { tool: VIRT_V2V, options }.serialize(serializer),
            Self::Command(converter) => converter.serialize(serializer),
        }
    }
}

#[derive(Serialize)]
struct Tool<'a> {
    tool: &'static str,
    #[serde(flatten)]
    options: &'a VirtV2v,
}

/// A table of either kind, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    tool: Option<String>,
    command: Option<Vec<String>>,
    #[serde(with = "duration", default = "an_hour")]
    timeout: Duration,
    root: Option<String>,
    keys: Option<BTreeMap<String, PathBuf>>,
    first_boot: Option<Vec<PathBuf>>,
    interfaces: Option<BTreeMap<String, String>>,
    addresses: Option<BTreeMap<String, String>>,
}

impl Table {
    fn conversion(self) -> Result<Conversion, String> {
        let timeout = self.timeout;
        match (self.tool.as_deref(), self.command) {
            (Some(VIRT_V2V), None) => Ok(Conversion::VirtV2v(VirtV2v {
                root: self.root.unwrap_or_else(|| VirtV2v::default().root),
                keys: self.keys.unwrap_or_default(),
                first_boot: self.first_boot.unwrap_or_default(),
                interfaces: self.interfaces.unwrap_or_default(),
                addresses: self.addresses.unwrap_or_default(),
                timeout,
            })),
            (Some(VIRT_V2V), Some(_)) => {
                Err("a conversion has either `tool` or `command`: remove one".to_owned())
            }
            (Some(tool), _) => Err(format!("{tool:?} is no tool that warmd knows: write \"{VIRT_V2V}\"")),
            (None, None) => Err(format!("a conversion needs `tool = \"{VIRT_V2V}\"` or a `command`")),
            (None, Some(command)) => {
                let given = [
                    ("root", self.root.is_some()),
                    ("keys", self.keys.is_some()),
                    ("first_boot", self.first_boot.is_some()),
                    ("interfaces", self.interfaces.is_some()),
                    ("addresses", self.addresses.is_some()),
                ];
                match given.into_iter().find(|(_, is_given)| *is_given) {
                    Some((name, _)) => Err(format!("`{name}` is a setting of virt-v2v, not of a `command`")),
                    None => Ok(Conversion::Command(Converter { command, timeout })),
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Conversion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Conversion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", \"virt-v2v\", or a table with a `tool` or a `command`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Conversion, E> {
                match text {
                    "none" => Ok(Conversion::None),
                    VIRT_V2V => Ok(Conversion::VirtV2v(VirtV2v::default())),
                    _ => Err(E::custom(format!(
                        "{text:?} is neither \"none\" nor \"{VIRT_V2V}\" nor a table with a `command`"
                    ))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Conversion, A::Error> {
                Table::deserialize(MapAccessDeserializer::new(map))?.conversion().map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A conversion that was written into the target's disks, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversionView {
    pub command: Vec<String>,
    /// When the command was started.
    pub started: DateTime<Utc>,
    /// When all of its changes were durable on the target's disks; `None` if that was not seen.
    pub committed: Option<DateTime<Utc>>,
    /// The machine that the conversion returned, with the target's networks; `None` if unchanged.
    pub machine: Option<Machine>,
    /// Its changes of each disk.
    pub disks: Vec<ConvertedDisk>,
}

/// The changes that a conversion made to a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertedDisk {
    pub key: DiskKey,
    /// Bytes of blocks that differ from the copy; 0 if none do.
    pub changed: u64,
}

impl ConversionView {
    /// Bytes of the disk that the conversion changed.
    pub fn changed(&self, key: &DiskKey) -> u64 {
        self.disks.iter().find(|disk| disk.key == *key).map_or(0, |disk| disk.changed)
    }

    pub fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }
}

/// The machine that a conversion returned for `given`, as JSON; or why the machine cannot be used.
pub fn machine_back(given: &Machine, json: &[u8]) -> Result<Machine, String> {
    let mut back: Machine =
        serde_json::from_slice(json).map_err(|error| format!("it is no machine as JSON: {error}"))?;
    if back.id != given.id {
        return Err(format!("its `id` is {:?}, and must stay {:?}", back.id.0, given.id.0));
    }
    let keys = |machine: &Machine| machine.disks.iter().map(|disk| disk.key.clone()).collect::<BTreeSet<_>>();
    let (had, has) = (keys(given), keys(&back));
    if let Some(key) = had.difference(&has).next() {
        return Err(format!("it lacks disk {key}: every disk must stay"));
    }
    if let Some(key) = has.difference(&had).next() {
        return Err(format!("it has a disk {key} that the VM does not have"));
    }
    if back.disks.len() != had.len() {
        return Err("it has a disk twice".to_owned());
    }
    for disk in &mut back.disks {
        let Some(was) = given.disks.iter().find(|was| was.key == disk.key) else { continue };
        if disk.size != was.size {
            return Err(format!("disk {} has {} bytes, and must keep its {}", disk.key, disk.size, was.size));
        }
        // The command cannot change the location on the source.
        disk.location.clone_from(&was.location);
        disk.untracked.clone_from(&was.untracked);
    }
    // Nor the hardware that the platform-neutral fields cannot express.
    back.hardware.clone_from(&given.hardware);
    problem(&back).map_or(Ok(back), Err)
}

/// A value that no machine can have, if there is one.
fn problem(back: &Machine) -> Option<String> {
    let words = [&back.name, &back.uuid, &back.machine_type, &back.architecture].into_iter();
    let words = words.chain(back.disks.iter().map(|disk| &disk.bus));
    let mut words = words.chain(back.nics.iter().flat_map(|nic| [&nic.mac, &nic.network, &nic.model]));
    let is_odd =
        |word: &str| word.is_empty() || word.len() > LONGEST_WORD || word.chars().any(char::is_control);
    if let Some(word) = words.find(|word| is_odd(word)) {
        let shown: String = word.chars().take(40).collect();
        return Some(format!("{shown:?} in it is empty, too long, or has control characters"));
    }
    let cpu = back.cpu;
    let vcpus = cpu.sockets.checked_mul(cpu.cores).and_then(|cores| cores.checked_mul(cpu.threads));
    if !vcpus.is_some_and(|vcpus| (1..=MOST_VCPUS).contains(&vcpus)) || back.memory.0 == 0 {
        return Some(format!("it has no processor, or more than {MOST_VCPUS}, or no memory"));
    }
    if back.nics.len() > MOST_NICS {
        return Some(format!("it has more than {MOST_NICS} network interfaces"));
    }
    let odd = back.nics.iter().find(|nic| !is_mac(&nic.mac));
    odd.map(|nic| format!("{:?} is no MAC address", nic.mac))
}

/// Whether the text is a MAC address as libvirt writes one: six bytes in hexadecimal, with colons.
pub fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn machine() -> Value {
        let disk = |key: &str, order: u32| json!({"key": key, "size": 1_048_576, "bus": "sata", "boot_order": order, "location": "/x", "untracked": null});
        json!({
            "id": "1", "name": "a", "uuid": "u", "firmware": "bios", "machine_type": "q35", "architecture": "x86_64",
            "cpu": {"sockets": 1, "cores": 2, "threads": 1}, "memory": 1024,
            "disks": [disk("vda", 0), disk("vdb", 1)],
            "nics": [{"mac": "52:54:00:00:00:01", "network": "default", "model": "e1000"}],
        })
    }

    fn back(change: impl FnOnce(&mut Value)) -> Result<Machine, String> {
        let given = serde_json::from_value(machine()).unwrap();
        let mut changed = machine();
        change(&mut changed);
        machine_back(&given, changed.to_string().as_bytes())
    }

    #[test]
    fn a_machine_may_be_made_of_other_things() {
        let machine = back(|machine| {
            machine["nics"][0]["model"] = json!("virtio");
            machine["disks"][1]["bus"] = json!("virtio");
            machine["disks"][1]["location"] = json!("/somewhere/else");
            machine["firmware"] = json!("uefi");
        })
        .unwrap();
        assert_eq!((machine.nics[0].model.as_str(), machine.disks[1].bus.as_str()), ("virtio", "virtio"));
        assert_eq!(machine.disks[1].location, "/x");
    }

    #[test]
    fn it_stays_the_same_machine_with_the_same_disks() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 11] = [
            (|m| m["id"] = json!("2"), "its `id` is \"2\", and must stay \"1\""),
            (|m| drop(m["disks"].as_array_mut().unwrap().pop()), "it lacks disk vdb"),
            (|m| m["disks"] = json!([]), "it lacks disk vda"),
            (
                |m| {
                    let disk = m["disks"][0].clone();
                    m["disks"].as_array_mut().unwrap().push(disk);
                },
                "a disk twice",
            ),
            (
                |m| {
                    let mut disk = m["disks"][0].clone();
                    disk["key"] = json!("vdc");
                    m["disks"].as_array_mut().unwrap().push(disk);
                },
                "a disk vdc that the VM does not have",
            ),
            (|m| m["disks"][0]["size"] = json!(7), "disk vda has 7 bytes, and must keep its 1048576"),
            (|m| m["cpu"]["cores"] = json!(0), "no processor"),
            (|m| m["cpu"]["cores"] = json!(u32::MAX), "no processor"),
            (|m| m["nics"][0]["mac"] = json!("52:54"), "is no MAC address"),
            (|m| m["name"] = json!("a\u{1b}[2J"), "control characters"),
            (|m| drop(m.as_object_mut().unwrap().remove("memory")), "no machine as JSON"),
        ];
        for (change, why) in cases {
            let error = back(change).unwrap_err();
            assert!(error.contains(why), "{error} for {why}");
        }
        let given = serde_json::from_value(machine()).unwrap();
        assert!(machine_back(&given, b"{").unwrap_err().contains("no machine as JSON"));
    }

    #[test]
    fn it_is_none_or_a_table() {
        #[derive(Debug, Deserialize, Serialize)]
        struct Plan {
            conversion: Conversion,
        }
        let read = |text: &str| toml::from_str::<Plan>(text).map(|plan| plan.conversion);
        assert_eq!(read("conversion = \"none\"").unwrap(), Conversion::None);
        let command = read("[conversion]\ncommand = [\"/bin/true\", \"x\"]").unwrap();
        let converter = command.converter().unwrap();
        assert_eq!((converter.program(), converter.timeout), ("/bin/true", Duration::from_hours(1)));
        for wrong in
            ["conversion = \"v2v\"", "conversion = 7", "[conversion]\ncommand = [\"/x\"]\nretries = 1"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(
            read("conversion = \"v2v\"")
                .unwrap_err()
                .to_string()
                .contains("neither \"none\" nor \"virt-v2v\" nor a table")
        );
        let plain = read("conversion = \"virt-v2v\"").unwrap();
        assert_eq!(plain, Conversion::VirtV2v(VirtV2v::default()));
        assert_eq!((plain.timeout(), plain.converter()), (Some(Duration::from_hours(1)), None));
        let first = read("[conversion]\ntool = \"virt-v2v\"\nroot = \"first\"\ntimeout = \"2h\"").unwrap();
        assert_eq!(first.virt_v2v().unwrap().root, "first");
        assert_eq!(first.timeout(), Some(Duration::from_hours(2)));
        for (wrong, why) in [
            ("tool = \"v2v\"", "no tool that warmd knows"),
            ("root = \"first\"", "needs `tool"),
            ("tool = \"virt-v2v\"\ncommand = [\"/x\"]", "either `tool` or `command`"),
            ("command = [\"/x\"]\nroot = \"first\"", "`root` is a setting of virt-v2v"),
            ("tool = \"virt-v2v\"\nretries = 1", "unknown field"),
        ] {
            let error = read(&format!("[conversion]\n{wrong}")).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
        for conversion in [Conversion::None, command, plain, first] {
            let json = serde_json::to_string(&conversion).unwrap();
            assert_eq!(serde_json::from_str::<Conversion>(&json).unwrap(), conversion);
        }
    }

    #[test]
    fn what_cannot_be_run_is_told() {
        let of = |command: &[&str], timeout| {
            let command = command.iter().map(|part| (*part).to_owned()).collect();
            Conversion::Command(Converter { command, timeout }).problems("conversion")
        };
        assert!(of(&["/bin/true"], an_hour()).is_empty());
        assert!(of(&["true"], an_hour())[0].contains("absolute path"));
        assert!(of(&[], an_hour())[0].contains("absolute path"));
        assert!(of(&["/a", "\0"], an_hour())[0].contains("null character"));
        assert!(of(&["/a"], Duration::ZERO)[0].contains("timeout"));
        assert!(of(&["/a"], Duration::from_hours(25))[0].contains("timeout"));
    }
}
