//! The service `Limits`.

use std::num::NonZeroU32;

use tonic::{Request, Response, Status};
use warmd_core::{
    control::Control as _,
    model::limit::{LimitChange, rate},
};
use warmd_proto::v1::{
    self, LimitsGetRequest, LimitsGetResponse, LimitsQuotasRequest, LimitsQuotasResponse, LimitsSetRequest,
    LimitsSetResponse, limits_server::Limits, limits_set_request,
};

use super::{
    convert,
    service::ApiServer,
    status::{invalid, status},
};

#[tonic::async_trait]
impl Limits for ApiServer {
    async fn get(&self, request: Request<LimitsGetRequest>) -> Result<Response<LimitsGetResponse>, Status> {
        let control = self.control(request.extensions());
        let scope = request.into_inner().scope;
        let limits = control.limits(Some(scope.as_str()).filter(|scope| !scope.is_empty())).await;
        let limits = limits.map_err(|error| status(&error))?.into_iter().map(convert::limit).collect();
        Ok(Response::new(LimitsGetResponse { limits }))
    }

    async fn quotas(
        &self,
        request: Request<LimitsQuotasRequest>,
    ) -> Result<Response<LimitsQuotasResponse>, Status> {
        let control = self.control(request.extensions());
        let scope = request.into_inner().scope;
        let quotas = control.quotas(Some(scope.as_str()).filter(|scope| !scope.is_empty())).await;
        let quotas = quotas.map_err(|error| status(&error))?.into_iter().map(convert::quota).collect();
        Ok(Response::new(LimitsQuotasResponse { quotas }))
    }

    async fn set(&self, request: Request<LimitsSetRequest>) -> Result<Response<LimitsSetResponse>, Status> {
        let control = self.control(request.extensions());
        let LimitsSetRequest { scope, change } = request.into_inner();
        let change = judged(change).map_err(invalid)?;
        let limit = control.set_limit(&scope, change, control.by()).await.map_err(|error| status(&error))?;
        Ok(Response::new(LimitsSetResponse { limit: Some(convert::limit(limit)) }))
    }
}

/// The requested change, if it is possible.
pub(super) fn judged(change: Option<limits_set_request::Change>) -> Result<LimitChange, String> {
    match change {
        Some(limits_set_request::Change::Reset(_)) => Ok(LimitChange::Reset),
        Some(limits_set_request::Change::To(to)) => changed(&to),
        None => Err("nothing is changed: give a rate, requests, or a reset".to_owned()),
    }
}

fn changed(to: &v1::LimitChange) -> Result<LimitChange, String> {
    let rate = match to.rate_bytes_per_second {
        Some(0) => Some(None),
        Some(bytes) => Some(Some(rate::check(bytes)?)),
        None => None,
    };
    let requests = to.requests.map(NonZeroU32::new);
    if rate.is_none() && requests.is_none() {
        return Err("nothing is changed: give a rate, requests, or a reset".to_owned());
    }
    Ok(LimitChange::To { rate, requests })
}
