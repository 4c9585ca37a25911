//! `plan new`: a plan file for VMs that a source has, with comments.
//!
//! Rule: what is printed is a plan that `plan validate` understands. VMs are named one by one, so that the
//! reader sees what it moves; text from outside is in strings or on one line of a comment.

use std::fmt::Write as _;

use warmd_core::{
    format,
    model::selection::{SelectedVms, select},
};
use warmd_proto::v1::{SourcesListVmsRequest, TargetsListRequest, VmSummary};

use super::{
    client::{Client, asked},
    failure::{CliFailure, Exit},
    labels,
    out::{Out, one_line},
};

pub(super) struct NewPlan {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) target: Option<String>,
    pub(super) vms: Vec<String>,
}

pub(super) async fn print(client: &Client, out: &Out, new: NewPlan) -> Result<(), CliFailure> {
    let NewPlan { name, source, target, vms } = new;
    let target = chosen_target(client, target).await?;
    let request = asked(SourcesListVmsRequest { name: source.clone(), refresh: false });
    let known = client.sources().list_vms(request).await?.into_inner().vms;
    let chosen = chosen(&vms, &known, &source)?;
    out.text(&text(&name, &source, &target, &chosen))
}

async fn chosen_target(client: &Client, target: Option<String>) -> Result<String, CliFailure> {
    let known = client.targets().list(asked(TargetsListRequest {})).await?.into_inner().targets;
    let names: Vec<_> = known.into_iter().map(|target| target.name).collect();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match (target, names.as_slice()) {
        (Some(target), names) if names.contains(&target) => Ok(target),
        (Some(target), _) => {
            Err(CliFailure::new(Exit::NotFound, format!("no target {target:?}; there are: {there}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(CliFailure::new(
            Exit::Usage,
            format!("name the target with --target NAME; there are: {there}"),
        )),
    }
}

/// The chosen VMs, each with its name in the plan.
fn chosen<'a>(
    entries: &[String],
    known: &'a [VmSummary],
    source: &str,
) -> Result<Vec<(String, &'a VmSummary)>, CliFailure> {
    let pairs: Vec<_> = known.iter().map(|vm| (vm.id.clone(), vm.name.clone())).collect();
    let selection = select(entries, &pairs);
    let mut chosen = Vec::new();
    let mut missing = selection.idle;
    for SelectedVms { vm, .. } in selection.chosen {
        match known.iter().find(|known| known.name == vm || known.id == vm) {
            Some(known) => chosen.push((vm, known)),
            None => missing.push(vm),
        }
    }
    if chosen.is_empty() || !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(|entry| format!("{entry:?}")).collect();
        let what =
            if missing.is_empty() { "a VM that is not left out".to_owned() } else { missing.join(", ") };
        let message = format!("source {source} has nothing for {what}: see `warmctl source vms {source}`");
        return Err(CliFailure::new(Exit::NotFound, message));
    }
    Ok(chosen)
}

/// A TOML string on one line. What a terminal or [`Out`] might change is escaped.
fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for each in text.chars() {
        match each {
            '"' | '\\' => quoted.extend(['\\', each]),
            ' '..='~' => quoted.push(each),
            _ if each.is_alphanumeric() => quoted.push(each),
            // Writing to a string cannot fail.
            _ => drop(write!(quoted, "\\U{:08x}", u32::from(each))),
        }
    }
    quoted.push('"');
    quoted
}

