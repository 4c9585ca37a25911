//! A plan: which VMs move from where to where, and how.
//!
//! Rule: this is the form of the TOML file that users write. Unknown keys are refused, defaults are the
//! cautious ones, and every check that needs no endpoint is in [`Plan::problems`].

mod problems;
pub mod snapshots;

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize};
use warmd_cbt::limit::Limit;
use warmd_schedules::{
    Schedule,
    rules::Rules,
    schedule::{DEFAULT_INTERVAL, Problems},
    schedule_override::ScheduleOverride,
    text::optional_duration,
};

use self::snapshots::SnapshotPolicy;
use super::{
    boot::BootCheck,
    conversion::Conversion,
    hardware::HardwareElement,
    hook::Hook,
    id::{DiskKey, VmId},
    limit::{rate, requests},
    machine::Machine,
    rule::Rule,
    storage,
    tier::Tier,
    verify::{Amount, VerifyScope},
};

/// The plan file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub name: String,
    /// A source of the daemon's configuration.
    pub source: String,
    /// A target of the daemon's configuration.
    pub target: String,
    /// Names or ids of VMs on the source, patterns (`web-*`), and exclusions (`!web-test`): see
    /// [`super::selection`].
    pub vms: Vec<String>,
    /// Pre-flight rules whose findings are accepted for every VM of the plan, if they can be accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<Rule>,
    #[serde(default = "every_default", deserialize_with = "with_cadence")]
    pub schedule: Schedule,
    #[serde(default)]
    pub cutover: CutoverPolicy,
    #[serde(default)]
    pub verify: VerifyPolicy,
    #[serde(default, skip_serializing_if = "SnapshotPolicy::is_default")]
    pub snapshots: SnapshotPolicy,
    #[serde(default, skip_serializing_if = "PlanLimits::is_none")]
    pub limits: PlanLimits,
    /// Source network → target network, [`ANY`] for those not named. Without it they keep their names.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// A disk's datastore on the source, as quotas spell it → the target's storage for the disk, [`ANY`] for
    /// those not named. Without it disks go to [`storage::DEFAULT`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage: BTreeMap<String, String>,
    /// The names on the target of VMs for which the plan has no name.
    #[serde(default, skip_serializing_if = "Names::is_default")]
    pub names: Names,
    /// VM → its differences from the plan.
    #[serde(default)]
    pub vm: BTreeMap<String, VmOverride>,
    /// The conversion of the target's disks before the VM is created from them.
    #[serde(default, skip_serializing_if = "Conversion::is_none")]
    pub conversion: Conversion,
    /// Whether each guest is inspected once its first copy is complete; if not set, only before virt-v2v
    /// converts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspect_guest: Option<bool>,
    /// Programs that are run before and after the phases of a cutover, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
}

/// In a map of the plan: all keys that are not named.
pub const ANY: &str = "*";

/// The cutover of the VM. Times are deadlines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CutoverPolicy {
    /// Who begins the cutover.
    pub mode: CutoverMode,
    /// A cutover does not begin if its forecast exceeds this downtime, unless the cutover is forced.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub max_downtime: Option<Duration>,
    /// How long the guest may take to shut down.
    #[serde(with = "duration")]
    pub graceful_shutdown: Duration,
    /// Whether the power is cut after that; if not, the cutover is undone.
    pub force_power_off: bool,
    /// How long copying each delta of a cutover may take.
    #[serde(with = "duration")]
    pub delta_deadline: Duration,
    /// How long verification may take.
    #[serde(with = "duration")]
    pub verify_deadline: Duration,
    /// How long creating and how long starting the VM on the target may take.
    #[serde(with = "duration")]
    pub create_deadline: Duration,
    /// How long the target VM must have run when the boot check ends.
    #[serde(with = "duration", alias = "watch")]
    pub min_uptime: Duration,
    /// How long the source VM is checked every minute after the migration is done; 0 for never.
    #[serde(with = "duration", alias = "watch_source", skip_serializing_if = "is_default_monitor_source")]
    pub monitor_source: Duration,
    /// What must be seen of the target VM meanwhile.
    #[serde(skip_serializing_if = "BootCheck::is_default")]
    pub boot_check: BootCheck,
    /// Whether all VMs of the plan move together, or none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all_or_nothing: bool,
    /// How long a VM waits, off, for the others of its group.
    #[serde(with = "duration", skip_serializing_if = "is_default_barrier")]
    pub barrier: Duration,
    /// The VMs that move together, in order; each moves alone if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
}

