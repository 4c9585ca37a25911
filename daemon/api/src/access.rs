//! The service `Access`.

use tonic::{Request, Response, Status};
use warmd_core::{
    control::Control as _,
    model::access::{Role, Subject},
};
use warmd_proto::v1::{
    AccessGrantRequest, AccessGrantResponse, AccessListRequest, AccessListResponse, AccessRevokeRequest,
    AccessRevokeResponse, access_server::Access,
};

use super::{
    convert,
    service::ApiServer,
    status::{invalid, status},
};

#[tonic::async_trait]
impl Access for ApiServer {
    async fn list(
        &self,
        request: Request<AccessListRequest>,
    ) -> Result<Response<AccessListResponse>, Status> {
        let control = self.control(request.extensions());
        let grants = control.list_grants().await.map_err(|error| status(&error))?;
        Ok(Response::new(AccessListResponse { grants: grants.into_iter().map(convert::grant).collect() }))
    }

    async fn grant(
        &self,
        request: Request<AccessGrantRequest>,
    ) -> Result<Response<AccessGrantResponse>, Status> {
        let control = self.control(request.extensions());
        let AccessGrantRequest { subject, role, plans } = request.into_inner();
        let subject: Subject = subject.parse().map_err(invalid)?;
        let role: Role = role.parse().map_err(invalid)?;
        let grant =
            control.grant(subject, role, plans, control.by()).await.map_err(|error| status(&error))?;
        Ok(Response::new(AccessGrantResponse { grant: Some(convert::grant(grant)) }))
    }

    async fn revoke(
        &self,
        request: Request<AccessRevokeRequest>,
    ) -> Result<Response<AccessRevokeResponse>, Status> {
        let control = self.control(request.extensions());
        let subject: Subject = request.into_inner().subject.parse().map_err(invalid)?;
        let had_role = control.revoke(&subject, control.by()).await.map_err(|error| status(&error))?;
        Ok(Response::new(AccessRevokeResponse { had_role }))
    }
}