/// The plan file.
fn text(name: &str, source: &str, target: &str, vms: &[(String, &VmSummary)]) -> String {
    let mut lines = String::new();
    for (vm, summary) in vms {
        let disks = labels::count(summary.disks as usize, "disk");
        let size = format::bytes(summary.size_bytes);
        let tracked = if summary.tracked == summary.disks {
            "tracked".to_owned()
        } else {
            format!("{} tracked", summary.tracked)
        };
        let power = labels::name(summary.power());
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "    {},  # {power}, {disks}, {size}, {tracked}", quoted(vm));
        for warning in &summary.warnings {
            let _ = writeln!(lines, "    #   {}", one_line(warning));
        }
    }
    let total = format::bytes(vms.iter().fold(0, |sum, (_, vm)| sum.saturating_add(vm.size_bytes)));
    let count = labels::count(vms.len(), "VM");
    format!(
        "# {count}, {total}. Check it with `warmctl plan validate -f FILE`, see what it would do with
# `warmctl plan apply --dry-run -f FILE`, and make it so with `warmctl plan apply -f FILE`.
name = {name}
source = {source}
target = {target}

# Names, ids, patterns (\"web-*\"), and what is left out of them (\"!web-test\").
vms = [
{lines}]

[schedule]
every = \"15m\"                 # from the end of one delta to the start of the next; or cron, or adaptive
# zone = \"Europe/Berlin\"
# [schedule.copy]               # when data may be copied; always, if nothing is said
# windows = [\"daily 22:00–05:00 Europe/Berlin\"]
# [schedule.cutover]            # when a cutover may begin
# windows = [\"Sat 22:00–Sun 04:00 Europe/Berlin\"]

[cutover]
mode = \"manual\"               # or \"auto\": as soon as it is synced, inside the windows of schedule.cutover
# max_downtime = \"5m\"         # begin none that is expected to take longer
graceful_shutdown = \"2m\"      # how long the guest may take to shut down
force_power_off = false         # cut the power after that? if not, the cutover is undone
min_uptime = \"10s\"            # how long the target VM must have run when the boot check ends
# [cutover.boot_check]
# serial = \"login:\"           # what must be seen of it meanwhile
# [[cutover.tiers]]             # VMs that `plan cutover` moves together, tier by tier
# vms = [\"*\"]

[verify]
mode = \"readback\"             # target against manifest; \"compare\": source against target; \"none\"
scope = \"full\"

# [limits]                      # of each migration
# rate = \"200MiB/s\"

[networks]                      # source network = target network; others keep their name
# default = \"br0\"
# \"*\" = \"br1\"                 # unless this says where all others go

[storage]                       # where disks lie on the source = a storage of the target; others go to its default
# \"/var/lib/libvirt/images\" = \"fast\"
# \"*\" = \"slow\"                # unless this says where all others go

[names]
sanitise = false                # true: names on the target as DNS takes them
{example}",
        name = quoted(name),
        source = quoted(source),
        target = quoted(target),
        example = vms.first().map_or_else(String::new, |(vm, _)| {
            let vm = quoted(vm);
            format!("\n# [vm.{vm}]                 # what differs for one VM\n# name = \"another\"              # its name on the target\n# schedule.every = \"1h\"         # in place of that of [schedule]\n")
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmd_core::plan_file::load_plan;

    fn vm(name: &str) -> VmSummary {
        let warnings = vec!["odd\nvms = []".to_owned()];
        VmSummary {
            id: format!("id of {name}"),
            name: name.to_owned(),
            disks: 1,
            warnings,
            ..VmSummary::default()
        }
    }

    #[test]
    fn what_is_printed_is_a_plan_whatever_vms_are_called() {
        let known =
            ["web-1", "--help", "a \"b\" 'c' \\", "#x", "*", "!y", "ü\u{1b}[31m", "web-1\u{2028}"].map(vm);
        let vms: Vec<_> = known.iter().map(|vm| (vm.name.clone(), vm)).collect();
        let text = text("n", "s", "t", &vms);
        // Control characters cannot be in a VM's name, and the error says so.
        let errors = load_plan(&text, "p").unwrap_err().to_string();
        assert!(errors.lines().count() == 1 && errors.contains("`vms[6]`"), "{errors}\n{text}");
        let plan: warmd_core::model::plan::Plan = toml::from_str(&text).unwrap();
        let names: Vec<_> = known.iter().map(|vm| vm.name.as_str()).collect();
        assert_eq!(
            (plan.vms, plan.source.as_str(), plan.target.as_str()),
            (names.iter().map(|n| (*n).to_owned()).collect(), "s", "t")
        );
    }

    #[test]
    fn every_example_in_the_comments_is_right() {
        let known = vm("web");
        let text = text("n", "s", "t", &[("web".to_owned(), &known)]);
        let plain = load_plan(&text, "p").unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with('[') || rest.contains(" = ") => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let full = load_plan(&uncommented, "p").unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
        assert_ne!(full.schedule, plain.schedule);
        assert_eq!(full.vm["web"].name.as_deref(), Some("another"));
        assert!(!full.vm["web"].schedule.is_empty());
        assert_eq!((full.networks.len(), full.storage.len()), (2, 2));
    }
}
