//! The manager as the control API.

use std::collections::{BTreeMap, btree_map::Entry};

use async_trait::async_trait;
use tokio::sync::{broadcast, oneshot};
use warmd_core::{
    clock,
    control::{
        Applied, Control, ControlError, ControlErrorKind, EndpointInfo, ExplainTarget, Explanation, Finding,
        JournalPage, PlanCutover,
    },
    model::{
        access::{Grant, Role, Subject},
        event_kind::EventKind,
        group::GroupView,
        id::MigrationId,
        limit::{LimitChange, LimitView},
        machine::{Inventory, Machine},
        plan::Plan,
        quota::QuotaView,
        report::{KeySince, Report},
        request::{Request, RequestOutcome},
        scheduled_cutover::CutoverOrder,
        state::State,
        view::{EventView, MigrationView},
    },
    signed_report::{ReportKeyText, SignedReport},
};
use warmd_store::{FinishedMigration, MigrationRow, Unreadable};

use super::{
    command::OwnerRequest,
    explain,
    manager::{DriverHandle, Manager, internal, unread},
    report, restore, rules,
};

/// How often a driver that has just ended is requested again.
const ASKED: u32 = 8;

#[async_trait]
impl Control for Manager {
    async fn sources(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        Ok(self.endpoints.sources.values().map(|opened| opened.endpoint.clone()).collect())
    }

    async fn check_source(&self, name: &str) -> Result<String, ControlError> {
        let source = self.source(name)?;
        let mut said = source.check().await?;
        for warning in source.warnings().await {
            said.push('\n');
            said.push_str(&warning);
        }
        // A finished migration removes nothing any more: its leftovers stay unless an operator removes them.
        // Objects of an unreadable migration are no leftovers either.
        let found = self.store.open_each().await.map_err(internal)?;
        let unreadable = found.unreadable.iter().map(|it| it.id);
        let known: Vec<_> = found.rows.iter().map(|row| row.id).chain(unreadable).collect();
        for leftover in source.leftovers(&known).await? {
            said.push('\n');
            said.push_str(&leftover.to_string());
        }
        Ok(said)
    }

    async fn source_vms(&self, name: &str, refresh: bool) -> Result<Inventory, ControlError> {
        self.inventory(name, refresh).await
    }

    async fn targets(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        Ok(self.endpoints.targets.values().map(|opened| opened.endpoint.clone()).collect())
    }

    async fn check_target(&self, name: &str) -> Result<String, ControlError> {
        Ok(self.target(name)?.check().await?)
    }

    async fn validate_plan(&self, plan: &Plan) -> Result<Vec<Finding>, ControlError> {
        Ok(rules::check_plan(self, plan).await?.findings)
    }

    async fn apply_plan(&self, plan: Plan, by: &str) -> Result<Applied, ControlError> {
        self.apply(plan, by).await
    }

    async fn preview_plan(&self, plan: &Plan) -> Result<Applied, ControlError> {
        self.preview(plan).await
    }

    async fn plans(&self) -> Result<Vec<Plan>, ControlError> {
        // The others are in the journal, and are reported when requested by name.
        Ok(self.store.plans_each().await.map_err(internal)?.0)
    }

    async fn plan(&self, name: &str) -> Result<Plan, ControlError> {
        self.store.plan(name).await.map_err(internal)?.ok_or_else(|| {
            ControlError::new(
                ControlErrorKind::NotFound,
                format!("there is no plan {name:?}: see `plan list`"),
            )
        })
    }

