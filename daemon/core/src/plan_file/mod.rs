//! Plan files: one parser and one check for `warmctl` and for the daemon.

mod error_span;
pub mod text;

use std::{fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use self::text::{Text, TextError, as_text};
use crate::model::plan::Plan;

/// All problems of a plan file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanErrors(pub Vec<TextError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

impl From<TextError> for PlanErrors {
    fn from(error: TextError) -> Self {
        Self(vec![error])
    }
}

/// The plan in `text`; `name` is the file's, for messages.
pub fn load_plan(text: &str, name: &str) -> Result<Plan, PlanErrors> {
    let checked = as_text(name, text.as_bytes().to_vec())?;
    let text = Text { file: name, text: &checked };
    let document = text.parse()?;
    let plan: Plan = text.read(document.clone())?;
    let wrong = |problem: String| text.wrong(place_of(document.get_ref(), &problem), problem);
    let problems: Vec<_> = plan.problems().into_iter().map(wrong).collect();
    if problems.is_empty() { Ok(plan) } else { Err(PlanErrors(problems)) }
}

/// The position of the key that a problem names first, in backquotes: `a.b`, `list[3]`, `[vm."name"]`.
fn place_of(document: &DeTable, problem: &str) -> Option<Range<usize>> {
    if let Some(DeValue::Table(vms)) = document.get("vm").map(Spanned::get_ref) {
        for (key, value) in vms {
            let Some(rest) = problem.strip_prefix(&format!("`[vm.{:?}", key.get_ref())) else { continue };
            if rest.starts_with(']') {
                return Some(key.span());
            }
            // `.schedule] cron`
            let within = rest.split('`').next().and_then(|rest| rest.strip_prefix('.'));
            if let (Some(within), DeValue::Table(table)) = (within, value.get_ref()) {
                return place_in(table, &within.replacen("] ", ".", 1)).or_else(|| Some(key.span()));
            }
        }
    }
    place_in(document, problem.strip_prefix('`')?.split('`').next()?)
}

/// The position of the key at the end of a path from a table, or of the longest existing part of the path.
fn place_in(document: &DeTable, path: &str) -> Option<Range<usize>> {
    let mut table = document;
    let mut place = None;
    for part in path.split('.') {
        let (key, index) = match part.split_once('[') {
            Some((key, index)) => (key, index.strip_suffix(']').and_then(|index| index.parse().ok())),
            None => (part, None::<usize>),
        };
        let Some(value) = table.get(key).or_else(|| table.get(former_name(key)?)) else { break };
        place = Some(value.span());
        match (value.get_ref(), index) {
            (DeValue::Table(inner), _) => table = inner,
            (DeValue::Array(array), Some(index)) => {
                let Some(element) = array.get(index) else { break };
                place = Some(element.span());
                if let DeValue::Table(inner) = element.get_ref() {
                    table = inner;
                }
            }
            _ => {}
        }
    }
    place
}

/// A key's earlier name, where that is still accepted.
fn former_name(key: &str) -> Option<&'static str> {
    (key == "every").then_some("interval")
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::model::{conversion::Conversion, hook::OnFailure};

    const GOOD: &str = r#"name = "wave-1"
source = "lab"
target = "new"
vms = ["web", "db"]

[schedule]
interval = "10m"

[cutover]
force_power_off = true

[cutover.boot_check]
serial = "login:"

[verify]
mode = "compare"

[networks]
default = "prod"

[vm."web"]
name = "web2"

[limits]
rate = "50MiB/s"
disk_requests = 4

[[hooks]]
phase = "stop-source"
when = "before"
command = ["/usr/local/bin/drain", "web"]

[[hooks]]
phase = "boot-check"
when = "after"
command = ["/bin/true"]
timeout = "10s"
retries = 2
on_failure = "warn"

[conversion]
command = ["/usr/local/bin/convert"]
"#;

    fn complaint(text: &str) -> String {
        load_plan(text, "plan.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_good_plan_is_read() {
        let plan = load_plan(GOOD, "plan.toml").unwrap();
        assert_eq!((plan.name.as_str(), plan.vms.len()), ("wave-1", 2));
        assert_eq!(plan.vm["web"].name.as_deref(), Some("web2"));
        assert_eq!(plan.limits.migration().rate.map(NonZeroU64::get), Some(50 << 20));
        assert_eq!(plan.limits.disk().requests.map(NonZeroU32::get), Some(4));
        let (drain, done) = (&plan.hooks[0], &plan.hooks[1]);
        assert_eq!((drain.timeout.as_secs(), drain.retries, drain.on_failure), (60, 0, OnFailure::Abort));
        assert_eq!((done.timeout.as_secs(), done.retries, done.on_failure), (10, 2, OnFailure::Warn));
        assert_eq!(plan.conversion.converter().map(|each| each.timeout.as_secs()), Some(3600));
        let written = toml::to_string(&plan).unwrap();
        assert!(written.contains("rate = \"50MiB/s\""), "{written}");
        assert_eq!(load_plan(&written, "again").unwrap(), plan);
    }

    #[test]
    fn the_example_of_a_conversion_is_a_good_plan() {
        let text = include_str!("../../../examples/conversion/plan.toml");
        let plan = load_plan(text, "plan.toml").unwrap();
        assert!(!plan.conversion.is_none());
        assert_eq!(plan.vm["shop-db"].conversion, Some(Conversion::None));
        assert_eq!(load_plan(&toml::to_string(&plan).unwrap(), "again").unwrap(), plan);
        let text = include_str!("../../../examples/conversion/virt-v2v.toml");
        let plan = load_plan(text, "virt-v2v.toml").unwrap();
        let database = plan.vm["shop-db"].conversion.as_ref().and_then(Conversion::virt_v2v).unwrap();
        assert_eq!((database.root.as_str(), database.interfaces.len()), ("/dev/sda2", 2));
        assert_eq!(load_plan(&toml::to_string(&plan).unwrap(), "again").unwrap(), plan);
    }

    #[test]
    fn every_mistake_has_its_place() {
        let cases = [
            (
                "serial = \"login:\"",
                "serial = \"\"",
                "plan.toml:13:10: `cutover.boot_check.serial` must be 1 to 256",
            ),
            ("serial =", "ping =", "plan.toml:13:1: unknown key `ping`"),
            (
                "serial = \"login:\"",
                "tcp = \"web\"",
                "plan.toml:13:7: `cutover.boot_check.tcp` is \"web\": write HOST:PORT",
            ),
            ("vms = [\"web\", \"db\"]", "vms = [\"web\", 7]", "plan.toml:4:15: invalid type: integer `7`"),
            (
                "interval",
                "intervall",
                "plan.toml:7:1: unknown key `intervall`, expected one of `zone`, `every`",
            ),
            ("\"10m\"", "\"soon\"", "plan.toml:7:12: \"soon\" is not a length of time"),
            ("\"10m\"", "\"0s\"", "plan.toml:7:12: `schedule.every` is under 1s"),
            ("force_power_off = true", "force_power_off = \"yes\"", "plan.toml:10:19: invalid type: string"),
            ("\"compare\"", "\"hope\"", "plan.toml:16:8: unknown value `hope`, expected one of"),
            ("\"wave-1\"", "\"wave 1\"", "plan.toml:1:8: `name` is \"wave 1\": use 1 to 63"),
            ("\"db\"]", "\"\"]", "plan.toml:4:15: `vms[1]` is \"\""),
            ("[vm.\"web\"]", "[vm.\"wep\"]", "plan.toml:21:5: `[vm.\"wep\"]` is no VM of this plan"),
            ("name = \"web2\"", "name = \"web2\"\nport = 1", "plan.toml:23:1: unknown key `port`"),
            ("source = \"lab\"", "", "missing key `source`"),
            ("[networks]", "[networks", "plan.toml:18:10: "),
            ("\"50MiB/s\"", "\"50\"", "plan.toml:25:8: \"50\" is no rate such as \"200MiB/s\""),
            ("disk_requests = 4", "disk_requests = 0", "plan.toml:26:17: no requests at all would stop"),
            (
                "\"stop-source\"",
                "\"stop\"",
                "plan.toml:29:9: unknown value `stop`, expected one of `catch-up-delta`, `stop-source`, `final-delta`, \
                 `verify`, `convert`, `create-vm`, `start-vm`, `boot-check`, `cleanup`",
            ),
            ("when = \"before\"\n", "", "missing key `when`"),
            ("\"/usr/local", "\"usr/local", "plan.toml:31:11: `hooks[0].command` is [\"usr/local"),
            ("[\"/bin/true\"]", "\"/bin/true\"", "plan.toml:36:11: invalid type: string"),
            ("[\"/bin/true\"]", "[]", "plan.toml:36:11: `hooks[1].command` is []"),
            ("\"10s\"", "\"0s\"", "plan.toml:37:11: `hooks[1].timeout` must be more than nothing"),
            ("retries = 2", "retries = 1000", "plan.toml:38:11: `hooks[1].retries` is more than 100"),
            ("bin/convert\"]", "bin/convert\"]\nretries = 1", "plan.toml:43:1: unknown key `retries`"),
            (
                "[\"/usr/local/bin/convert",
                "[\"convert",
                "plan.toml:42:11: `conversion.command` is [\"convert",
            ),
            ("disk_requests = 4", "disks = 4", "plan.toml:26:1: unknown key `disks`"),
            ("source = \"lab\"", "source = \"lab\"\nsource = \"lab\"", "plan.toml:3:1: duplicate key"),
        ];
        for (old, new, wanted) in cases {
            assert!(GOOD.contains(old), "{old}");
            let message = complaint(&GOOD.replacen(old, new, 1));
            assert!(message.contains(wanted), "{new}: {message}\n   {wanted}");
        }
    }

    #[test]
    fn the_examples_are_good_plans() {
        for (name, text) in [
            ("always-on", include_str!("../../../../schedules/examples/always-on.toml")),
            ("business-hours", include_str!("../../../../schedules/examples/business-hours.toml")),
            ("nightly", include_str!("../../../../schedules/examples/nightly.toml")),
            ("weekend-wave", include_str!("../../../../schedules/examples/weekend-wave.toml")),
        ] {
            let plan = load_plan(text, name).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(load_plan(&toml::to_string(&plan).unwrap(), name).unwrap(), plan);
        }
    }

    #[test]
    fn a_schedule_is_written_as_a_whole() {
        let text = GOOD.replacen(
            "interval = \"10m\"",
            "zone = \"Europe/Berlin\"\ncron = \"30 22 * * *\"\n[schedule.copy]\nwindows = [\"daily 22:00–05:00\"]\n\
             blackouts = [\"2026-12-24\"]",
            1,
        );
        let plan = load_plan(&text, "plan.toml").unwrap();
        assert_eq!(plan.schedule.every, None);
        let written = toml::to_string(&plan).unwrap();
        for part in ["Europe/Berlin", "30 22 * * *", "22:00–05:00", "2026-12-24"] {
            assert!(written.contains(part), "{part}: {written}");
        }
        assert_eq!(load_plan(&written, "again").unwrap(), plan);
    }

    #[test]
    fn without_a_cadence_it_is_the_default_and_shown() {
        let plan = load_plan(&GOOD.replacen("interval = \"10m\"", "", 1), "plan.toml").unwrap();
        assert!(toml::to_string(&plan).unwrap().contains("every = \"15m\""));
        let windows = "[schedule.copy]\nwindows = [\"daily 22:00–05:00 Europe/Berlin\"]";
        let plan = load_plan(&GOOD.replacen("interval = \"10m\"", windows, 1), "plan.toml").unwrap();
        assert_eq!(plan.schedule.every, Some(std::time::Duration::from_mins(15)));
        let none = GOOD.replacen("[schedule]\ninterval = \"10m\"\n", "", 1);
        assert_eq!(load_plan(&none, "p").unwrap().schedule.every, Some(std::time::Duration::from_mins(15)));
    }

    #[test]
    fn what_is_wrong_with_a_schedule_has_its_place() {
        let cases = [
            (
                "every = \"1h\"\ncron = \"0 * * * * UTC\"",
                "plan.toml:8:8: `schedule.cron` stands beside `every`",
            ),
            ("cron = \"0 * * * *\"", "plan.toml:7:8: `schedule.cron` is \"0 * * * *\", in no time zone"),
            ("copy.windows = [\"daily 22:00–05:00\"]", "plan.toml:7:17: `schedule.copy.windows[0]`"),
            ("adaptive = { shortest = \"1m\" }", "plan.toml:7:12: `schedule.adaptive` has no target"),
            ("[[schedule.quotas]]\npasses = 0", "plan.toml:8:10: invalid value: integer `0`"),
            (
                "[[schedule.quotas]]\nwindow = \"daily UTC\"",
                "plan.toml:7:1: `schedule.quotas[0]` limits nothing",
            ),
            (
                "quotas = [{ passes = 1 }, { window = \"Sat\", disks = 2 }]",
                "plan.toml:7:38: `schedule.quotas[1].window` is \"Sat\", in no time zone",
            ),
            ("priority = 11", "plan.toml:7:12: `schedule.priority` is 11: use 1 to 10"),
        ];
        for (schedule, wanted) in cases {
            let message = complaint(&GOOD.replacen("interval = \"10m\"", schedule, 1));
            assert!(message.contains(wanted), "{schedule}: {message}\n   {wanted}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_vms_own_schedule_has_its_place() {
        let cases = [
            (
                "[vm.\"web\".schedule]\nevery = \"0s\"",
                "plan.toml:25:9: `[vm.\"web\".schedule] every` is under 1s",
            ),
            (
                "schedule = { interval = \"0s\" }",
                "plan.toml:24:25: `[vm.\"web\".schedule] every` is under 1s",
            ),
            (
                "[vm.\"web\".schedule]\nquotas = [{ passes = 1 }]",
                "plan.toml:25:10: `[vm.\"web\".schedule] quotas` is shared by the VMs of a plan",
            ),
            (
                "[vm.\"web\".schedule.copy]\nwindows = [\"daily UTC\", \"Sat\"]",
                "plan.toml:25:25: `[vm.\"web\".schedule] copy.windows[1]` is \"Sat\", in no time zone",
            ),
            ("[vm.\"web\".schedule]\npace = 1", "plan.toml:25:1: unknown key `pace`"),
        ];
        for (own, wanted) in cases {
            let message =
                complaint(&GOOD.replacen("name = \"web2\"\n", &format!("name = \"web2\"\n\n{own}\n"), 1));
            assert!(message.contains(wanted), "{own}: {message}\n   {wanted}");
        }
        // A key of the plan that is wrong only for the VM is reported at the VM's section.
        let text = GOOD.replacen(
            "[schedule]",
            "[schedule]\nholidays = [\"12-24\"]\ncopy.blackouts = [\"holidays UTC\"]",
            1,
        );
        let text = text.replacen("name = \"web2\"", "schedule.holidays = []", 1);
        let message = complaint(&text);
        assert!(
            message
                .starts_with("plan.toml:24:1: `[vm.\"web\".schedule] copy.blackouts[0]` speaks of holidays"),
            "{message}"
        );
    }

    #[test]
    fn a_vms_own_schedule_is_kept_as_it_is_written() {
        let own = "name = \"web2\"\n\n[vm.\"web\".schedule]\nevery = \"1h\"\n[vm.\"web\".schedule.copy]\nwindows = []";
        let plan = load_plan(&GOOD.replacen("name = \"web2\"", own, 1), "plan.toml").unwrap();
        let written = toml::to_string(&plan).unwrap();
        assert!(written.contains("[vm.web.schedule]\nevery = \"1h\""), "{written}");
        assert_eq!(load_plan(&written, "again").unwrap(), plan);
        let every =
            |vm: &str| match plan.rules_of(vm, &crate::model::id::VmId("7".to_owned())).unwrap().cadence {
                warmd_schedules::rules::Cadence::Every(every) => every.as_secs(),
                other => panic!("{other:?}"),
            };
        assert_eq!((every("web"), every("db")), (3600, 600));
        let by_id = GOOD.replacen("[vm.\"web\"]\nname = \"web2\"", "[vm.\"7\"]\nschedule.every = \"2h\"", 1);
        let by_id = by_id.replacen("\"web\", \"db\"", "\"7\"", 1);
        let plan = load_plan(&by_id, "plan.toml").unwrap();
        let every = plan.rules_of("web", &crate::model::id::VmId("7".to_owned())).unwrap().cadence;
        assert_eq!(every, warmd_schedules::rules::Cadence::Every(std::time::Duration::from_hours(2)));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let message = complaint("name = \"\"\nsource = \"é\"\ntarget = \"t\"\nvms = []\n");
        let starts: Vec<_> = message.lines().map(|line| line.split(": ").next().unwrap_or(line)).collect();
        assert_eq!(starts, ["plan.toml:1:8", "plan.toml:2:10", "plan.toml:4:7"]);
    }

    #[test]
    fn what_is_no_plan_at_all_is_refused() {
        assert!(complaint("").contains("missing key `name`"));
        assert!(complaint("\u{0}\u{1}\u{2}").starts_with("plan.toml:1:"));
        assert!(complaint(&"x".repeat(2 << 20)).contains("more than 1024 KiB"));
        let deep = "a = ".to_owned() + &"[".repeat(100_000);
        assert!(complaint(&deep).starts_with("plan.toml:1:"));
    }
}
