//! The limits of the daemon: global, of each endpoint, of each migration and of each disk.
//!
//! Rule: the latest setting counts. A limit that was set at run time holds, also over a restart, until
//! configuration or plan change from their value at that time. A restart alone changes nothing, and must not
//! lift a limit that an operator needs.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use warmd_cbt::limit::{DiskShares, Limit, Limiter, RateLimiter};
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    limit::{LimitScope, LimitView, SavedLimit, SetBy},
    plan::PlanLimits,
};
use warmd_schedules::forecast::Ceiling;

use super::admission::RateNodes;

/// All limits, by scope.
#[derive(Debug)]
pub struct Registry {
    rate_limiter: RateLimiter,
    entries: Mutex<BTreeMap<LimitScope, Entry>>,
    /// Saved by an earlier run of the daemon, for scopes that do not exist yet.
    saved: Mutex<BTreeMap<LimitScope, SavedLimit>>,
}

#[derive(Debug)]
struct Entry {
    limiter: Limiter,
    vm_name: String,
    /// The limit of configuration or plan.
    said: Limit,
    set: Option<SetBy>,
}

/// The limit that configuration or plan set for a scope.
#[derive(Clone, Debug)]
pub(super) struct ConfiguredLimit {
    pub(super) scope: LimitScope,
    pub(super) vm_name: String,
    pub(super) said: Limit,
}

impl ConfiguredLimit {
    /// The limits of a plan for a migration and its disks.
    pub(super) fn of_plan<'a>(
        id: MigrationId,
        vm_name: &str,
        disks: impl Iterator<Item = &'a DiskKey>,
        limits: &PlanLimits,
    ) -> Vec<Self> {
        let of_disks = disks.map(|disk| (Some(disk.clone()), limits.disk()));
        std::iter::once((None, limits.migration()))
            .chain(of_disks)
            .map(|(disk, said)| Self {
                scope: LimitScope::Migration(id, disk),
                vm_name: vm_name.to_owned(),
                said,
            })
            .collect()
    }
}

/// What the registry needs of a migration.
#[derive(Debug)]
pub(super) struct LimitedMigration<'a> {
    pub(super) id: MigrationId,
    pub(super) source: &'a str,
    pub(super) target: &'a str,
}

impl Registry {
    /// With the limits saved by an earlier run.
    pub(super) fn new(saved: Vec<(LimitScope, SavedLimit)>) -> Self {
        Self {
            rate_limiter: RateLimiter::new(),
            entries: Mutex::default(),
            saved: Mutex::new(saved.into_iter().collect()),
        }
    }

    /// Whether `word` is newer than the limit set at run time: that must be deleted durably before `word` is
    /// applied.
    pub(super) fn outdates(&self, word: &ConfiguredLimit) -> bool {
        match self.entries().get(&word.scope) {
            Some(entry) => entry.said != word.said && entry.set.is_some(),
            None => self.saved().get(&word.scope).is_some_and(|saved| saved.instead_of != word.said),
        }
    }

