//! What is asked of a migration's owner.

use tokio::sync::oneshot;

use crate::model::{
    request::{Request, Verdict},
    verify::VerifyOrder,
};

/// A request with the place for its answer.
#[derive(Debug)]
pub struct Command {
    pub request: Request,
    /// Which verification, if that is asked for.
    pub order: VerifyOrder,
    /// Who asks, for the journal.
    pub by: String,
    pub answer: oneshot::Sender<Verdict>,
}
