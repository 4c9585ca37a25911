//! Problems of a plan as written.
//!
//! Rule: only the plan is checked, no endpoint is asked. Each problem names its key in the file and says what
//! to do.

use std::time::Duration;

use super::{Plan, is_target_name, schedule_of};
use crate::model::{
    rule::Rule,
    selection::{is_pattern, may_mean},
    tier,
};

impl Plan {
    /// The problems of the plan as written, each with what to do; empty if there are none.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (what, name) in [("name", &self.name), ("source", &self.source), ("target", &self.target)] {
            if !is_target_name(name) {
                problems.push(format!(
                    "`{what}` is {name:?}: use 1 to 63 letters, digits, dots, dashes and underscores"
                ));
            }
        }
        if self.vms.is_empty() {
            problems.push("`vms` is empty: name at least one VM".to_owned());
        } else if self.vms.iter().all(|vm| vm.starts_with('!')) {
            problems.push("`vms` only leaves VMs out: name some, or write \"*\"".to_owned());
        }
        for (at, vm) in self.vms.iter().enumerate() {
            if vm.is_empty() || vm.chars().any(char::is_control) {
                problems.push(format!("`vms[{at}]` is {vm:?}: not a name that a VM can have"));
            }
            if self.vms[..at].contains(vm) {
                problems.push(format!("`vms` names {vm:?} twice: remove one"));
            }
        }
        for (vm, over) in &self.vm {
            if !self.vms.iter().any(|entry| may_mean(entry, vm)) {
                problems.push(format!(
                    "`[vm.{vm:?}]` is no VM of this plan: add it to `vms` or remove the section"
                ));
            }
            if over.name.as_ref().is_some_and(|name| !is_target_name(name)) {
                problems.push(format!(
                    "`[vm.{vm:?}] name` cannot be used: use 1 to 63 letters, digits, dots, dashes and underscores"
                ));
            }
            if let Some(check) = &over.boot_check {
                problems.extend(check.problems(&format!("[vm.{vm:?}] boot_check")));
            }
            if let Some(conversion) = &over.conversion {
                problems.extend(conversion.problems(&format!("[vm.{vm:?}] conversion")));
            }
            problems.extend(over.schedule.problems(&self.schedule, &schedule_of(vm)));
        }
        let sections = self.vm.iter().map(|(vm, over)| (format!("`[vm.{vm:?}] accept`"), &over.accept));
        for (place, rules) in sections.chain([("`accept`".to_owned(), &self.accept)]) {
            for rule in rules.iter().filter(|rule| !rule.can_be_accepted()) {
                let can = Rule::ALL.into_iter().filter(|rule| rule.can_be_accepted());
                let can: Vec<_> = can.map(Rule::id).collect();
                problems.push(format!(
                    "{place} names {:?}, which cannot be accepted: it can be {}",
                    rule.id(),
                    can.join(", ")
                ));
            }
        }
        for (key, storage) in self.storage.iter().filter(|(_, storage)| !is_target_name(storage)) {
            problems.push(format!(
                "`storage.{key:?}` is {storage:?}: name one of the target's storages, of 1 to 63 letters, digits, dots, \
                 dashes and underscores"
            ));
        }
        let check = &self.cutover.boot_check;
        problems.extend(check.problems("cutover.boot_check"));
        if check.tcp.is_some() && (self.vms.len() > 1 || self.vms.iter().any(|vm| is_pattern(vm))) {
            problems.push(
                "`cutover.boot_check.tcp` is one address for all VMs of the plan: say it for each in \
                 `[vm.\"NAME\".boot_check]`"
                    .to_owned(),
            );
        }
        problems.extend(tier::problems(&self.cutover.tiers));
        problems.extend(self.conversion.problems("conversion"));
        for (at, hook) in self.hooks.iter().enumerate() {
            problems.extend(hook.problems(&format!("hooks[{at}]")));
        }
        if self.cutover.max_downtime.is_some_and(|most| most < Duration::from_secs(1)) {
            problems.push("`cutover.max_downtime` is under 1s: no cutover would ever begin".to_owned());
        }
        problems.extend(self.schedule.problems());
        problems
    }
}
