//! The VMs of a plan that cut over together, in tiers.
//!
//! Rule: a VM belongs to the first tier that names or matches it. If there are tiers, each VM of the plan
//! must be in one: a forgotten VM would stay behind the VMs that it works with.

use serde::{Deserialize, Serialize};

use super::{plan::Plan, selection::select};

/// VMs of which none is started on the target until all of them are copied and verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Names, ids, patterns and exclusions, as in the plan's `vms`.
    pub vms: Vec<String>,
}

impl Plan {
    /// Whether its VMs cut over together.
    pub fn is_grouped(&self) -> bool {
        self.cutover.all_or_nothing || !self.cutover.tiers.is_empty()
    }

    /// The tier, from 0, of each of the `known` VMs (id, name); `None` if the VM is not in the plan, or in no
    /// tier.
    pub fn tiers_of(&self, known: &[(String, String)]) -> Vec<Option<usize>> {
        let everyone = [Tier { vms: vec!["*".to_owned()] }];
        let tiers = if self.cutover.tiers.is_empty() { everyone.as_slice() } else { &self.cutover.tiers };
        let meant = members(&self.vms, known);
        let tiers: Vec<_> = tiers.iter().map(|tier| members(&tier.vms, known)).collect();
        let first = |at: usize| tiers.iter().position(|tier| tier[at]);
        meant.iter().enumerate().map(|(at, is_meant)| first(at).filter(|_| *is_meant)).collect()
    }
}

/// Which of the `known` VMs the entries select.
fn members(entries: &[String], known: &[(String, String)]) -> Vec<bool> {
    let chosen = select(entries, known).chosen;
    known.iter().map(|(id, name)| chosen.iter().any(|each| each.vm == *id || each.vm == *name)).collect()
}

/// The problems of the tiers as written, each with what to do.
pub(super) fn problems(tiers: &[Tier]) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, tier) in tiers.iter().enumerate() {
        if tier.vms.iter().all(|vm| vm.starts_with('!')) {
            problems.push(format!("`cutover.tiers[{at}]` has no VM: name some in its `vms`, or remove it"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(cutover: &str, names: &[&str]) -> Vec<Option<usize>> {
        let text = format!(
            "name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"*\", \"!other\"]\n[cutover]\n{cutover}"
        );
        let plan: Plan = toml::from_str(&text).unwrap();
        let known: Vec<_> =
            names.iter().enumerate().map(|(id, name)| (format!("id{id}"), (*name).to_owned())).collect();
        plan.tiers_of(&known)
    }

    #[test]
    fn a_vm_is_in_the_first_tier_that_has_it() {
        let text = "[[cutover.tiers]]\nvms = [\"db-*\"]\n[[cutover.tiers]]\nvms = [\"*\", \"!lost\"]";
        let names = ["web", "db-1", "other", "lost"];
        assert_eq!(tiers(text, &names), [Some(1), Some(0), None, None]);
        assert_eq!(tiers("all_or_nothing = true", &names), [Some(0), Some(0), None, Some(0)]);
        let by_id = "[[cutover.tiers]]\nvms = [\"id1\"]\n[[cutover.tiers]]\nvms = [\"web\"]";
        assert_eq!(tiers(by_id, &["web", "db"]), [Some(1), Some(0)]);
    }

    #[test]
    fn a_tier_has_vms() {
        let tier = |vms: &[&str]| Tier { vms: vms.iter().map(|vm| (*vm).to_owned()).collect() };
        assert_eq!(problems(&[tier(&["a"]), tier(&["*", "!b"])]), Vec::<String>::new());
        let found = problems(&[tier(&[]), tier(&["!b"])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("`cutover.tiers[1]` has no VM"), "{found:?}");
    }
}
