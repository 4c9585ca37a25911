//! What a user may ask of the daemon: the port between the API and the migrations.
//!
//! Rule: names and texts that callers pass are outside data; every refusal says what, where and what to do.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;
use warmd_schedules::{Tz, explain::ScheduleDecision};

use crate::model::{
    access::{Grant, Role, Subject},
    group::GroupView,
    id::MigrationId,
    limit::{LimitChange, LimitView},
    machine::Inventory,
    plan::Plan,
    quota::QuotaView,
    report::{KeySince, Report},
    request::{Request, RequestOutcome},
    rule::{Rule, Severity},
    scheduled_cutover::CutoverOrder,
    verify::VerifyOrder,
    view::{EventView, MigrationView},
};
use crate::{
    signed_report::{ReportKeyText, SignedReport},
    sources::{SourceError, SourceErrorKind},
    targets::{TargetError, TargetErrorKind},
};

/// All operations of the control API.
#[async_trait]
pub trait Control: Send + Sync {
    async fn sources(&self) -> Result<Vec<EndpointInfo>, ControlError>;
    /// Connects to a source and returns its description of itself.
    async fn check_source(&self, name: &str) -> Result<String, ControlError>;
    /// A source's VMs: as last listed, or listed now if `refresh` is set.
    async fn source_vms(&self, name: &str, refresh: bool) -> Result<Inventory, ControlError>;

    async fn targets(&self) -> Result<Vec<EndpointInfo>, ControlError>;
    /// Connects to a target and returns its description of itself.
    async fn check_target(&self, name: &str) -> Result<String, ControlError>;

    /// Checks a plan alone and against its endpoints; changes nothing.
    async fn validate_plan(&self, plan: &Plan) -> Result<Vec<Finding>, ControlError>;
    /// Applies the plan: starts a migration for every VM that has none. Applying the same plan again changes
    /// nothing.
    async fn apply_plan(&self, plan: Plan, by: &str) -> Result<Applied, ControlError>;
    /// What [`Control::apply_plan`] would change and find, errors included; changes nothing.
    async fn preview_plan(&self, plan: &Plan) -> Result<Applied, ControlError>;
    async fn plans(&self) -> Result<Vec<Plan>, ControlError>;
    async fn plan(&self, name: &str) -> Result<Plan, ControlError>;
    /// Requests the cutovers of all unfinished migrations of a plan, as one group where the plan says so;
    /// `None` aborts those that wait or run.
    async fn cut_over_plan(
        &self,
        name: &str,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError>;
    /// The status of the plan's last group cutover; `None` if there was none.
    async fn group(&self, name: &str) -> Result<Option<GroupView>, ControlError>;
    /// The next decisions of the plan's schedule, at most `count`.
    async fn explain(
        &self,
        plan: &Plan,
        whose: ExplainTarget<'_>,
        count: usize,
    ) -> Result<Explanation, ControlError>;
    /// Deletes a plan whose migrations are all finished.
    async fn delete_plan(&self, name: &str, by: &str) -> Result<(), ControlError>;

    /// All migrations, or those of one plan, oldest first.
    async fn migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationView>, ControlError>;
    /// The migration with this key: an id, its unique beginning or end (at least four characters), or a VM's
    /// name if exactly one unfinished migration moves that VM.
    async fn migration(&self, key: &str) -> Result<MigrationView, ControlError>;
    /// Every change of every migration from now on, progress included. A slow reader misses some changes,
    /// never the last.
    fn watch(&self) -> broadcast::Receiver<MigrationView>;
    /// Requests an operation on a migration. Accepted means begun, not finished: watch for the end.
    async fn request(
        &self,
        id: MigrationId,
        request: Request,
        by: &str,
    ) -> Result<RequestOutcome, ControlError>;
    /// Requests a cutover, now or later.
    async fn cut_over(
        &self,
        id: MigrationId,
        order: CutoverOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.request(id, order.request(), by).await
    }
    /// Requests a verification.
    async fn verify(
        &self,
        id: MigrationId,
        order: VerifyOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError> {
        self.request(id, Request::Verify(order), by).await
    }
    async fn report(&self, id: MigrationId) -> Result<Report, ControlError>;
    /// The report, signed, in the form that can be checked later.
    fn sign(&self, report: &Report) -> Result<SignedReport, ControlError>;
    /// The public key of this daemon's report signatures.
    fn report_key(&self) -> ReportKeyText;

    /// The keys that signed reports so far, oldest first, the present key last.
    async fn report_keys(&self) -> Result<Vec<KeySince>, ControlError>;
    /// All limits with their present use: global, sources, targets, and unfinished migrations, each followed
    /// by its disks; or only one scope, a migration with its disks.
    async fn limits(&self, scope: Option<&str>) -> Result<Vec<LimitView>, ControlError>;
    /// Changes the limit of a scope (`global`, `source/NAME`, `target/NAME`, `migration/KEY`,
    /// `migration/KEY/DISK`) at once, until the next change.
    async fn set_limit(&self, scope: &str, change: LimitChange, by: &str) -> Result<LimitView, ControlError>;
    /// The quotas of all scopes that have some, or of the named scope.
    async fn quotas(&self, scope: Option<&str>) -> Result<Vec<QuotaView>, ControlError>;
    /// The grants in force: they decide what a caller may do.
    fn grants(&self) -> Arc<Vec<Grant>>;
    /// The grants, for an admin.
    async fn list_grants(&self) -> Result<Vec<Grant>, ControlError>;
    /// Gives a role to a subject, in place of its earlier one, for plans that match a pattern, or for all.
    async fn grant(
        &self,
        subject: Subject,
        role: Role,
        plans: Vec<String>,
        by: &str,
    ) -> Result<Grant, ControlError>;
    /// Removes a subject's role. Returns whether it had one.
    async fn revoke(&self, subject: &Subject, by: &str) -> Result<bool, ControlError>;
    /// The journal of one migration or of all: at most `limit` lines, the last ones, or the first ones after
    /// a cursor.
    async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, ControlError>;
}

/// The migration whose VM's schedule is explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExplainTarget<'a> {
    /// The migration of the plan whose last pass is the longest ago; a new one if the plan has none.
    Oldest,
    /// The migration with this key, of any plan.
    Migration(&'a str),
    /// The migration of the plan's VM of this name or id; a new one if the VM has none.
    Vm(&'a str),
}

/// A configured source or target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    pub name: String,
    /// `libvirt`, `disk`.
    pub kind: String,
    /// Where it is, without secrets.
    pub address: String,
}

/// A finding of a plan's check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: Rule,
    /// The rule's severity, unless the plan accepts the finding.
    pub severity: Severity,
    /// The VM, field or endpoint.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// The result of applying a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Started migrations.
    pub started: Vec<MigrationId>,
    /// Migrations that existed before.
    pub kept: Vec<MigrationId>,
    pub findings: Vec<Finding>,
    /// All changes in words, and the plan's changed keys.
    pub changes: Vec<PlanChange>,
}

/// What applying a plan changes or keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    pub kind: PlanChangeKind,
    /// The VM's name in the plan, if the change is about a VM.
    pub vm: Option<String>,
    /// Its migration, if there is one.
    pub migration: Option<MigrationId>,
    pub text: String,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanChangeKind {
    /// The plan is new.
    New,
    /// A key of the plan has another value.
    Setting,
    /// A migration starts.
    Start,
    /// A migration stays as it is.
    Keep,
    /// The plan no longer names a migration's VM; the migration continues.
    Leave,
}

/// Why the daemon did not carry out a request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub kind: ControlErrorKind,
    /// What, where, and what to do; shown to the user unchanged.
    pub message: String,
}

