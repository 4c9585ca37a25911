//! The quotas of each scope: what they allow now, and when that changes.
//!
//! Rule: one task follows the time of day. Running work continues when less is allowed, at the new rate at
//! once.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use warmd_cbt::limit::{Limit, Limiter};
use warmd_core::{
    clock,
    model::{
        id::DiskKey,
        machine::Machine,
        plan::Plan,
        quota::{ConfiguredQuotas, QuotaView, quota_endpoint_name},
    },
    sources::Source,
};
use warmd_schedules::{
    Tz,
    admission_queue::{QuotaKind, QuotaScope},
    quota::{Allowance, Quota, Quotas},
    window::Holidays,
};

use super::{AdmissionControl, State};

/// How long a timer runs before the wall clock, which may have been set, is read again.
const LOOK: Duration = Duration::from_mins(1);

/// The quotas of a scope.
pub(super) struct Scoped {
    written: Written,
    quotas: Quotas,
    /// The limiter of all reads in the scope, or of all writes to a target.
    limiter: Limiter,
    allowance: Allowance,
    next_change: Option<DateTime<Utc>>,
}

#[derive(Clone, Default, PartialEq)]
struct Written {
    quotas: Vec<Quota>,
    zone: Option<Tz>,
    holidays: Holidays,
}

/// Where a migration's disks are, in terms of quotas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct QuotaLocations {
    pub(super) source: String,
    pub(super) target: String,
    /// Hosts and datastores, each with its disks.
    pub(super) others: BTreeMap<QuotaScope, BTreeSet<DiskKey>>,
}

impl QuotaLocations {
    /// The places of a migration of which only the endpoints are known.
    pub(in super::super) fn ends(source: &str, target: &str) -> Self {
        Self { source: source.to_owned(), target: target.to_owned(), others: BTreeMap::new() }
    }
}

/// The quotas that limit the rate of a disk.
#[derive(Debug)]
pub(in super::super) struct RateNodes {
    pub(in super::super) global: Option<Limiter>,
    pub(in super::super) source: Option<Limiter>,
    pub(in super::super) target: Option<Limiter>,
    pub(in super::super) plan: Limiter,
    /// Of the host and the datastore, for reads.
    pub(in super::super) others: Vec<Limiter>,
}

impl AdmissionControl {
    pub(super) fn set_configured_quotas(&self, configured: &ConfiguredQuotas) {
        let ConfiguredQuotas { zone, holidays, scopes } = configured;
        let mut state = self.lock();
        for (scope, quotas) in scopes {
            let written = Written { quotas: quotas.clone(), zone: *zone, holidays: holidays.clone() };
            self.set_written(&mut state, scope, written);
        }
    }

