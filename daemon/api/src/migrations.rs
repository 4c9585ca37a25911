//! The service `Migrations`.

use std::pin::Pin;

use futures::Stream;
use tonic::{Request, Response, Status};
use warmd_core::{
    clock,
    control::{Control as _, ControlError, ControlErrorKind},
    guarded::Guarded,
    model::{
        plan::VerifyMode,
        request::{self, RequestOutcome},
        scheduled_cutover::{CutoverOrder, CutoverTime},
        verify::{VerifyOrder, VerifyScope},
        view::MigrationView,
    },
};
use warmd_proto::v1::{
    self, Migration, MigrationsCancelRequest, MigrationsCancelResponse, MigrationsCutoverRequest,
    MigrationsCutoverResponse, MigrationsEventsRequest, MigrationsEventsResponse, MigrationsGetRequest,
    MigrationsGetResponse, MigrationsListRequest, MigrationsListResponse, MigrationsPauseRequest,
    MigrationsPauseResponse, MigrationsReportKeyRequest, MigrationsReportKeyResponse,
    MigrationsReportRequest, MigrationsReportResponse, MigrationsResumeRequest, MigrationsResumeResponse,
    MigrationsRollbackRequest, MigrationsRollbackResponse, MigrationsSyncRequest, MigrationsSyncResponse,
    MigrationsVerifyRequest, MigrationsVerifyResponse, MigrationsWatchRequest, MigrationsWatchResponse,
    migrations_server::Migrations,
};
use warmd_schedules::{Tz, when::parse_when};

use super::{
    convert,
    report_markdown::markdown,
    service::ApiServer,
    status::{invalid, status},
    watch::{WatchFilter, Watcher},
};

/// Lines of the journal if the request does not say how many, and the most that one answer holds.
const EVENTS: u32 = 100;
const MAX_EVENTS: u32 = 10_000;

impl ApiServer {
    /// Requests `what` for the migration that `key` names: the answer, and its state before.
    async fn ask(
        control: &Guarded,
        key: &str,
        what: request::Request,
    ) -> Result<(v1::RequestOutcome, Migration), ControlError> {
        control.may_request(&what)?;
        let view = control.migration(key).await?;
        answered(control.request(view.id, what, control.by()).await?, view)
    }

    /// The request for a cutover, shown in the time zone of its schedule: that of the plan, or of its VM;
    /// `None` is that it be aborted.
    pub(super) async fn cutover_order(
        control: &Guarded,
        message: &MigrationsCutoverRequest,
        plan: &str,
        vm: Option<&MigrationView>,
    ) -> Result<Option<CutoverOrder>, ControlError> {
        let invalid = |why: &str| ControlError::new(ControlErrorKind::Invalid, why);
        let when = match (given(&message.at), message.hold, message.unhold, message.abort) {
            (None, false, false, true) if !message.force => return Ok(None),
            (None, false, false, false) => CutoverTime::Now,
            (None, true, false, false) => CutoverTime::Hold,
            (None, false, true, false) => CutoverTime::Unhold,
            (Some(at), false, false, false) => {
                // Of a finished migration the plan may be gone, and the request is refused anyway.
                let plan = control.plan(plan).await.ok();
                let rules = plan.and_then(|plan| match vm {
                    Some(vm) => plan.rules_of(&vm.vm_name, &vm.vm).ok(),
                    None => plan.rules().ok(),
                });
                let zone = rules.map_or(Tz::UTC, |rules| rules.zone);
                CutoverTime::At(
                    parse_when(at, zone, clock::now()).map_err(|error| invalid(&error.to_string()))?,
                )
            }
            _ => return Err(invalid("give one of abort, at, hold and unhold, and force with none but at")),
        };
        if message.force && matches!(when, CutoverTime::Hold | CutoverTime::Unhold) {
            return Err(invalid("a cutover that is not asked for cannot be forced: leave force out"));
        }
        Ok(Some(CutoverOrder { when, force: message.force, ..CutoverOrder::default() }))
    }

