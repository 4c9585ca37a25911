//! The service `Plans`.

use tonic::{Request, Response, Status};
use warmd_core::{
    control::{Control as _, ExplainTarget},
    model::plan::Plan,
};
use warmd_proto::v1::{
    MigrationsCutoverRequest, PlansApplyRequest, PlansApplyResponse, PlansCutoverRequest,
    PlansCutoverResponse, PlansDeleteRequest, PlansDeleteResponse, PlansExplainRequest, PlansExplainResponse,
    PlansGetRequest, PlansGetResponse, PlansListRequest, PlansListResponse, PlansValidateRequest,
    PlansValidateResponse, plans_server::Plans,
};
use warmd_schedules::explain::DECISIONS;

use super::{
    convert,
    service::ApiServer,
    status::{invalid, status},
};

/// Above this, a parser's message quotes lines too long to read.
const READABLE: usize = 2 << 10;

/// The most that one answer lists.
const MOST_DECISIONS: u32 = 1000;

#[tonic::async_trait]
impl Plans for ApiServer {
    async fn apply(
        &self,
        request: Request<PlansApplyRequest>,
    ) -> Result<Response<PlansApplyResponse>, Status> {
        let control = self.control(request.extensions());
        let PlansApplyRequest { toml, dry_run } = request.into_inner();
        let plan = parsed(&toml)?;
        let name = plan.name.clone();
        let applied = if dry_run {
            control.preview_plan(&plan).await
        } else {
            control.apply_plan(plan, control.by()).await
        };
        let applied = applied.map_err(|error| status(&error))?;
        Ok(Response::new(PlansApplyResponse {
            plan: name,
            started: applied.started.iter().map(ToString::to_string).collect(),
            kept: applied.kept.iter().map(ToString::to_string).collect(),
            findings: applied.findings.into_iter().map(convert::finding).collect(),
            changes: applied.changes.into_iter().map(convert::plan_change).collect(),
            dry_run,
        }))
    }

    async fn get(&self, request: Request<PlansGetRequest>) -> Result<Response<PlansGetResponse>, Status> {
        let control = self.control(request.extensions());
        let name = request.into_inner().name;
        let plan = control.plan(&name).await.and_then(|plan| convert::plan(&plan));
        let plan = Some(plan.map_err(|error| status(&error))?);
        let group = control.group(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(PlansGetResponse { plan, group: group.map(convert::group) }))
    }

    async fn cutover(
        &self,
        request: Request<PlansCutoverRequest>,
    ) -> Result<Response<PlansCutoverResponse>, Status> {
        let control = self.control(request.extensions());
        let PlansCutoverRequest { name, abort, at, hold, unhold, force } = request.into_inner();
        let asked = MigrationsCutoverRequest { migration: String::new(), abort, at, hold, unhold, force };
        let order =
            Self::cutover_order(&control, &asked, &name, None).await.map_err(|error| status(&error))?;
        let asked =
            control.cut_over_plan(&name, order, control.by()).await.map_err(|error| status(&error))?;
        Ok(Response::new(convert::plan_cutover(asked)))
    }

    async fn list(&self, request: Request<PlansListRequest>) -> Result<Response<PlansListResponse>, Status> {
        let control = self.control(request.extensions());
        let plans = control.plans().await.map_err(|error| status(&error))?;
        let plans: Result<_, _> = plans.iter().map(convert::plan).collect();
        Ok(Response::new(PlansListResponse { plans: plans.map_err(|error| status(&error))? }))
    }

    async fn delete(
        &self,
        request: Request<PlansDeleteRequest>,
    ) -> Result<Response<PlansDeleteResponse>, Status> {
        let control = self.control(request.extensions());
        let name = request.into_inner().name;
        control.delete_plan(&name, control.by()).await.map_err(|error| status(&error))?;
        Ok(Response::new(PlansDeleteResponse {}))
    }

    async fn explain(
        &self,
        request: Request<PlansExplainRequest>,
    ) -> Result<Response<PlansExplainResponse>, Status> {
        let control = self.control(request.extensions());
        let PlansExplainRequest { name, toml, migration, count, vm } = request.into_inner();
        let plan = match (name.is_empty(), toml.is_empty()) {
            (false, true) => control.plan(&name).await.map_err(|error| status(&error))?,
            (true, false) => parsed(&toml)?,
            _ => return Err(invalid("give either the plan's name or its text")),
        };
        let whose = match (migration.as_str(), vm.as_str()) {
            ("", "") => ExplainTarget::Oldest,
            (migration, "") => ExplainTarget::Migration(migration),
            ("", vm) => ExplainTarget::Vm(vm),
            _ => return Err(invalid("give either a migration or a VM of the plan")),
        };
        let count = if count == 0 { DECISIONS } else { count.min(MOST_DECISIONS) as usize };
        let explained = control.explain(&plan, whose, count).await;
        Ok(Response::new(convert::explained(explained.map_err(|error| status(&error))?)))
    }

    async fn validate(
        &self,
        request: Request<PlansValidateRequest>,
    ) -> Result<Response<PlansValidateResponse>, Status> {
        let control = self.control(request.extensions());
        let plan = parsed(&request.into_inner().toml)?;
        let findings = control.validate_plan(&plan).await.map_err(|error| status(&error))?;
        Ok(Response::new(PlansValidateResponse {
            plan: Some(convert::plan(&plan).map_err(|error| status(&error))?),
            findings: findings.into_iter().map(convert::finding).collect(),
        }))
    }
}

/// The plan in `text`, or a refusal with line and column.
pub(super) fn parsed(text: &str) -> Result<Plan, Status> {
    toml::from_str(text).map_err(|error| {
        let told = error.to_string();
        if told.len() <= READABLE {
            return invalid(told.trim_end());
        }
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        invalid(format!("TOML parse error at line {line}, column {column}: {}", error.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_a_very_long_line_still_says_why_and_where() {
        let text = format!("name = \"a\"\nbogus = \"{}\"\n", "x".repeat(100_000));
        let status = parsed(&text).unwrap_err();
        assert!(status.message().contains("line 2, column 1: "), "{}", status.message());
        assert!(status.message().contains("unknown field `bogus`"), "{}", status.message());
    }
}