    async fn cut_over_plan(
        &self,
        name: &str,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError> {
        self.ask_plan(&self.plan(name).await?, order, by).await
    }

    async fn group(&self, name: &str) -> Result<Option<GroupView>, ControlError> {
        self.group_view(&self.plan(name).await?).await
    }

    async fn explain(
        &self,
        plan: &Plan,
        whose: ExplainTarget<'_>,
        count: usize,
    ) -> Result<Explanation, ControlError> {
        explain::explained(self, plan, whose, count).await
    }

    async fn delete_plan(&self, name: &str, by: &str) -> Result<(), ControlError> {
        let _one_at_a_time = self.change_alone().await;
        self.plan(name).await?;
        if let Some(open) = self.all_unreadable().iter().find(|each| each.plan == name) {
            let message = format!(
                "plan {name} still has migration {} of VM {}: {}",
                open.id,
                open.vm_name,
                open.reason()
            );
            return Err(ControlError::new(ControlErrorKind::Refused, message));
        }
        let open = self
            .handles()
            .into_iter()
            .map(|handle| handle.context)
            .find(|context| context.plan().name == name && !context.state().is_final());
        if let Some(open) = open {
            let message = format!(
                "plan {name} still moves VM {} (migration {} is {}): finish or cancel it first",
                open.machine.name,
                open.id,
                open.state()
            );
            return Err(ControlError::new(ControlErrorKind::Refused, message));
        }
        self.store.delete_plan(name).await.map_err(internal)?;
        self.gate.forget_plan(name);
        self.journal(by, EventKind::Plan, format!("plan {name} deleted")).await
    }

    async fn migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationView>, ControlError> {
        let views = self.handles().into_iter().map(|handle| handle.view());
        let views = views.filter(|view| plan.is_none_or(|plan| view.plan == plan));
        let mut views: BTreeMap<_, _> = views.map(|view| (view.id, view)).collect();
        let found = self.store.finished_each(plan).await.map_err(internal)?;
        let open = self.all_unreadable().into_iter().filter(|each| plan.is_none_or(|plan| each.plan == plan));
        for each in open.chain(found.unreadable) {
            views.entry(each.id).or_insert_with(|| each.view());
        }
        for row in found.rows {
            if let Entry::Vacant(place) = views.entry(row.id) {
                let view = restore::view(&self.store, &row).await;
                place.insert(view.unwrap_or_else(|error| Unreadable::of(&row, &error).view()));
            }
        }
        Ok(views.into_values().collect())
    }

    async fn migration(&self, key: &str) -> Result<MigrationView, ControlError> {
        let id = self.find_migration(key).await?;
        // First: as long as requests are refused for that reason, it is shown so.
        if let Some(unreadable) = self.unreadable(id) {
            return Ok(unreadable.view());
        }
        if let Some(handle) = self.handle(id) {
            return Ok(handle.view());
        }
        restore::view(&self.store, &self.row(id).await?).await.map_err(internal)
    }

    fn watch(&self) -> broadcast::Receiver<MigrationView> {
        self.changes.subscribe()
    }

    async fn request(
        &self,
        id: MigrationId,
        request: Request,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.command(id, request, by).await
    }

    async fn report(&self, id: MigrationId) -> Result<Report, ControlError> {
        self.check_readable(id)?;
        // Building a report takes memory: one at a time for the whole daemon.
        let _one_at_a_time = self.reporting.lock().await;
        let row = self.row(id).await?;
        let kind =
            |endpoint: Result<&EndpointInfo, ControlError>| endpoint.ok().map(|known| known.kind.clone());
        let ends = report::EndpointNames {
            source_kind: kind(self.source_endpoint(&row.source)),
            source: row.source.clone(),
            target_kind: kind(self.target_endpoint(&row.target)),
            target: row.target.clone(),
        };
        let context = if let Some(handle) = self.handle(id) {
            handle.context
        } else {
            let plan = self.plan_of(&row).await?;
            self.build_context(row, plan, false).await?
        };
        report::report(&context, ends).await.map_err(internal)
    }

    fn sign(&self, report: &Report) -> Result<SignedReport, ControlError> {
        self.engine.reports.sign(report).map_err(internal)
    }

    fn report_key(&self) -> ReportKeyText {
        self.engine.reports.key()
    }

    async fn report_keys(&self) -> Result<Vec<KeySince>, ControlError> {
        self.store.report_keys().await.map_err(internal)
    }

    async fn limits(&self, scope: Option<&str>) -> Result<Vec<LimitView>, ControlError> {
        self.limit_views(scope).await
    }

    async fn set_limit(&self, scope: &str, change: LimitChange, by: &str) -> Result<LimitView, ControlError> {
        self.change_limit(scope, change, by).await
    }

    fn grants(&self) -> std::sync::Arc<Vec<Grant>> {
        self.grants.get()
    }

    async fn list_grants(&self) -> Result<Vec<Grant>, ControlError> {
        Ok(self.grants.get().to_vec())
    }

    async fn grant(
        &self,
        subject: Subject,
        role: Role,
        plans: Vec<String>,
        by: &str,
    ) -> Result<Grant, ControlError> {
        self.give_role(subject, role, plans, by).await
    }

    async fn revoke(&self, subject: &Subject, by: &str) -> Result<bool, ControlError> {
        self.take_role(subject, by).await
    }

    async fn quotas(&self, scope: Option<&str>) -> Result<Vec<QuotaView>, ControlError> {
        let mut views = self.gate.views();
        let Some(scope) = scope else { return Ok(views) };
        let known: Vec<_> = views.iter().map(|view| view.scope.path()).collect();
        views.retain(|view| view.scope.path() == scope);
        if views.is_empty() {
            let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
            let told = format!("there are no quotas of {scope:?}; there are those of: {known}");
            return Err(ControlError::new(ControlErrorKind::NotFound, told));
        }
        Ok(views)
    }

    async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, ControlError> {
        self.store.events(id, after, limit).await.map_err(internal)
    }
}

impl Manager {
    /// Asks the migration's driver.
    async fn command(
        &self,
        id: MigrationId,
        request: Request,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.check_readable(id)?;
        // While a source VM gets its migration back, no plan starts another one for it.
        let _one_at_a_time =
            if request == Request::Rollback { Some(self.change_alone().await) } else { None };
        if request == Request::Rollback {
            self.check_not_moved_elsewhere(id).await?;
        }
        for _ in 0..ASKED {
            let owner = self.owner(id).await?;
            let (answer, answered) = oneshot::channel();
            let command = OwnerRequest { request: request.clone(), by: by.to_owned(), answer };
            if owner.inbox.send(command).await.is_ok()
                && let Ok(outcome) = answered.await
            {
                return Ok(outcome);
            }
            // The driver has just ended, without reading the request: a new one will.
        }
        Err(self.gone())
    }

