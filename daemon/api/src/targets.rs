//! The service `Targets`.

use tonic::{Request, Response, Status};
use warmd_proto::v1::{
    TargetsCheckRequest, TargetsCheckResponse, TargetsListRequest, TargetsListResponse,
    targets_server::Targets,
};

use super::{convert, service::ApiServer, status::status};

#[tonic::async_trait]
impl Targets for ApiServer {
    async fn list(
        &self,
        _request: Request<TargetsListRequest>,
    ) -> Result<Response<TargetsListResponse>, Status> {
        let targets = self.control.targets().await.into_iter().map(convert::endpoint).collect();
        Ok(Response::new(TargetsListResponse { targets }))
    }

    async fn check(
        &self,
        request: Request<TargetsCheckRequest>,
    ) -> Result<Response<TargetsCheckResponse>, Status> {
        let name = request.into_inner().name;
        let description = self.control.check_target(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(TargetsCheckResponse { description }))
    }
}
