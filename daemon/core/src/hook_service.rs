//! The port to hooks that are services.
//!
//! Rule: one call, one try. Every answer but success is a failure, with its reason. The caller has the
//! deadline.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::model::{hook::Hook, id::MigrationId};

/// Calls services for hooks.
#[async_trait]
pub trait HookService: Send + Sync + Debug {
    /// Whether the hook's service at `address` may be called; else what to write. Nothing is connected yet.
    fn check(&self, address: &str, hook: &Hook) -> Result<(), String>;

    /// Calls the service at `address` with the facts, as JSON. Dropping the future cancels the call.
    async fn call(
        &self,
        address: &str,
        hook: &Hook,
        migration: MigrationId,
        facts: String,
    ) -> Result<HookAnswer, HookCallError>;
}

/// The answer of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookAnswer {
    /// Why it failed; empty if it did not.
    pub failure: String,
    /// Its output.
    pub said: String,
}

/// Why a service did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookCallError {
    /// Its deadline passed.
    Late,
    /// It may not be called.
    Refused(String),
    /// The call failed: the kind of failure, and its text.
    Failed { kind: String, text: String },
}

/// Calls nothing, for programs without services.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHookServices;

#[async_trait]
impl HookService for NoHookServices {
    fn check(&self, _address: &str, _hook: &Hook) -> Result<(), String> {
        Err("this program calls no services".to_owned())
    }

    async fn call(
        &self,
        address: &str,
        hook: &Hook,
        _migration: MigrationId,
        _facts: String,
    ) -> Result<HookAnswer, HookCallError> {
        self.check(address, hook).map(|()| HookAnswer::default()).map_err(HookCallError::Refused)
    }
}
