//! Hooks that are services: `warmd.hooks.v1`, called on this host.
//!
//! Rule: one call, one try, one deadline. Every answer but success is a failure, with its reason.

use std::time::Duration;

use tonic::Request;
use warmd_core::model::{hook::Hook, id::MigrationId};
use warmd_proto::{
    channel,
    hooks::v1::{RunRequest, RunResponse, hooks_client::HooksClient},
};

use super::program::{ProgramResult, shortened};

/// Calls the service at `address` with `facts`; the call is cancelled at its deadline, or when this is
/// dropped.
pub(super) async fn run(address: &str, hook: &Hook, id: MigrationId, facts: String) -> ProgramResult {
    let deadline = hook.timeout;
    match tokio::time::timeout(deadline, call(address, hook, id, facts)).await {
        Ok(Ok(RunResponse { failure, said })) => {
            let fault = (!failure.is_empty()).then(|| format!("it answered: {}", shortened(&failure)));
            ProgramResult { fault, said: shortened(&said) }
        }
        Ok(Err(why)) => ProgramResult { fault: Some(why), said: String::new() },
        Err(_) => ProgramResult { fault: Some(late(deadline)), said: String::new() },
    }
}

async fn call(address: &str, hook: &Hook, id: MigrationId, facts: String) -> Result<RunResponse, String> {
    let channel = channel::open(address, hook.timeout)?;
    let (migration_id, phase, when) = (id.to_string(), hook.phase.to_string(), hook.when.to_string());
    let mut request = Request::new(RunRequest { facts, migration_id, phase, when });
    request.set_timeout(hook.timeout);
    match HooksClient::new(channel).run(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) if channel::is_late(&status) => Err(late(hook.timeout)),
        Err(status) => Err(format!("it failed with {:?}: {}", status.code(), shortened(status.message()))),
    }
}

fn late(deadline: Duration) -> String {
    format!("it did not answer within {}", humantime::format_duration(deadline))
}
