//! What the world may ask of the daemon: the seam between the API and the migrations.
//!
//! Rule: names and texts that come in here are outside data; every refusal says what, where and what to do.

use async_trait::async_trait;
use tokio::sync::broadcast;
use warmd_report::seal::{PublicKey, SignedReport};
use warmd_schedules::{Tz, explain::ScheduleDecision};

use crate::model::{
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
    sources::{SourceError, SourceErrorKind},
    targets::{TargetError, TargetErrorKind},
};

/// Everything that the control API offers.
#[async_trait]
pub trait Control: Send + Sync {
    /// The configured sources.
    async fn sources(&self) -> Vec<EndpointInfo>;
    /// Reaches a source; what it says of itself.
    async fn check_source(&self, name: &str) -> Result<String, ControlError>;
    /// A source's VMs, as they were seen lately, or are seen now if `refresh` says so.
    async fn source_vms(&self, name: &str, refresh: bool) -> Result<Inventory, ControlError>;

    /// The configured targets.
    async fn targets(&self) -> Vec<EndpointInfo>;
    /// Reaches a target; what it says of itself.
    async fn check_target(&self, name: &str) -> Result<String, ControlError>;

    /// Judges a plan by itself and against its endpoints, and changes nothing.
    async fn validate_plan(&self, plan: &Plan) -> Result<Vec<Finding>, ControlError>;
    /// Makes the plan so: a migration starts for every VM that has none. Applying the same plan again changes nothing.
    async fn apply_plan(&self, plan: Plan, by: &str) -> Result<Applied, ControlError>;
    /// What [`Control::apply_plan`] would do and find, errors too; changes nothing.
    async fn preview_plan(&self, plan: &Plan) -> Result<Applied, ControlError>;
    /// All plans.
    async fn plans(&self) -> Result<Vec<Plan>, ControlError>;
    /// One plan.
    async fn plan(&self, name: &str) -> Result<Plan, ControlError>;
    /// Asks for the cutovers of all VMs of a plan that are on their way, together where the plan says so; `None` takes back
    /// those that wait or run.
    async fn cut_over_plan(
        &self,
        name: &str,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError>;
    /// How the plan's last cutover of VMs together goes, or went; `None` if there was none.
    async fn group(&self, name: &str) -> Result<Option<GroupView>, ControlError>;
    /// What the plan's schedule will decide next, at most `count` decisions.
    async fn explain(
        &self,
        plan: &Plan,
        whose: ExplainTarget<'_>,
        count: usize,
    ) -> Result<Explanation, ControlError>;
    /// Forgets a plan whose migrations are all finished or cancelled.
    async fn delete_plan(&self, name: &str, by: &str) -> Result<(), ControlError>;

    /// All migrations, or those of one plan, oldest first.
    async fn migrations(&self, plan: Option<&str>) -> Result<Vec<MigrationView>, ControlError>;
    /// The migration that `key` names: an id, the unique beginning or end of one (at least four characters), or a VM's
    /// name if exactly one migration that is not finished moves it.
    async fn migration(&self, key: &str) -> Result<MigrationView, ControlError>;
    /// Every change of every migration from now on, progress included. A slow reader misses some, never the last.
    fn watch(&self) -> broadcast::Receiver<MigrationView>;
    /// Asks something of a migration. Accepted means begun, not finished: watch it.
    async fn request(
        &self,
        id: MigrationId,
        request: Request,
        by: &str,
    ) -> Result<RequestOutcome, ControlError>;
    /// Asks for a cutover, now or later; [`Request::Cutover`] asks for one now.
    async fn cut_over(
        &self,
        id: MigrationId,
        order: CutoverOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError>;
    /// Asks for a verification; [`Request::Verify`] asks for a readback of everything.
    async fn verify(
        &self,
        id: MigrationId,
        order: VerifyOrder,
        by: &str,
    ) -> Result<RequestOutcome, ControlError>;
    /// The evidence.
    async fn report(&self, id: MigrationId) -> Result<Report, ControlError>;
    /// The same in the form that can be checked later, signed.
    fn sign(&self, report: &Report) -> Result<SignedReport, ControlError>;
    /// What checks the signatures of this daemon's reports.
    fn report_key(&self) -> PublicKey;

    /// The keys that signed reports so far, oldest first, that one last.
    async fn report_keys(&self) -> Result<Vec<KeySince>, ControlError>;
    /// All limits with what goes through them: global, sources, targets, and the migrations that are not finished,
    /// each followed by its disks; or only one scope, a migration with its disks.
    async fn limits(&self, scope: Option<&str>) -> Result<Vec<LimitView>, ControlError>;
    /// Changes the limit of a scope (`global`, `source/NAME`, `target/NAME`, `migration/KEY`, `migration/KEY/DISK`) at
    /// once, and until something else is said of it.
    async fn set_limit(&self, scope: &str, change: LimitChange, by: &str) -> Result<LimitView, ControlError>;
    /// The quotas of all scopes that have some, or of the scope that is named.
    async fn quotas(&self, scope: Option<&str>) -> Result<Vec<QuotaView>, ControlError>;
    /// The journal, of one migration or of all: at most `limit` lines, the last ones, or the first ones after a cursor.
    async fn events(
        &self,
        id: Option<MigrationId>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<JournalPage, ControlError>;
}

/// For which migration a plan's schedule is explained, by the schedule of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExplainTarget<'a> {
    /// The plan's whose last pass is the longest ago, or one that has just begun if it has none.
    Oldest,
    /// The one that this key names, whatever its plan.
    Migration(&'a str),
    /// That of the plan's VM of this name or id, or one that has just begun.
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

/// Something that was found when a plan was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: Rule,
    /// The rule's, unless the plan accepts what it found.
    pub severity: Severity,
    /// Which VM, field or endpoint.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// What applying a plan did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Migrations that were started.
    pub started: Vec<MigrationId>,
    /// Migrations that were there already.
    pub kept: Vec<MigrationId>,
    pub findings: Vec<Finding>,
    /// All of it in words, and what of the plan is another than before.
    pub changes: Vec<PlanChange>,
}

/// Something that applying a plan changes, or keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    pub kind: PlanChangeKind,
    /// What the plan calls the VM, if it is about one.
    pub vm: Option<String>,
    /// Its migration, if it has begun.
    pub migration: Option<MigrationId>,
    pub text: String,
}

/// What kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanChangeKind {
    /// There was no plan of this name.
    New,
    /// A key of the plan has another value.
    Setting,
    /// A migration starts.
    Start,
    /// A migration stays as it is.
    Keep,
    /// A migration's VM is not named any more; it goes on.
    Leave,
}

/// Why the daemon did not do it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub kind: ControlErrorKind,
    /// What, where, and what to do; shown to the person as it is.
    pub message: String,
}

/// What kind of refusal it was; each maps to one API status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlErrorKind {
    /// What was named is not there.
    NotFound,
    /// What was given is wrong in itself.
    Invalid,
    /// It cannot be done in the present state.
    Refused,
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
    /// What comes later comes after this. Smaller than where the page was to begin if the journal is not as long.
    pub cursor: u64,
}

/// The next decisions and their reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// In which they are told.
    pub zone: Tz,
    /// The migration that they are told for; `None` is for one that has just begun.
    pub migration: Option<MigrationId>,
    /// Its VM, if it is for one.
    pub vm: Option<String>,
    pub decisions: Vec<ScheduleDecision>,
}

/// What became of asking for the cutovers of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanCutover {
    /// Of all VMs that were asked one by one; of none if they move together.
    pub outcomes: Vec<PlanRequestOutcome>,
    /// Those who move together, if they do.
    pub group: Option<GroupView>,
    /// Whether it was so already.
    pub already: bool,
}

/// What became of asking for the cutover of one VM.
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