/// The kind of a refusal; each maps to one API status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The argument is invalid.
    Invalid,
    /// Not possible in the present state.
    Refused,
    /// The caller has no role that may do it.
    Forbidden,
    /// An endpoint did not answer.
    Unavailable,
    /// The daemon itself failed.
    Internal,
}

impl ControlError {
    /// An error of `kind`.
    pub fn new(kind: ControlErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Some lines of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalPage {
    /// Oldest first.
    pub lines: Vec<EventView>,
    /// Later lines come after this cursor. Smaller than the requested start if the journal is shorter.
    pub cursor: u64,
}

/// The next decisions and their reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The zone in which they are shown.
    pub zone: Tz,
    /// The migration that they are for; `None` for a new one.
    pub migration: Option<MigrationId>,
    /// Its VM, if it is for one.
    pub vm: Option<String>,
    pub decisions: Vec<ScheduleDecision>,
}

/// The outcome of requesting the cutovers of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanCutover {
    /// Of each VM that was asked separately; empty for a group.
    pub outcomes: Vec<PlanRequestOutcome>,
    /// The group, if the VMs move together.
    pub group: Option<GroupView>,
    /// Whether nothing had to change.
    pub already: bool,
}

/// The outcome of requesting the cutover of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequestOutcome {
    pub migration: MigrationId,
    pub vm: String,
    pub outcome: RequestOutcome,
}
impl From<SourceError> for ControlError {
    fn from(error: SourceError) -> Self {
        let kind = match error.kind {
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout => ControlErrorKind::Unavailable,
            SourceErrorKind::NotFound => ControlErrorKind::NotFound,
            SourceErrorKind::Blocked | SourceErrorKind::Refused | SourceErrorKind::StillRunning => {
                ControlErrorKind::Refused
            }
            SourceErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<TargetError> for ControlError {
    fn from(error: TargetError) -> Self {
        let kind = match error.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout => ControlErrorKind::Unavailable,
            TargetErrorKind::NotFound => ControlErrorKind::NotFound,
            TargetErrorKind::Conflict | TargetErrorKind::NoSpace | TargetErrorKind::Refused => {
                ControlErrorKind::Refused
            }
            TargetErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
