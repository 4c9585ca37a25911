//! A `Control` in memory: requests are judged by the real rules, and what follows is played from a script.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use warmd_core::{
    control::{
        Applied, Control, ControlError, ControlErrorKind as Kind, EndpointInfo, ExplainTarget, Explanation,
        Finding, JournalPage, PlanChange, PlanChangeKind, PlanCutover, PlanRequestOutcome,
    },
    model::{
        access::{Grant, Role, Subject},
        group::GroupView,
        id::{MigrationId, VmId},
        limit::{LimitChange, LimitView, SetBy},
        machine::Inventory,
        plan::Plan,
        quota::QuotaView,
        report::{KeySince, Report},
        request::{Request, RequestOutcome, check_request},
        rule::Rule,
        scheduled_cutover::{CutoverOrder, CutoverTime, ScheduledCutoverMode, ScheduledCutoverView},
        verify::VerifyOrder,
        view::{EventView, MigrationView},
    },
    signed_report::{ReportKeyText, SignedReport},
};
use warmd_report::signing;
use warmd_schedules::{explain::explain, rules::PassHistory};

use super::{cases, served::until};

/// Changes that wait for slow watchers: few, so that a test can make one lag.
const WAITING: usize = 8;

/// Clones share one state.
#[derive(Clone)]
pub struct FakeControl {
    inner: Arc<Mutex<Inner>>,
    changes: broadcast::Sender<MigrationView>,
    /// Whether requests are answered.
    answers: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    plans: BTreeMap<String, Plan>,
    migrations: BTreeMap<MigrationId, MigrationView>,
    /// By the request's name.
    scripts: HashMap<&'static str, Vec<MigrationView>>,
    asked: Vec<(MigrationId, Request, String)>,
    ordered: Vec<VerifyOrder>,
    cutovers: Vec<CutoverOrder>,
    journal: Vec<EventView>,
    /// Whether a cutover of VMs together was asked for.
    group_asked: bool,
    /// Instead of the usual ones.
    sources: Option<Vec<EndpointInfo>>,
    inventory: Option<Inventory>,
    grants: Vec<Grant>,
}

impl FakeControl {
    pub fn new(migrations: impl IntoIterator<Item = MigrationView>) -> Self {
        let migrations = migrations.into_iter().map(|view| (view.id, view)).collect();
        let plans = BTreeMap::from([("web".to_owned(), cases::plan())]);
        let inner =
            Arc::new(Mutex::new(Inner { plans, migrations, journal: cases::events(), ..Inner::default() }));
        Self { inner, changes: broadcast::channel(WAITING).0, answers: watch::Sender::new(true) }
    }

    /// What happens, step by step, after `request` is accepted.
    pub fn script(self, request: &Request, steps: impl IntoIterator<Item = MigrationView>) -> Self {
        self.lock().scripts.insert(request.name(), steps.into_iter().collect());
        self
    }

    /// Has these sources, of which the last one is down, and these VMs.
    pub fn with_sources(self, sources: Vec<EndpointInfo>, inventory: Inventory) -> Self {
        {
            let mut inner = self.lock();
            (inner.sources, inner.inventory) = (Some(sources), Some(inventory));
        }
        self
    }

    /// Reports a change.
    pub fn change(&self, view: MigrationView) {
        self.lock().migrations.insert(view.id, view.clone());
        self.changes.send(view).ok();
    }

    /// Lets requests wait for their answer, or answers them.
    pub fn answer(&self, now: bool) {
        self.answers.send_replace(now);
    }

    /// Changes the journal.
    pub fn edit_journal(&self, edit: impl FnOnce(&mut Vec<EventView>)) {
        edit(&mut self.lock().journal);
    }

    /// Readers of changes.
    pub fn watchers(&self) -> usize {
        self.changes.receiver_count()
    }

    /// The accepted requests, with their migrations.
    pub fn asked(&self) -> Vec<(MigrationId, Request, String)> {
        self.lock().asked.clone()
    }

    /// Which verifications were accepted.
    pub fn ordered(&self) -> Vec<VerifyOrder> {
        self.lock().ordered.clone()
    }