/// How long a VM waits for its group by default.
const BARRIER: Duration = Duration::from_hours(1);

/// How long the source of a finished migration is checked by default.
const MONITOR_SOURCE: Duration = Duration::from_hours(7 * 24);

fn is_default_monitor_source(span: &Duration) -> bool {
    *span == MONITOR_SOURCE
}

fn is_default_barrier(barrier: &Duration) -> bool {
    *barrier == BARRIER
}

impl Default for CutoverPolicy {
    fn default() -> Self {
        Self {
            mode: CutoverMode::Manual,
            max_downtime: None,
            graceful_shutdown: Duration::from_mins(2),
            force_power_off: false,
            delta_deadline: Duration::from_mins(30),
            verify_deadline: Duration::from_hours(1),
            create_deadline: Duration::from_mins(2),
            min_uptime: Duration::from_secs(10),
            monitor_source: MONITOR_SOURCE,
            boot_check: BootCheck::default(),
            all_or_nothing: false,
            barrier: BARRIER,
            tiers: Vec::new(),
        }
    }
}

/// Who begins a cutover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverMode {
    /// An operator.
    #[default]
    Manual,
    /// warmd, as soon as the VM is synced and `schedule.cutover` allows it.
    Auto,
}

/// The verification that must pass before the VM is created on the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyPolicy {
    pub mode: VerifyMode,
    /// The scope of it.
    pub scope: VerifyScope,
    /// How much of each disk a delta reads to audit change tracking; the daemon's configured value if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Amount>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyMode {
    /// Nothing: the manifest and the flushes are trusted.
    None,
    /// The target is read again and compared with the manifest.
    #[default]
    Readback,
    /// The source's final snapshot is read again and compared with the target.
    Compare,
}

impl std::fmt::Display for VerifyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Readback => "readback",
            Self::Compare => "compare",
        })
    }
}

/// The limits of each migration of the plan and of each of its disks; in all passes and verifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanLimits {
    /// Bytes per second that a migration may read.
    #[serde(with = "rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
    /// Reads of a migration in flight.
    #[serde(with = "requests", skip_serializing_if = "Option::is_none")]
    pub requests: Option<NonZeroU32>,
    /// Bytes per second that each of its disks may read.
    #[serde(with = "rate", skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<NonZeroU64>,
    /// Reads of each of its disks in flight.
    #[serde(with = "requests", skip_serializing_if = "Option::is_none")]
    pub disk_requests: Option<NonZeroU32>,
}

impl PlanLimits {
    /// Whether there is no limit.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The limit of each migration.
    pub fn migration(&self) -> Limit {
        Limit { rate: self.rate, requests: self.requests }
    }

    /// The limit of each disk.
    pub fn disk(&self) -> Limit {
        Limit { rate: self.disk_rate, requests: self.disk_requests }
    }
}

/// The names of VMs on the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// Whether names are changed to suit DNS and Kubernetes (RFC 1123 labels); otherwise they stay unchanged.
    pub sanitise: bool,
}

impl Names {
    /// Whether all values are the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The name on the target of a VM of this name.
    pub fn of(self, name: &str) -> String {
        if self.sanitise { sanitised(name) } else { name.to_owned() }
    }
}

