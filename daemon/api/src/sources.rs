//! The service `Sources`.

use tonic::{Request, Response, Status};
use warmd_core::control::Control as _;
use warmd_proto::v1::{
    SourcesCheckRequest, SourcesCheckResponse, SourcesListRequest, SourcesListResponse,
    SourcesListVmsRequest, SourcesListVmsResponse, sources_server::Sources,
};

use super::{convert, service::ApiServer, status::status};

#[tonic::async_trait]
impl Sources for ApiServer {
    async fn list(
        &self,
        request: Request<SourcesListRequest>,
    ) -> Result<Response<SourcesListResponse>, Status> {
        let control = self.control(request.extensions());
        let sources = control.sources().await.map_err(|error| status(&error))?;
        let sources = sources.into_iter().map(convert::endpoint).collect();
        Ok(Response::new(SourcesListResponse { sources }))
    }

    async fn check(
        &self,
        request: Request<SourcesCheckRequest>,
    ) -> Result<Response<SourcesCheckResponse>, Status> {
        let control = self.control(request.extensions());
        let name = request.into_inner().name;
        let description = control.check_source(&name).await.map_err(|error| status(&error))?;
        Ok(Response::new(SourcesCheckResponse { description }))
    }

    async fn list_vms(
        &self,
        request: Request<SourcesListVmsRequest>,
    ) -> Result<Response<SourcesListVmsResponse>, Status> {
        let control = self.control(request.extensions());
        let SourcesListVmsRequest { name, refresh } = request.into_inner();
        let inventory = control.source_vms(&name, refresh).await.map_err(|error| status(&error))?;
        Ok(Response::new(convert::inventory(inventory)))
    }
}
