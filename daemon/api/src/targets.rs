//! The service `Targets`.

use tonic::{Request, Response, Status};
use warmd_core::control::Control as _;
use warmd_proto::v1::{
    TargetsCheckRequest, TargetsCheckResponse, TargetsListRequest, TargetsListResponse,
    targets_server::Targets,
};

use super::{convert, service::ApiServer, status::status};

#[tonic::async_trait]
impl Targets for ApiServer {
    async fn list(
        &self,
        request: Request<TargetsListRequest>,
    ) -> Result<Response<TargetsListResponse>, Status> {
        let control = self.control(request.extensions());
        let targets = control.targets().await.map_err(|error| status(&error))?;
        let targets = targets.into_iter().map(convert::endpoint).collect();
        Ok(Response::new(TargetsListResponse { targets }))
    }

    async fn check(
        &self,
        request: Request<TargetsCheckRequest>,
    ) -> Result<Response<TargetsCheckResponse>, Status> {
        let control = self.control(request.extensions());
        let name = request.into_inner().name;
        let description = control.check_target(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(TargetsCheckResponse { description }))
    }
}
