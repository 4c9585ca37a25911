//! The limits of the daemon: global, of each endpoint, of each migration and of each disk.
//!
//! Rule: the last word counts. What was set while the daemon ran holds, also over a restart, until configuration or plan
//! say something else than they said when it was set; a restart alone is no word, and must not lift a limit that
//! somebody needed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use warmd_cbt::limit::{Arbiter, DiskShares, Limit, Limiter};

use crate::model::{
    id::{DiskKey, MigrationId},
    limit::{LimitView, SavedLimit, Scope, SetBy},
    plan::{Plan, PlanLimits},
};

/// All limits, by what they are on.
#[derive(Debug)]
pub struct Registry {
    arbiter: Arbiter,
    entries: Mutex<BTreeMap<Scope, Entry>>,
    /// Saved by an earlier run of the daemon, for what is not there yet.
    saved: Mutex<BTreeMap<Scope, SavedLimit>>,
}

#[derive(Debug)]
struct Entry {
    limiter: Limiter,
    vm_name: String,
    /// What configuration or plan say.
    said: Limit,
    set: Option<SetBy>,
}

/// A migration as the registry needs to know it.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) id: MigrationId,
    pub(super) vm_name: &'a str,
    pub(super) source: &'a str,
    pub(super) target: &'a str,
}

impl Registry {
    /// With what was saved by an earlier run.
    pub(super) fn new(saved: Vec<(Scope, SavedLimit)>) -> Self {
        Self {
            arbiter: Arbiter::new(),
            entries: Mutex::default(),
            saved: Mutex::new(saved.into_iter().collect()),
        }
    }

    /// What configuration or plan say of a scope. Gives what was set before, if this is a newer word.
    pub(super) fn say(&self, scope: Scope, vm_name: &str, said: Limit) -> Option<SetBy> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(&scope) {
            if entry.said == said {
                return None;
            }
            entry.said = said;
            entry.limiter.set(said);
            return entry.set.take();
        }
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).remove(&scope);
        let (limit, set, outdated) = match saved {
            Some(saved) if saved.instead_of == said => (saved.limit, Some(saved.set), None),
            Some(saved) => (said, None, Some(saved.set)),
            None => (said, None, None),
        };
        let limiter = self.arbiter.limiter(limit);
        entries.insert(scope, Entry { limiter, vm_name: vm_name.to_owned(), said, set });
        outdated
    }

    /// What a plan says of a migration and its disks. Gives the scopes for which this is a newer word than was set.
    pub(super) fn say_plan<'a>(
        &self,
        id: MigrationId,
        vm_name: &str,
        disks: impl Iterator<Item = &'a DiskKey>,
        limits: &PlanLimits,
    ) -> Vec<Scope> {
        let of_disks = disks.map(|disk| (Scope::Migration(id, Some(disk.clone())), limits.disk()));
        std::iter::once((Scope::Migration(id, None), limits.migration()))
            .chain(of_disks)
            .filter(|(scope, said)| self.say(scope.clone(), vm_name, *said).is_some())
            .map(|(scope, _)| scope)
            .collect()
    }

    /// Takes in a migration: what the work on each disk takes from, and the scopes for which its plan has had a newer
    /// word than was set.
    pub(super) fn adopt(
        &self,
        member: &Member,
        disks: &[DiskKey],
        plan: &Plan,
    ) -> (BTreeMap<DiskKey, DiskShares>, Vec<Scope>) {
        let outdated = self.say_plan(member.id, member.vm_name, disks.iter(), &plan.limits);
        let shares = disks.iter().map(|disk| (disk.clone(), self.shares(member, disk)));
        (shares.collect(), outdated)
    }

    /// What the work on a disk takes from. The endpoints are those that the migration began with; one that is not
    /// configured any more has no limits, and is not read either.
    fn shares(&self, member: &Member, disk: &DiskKey) -> DiskShares {
        let entries = self.entries();
        let of = |scope: &Scope| {
            let entry = entries.get(scope);
            entry.map_or_else(|| self.arbiter.limiter(Limit::default()), |entry| entry.limiter.clone())
        };
        let global = of(&Scope::Global);
        let source = of(&Scope::Source(member.source.to_owned()));
        let target = of(&Scope::Target(member.target.to_owned()));
        let migration = of(&Scope::Migration(member.id, None));
        let disk = of(&Scope::Migration(member.id, Some(disk.clone())));
        let way = |endpoint: &Limiter, counts| {
            let rest = [(&migration, counts), (&disk, counts)];
            self.arbiter.limits([(&global, counts), (endpoint, true)].into_iter().chain(rest))
        };
        DiskShares { reads: way(&source, true), writes: way(&target, false), readbacks: way(&target, true) }
    }

    /// Allows something else, and remembers who wanted it; without that, it is what configuration or plan say.
    pub(super) fn set(&self, scope: &Scope, limit: Limit, set: Option<SetBy>) {
        if let Some(entry) = self.entries().get_mut(scope) {
            entry.limiter.set(limit);
            entry.set = set;
        }
    }

    /// What configuration or plan say of it, if it is there.
    pub(super) fn said(&self, scope: &Scope) -> Option<Limit> {
        self.entries().get(scope).map(|entry| entry.said)
    }

    /// One limit as it is now.
    pub(super) fn get(&self, scope: &Scope) -> Option<LimitView> {
        self.entries().get(scope).map(|entry| view(scope, entry))
    }

    /// All limits as they are now: global, sources, targets, and each migration with its disks.
    pub fn list(&self) -> Vec<LimitView> {
        self.entries().iter().map(|(scope, entry)| view(scope, entry)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Scope, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(scope: &Scope, entry: &Entry) -> LimitView {
    LimitView {
        scope: scope.clone(),
        vm_name: entry.vm_name.clone(),
        limit: entry.limiter.limit(),
        set: entry.set.clone(),
        load: entry.limiter.load(),
    }
}