    /// A source VM that another migration moves now cannot have this one back.
    async fn check_not_moved_elsewhere(&self, id: MigrationId) -> Result<(), ControlError> {
        let row = self.row(id).await?;
        if let Some(other) = self.unreadable_of(&row.source, &row.vm) {
            let message = format!(
                "rollback is refused: migration {} moves the source VM, and is {}",
                other.id,
                other.reason()
            );
            return Err(ControlError::new(ControlErrorKind::Refused, message));
        }
        let open = self.store.open_each().await.map_err(internal)?.rows;
        match open.iter().find(|other| other.id != id && other.source == row.source && other.vm == row.vm) {
            None => Ok(()),
            Some(other) => {
                let message = format!(
                    "rollback is refused: the source VM is moved by migration {} of plan {} by now: cancel that first",
                    other.id, other.plan
                );
                Err(ControlError::new(ControlErrorKind::Refused, message))
            }
        }
    }

    /// The migration's driver; a finished migration gets one for the time of the request.
    async fn owner(&self, id: MigrationId) -> Result<DriverHandle, ControlError> {
        let at_work = || self.handle(id).filter(|handle| !handle.inbox.is_closed());
        if let Some(handle) = at_work() {
            return Ok(handle);
        }
        let _one_at_a_time = self.taking_up.lock().await;
        if let Some(handle) = at_work() {
            return Ok(handle);
        }
        let row = self.row(id).await?;
        if !row.state.is_final() || self.shutdown.is_cancelled() {
            return Err(self.gone());
        }
        let plan = self.plan_of(&row).await?;
        self.spawn_driver(row, plan).await
    }

    fn gone(&self) -> ControlError {
        let why = if self.shutdown.is_cancelled() {
            "the daemon is shutting down"
        } else {
            "no task drives this migration: see the daemon's log, and restart it"
        };
        ControlError::new(ControlErrorKind::Unavailable, why)
    }

    pub(super) async fn row(&self, id: MigrationId) -> Result<MigrationRow, ControlError> {
        self.store.migration(id).await.map_err(unread)?.ok_or_else(|| {
            let told = format!("there is no migration {id}: see `migration list`");
            ControlError::new(ControlErrorKind::NotFound, told)
        })
    }