    /// Which cutovers were asked for, granted or not.
    pub fn cutovers(&self) -> Vec<CutoverOrder> {
        self.lock().cutovers.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

fn known(name: &str, names: &[&str], what: &str) -> Result<(), ControlError> {
    if names.contains(&name) {
        return Ok(());
    }
    let have = names.join(", ");
    Err(ControlError::new(Kind::NotFound, format!("no {what} {name:?}; there are: {have}")))
}

fn endpoint(name: &str, kind: &str, address: &str) -> EndpointInfo {
    EndpointInfo { name: name.to_owned(), kind: kind.to_owned(), address: address.to_owned() }
}

#[async_trait]
impl Control for FakeControl {
    fn grants(&self) -> Arc<Vec<Grant>> {
        Arc::new(self.lock().grants.clone())
    }

    async fn list_grants(&self) -> Result<Vec<Grant>, ControlError> {
        Ok(self.lock().grants.clone())
    }

    async fn grant(
        &self,
        subject: Subject,
        role: Role,
        plans: Vec<String>,
        by: &str,
    ) -> Result<Grant, ControlError> {
        // The process that asked is another in each run.
        let by = by.split(" pid=").next().unwrap_or_default().to_owned();
        let grant = Grant { subject, role, plans, by, at: cases::at(0) };
        self.lock().grants.push(grant.clone());
        Ok(grant)
    }

    async fn revoke(&self, subject: &Subject, _by: &str) -> Result<bool, ControlError> {
        let grants = &mut self.lock().grants;
        let before = grants.len();
        grants.retain(|grant| grant.subject != *subject);
        Ok(grants.len() < before)
    }

    async fn sources(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        if let Some(sources) = self.lock().sources.clone() {
            return Ok(sources);
        }
        Ok(vec![
            endpoint("old", "libvirt", "qemu:///system"),
            endpoint("far", "libvirt", "qemu+ssh://far/system"),
        ])
    }

    async fn check_source(&self, name: &str) -> Result<String, ControlError> {
        known(name, &["old", "far"], "source")?;
        if name == "far" {
            return Err(ControlError::new(
                Kind::Unavailable,
                "source far does not answer: start libvirtd there",
            ));
        }
        Ok("libvirt 9.0.0, QEMU 7.2.0".to_owned())
    }

    async fn source_vms(&self, name: &str, refresh: bool) -> Result<Inventory, ControlError> {
        self.check_source(name).await?;
        if let Some(inventory) = self.lock().inventory.clone() {
            return Ok(inventory);
        }
        let stale = (!refresh).then(|| "it did not answer".to_owned());
        Ok(Inventory { vms: cases::vms(), seen: cases::at(0), stale })
    }

    async fn targets(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        Ok(vec![endpoint("new", "disk", "/srv/vms")])
    }

    async fn check_target(&self, name: &str) -> Result<String, ControlError> {
        known(name, &["new"], "target")?;
        Ok("directory /srv/vms, 1.2 TiB free".to_owned())
    }

    async fn validate_plan(&self, plan: &Plan) -> Result<Vec<Finding>, ControlError> {
        known(&plan.source, &["old", "far"], "source")?;
        let problems = plan.problems().into_iter().map(|message| Finding {
            rule: Rule::PlanWrong,
            severity: Rule::PlanWrong.severity(),
            subject: "plan".to_owned(),
            message,
            help: "correct the plan's file".to_owned(),
        });
        let lost = plan.vms.iter().filter(|vm| vm.starts_with("old-")).map(|vm| Finding {
            rule: Rule::TrackingUnavailable,
            severity: Rule::TrackingUnavailable.severity(),
            subject: vm.clone(),
            message: "a raw disk is compared whole after a restart of the VM".to_owned(),
            help: "convert it to qcow2".to_owned(),
        });
        Ok(problems.chain(lost).collect())
    }

    async fn apply_plan(&self, plan: Plan, by: &str) -> Result<Applied, ControlError> {
        assert!(["operator uid=", "operator cert="].iter().any(|known| by.starts_with(known)), "{by}");
        known(&plan.source, &["old", "far"], "source")?;
        if let Some(problem) = plan.problems().first() {
            return Err(ControlError::new(Kind::Invalid, problem.clone()));
        }
        let mut inner = self.lock();
        let mut applied = Applied::default();
        for vm in &plan.vms {
            let old = inner.migrations.values().find(|view| view.vm_name == *vm).map(|view| view.id);
            let mut tell = |kind, id, text| {
                let (vm, migration) = (Some(vm.clone()), Some(id));
                applied.changes.push(PlanChange { kind, vm, migration, text });
            };
            if let Some(id) = old {
                tell(PlanChangeKind::Keep, id, format!("VM {vm}, synced"));
                applied.kept.push(id);
                continue;
            }
            let number = 1 + inner.migrations.len() as u64;
            inner.migrations.insert(cases::id(number), cases::synced(number, vm));
            tell(PlanChangeKind::Start, cases::id(number), format!("VM {vm}, to new as {vm}"));
            applied.started.push(cases::id(number));
        }
        inner.plans.insert(plan.name.clone(), plan);
        Ok(applied)
    }

    async fn preview_plan(&self, plan: &Plan) -> Result<Applied, ControlError> {
        let change = |kind, vm: Option<&String>, text: String| PlanChange {
            kind,
            vm: vm.cloned(),
            migration: None,
            text,
        };
        let every = "schedule.every was \"15m\" and is \"5m\"";
        let mut changes = vec![change(PlanChangeKind::Setting, None, every.to_owned())];
        let starts =
            |vm: &String| change(PlanChangeKind::Start, Some(vm), format!("VM {vm}, to new as {vm}"));
        changes.extend(plan.vms.iter().map(starts));
        Ok(Applied { findings: self.validate_plan(plan).await?, changes, ..Applied::default() })
    }

    async fn plans(&self) -> Result<Vec<Plan>, ControlError> {
        Ok(self.lock().plans.values().cloned().collect())
    }

    async fn plan(&self, name: &str) -> Result<Plan, ControlError> {
        let plan = self.lock().plans.get(name).cloned();
        plan.ok_or_else(|| ControlError::new(Kind::NotFound, format!("no plan {name:?}; see `plan list`")))
    }

    async fn cut_over_plan(
        &self,
        name: &str,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError> {
        let plan = self.plan(name).await?;
        if plan.is_grouped() {
            let already = std::mem::replace(&mut self.lock().group_asked, true);
            return Ok(PlanCutover { outcomes: Vec::new(), group: Some(cases::group(name, by)), already });
        }
        let theirs: Vec<_> =
            self.lock().migrations.values().filter(|view| view.plan == name).cloned().collect();
        let mut outcomes = Vec::new();
        for view in theirs {
            let outcome = match order {
                Some(order) => self.cut_over(view.id, order, by).await?,
                None => self.request(view.id, Request::AbortCutover, by).await?,
            };
            outcomes.push(PlanRequestOutcome { migration: view.id, vm: view.vm_name, outcome });
        }
        Ok(PlanCutover { outcomes, group: None, already: false })
    }

    async fn group(&self, name: &str) -> Result<Option<GroupView>, ControlError> {
        let asked = self.lock().group_asked;
        Ok(asked.then(|| cases::ended_group(name)))
    }

    async fn explain(
        &self,
        plan: &Plan,
        whose: ExplainTarget<'_>,
        count: usize,
    ) -> Result<Explanation, ControlError> {
        let view = match whose {
            ExplainTarget::Migration(key) => Some(self.migration(key).await?),
            ExplainTarget::Oldest | ExplainTarget::Vm(_) => None,
        };
        let vm = match (&view, whose) {
            (Some(view), _) => Some(view.vm_name.clone()),
            (None, ExplainTarget::Vm(vm)) => Some(vm.to_owned()),
            (None, _) => None,
        };
        let rules = match &vm {
            Some(vm) => plan.rules_of(vm, &VmId(vm.clone())),
            None => plan.rules(),
        };
        let rules = rules.map_err(|wrong| ControlError::new(Kind::Invalid, wrong.to_string()))?;
        let now = cases::at(0);
        let decisions = explain(&rules, &PassHistory::unknown(rules.zone), now, count);
        Ok(Explanation { zone: rules.zone, migration: view.map(|view| view.id), vm, decisions })
    }

    async fn delete_plan(&self, name: &str, _by: &str) -> Result<(), ControlError> {
        self.plan(name).await?;
        let mut inner = self.lock();
        if inner.migrations.values().any(|view| view.plan == name && !view.state.is_final()) {
            let why = format!("plan {name} has migrations under way: cancel them first");
            return Err(ControlError::new(Kind::Refused, why));
        }
        inner.plans.remove(name);
        Ok(())
    }

    async fn migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationView>, ControlError> {
        let inner = self.lock();
        Ok(inner.migrations.values().filter(|view| plan.is_none_or(|p| view.plan == p)).cloned().collect())
    }

    async fn migration(&self, key: &str) -> Result<MigrationView, ControlError> {
        let inner = self.lock();
        let named = inner.migrations.values().find(|view| {
            let id = view.id.to_string();
            id == key || (key.len() >= 4 && (id.ends_with(key))) || view.vm_name == key
        });
        named.cloned().ok_or_else(|| {
            ControlError::new(Kind::NotFound, format!("no migration {key:?}; see `migration list`"))
        })
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
        let mut answers = self.answers.subscribe();
        answers.wait_for(|now| *now).await.unwrap();
        let view = self.migration(&id.to_string()).await?;
        let outcome = check_request(&view.state, &request);
        if outcome == RequestOutcome::Accepted {
            let steps = {
                let mut inner = self.lock();
                let steps = inner.scripts.remove(request.name()).unwrap_or_default();
                inner.asked.push((id, request, by.to_owned()));
                steps
            };
            let control = self.clone();
            tokio::spawn(async move {
                for step in steps {
                    // Every watcher sees every step, however slow the machine is.
                    until("all watchers have read", || control.changes.is_empty()).await;
                    control.change(step);
                }
            });
        }
        Ok(outcome)
    }

    async fn cut_over(
        &self,
        id: MigrationId,
        order: CutoverOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        let awaited = match order.when {
            CutoverTime::Now | CutoverTime::Unhold => None,
            CutoverTime::At(at) => Some((ScheduledCutoverMode::At, Some(at), format!("asked for by {by}"))),
            CutoverTime::Hold => {
                Some((ScheduledCutoverMode::OnHold, None, "put on hold by a person".to_owned()))
            }
        };
        let outcome = self.request(id, order.request(), by).await?;
        if let Some(view) = self.lock().migrations.get_mut(&id)
            && outcome == RequestOutcome::Accepted
            && order.when != CutoverTime::Now
        {
            view.scheduled_cutover = awaited.map(|(mode, begins, why)| ScheduledCutoverView {
                mode,
                begins,
                why,
                force: order.force,
            });
        }
        self.lock().cutovers.push(order);
        Ok(outcome)
    }

    async fn verify(
        &self,
        id: MigrationId,
        order: VerifyOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        let view = self.migration(&id.to_string()).await?;
        if let Some(why) = order.refusal(&view.state) {
            return Ok(RequestOutcome::Refused(why));
        }
        // Unless the script says otherwise, it is the requested one.
        {
            let mut inner = self.lock();
            let steps = inner.scripts.get_mut(Request::verify().name()).into_iter().flatten();
            for run in steps.filter_map(|step| step.verification.as_mut()).filter(|run| run.id.is_empty()) {
                run.id.clone_from(&order.id);
            }
            inner.ordered.push(order);
        }
        self.request(id, Request::verify(), by).await
    }

    fn sign(&self, report: &Report) -> Result<SignedReport, ControlError> {
        let signed = signing::sign(&cases::report_key(), report).expect("a report becomes JSON");
        Ok(SignedReport { json: signed.json, digest: signed.digest, key: signed.key.to_string() })
    }

    fn report_key(&self) -> ReportKeyText {
        let key = cases::report_key().public();
        ReportKeyText { hex: key.to_string(), pem: key.to_pem() }
    }

    async fn report_keys(&self) -> Result<Vec<KeySince>, ControlError> {
        let lost = KeySince { key: "1f".repeat(32), since: cases::at(10) };
        Ok(vec![lost, KeySince { key: self.report_key().hex, since: cases::at(500) }])
    }

    async fn report(&self, id: MigrationId) -> Result<Report, ControlError> {
        Ok(cases::report(&self.migration(&id.to_string()).await?))
    }

    async fn limits(&self, scope: Option<&str>) -> Result<Vec<LimitView>, ControlError> {
        let limits = cases::limits().into_iter();
        Ok(limits.filter(|limit| scope.is_none_or(|scope| limit.scope.to_string() == scope)).collect())
    }

    async fn quotas(&self, scope: Option<&str>) -> Result<Vec<QuotaView>, ControlError> {
        let quotas = cases::quotas().into_iter();
        Ok(quotas.filter(|quota| scope.is_none_or(|scope| quota.scope.path() == scope)).collect())
    }

    async fn set_limit(&self, scope: &str, change: LimitChange, by: &str) -> Result<LimitView, ControlError> {
        let limit = self.limits(Some(scope)).await?.pop();
        let mut limit = limit.ok_or_else(|| ControlError::new(Kind::NotFound, "no such scope"))?;
        match change {
            LimitChange::To { rate, requests } => {
                limit.limit.rate = rate.unwrap_or(limit.limit.rate);
                limit.limit.requests = requests.unwrap_or(limit.limit.requests);
                limit.set = Some(SetBy { by: by.to_owned(), at: cases::at(7) });
            }
            LimitChange::Reset => limit.set = None,
        }
        Ok(limit)
    }

    async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, ControlError> {
        let all = self.lock().journal.clone();
        let cursor = all.len() as u64;
        let new = all.into_iter().skip(after.unwrap_or_default() as usize);
        let new: Vec<_> = new.filter(|event| id.is_none() || event.migration == id).collect();
        let skipped = if after.is_some() { 0 } else { new.len().saturating_sub(limit as usize) };
        Ok(JournalPage { lines: new[skipped..].to_vec(), cursor })
    }
}