/// The name as an RFC 1123 label: lower-case letters, digits and dashes (not at its ends), at most 63. For
/// some names nothing remains.
fn sanitised(name: &str) -> String {
    let label: String = name
        .chars()
        .map(|each| if each.is_ascii_alphanumeric() { each.to_ascii_lowercase() } else { '-' })
        .skip_while(|each| *each == '-')
        .take(63)
        .collect();
    label.trim_end_matches('-').to_owned()
}

/// The differences of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmOverride {
    /// Its name on the target; its source name if absent.
    pub name: Option<String>,
    /// Findings accepted for this VM in addition to those of the plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<Rule>,
    /// Disk → its location on the target: a path or an NBD URI.
    pub disks: BTreeMap<String, String>,
    /// The boot check of this VM instead of `[cutover.boot_check]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_check: Option<BootCheck>,
    /// The conversion of this VM instead of `conversion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion: Option<Conversion>,
    /// The keys of its schedule that replace the plan's.
    #[serde(skip_serializing_if = "ScheduleOverride::is_empty")]
    pub schedule: ScheduleOverride,
}

/// The text that names a VM's schedule section before one of its keys: `[vm."web".schedule] cron`.
pub fn schedule_of(vm: &str) -> String {
    format!("[vm.{vm:?}.schedule] ")
}

impl Plan {
    /// Replaces a plan that was deleted after its migrations had ended.
    pub fn stub(name: &str, source: &str, target: &str, vm: &str) -> Self {
        Self {
            name: name.to_owned(),
            source: source.to_owned(),
            target: target.to_owned(),
            vms: vec![vm.to_owned()],
            accept: Vec::new(),
            schedule: every_default(),
            cutover: CutoverPolicy::default(),
            verify: VerifyPolicy::default(),
            snapshots: SnapshotPolicy::default(),
            limits: PlanLimits::default(),
            networks: BTreeMap::new(),
            storage: BTreeMap::new(),
            names: Names::default(),
            vm: BTreeMap::new(),
            conversion: Conversion::None,
            inspect_guest: None,
            hooks: Vec::new(),
        }
    }

    /// What it runs on the daemon's host or gives to guests from there: the command lines of its conversions
    /// and hooks, the files that virt-v2v is given, and the addresses of its hook services.
    pub fn programs(&self) -> Vec<Vec<String>> {
        let conversions =
            std::iter::once(&self.conversion).chain(self.vm.values().filter_map(|vm| vm.conversion.as_ref()));
        let converters = conversions.flat_map(Conversion::programs);
        let hooks = self.hooks.iter().map(|hook| match &hook.grpc {
            Some(address) => vec!["grpc".to_owned(), address.clone()],
            None => hook.command.clone(),
        });
        converters.chain(hooks).collect()
    }

    /// The differences of the machine, which the plan calls `vm`: found by that name, by its own name, or by
    /// its id.
    pub fn override_of(&self, vm: &str, machine: &Machine) -> Option<&VmOverride> {
        [vm, &machine.name, &machine.id.0].into_iter().find_map(|key| self.vm.get(key))
    }

    /// The differences of the VM of this name and this id.
    pub fn override_by_name(&self, name: &str, id: &VmId) -> Option<&VmOverride> {
        self.vm.get(name).or_else(|| self.vm.get(&id.0))
    }

    /// The name on the target of the machine that the plan calls `vm`.
    pub fn target_name(&self, vm: &str, machine: &Machine) -> String {
        let chosen = self.override_of(vm, machine).and_then(|over| over.name.clone());
        chosen.unwrap_or_else(|| self.names.of(&machine.name))
    }

    /// Whether a finding of the rule on the VM with these differences is accepted: the plan accepts the
    /// finding, and the rule allows that.
    pub fn accepts(&self, over: Option<&VmOverride>, rule: Rule) -> bool {
        let is_named = self.accept.contains(&rule) || over.is_some_and(|over| over.accept.contains(&rule));
        is_named && rule.can_be_accepted()
    }