    /// The migration that `key` names.
    pub(super) async fn find_migration(&self, key: &str) -> Result<MigrationId, ControlError> {
        let named = |handle: DriverHandle| {
            let context = &handle.context;
            let (vm_name, rank) = (context.machine.name.clone(), NameRank::of(&context.state()));
            (context.id, MigrationNames { vm_name, rank })
        };
        let mut known: BTreeMap<_, _> = self.handles().into_iter().map(named).collect();
        known.extend(
            self.all_unreadable()
                .into_iter()
                .map(|each| (each.id, MigrationNames { vm_name: each.vm_name, rank: NameRank::UnderWay })),
        );
        // An unfinished migration takes precedence over all finished ones, and a whole id means one alone.
        let is_meant = |id: &MigrationId, named: &MigrationNames| {
            named.vm_name == key && named.rank == NameRank::UnderWay
                || id.to_string().eq_ignore_ascii_case(key)
        };
        if !known.iter().any(|(id, named)| is_meant(id, named)) {
            for FinishedMigration { id, vm_name, is_done } in
                self.store.finished_like(key).await.map_err(internal)?
            {
                let rank = if is_done { NameRank::Done } else { NameRank::Cancelled };
                known.entry(id).or_insert(MigrationNames { vm_name, rank });
            }
        }
        find(&known, key)
    }

    /// The migration that already moves, or has moved, this machine for this plan.
    pub(super) async fn migration_of(
        &self,
        plan: &Plan,
        machine: &Machine,
    ) -> Result<Option<MigrationId>, ControlError> {
        for handle in self.handles() {
            let (id, theirs) = (handle.context.id, handle.context.plan());
            let is_same = theirs.source == plan.source && handle.context.vm == machine.id;
            if !is_same || handle.context.state().is_final() {
                continue;
            }
            if theirs.name == plan.name {
                return Ok(Some(id));
            }
            let message =
                format!("VM {} is moved by plan {} already (migration {})", machine.name, theirs.name, id);
            return Err(ControlError::new(ControlErrorKind::Refused, message));
        }
        if let Some(it) = self.unreadable_of(&plan.source, &machine.id) {
            if it.plan == plan.name {
                return Ok(Some(it.id));
            }
            let message = format!(
                "VM {} is moved by migration {} of plan {}, which is {}",
                machine.name,
                it.id,
                it.plan,
                it.reason()
            );
            return Err(ControlError::new(ControlErrorKind::Refused, message));
        }
        self.store.moved_by(&plan.name, &plan.source, &machine.id.0).await.map_err(internal)
    }

    pub(super) async fn journal(&self, by: &str, kind: EventKind, text: String) -> Result<(), ControlError> {
        let line = EventView { at: clock::now(), migration: None, by: by.to_owned(), kind, text };
        self.store.append_events(vec![line]).await.map_err(internal)
    }
}

/// The names of a migration.
struct MigrationNames {
    vm_name: String,
    rank: NameRank,
}

/// Which of several migrations of a VM its name means: the first of these that exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameRank {
    UnderWay,
    Done,
    Cancelled,
}

impl NameRank {
    fn of(state: &State) -> Self {
        match state {
            State::Done => Self::Done,
            State::Cancelled => Self::Cancelled,
            _ => Self::UnderWay,
        }
    }
}

/// The migration that `key` names.
fn find(known: &BTreeMap<MigrationId, MigrationNames>, key: &str) -> Result<MigrationId, ControlError> {
    let wanted = key.to_ascii_lowercase();
    let by_id = |id: &MigrationId| {
        let id = id.to_string();
        id == wanted || wanted.len() >= 4 && (id.starts_with(&wanted) || id.ends_with(&wanted))
    };
    let by_name = || known.iter().filter(|(_, named)| named.vm_name == key);
    let first = by_name().map(|(_, named)| named.rank).min();
    let mut found: Vec<_> =
        by_name().filter(|(_, named)| Some(named.rank) == first).map(|(id, _)| *id).collect();
    if found.is_empty() {
        found = known.keys().copied().filter(by_id).collect();
    }
    match (found.pop(), found.pop()) {
        (None, _) => Err(ControlError::new(
            ControlErrorKind::NotFound,
            format!("there is no migration {key:?}: see `migration list` for ids and VM names"),
        )),
        (Some(id), None) => Ok(id),
        (Some(one), Some(two)) => {
            let (one, two) = (one.min(two), one.max(two));
            Err(ControlError::new(
                ControlErrorKind::Invalid,
                format!(
                    "{key:?} names more than one migration, {one} and {two} among them: give the whole id"
                ),
            ))
        }
    }
}
