//! Hooks that are services.
//!
//! Rule: one call, one try, one deadline. Every answer but success is a failure, with its reason.

use std::time::Duration;

use warmd_core::{
    hook_service::{HookAnswer, HookCallError, HookService},
    model::{hook::Hook, id::MigrationId},
};

use super::program::{ProgramResult, shortened};

/// Calls the service at `address` with `facts`; the call is cancelled at its deadline, or when this is
/// dropped.
pub(super) async fn call_service(
    service: &dyn HookService,
    address: &str,
    hook: &Hook,
    id: MigrationId,
    facts: String,
) -> ProgramResult {
    let deadline = hook.timeout;
    let fault = match tokio::time::timeout(deadline, service.call(address, hook, id, facts)).await {
        Ok(Ok(HookAnswer { failure, said })) => {
            let fault = (!failure.is_empty()).then(|| format!("it answered: {}", shortened(&failure)));
            return ProgramResult { fault, said: shortened(&said) };
        }
        Ok(Err(HookCallError::Refused(why))) => why,
        Ok(Err(HookCallError::Failed { kind, text })) => {
            format!("it failed with {kind}: {}", shortened(&text))
        }
        Ok(Err(HookCallError::Late)) | Err(_) => late(deadline),
    };
    ProgramResult { fault: Some(fault), said: String::new() }
}

fn late(deadline: Duration) -> String {
    format!("it did not answer within {}", humantime::format_duration(deadline))
}