    /// Makes the cutover request in `message`: the answer, and the migration's state with it.
    async fn ask_cutover(
        control: &Guarded,
        message: &MigrationsCutoverRequest,
    ) -> Result<(v1::RequestOutcome, Migration), ControlError> {
        control.may_request(&request::Request::cutover())?;
        let view = control.migration(&message.migration).await?;
        let Some(order) = Self::cutover_order(control, message, &view.plan, Some(&view)).await? else {
            let outcome = control.request(view.id, request::Request::AbortCutover, control.by()).await?;
            return answered(outcome, view);
        };
        let outcome = control.cut_over(view.id, order, control.by()).await?;
        // A waiting cutover is shown in its present state.
        let view = match order.when {
            CutoverTime::Now => view,
            CutoverTime::At(_) | CutoverTime::Hold | CutoverTime::Unhold => {
                control.migration(&view.id.to_string()).await?
            }
        };
        answered(outcome, view)
    }
}

fn answered(
    outcome: RequestOutcome,
    view: MigrationView,
) -> Result<(v1::RequestOutcome, Migration), ControlError> {
    match outcome {
        RequestOutcome::Accepted => Ok((v1::RequestOutcome::Accepted, convert::migration(view))),
        RequestOutcome::NoChange => Ok((v1::RequestOutcome::NoChange, convert::migration(view))),
        RequestOutcome::Refused(why) => Err(ControlError::new(ControlErrorKind::Refused, why)),
    }
}

/// The migration to verify, and how.
fn order(message: MigrationsVerifyRequest) -> Result<(String, VerifyOrder), Status> {
    let mode = match message.mode() {
        v1::VerifyMode::Unspecified | v1::VerifyMode::Readback => VerifyMode::Readback,
        v1::VerifyMode::Compare => VerifyMode::Compare,
        v1::VerifyMode::None => VerifyMode::None,
    };
    let scope = match given(&message.scope) {
        None => VerifyScope::Full,
        Some(scope) => scope.parse().map_err(|why: String| invalid(&why))?,
    };
    let images = message.images.into_iter().collect();
    let id = uuid::Uuid::now_v7().to_string();
    Ok((message.migration, VerifyOrder { id, mode, scope, seed: message.seed, images }))
}

/// A handler for one request that is accepted now and done later.
macro_rules! ask {
    ($api:ident, $request:ident, $what:expr, $response:ident) => {{
        let control = $api.control($request.extensions());
        let message = $request.into_inner();
        let (answer, migration) =
            Self::ask(&control, &message.migration, $what).await.map_err(|error| status(&error))?;
        Ok(Response::new($response { answer: answer.into(), migration: Some(migration) }))
    }};
}

