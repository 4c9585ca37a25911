//! The port [`Control`] as one caller may use it.
//!
//! Rule: every operation of the port is listed here with the right that it needs, and asks before anything
//! else happens. Views of all plans hold only what the caller may see.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    control::{
        Applied, Control, ControlError, ControlErrorKind, EndpointInfo, ExplainTarget, Explanation, Finding,
        JournalPage, PlanCutover,
    },
    model::{
        access::{Caller, Grant, Right, Role, Scope, Subject, allow},
        group::GroupView,
        id::MigrationId,
        limit::{LimitChange, LimitView, ScopeName},
        machine::Inventory,
        plan::Plan,
        quota::QuotaView,
        report::{KeySince, Report},
        request::{Request, RequestOutcome},
        scheduled_cutover::CutoverOrder,
        verify::VerifyOrder,
        view::MigrationView,
    },
    signed_report::{ReportKeyText, SignedReport},
};

/// A caller's access to the daemon.
#[expect(missing_debug_implementations, reason = "the port has no debug form")]
pub struct Guarded {
    inner: Arc<dyn Control>,
    caller: Arc<Caller>,
}

impl Guarded {
    /// `inner`, as `caller` may use it.
    pub fn new(inner: Arc<dyn Control>, caller: Arc<Caller>) -> Self {
        Self { inner, caller }
    }

    /// The caller, as the journal names it.
    pub fn by(&self) -> &str {
        &self.caller.name
    }

    /// Whether the caller may see what belongs to this plan.
    pub fn sees(&self, plan: &str) -> bool {
        self.has(Right::View, Scope::Plan(plan))
    }

    /// Refuses a caller whose last role was revoked.
    pub fn may_look(&self) -> Result<(), ControlError> {
        self.may(Right::View, Scope::Common)
    }

    /// Refuses a caller who may request this of no plan's migrations, before anything is looked up: the
    /// refusal names the role that the request needs.
    pub fn may_request(&self, request: &Request) -> Result<(), ControlError> {
        self.may(right_of(request), Scope::Common)
    }

    fn has(&self, right: Right, scope: Scope<'_>) -> bool {
        allow(&self.inner.grants(), &self.caller, right, scope).is_ok()
    }

    /// Refuses what no grant allows, and logs it.
    fn may(&self, right: Right, scope: Scope<'_>) -> Result<(), ControlError> {
        allow(&self.inner.grants(), &self.caller, right, scope).map_err(|why| self.forbidden(why))
    }

    fn forbidden(&self, why: String) -> ControlError {
        tracing::warn!(by = self.caller.name, why, "a request was refused: the caller lacks the role");
        ControlError::new(ControlErrorKind::Forbidden, why)
    }

    /// Asks for a right to the migration's plan.
    async fn may_migration(&self, right: Right, id: MigrationId) -> Result<(), ControlError> {
        // A caller with the right to all plans needs no look-up: the operation reports a missing migration.
        if self.has(right, Scope::Whole) {
            return Ok(());
        }
        let view = self.migration(&id.to_string()).await?;
        // A key finds a VM of that name before an id.
        if view.id != id {
            return Err(self.forbidden(format!(
                "a VM has the id of migration {id} as its name: rename that VM, or use a role for all plans"
            )));
        }
        self.may(right, Scope::Plan(&view.plan))
    }

    /// Asks for the right to change a limit's scope: that of a migration belongs to its plan.
    async fn may_limit(&self, scope: &str) -> Result<(), ControlError> {
        let Some(ScopeName::Migration(key, _)) = ScopeName::parse(scope) else {
            return self.may(Right::Operate, Scope::Whole);
        };
        self.may(Right::Operate, Scope::Common)?;
        if self.has(Right::Operate, Scope::Whole) {
            return Ok(());
        }
        let view = self.migration(key).await?;
        self.may(Right::Operate, Scope::Plan(&view.plan))
    }

    /// Asks for the right to store this plan: new programs are an admin's, whose role is for all plans: they
    /// run as the daemon.
    async fn may_apply(&self, plan: &Plan) -> Result<(), ControlError> {
        self.may(Right::Plan, Scope::Plan(&plan.name))?;
        let wanted = plan.programs();
        let Err(lacks) = allow(&self.inner.grants(), &self.caller, Right::Administer, Scope::Whole) else {
            return Ok(());
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let known = match self.inner.plan(&plan.name).await {
            Ok(stored) => stored.programs(),
            Err(error) if error.kind == ControlErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        match wanted.iter().find(|program| !known.contains(program)) {
            None => Ok(()),
            Some(program) => {
                let why = format!("the plan runs `{}` on the daemon's host: {lacks}", program.join(" "));
                Err(self.forbidden(why))
            }
        }
    }
}

#[async_trait]
impl Control for Guarded {
    async fn sources(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.sources().await
    }

    async fn check_source(&self, name: &str) -> Result<String, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.check_source(name).await
    }

    async fn source_vms(&self, name: &str, refresh: bool) -> Result<Inventory, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.source_vms(name, refresh).await
    }

