//! What is asked of a migration's owner.

use tokio::sync::oneshot;
use warmd_core::model::{
    request::{Request, RequestOutcome},
    scheduled_cutover::CutoverOrder,
    verify::VerifyOrder,
};

/// A request with the place for its answer.
#[derive(Debug)]
pub struct OwnerRequest {
    pub request: Request,
    /// Which verification, if that is asked for.
    pub order: VerifyOrder,
    /// When, and whether at any time, if a cutover is asked for.
    pub cutover: CutoverOrder,
    /// Who asks, for the journal.
    pub by: String,
    pub answer: oneshot::Sender<RequestOutcome>,
}