    /// The machine with the target's networks, and with the plan's consent to lose its isolation, if given.
    pub fn mapped(&self, mut machine: Machine) -> Machine {
        for nic in &mut machine.nics {
            if let Some(network) = self.networks.get(&nic.network).or_else(|| self.networks.get(ANY)) {
                nic.network.clone_from(network);
            }
        }
        let waives = self.accepts(self.override_by_name(&machine.name, &machine.id), Rule::IsolationLost);
        if let Some(hardware) = machine.hardware.as_mut().filter(|_| waives) {
            hardware
                .attributes
                .push((HardwareElement::WAIVED.to_owned(), Rule::IsolationLost.id().to_owned()));
        }
        machine
    }

    /// A disk's location in the plan, if it has one: its own, or the storage that its datastore is mapped to.
    pub fn place_of(
        &self,
        over: Option<&VmOverride>,
        disk: &DiskKey,
        datastore: Option<&str>,
    ) -> Option<String> {
        if let Some(place) = over.and_then(|over| over.disks.get(&disk.0)) {
            return Some(place.clone()).filter(|place| *place != storage::place(storage::DEFAULT));
        }
        let named = datastore.and_then(|datastore| self.storage.get(datastore));
        let storage = named.or_else(|| self.storage.get(ANY))?;
        (storage != storage::DEFAULT).then(|| storage::place(storage))
    }

    /// Its schedule, ready for decisions. For one of its VMs use [`Plan::rules_of`].
    pub fn rules(&self) -> Result<Rules, Problems> {
        self.schedule.rules()
    }

    /// The schedule of the VM of this name and this id: the plan's, with the VM's override.
    pub fn rules_of(&self, name: &str, id: &VmId) -> Result<Rules, Problems> {
        match self.override_by_name(name, id) {
            Some(over) => self.schedule.rules_with(&over.schedule),
            None => self.rules(),
        }
    }

    /// The RPO target of the VM of this name and this id, if its schedule has one.
    pub fn rpo_of(&self, name: &str, id: &VmId) -> Option<Duration> {
        match self.override_by_name(name, id) {
            Some(over) => over.schedule.rpo(&self.schedule),
            None => self.schedule.adaptive.and_then(|adaptive| adaptive.rpo),
        }
    }
}

/// The default schedule.
fn every_default() -> Schedule {
    Schedule { every: Some(DEFAULT_INTERVAL), ..Schedule::default() }
}

/// A schedule with its default cadence filled in, so that it is shown with the plan.
fn with_cadence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Schedule, D::Error> {
    let schedule = Schedule::deserialize(deserializer)?;
    let has_cadence = schedule.every.is_some() || schedule.cron.is_some() || schedule.adaptive.is_some();
    Ok(if has_cadence { schedule } else { Schedule { every: Some(DEFAULT_INTERVAL), ..schedule } })
}

/// The rule of [`is_target_name`], for messages.
pub const TARGET_NAME: &str =
    "1 to 63 of the characters a-z, A-Z, 0-9, `.`, `-` and `_`, and no `-` at its beginning";

/// Whether this name is allowed for a machine on the target.
pub fn is_target_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && name.chars().all(is_plain)
}

fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_labels() {
        let names = Names { sanitise: true };
        for (name, label) in [
            ("web-1", "web-1"),
            ("Web_1.lan", "web-1-lan"),
            ("--help", "help"),
            ("ä b", "b"),
            ("grün", "gr-n"),
            ("__", ""),
        ] {
            assert_eq!(names.of(name), label);
            assert_eq!(Names::default().of(name), name);
        }
        assert_eq!(names.of(&format!("{}-x", "a".repeat(62))), "a".repeat(62));
    }

    fn plan(rest: &str) -> Plan {
        let text = format!("name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]\n{rest}");
        toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn a_disk_goes_where_it_is_sent_or_where_its_datastore_is() {
        let maps = "[storage]\n\"/srv/ssd\" = \"fast\"\n\"rbd:vms\" = \"default\"\n";
        let own = "[vm.v.disks]\nvda = \"/dev/x\"\nvdb = \"storage:slow\"\nvdc = \"storage:default\"\n";
        let of = |plan: &Plan, disk: &str, datastore: Option<&str>| {
            plan.place_of(plan.vm.get("v"), &DiskKey(disk.to_owned()), datastore)
        };
        let place = |place: &str| Some(place.to_owned());
        let named = plan(maps);
        assert_eq!(of(&named, "vda", Some("/srv/ssd")), place("storage:fast"));
        assert_eq!(of(&named, "vda", Some("rbd:vms")), None);
        for unnamed in [Some("/srv"), Some("/srv/ssd/"), Some("*"), None] {
            assert_eq!(of(&named, "vda", unnamed), None, "{unnamed:?}");
        }
        let any = plan(&format!("{maps}\"*\" = \"slow\"\n{own}"));
        assert_eq!(of(&any, "vdz", Some("/srv/ssd")), place("storage:fast"));
        assert_eq!(of(&any, "vdz", Some("rbd:vms")), None, "named as the default");
        for unnamed in [Some("/srv"), None] {
            assert_eq!(of(&any, "vdz", unnamed), place("storage:slow"));
        }
        assert_eq!(of(&any, "vda", Some("/srv/ssd")), place("/dev/x"));
        assert_eq!(of(&any, "vdb", Some("/srv/ssd")), place("storage:slow"));
        assert_eq!(of(&any, "vdc", Some("/srv/ssd")), None);
        assert_eq!(any.problems(), [""; 0]);
        let wrong = plan("[storage]\n\"/srv\" = \"/srv/fast\"").problems();
        assert!(wrong.len() == 1 && wrong[0].starts_with("`storage.\"/srv\"` is \"/srv/fast\""), "{wrong:?}");
    }

    #[test]
    fn networks_that_are_not_named_go_where_the_star_says() {
        let of = |maps: &str, network: &str| {
            let nic = crate::model::machine::Nic {
                mac: String::new(),
                network: network.to_owned(),
                model: String::new(),
            };
            let machine = crate::model::machine::Machine { nics: vec![nic], ..machine() };
            plan(maps).mapped(machine).nics[0].network.clone()
        };
        let named = "[networks]\nlan = \"br0\"\n";
        assert_eq!((of(named, "lan"), of(named, "dmz")), ("br0".to_owned(), "dmz".to_owned()));
        let any = format!("{named}\"*\" = \"br1\"");
        assert_eq!((of(&any, "lan"), of(&any, "dmz")), ("br0".to_owned(), "br1".to_owned()));
    }

    fn machine() -> Machine {
        Machine {
            id: VmId("1".to_owned()),
            name: "v".to_owned(),
            uuid: String::new(),
            firmware: crate::model::machine::Firmware::Bios,
            machine_type: "q35".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: crate::model::machine::CpuTopology { sockets: 1, cores: 1, threads: 1 },
            memory: warmd_cbt::units::Length(1 << 20),
            disks: Vec::new(),
            nics: Vec::new(),
            hardware: None,
            host: None,
        }
    }

    proptest! {
        #[test]
        fn what_is_sanitised_is_a_label_and_stays_one(name in ".{0,80}") {
            let label = sanitised(&name);
            let inner = |each: char| each.is_ascii_lowercase() || each.is_ascii_digit() || each == '-';
            prop_assert!(label.len() <= 63 && label.chars().all(inner));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert_eq!(sanitised(&label), label);
        }
    }
}

/// Durations as users write them: `90s`, `15m`, `1h 30m`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it as humantime does.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Reads it as humantime does.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!("{text:?} is no duration such as \"90s\" or \"15m\": {error}"))
        })
    }
}
