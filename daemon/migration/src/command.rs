//! Requests to a migration's driver.

use tokio::sync::oneshot;
use warmd_core::model::request::{Request, RequestOutcome};

/// A request with the channel for its answer.
#[derive(Debug)]
pub struct OwnerRequest {
    pub request: Request,
    /// Who requests, for the journal.
    pub by: String,
    pub answer: oneshot::Sender<RequestOutcome>,
}
