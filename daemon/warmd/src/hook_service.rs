//! Hooks that are services: `warmd.hooks.v1`, called on this host by gRPC.

use async_trait::async_trait;
use tonic::Request;
use warmd_core::{
    hook_service::{HookAnswer, HookCallError, HookService},
    model::{hook::Hook, id::MigrationId},
};
use warmd_proto::{
    channel,
    hooks::v1::{RunRequest, RunResponse, hooks_client::HooksClient},
};

/// Calls hooks by gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcHooks;

#[async_trait]
impl HookService for GrpcHooks {
    fn check(&self, address: &str, hook: &Hook) -> Result<(), String> {
        channel::open(address, hook.timeout).map(drop)
    }

    async fn call(
        &self,
        address: &str,
        hook: &Hook,
        migration: MigrationId,
        facts: String,
    ) -> Result<HookAnswer, HookCallError> {
        let channel = channel::open(address, hook.timeout).map_err(HookCallError::Refused)?;
        let (phase, when) = (hook.phase.to_string(), hook.when.to_string());
        let mut request =
            Request::new(RunRequest { facts, migration_id: migration.to_string(), phase, when });
        request.set_timeout(hook.timeout);
        match HooksClient::new(channel).run(request).await {
            Ok(answer) => {
                let RunResponse { failure, said } = answer.into_inner();
                Ok(HookAnswer { failure, said })
            }
            Err(status) if channel::is_late(&status) => Err(HookCallError::Late),
            Err(status) => {
                let (kind, text) = (format!("{:?}", status.code()), status.message().to_owned());
                Err(HookCallError::Failed { kind, text })
            }
        }
    }
}