    /// Applies a plan's quotas and priority at once.
    pub(in super::super) fn set_plan_quota(&self, plan: &Plan) {
        let schedule = &plan.schedule;
        let scope = QuotaScope::Plan(plan.name.clone());
        let mut state = self.lock();
        // With an invalid schedule nothing is copied anyway.
        if schedule.problems().is_empty() || !state.scopes.contains_key(&scope) {
            let sound = schedule.problems().is_empty();
            let written = Written {
                quotas: if sound { schedule.quotas.clone() } else { Vec::new() },
                zone: schedule.zone,
                holidays: schedule.holidays.clone(),
            };
            self.set_written(&mut state, &scope, written);
        }
        if let Some(scoped) = state.scopes.get(&scope) {
            scoped.limiter.set_weight(schedule.priority.unwrap_or(1));
        }
        self.settle(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// Removes the quotas of a deleted plan.
    pub(in super::super) fn forget_plan(&self, name: &str) {
        let (mut state, scope) = (self.lock(), QuotaScope::Plan(name.to_owned()));
        state.scopes.remove(&scope);
        state.queue.set_limit(&scope, Allowance::default());
    }

    fn set_written(&self, state: &mut State, scope: &QuotaScope, written: Written) {
        if state.scopes.get(scope).is_some_and(|scoped| scoped.written == written) {
            return;
        }
        let quotas = Quotas::new(&written.quotas, written.holidays.clone(), written.zone);
        let limiter = state
            .scopes
            .get(scope)
            .map_or_else(|| self.rates.limiter(Limit::default()), |scoped| scoped.limiter.clone());
        let (allowance, next_change) = (Allowance::default(), None);
        let scoped = Scoped { written, quotas, limiter, allowance, next_change };
        state.scopes.insert(scope.clone(), scoped);
        state.look(scope, clock::now());
    }

    /// Adds a source's own capacity to what the configuration has for the scope.
    fn add_written(&self, state: &mut State, scope: &QuotaScope, own: Option<Quota>) {
        let Some(own) = own else { return };
        let mut written = state.scopes.get(scope).map(|scoped| scoped.written.clone()).unwrap_or_default();
        if !written.quotas.contains(&own) {
            written.quotas.push(own);
            self.set_written(state, scope, written);
        }
    }

    /// The places of a machine and its disks, by the quotas of the configuration and of its source.
    pub(in super::super) fn places(
        &self,
        (name, source): (&str, &dyn Source),
        target: &str,
        machine: &Machine,
    ) -> QuotaLocations {
        let mut state = self.lock();
        let mut others = BTreeMap::<QuotaScope, BTreeSet<DiskKey>>::new();
        let (host, own) = (source.host(machine), source.quotas());
        self.add_written(&mut state, &QuotaScope::Source(name.to_owned()), own.whole);
        if let Some(host) = &host {
            self.add_written(&mut state, &QuotaScope::Host(quota_endpoint_name(Some(name), host)), own.host);
        }
        for disk in &machine.disks {
            let host = host.clone().map(|place| (QuotaScope::Host as fn(String) -> QuotaScope, place));
            let store = source
                .datastore(disk)
                .map(|place| (QuotaScope::Datastore as fn(String) -> QuotaScope, place));
            for (scope, place) in host.into_iter().chain(store) {
                for source in [None, Some(name)] {
                    let scope = scope(quota_endpoint_name(source, &place));
                    if state.scopes.contains_key(&scope) {
                        others.entry(scope).or_default().insert(disk.key.clone());
                    }
                }
            }
        }
        QuotaLocations { source: name.to_owned(), target: target.to_owned(), others }
    }

    /// The nodes that limit the rate of a disk of a plan, which was passed to
    /// [`AdmissionControl::set_plan_quota`] before.
    pub(in super::super) fn nodes(&self, places: &QuotaLocations, plan: &str, disk: &DiskKey) -> RateNodes {
        let state = self.lock();
        let of = |scope: &QuotaScope| state.scopes.get(scope).map(|scoped| scoped.limiter.clone());
        let others = places.others.iter().filter(|(_, disks)| disks.contains(disk));
        RateNodes {
            global: of(&QuotaScope::Global),
            source: of(&QuotaScope::Source(places.source.clone())),
            target: of(&QuotaScope::Target(places.target.clone())),
            plan: of(&QuotaScope::Plan(plan.to_owned()))
                .unwrap_or_else(|| self.rates.limiter(Limit::default())),
            others: others.filter_map(|(scope, _)| of(scope)).collect(),
        }
    }

    /// Follows the time of day until the daemon ends.
    pub(in super::super) async fn keep_time(self: Arc<Self>) {
        let mut before = clock::now();
        loop {
            let now = clock::now();
            let next = self.look(now, now < before);
            before = now;
            let timer = async {
                let Some(next) = next else { return std::future::pending().await };
                tokio::time::sleep((next - now).to_std().unwrap_or_default().min(LOOK)).await;
            };
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Applies the quotas that hold now, all of them if the clock was set back; returns the time of the next
    /// change.
    fn look(&self, now: DateTime<Utc>, all: bool) -> Option<DateTime<Utc>> {
        let mut state = self.lock();
        let due = |scoped: &Scoped| all || scoped.next_change.is_some_and(|change| change <= now);
        let due: Vec<_> =
            state.scopes.iter().filter(|(_, it)| due(it)).map(|(scope, _)| scope.clone()).collect();
        for scope in &due {
            state.look(scope, now);
        }
        if !due.is_empty() {
            self.settle(&mut state);
        }
        state.scopes.values().filter_map(|scoped| scoped.next_change).min()
    }

    /// All scopes with quotas, with their present state; in the order global, sources, targets, hosts,
    /// datastores, plans.
    pub fn views(&self) -> Vec<QuotaView> {
        let (state, now) = (self.lock(), clock::now());
        let limited = state.scopes.iter().filter(|(_, scoped)| !scoped.written.quotas.is_empty());
        limited
            .map(|(scope, scoped)| QuotaView {
                scope: scope.clone(),
                allowance: scoped.allowance,
                why: scoped.quotas.why(now),
                next_change: scoped.next_change,
                passes: state.queue.used(scope, QuotaKind::Passes),
                snapshots: state.queue.used(scope, QuotaKind::Snapshots),
                disks: state.queue.used(scope, QuotaKind::Disks),
                rate: scoped.limiter.load().rate,
                waiting: state.queue.waiting_in(scope) as u64,
            })
            .collect()
    }

    /// The configured quotas of a migration, besides those of its plan.
    pub(in super::super) fn quotas_over(&self, places: &QuotaLocations) -> Vec<(QuotaScope, Quotas)> {
        let state = self.lock();
        let ends = [
            QuotaScope::Global,
            QuotaScope::Source(places.source.clone()),
            QuotaScope::Target(places.target.clone()),
        ];
        let scopes = ends.iter().chain(places.others.keys());
        let of = |scope: &QuotaScope| Some((scope.clone(), state.scopes.get(scope)?.quotas.clone()));
        scopes.filter_map(of).collect()
    }

    /// The read rates that the quotas allow a migration of a plan now, in bytes per second, with the name of
    /// each.
    pub(in super::super) fn ceilings(
        &self,
        places: &QuotaLocations,
        plan: &str,
    ) -> Vec<(String, NonZeroU64)> {
        let state = self.lock();
        let ends = [
            QuotaScope::Global,
            QuotaScope::Source(places.source.clone()),
            QuotaScope::Target(places.target.clone()),
            QuotaScope::Plan(plan.to_owned()),
        ];
        let of = |scope: &QuotaScope| {
            let rate = state.scopes.get(scope)?.allowance.bytes_per_second?;
            Some((format!("the quota {}", scope.path()), rate))
        };
        ends.iter().chain(places.others.keys()).filter_map(of).collect()
    }
}

impl State {
    /// Applies the quotas of a scope that hold now.
    fn look(&mut self, scope: &QuotaScope, now: DateTime<Utc>) {
        let Some(scoped) = self.scopes.get_mut(scope) else { return };
        scoped.allowance = scoped.quotas.at(now);
        scoped.next_change = scoped.quotas.next_change(now);
        scoped.limiter.set(Limit { rate: scoped.allowance.bytes_per_second, requests: None });
        let allowance = scoped.allowance;
        self.queue.set_limit(scope, allowance);
    }
}