    /// Applies the limit that configuration or plan set for a scope.
    pub(super) fn set_configured(&self, ConfiguredLimit { scope, vm_name, said }: ConfiguredLimit) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(&scope) {
            if entry.said != said {
                (entry.said, entry.set) = (said, None);
                entry.limiter.set(said);
            }
            return;
        }
        let saved = self.saved().remove(&scope).filter(|saved| saved.instead_of == said);
        let (limit, set) = saved.map_or((said, None), |saved| (saved.limit, Some(saved.set)));
        let limiter = self.rate_limiter.limiter(limit);
        entries.insert(scope, Entry { limiter, vm_name, said, set });
    }

    /// The shares of each disk of a migration, after its plan's limits were applied. The quotas limit each
    /// disk by nodes of their own.
    pub(super) fn shares_of(
        &self,
        member: &LimitedMigration,
        disks: &[DiskKey],
        nodes: impl Fn(&DiskKey) -> RateNodes,
    ) -> BTreeMap<DiskKey, DiskShares> {
        disks.iter().map(|disk| (disk.clone(), self.shares(member, disk, &nodes(disk)))).collect()
    }

    /// The rate limiter of all limits.
    pub(super) fn rate_limiter(&self) -> RateLimiter {
        self.rate_limiter.clone()
    }

    /// The shares of a disk. The endpoints are those at the migration's start; one that is no longer
    /// configured has no limits, and is not read either.
    fn shares(&self, member: &LimitedMigration, disk: &DiskKey, quotas: &RateNodes) -> DiskShares {
        let entries = self.entries();
        let of = |scope: &LimitScope| {
            let entry = entries.get(scope);
            entry.map_or_else(|| self.rate_limiter.limiter(Limit::default()), |entry| entry.limiter.clone())
        };
        let global = of(&LimitScope::Global);
        let source = of(&LimitScope::Source(member.source.to_owned()));
        let target = of(&LimitScope::Target(member.target.to_owned()));
        let migration = of(&LimitScope::Migration(member.id, None));
        let disk = of(&LimitScope::Migration(member.id, Some(disk.clone())));
        let way = |endpoint: &Limiter, quota: Option<&Limiter>, others: &[Limiter], counts| {
            let all = std::iter::once(&global).chain(&quotas.global).map(|node| (node, counts));
            let endpoint = std::iter::once(endpoint).chain(quota).map(|node| (node, true));
            // Hosts and datastores do not take part in the fair queueing: no node branches behind the disk.
            let rest = [&quotas.plan, &migration, &disk].into_iter().chain(others);
            self.rate_limiter.limits(all.chain(endpoint).chain(rest.map(|node| (node, counts))))
        };
        DiskShares {
            reads: way(&source, quotas.source.as_ref(), &quotas.others, true),
            writes: way(&target, quotas.target.as_ref(), &[], false),
            readbacks: way(&target, quotas.target.as_ref(), &[], true),
        }
    }

    /// Removes a finished migration.
    pub(super) fn forget(&self, id: MigrationId) {
        let of_it = |scope: &LimitScope| matches!(scope, LimitScope::Migration(of, _) if *of == id);
        self.entries().retain(|scope, _| !of_it(scope));
        self.saved().retain(|scope, _| !of_it(scope));
    }

    /// Sets a limit and who set it; without `set`, the limit is that of configuration or plan.
    pub(super) fn set(&self, scope: &LimitScope, limit: Limit, set: Option<SetBy>) {
        if let Some(entry) = self.entries().get_mut(scope) {
            entry.limiter.set(limit);
            entry.set = set;
        }
    }

    /// The limit of configuration or plan for the scope, if it exists.
    pub(super) fn said(&self, scope: &LimitScope) -> Option<Limit> {
        self.entries().get(scope).map(|entry| entry.said)
    }

    /// One limit with its present use.
    pub(super) fn get(&self, scope: &LimitScope) -> Option<LimitView> {
        self.entries().get(scope).map(|entry| view(scope, entry))
    }

    /// All limits with their present use: global, sources, targets, and each migration with its disks.
    pub fn list(&self) -> Vec<LimitView> {
        self.entries().iter().map(|(scope, entry)| view(scope, entry)).collect()
    }

    /// The bounds of the rate of a migration's passes now.
    pub(super) fn ceilings(&self, member: &LimitedMigration) -> Vec<Ceiling> {
        let scopes = [
            LimitScope::Global,
            LimitScope::Source(member.source.to_owned()),
            LimitScope::Target(member.target.to_owned()),
            LimitScope::Migration(member.id, None),
        ];
        let entries = self.entries();
        let bound = |scope: &LimitScope| entries.get(scope)?.limiter.limit().rate;
        let of = |scope: &LimitScope| {
            let bytes_per_second = bound(scope)?.get() as f64;
            Some(Ceiling { name: format!("the limit {scope}"), bytes_per_second })
        };
        let mut ceilings: Vec<_> = scopes.iter().filter_map(of).collect();
        let disks = entries.range(LimitScope::Migration(member.id, None)..);
        let disks =
            disks.take_while(|(scope, _)| matches!(scope, LimitScope::Migration(id, _) if *id == member.id));
        let disks = disks.filter(|(scope, _)| matches!(scope, LimitScope::Migration(_, Some(_))));
        let rates: Option<Vec<_>> = disks.map(|(scope, _)| bound(scope)).collect();
        if let Some(rates) = rates.filter(|rates| !rates.is_empty()) {
            let bytes_per_second = rates.iter().map(|rate| rate.get() as f64).sum();
            ceilings.push(Ceiling { name: "the limits of its disks together".to_owned(), bytes_per_second });
        }
        ceilings
    }

    fn saved(&self) -> MutexGuard<'_, BTreeMap<LimitScope, SavedLimit>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<LimitScope, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(scope: &LimitScope, entry: &Entry) -> LimitView {
    LimitView {
        scope: scope.clone(),
        vm_name: entry.vm_name.clone(),
        limit: entry.limiter.limit(),
        set: entry.set.clone(),
        load: entry.limiter.load(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use chrono::Utc;

    use super::*;

    fn rate(bytes: u64) -> Limit {
        Limit { rate: NonZeroU64::new(bytes), requests: None }
    }

    fn word(said: Limit) -> ConfiguredLimit {
        ConfiguredLimit { scope: LimitScope::Global, vm_name: String::new(), said }
    }

    fn set() -> SetBy {
        SetBy { by: "operator".to_owned(), at: Utc::now() }
    }

    /// Between the check and the new limit the old one is deleted durably; if that fails, it stays in force.
    #[test]
    fn asking_whether_a_word_is_newer_changes_nothing() {
        let saved = SavedLimit { limit: rate(5), instead_of: rate(9), set: set() };
        let registry = Registry::new(vec![(LimitScope::Global, saved)]);
        assert!(registry.outdates(&word(rate(8))) && !registry.outdates(&word(rate(9))));
        registry.set_configured(word(rate(9)));
        for _ in 0..2 {
            assert!(registry.outdates(&word(rate(8))) && !registry.outdates(&word(rate(9))));
            let now = registry.get(&LimitScope::Global).unwrap();
            assert_eq!((now.limit, now.set.map(|set| set.by).as_deref()), (rate(5), Some("operator")));
        }
        registry.set_configured(word(rate(8)));
        let now = registry.get(&LimitScope::Global).unwrap();
        assert_eq!((now.limit, now.set), (rate(8), None));
        assert!(!registry.outdates(&word(rate(7))), "nothing is set any more");
    }
}