#[tonic::async_trait]
impl Migrations for ApiServer {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<MigrationsWatchResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<MigrationsListRequest>,
    ) -> Result<Response<MigrationsListResponse>, Status> {
        let control = self.control(request.extensions());
        let plan = request.into_inner().plan;
        let views = control.migrations(given(&plan)).await.map_err(|error| status(&error))?;
        let migrations = views.into_iter().map(convert::migration).collect();
        Ok(Response::new(MigrationsListResponse { migrations }))
    }

    async fn get(
        &self,
        request: Request<MigrationsGetRequest>,
    ) -> Result<Response<MigrationsGetResponse>, Status> {
        let control = self.control(request.extensions());
        let key = request.into_inner().migration;
        let view = control.migration(&key).await.map_err(|error| status(&error))?;
        Ok(Response::new(MigrationsGetResponse { migration: Some(convert::migration(view)) }))
    }

    async fn watch(
        &self,
        request: Request<MigrationsWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let control = self.control(request.extensions());
        let message = request.into_inner();
        // Before the first look, so that no change falls between the two.
        let changes = control.watch();
        let scope = match (given(&message.migration), given(&message.plan)) {
            (Some(_), Some(_)) => {
                return Err(invalid("watch either one migration or a plan's: leave one of the two empty"));
            }
            (Some(key), None) => {
                WatchFilter::One(control.migration(key).await.map_err(|error| status(&error))?.id)
            }
            (None, Some(plan)) => {
                control.plan(plan).await.map_err(|error| status(&error))?;
                WatchFilter::Plan(plan.to_owned())
            }
            (None, None) => WatchFilter::All,
        };
        let watcher = Watcher::new(control, changes, scope, message.until_final);
        Ok(Response::new(Box::pin(watcher.into_stream(self.shutdown.clone()))))
    }

    async fn sync(
        &self,
        request: Request<MigrationsSyncRequest>,
    ) -> Result<Response<MigrationsSyncResponse>, Status> {
        ask!(self, request, request::Request::Sync, MigrationsSyncResponse)
    }

    async fn pause(
        &self,
        request: Request<MigrationsPauseRequest>,
    ) -> Result<Response<MigrationsPauseResponse>, Status> {
        ask!(self, request, request::Request::Pause, MigrationsPauseResponse)
    }

    async fn resume(
        &self,
        request: Request<MigrationsResumeRequest>,
    ) -> Result<Response<MigrationsResumeResponse>, Status> {
        ask!(self, request, request::Request::Resume, MigrationsResumeResponse)
    }

    async fn cutover(
        &self,
        request: Request<MigrationsCutoverRequest>,
    ) -> Result<Response<MigrationsCutoverResponse>, Status> {
        let control = self.control(request.extensions());
        let message = request.into_inner();
        let (answer, migration) =
            Self::ask_cutover(&control, &message).await.map_err(|error| status(&error))?;
        Ok(Response::new(MigrationsCutoverResponse { answer: answer.into(), migration: Some(migration) }))
    }

    async fn rollback(
        &self,
        request: Request<MigrationsRollbackRequest>,
    ) -> Result<Response<MigrationsRollbackResponse>, Status> {
        if !request.get_ref().accept_loss {
            return Err(invalid("a rollback loses what the target VM wrote: say so with `accept_loss`"));
        }
        ask!(self, request, request::Request::Rollback, MigrationsRollbackResponse)
    }

    async fn cancel(
        &self,
        request: Request<MigrationsCancelRequest>,
    ) -> Result<Response<MigrationsCancelResponse>, Status> {
        ask!(self, request, request::Request::Cancel, MigrationsCancelResponse)
    }

    async fn verify(
        &self,
        request: Request<MigrationsVerifyRequest>,
    ) -> Result<Response<MigrationsVerifyResponse>, Status> {
        let control = self.control(request.extensions());
        let message = request.into_inner();
        let (key, order) = order(message)?;
        let verification = order.id.clone();
        let asked = async {
            control.may_request(&request::Request::verify())?;
            let view = control.migration(&key).await?;
            let outcome = control.verify(view.id, order, control.by()).await?;
            answered(outcome, view)
        };
        let (answer, migration) = asked.await.map_err(|error| status(&error))?;
        let migration = Some(migration);
        Ok(Response::new(MigrationsVerifyResponse { answer: answer.into(), migration, verification }))
    }

    async fn report(
        &self,
        request: Request<MigrationsReportRequest>,
    ) -> Result<Response<MigrationsReportResponse>, Status> {
        let control = self.control(request.extensions());
        let key = request.into_inner().migration;
        let id = control.migration(&key).await.map_err(|error| status(&error))?.id;
        let report = control.report(id).await.map_err(|error| status(&error))?;
        let signed = control.sign(&report).map_err(|error| status(&error))?;
        let markdown = markdown(&report, &signed);
        let json = signed.json;
        Ok(Response::new(MigrationsReportResponse { migration_id: id.to_string(), json, markdown }))
    }

    async fn report_key(
        &self,
        request: Request<MigrationsReportKeyRequest>,
    ) -> Result<Response<MigrationsReportKeyResponse>, Status> {
        let control = self.control(request.extensions());
        let key = control.report_key();
        let mut keys = control.report_keys().await.map_err(|error| status(&error))?;
        keys.pop_if(|last| last.key == key.hex);
        let earlier = keys.into_iter().map(convert::key_since).collect();
        Ok(Response::new(MigrationsReportKeyResponse { key: key.hex, pem: key.pem, earlier }))
    }

    async fn events(
        &self,
        request: Request<MigrationsEventsRequest>,
    ) -> Result<Response<MigrationsEventsResponse>, Status> {
        let control = self.control(request.extensions());
        let message = request.into_inner();
        let id = match given(&message.migration) {
            Some(key) => Some(control.migration(key).await.map_err(|error| status(&error))?.id),
            None => None,
        };
        let limit = if message.limit == 0 { EVENTS } else { message.limit.min(MAX_EVENTS) };
        let page = control.events(id, message.after, limit).await.map_err(|error| status(&error))?;
        let events = page.lines.into_iter().map(convert::event).collect();
        Ok(Response::new(MigrationsEventsResponse { events, cursor: page.cursor }))
    }
}

/// A string field that is not empty.
fn given(field: &str) -> Option<&str> {
    (!field.is_empty()).then_some(field)
}