    async fn targets(&self) -> Result<Vec<EndpointInfo>, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.targets().await
    }

    async fn check_target(&self, name: &str) -> Result<String, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.check_target(name).await
    }

    // A plan names locations and files that its checks look at.
    async fn validate_plan(&self, plan: &Plan) -> Result<Vec<Finding>, ControlError> {
        self.may(Right::Plan, Scope::Plan(&plan.name))?;
        self.inner.validate_plan(plan).await
    }

    async fn apply_plan(&self, plan: Plan, by: &str) -> Result<Applied, ControlError> {
        self.may_apply(&plan).await?;
        self.inner.apply_plan(plan, by).await
    }

    async fn preview_plan(&self, plan: &Plan) -> Result<Applied, ControlError> {
        self.may(Right::Plan, Scope::Plan(&plan.name))?;
        self.inner.preview_plan(plan).await
    }

    async fn plans(&self) -> Result<Vec<Plan>, ControlError> {
        self.may(Right::View, Scope::Common)?;
        let mut plans = self.inner.plans().await?;
        plans.retain(|plan| self.sees(&plan.name));
        Ok(plans)
    }

    async fn plan(&self, name: &str) -> Result<Plan, ControlError> {
        self.may(Right::View, Scope::Plan(name))?;
        self.inner.plan(name).await
    }

    async fn cut_over_plan(
        &self,
        name: &str,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError> {
        self.may(Right::Operate, Scope::Plan(name))?;
        self.inner.cut_over_plan(name, order, by).await
    }

    async fn group(&self, name: &str) -> Result<Option<GroupView>, ControlError> {
        self.may(Right::View, Scope::Plan(name))?;
        self.inner.group(name).await
    }

    async fn explain(
        &self,
        plan: &Plan,
        whose: ExplainTarget<'_>,
        count: usize,
    ) -> Result<Explanation, ControlError> {
        self.may(Right::View, Scope::Plan(&plan.name))?;
        if let ExplainTarget::Migration(key) = whose {
            self.migration(key).await?;
        }
        self.inner.explain(plan, whose, count).await
    }

    async fn delete_plan(&self, name: &str, by: &str) -> Result<(), ControlError> {
        self.may(Right::Plan, Scope::Plan(name))?;
        self.inner.delete_plan(name, by).await
    }

    async fn migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationView>, ControlError> {
        self.may(Right::View, plan.map_or(Scope::Common, Scope::Plan))?;
        let mut views = self.inner.migrations(plan).await?;
        views.retain(|view| self.sees(&view.plan));
        Ok(views)
    }

    async fn migration(&self, key: &str) -> Result<MigrationView, ControlError> {
        self.may(Right::View, Scope::Common)?;
        let view = self.inner.migration(key).await?;
        self.may(Right::View, Scope::Plan(&view.plan))?;
        Ok(view)
    }

    /// Of all plans: the caller of this keeps only what [`Guarded::sees`].
    fn watch(&self) -> broadcast::Receiver<MigrationView> {
        self.inner.watch()
    }

    async fn request(
        &self,
        id: MigrationId,
        request: Request,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.may_migration(right_of(&request), id).await?;
        self.inner.request(id, request, by).await
    }

    async fn cut_over(
        &self,
        id: MigrationId,
        order: CutoverOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.may_migration(Right::Operate, id).await?;
        self.inner.cut_over(id, order, by).await
    }

    async fn verify(
        &self,
        id: MigrationId,
        order: VerifyOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.may_migration(Right::Operate, id).await?;
        self.inner.verify(id, order, by).await
    }

    async fn report(&self, id: MigrationId) -> Result<Report, ControlError> {
        self.may_migration(Right::View, id).await?;
        self.inner.report(id).await
    }

    /// Of a report that [`Control::report`] gave to this caller.
    fn sign(&self, report: &Report) -> Result<SignedReport, ControlError> {
        self.inner.sign(report)
    }

    fn report_key(&self) -> ReportKeyText {
        self.inner.report_key()
    }

    async fn report_keys(&self) -> Result<Vec<KeySince>, ControlError> {
        self.may(Right::View, Scope::Common)?;
        self.inner.report_keys().await
    }

    async fn limits(&self, scope: Option<&str>) -> Result<Vec<LimitView>, ControlError> {
        self.may(Right::View, Scope::Whole)?;
        self.inner.limits(scope).await
    }

    async fn set_limit(&self, scope: &str, change: LimitChange, by: &str) -> Result<LimitView, ControlError> {
        self.may_limit(scope).await?;
        self.inner.set_limit(scope, change, by).await
    }

    async fn quotas(&self, scope: Option<&str>) -> Result<Vec<QuotaView>, ControlError> {
        self.may(Right::View, Scope::Whole)?;
        self.inner.quotas(scope).await
    }

    async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, ControlError> {
        match id {
            Some(id) => self.may_migration(Right::View, id).await?,
            None => self.may(Right::View, Scope::Whole)?,
        }
        self.inner.events(id, after, limit).await
    }

    fn grants(&self) -> Arc<Vec<Grant>> {
        self.inner.grants()
    }

    async fn list_grants(&self) -> Result<Vec<Grant>, ControlError> {
        self.may(Right::Administer, Scope::Whole)?;
        self.inner.list_grants().await
    }

    async fn grant(
        &self,
        subject: Subject,
        role: Role,
        plans: Vec<String>,
        by: &str,
    ) -> Result<Grant, ControlError> {
        self.may(Right::Administer, Scope::Whole)?;
        self.inner.grant(subject, role, plans, by).await
    }

    async fn revoke(&self, subject: &Subject, by: &str) -> Result<bool, ControlError> {
        self.may(Right::Administer, Scope::Whole)?;
        self.inner.revoke(subject, by).await
    }
}

/// What a request needs: to cancel deletes the copy, which the planner began.
fn right_of(request: &Request) -> Right {
    match request {
        Request::Cancel => Right::Plan,
        Request::Sync
        | Request::Pause
        | Request::Resume
        | Request::Cutover(_)
        | Request::ScheduleCutover(_)
        | Request::AbortCutover
        | Request::Rollback
        | Request::Verify(_) => Right::Operate,
    }
}
