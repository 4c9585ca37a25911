//! Requests to a migration's driver.

use tokio::sync::oneshot;
use warmd_core::model::{
    request::{Request, RequestOutcome},
    scheduled_cutover::CutoverOrder,
    verify::VerifyOrder,
};

/// A request with the channel for its answer.
#[derive(Debug)]
pub struct OwnerRequest {
    pub request: Request,
    /// The verification, if one is requested.
    pub order: VerifyOrder,
    /// When, and whether at any time, if a cutover is requested.
    pub cutover: CutoverOrder,
    /// Who requests, for the journal.
    pub by: String,
    pub answer: oneshot::Sender<RequestOutcome>,
}
