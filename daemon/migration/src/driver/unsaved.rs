//! The way back to the source while saving fails.
//!
//! Rule: the saved state still says that the cutover continues. A daemon that reads it after a crash finds a
//! running source, and undoes the cutover (the fence before each later phase ensures that). So this is done
//! only before the target VM's start was requested, after what the cutover created on the target is removed.
//! Never do both VMs run.

use std::time::Duration;

use warmd_core::model::{
    decide::{Decision, Input},
    phase::Phase,
    state::State,
    transition::{FailureCause, StateWork},
};
use warmd_store::{MigrationUpdate, StoreError, StoreErrorKind};

use super::Driver;
use crate::{context::Context, cutover, failure::WorkError};

/// With the source off and saving failing for this long, the source is powered on.
const UNSAVED: Duration = Duration::from_mins(3);

/// The interval at which a hanging save is checked.
const LOOK: Duration = Duration::from_secs(10);

/// Whether the work of a phase with the source off must end because saving has failed for long. It would be
/// retried until the phase's deadline otherwise.
pub(crate) fn ends(context: &Context, doing: StateWork) -> bool {
    let cutover = context.cutover();
    let is_down = matches!(doing, StateWork::Phase(phase) if phase.source_may_be_off());
    let is_before = cutover.start_requested_at.is_none() && cutover.target_running.is_none();
    is_down && is_before && context.store.failing_for().is_some_and(|span| span >= UNSAVED)
}

impl Driver {
    /// Saves a step. A hanging save is abandoned if the source is off meanwhile; then it may or may not be
    /// saved, and the next saved step counts.
    pub(super) async fn saved(&self, step: MigrationUpdate, is_back: bool) -> Result<(), StoreError> {
        let mut saving = std::pin::pin!(self.context.store.save_state(self.context.id, step));
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut saving).await {
                return answer;
            }
            if self.goes_back(is_back).is_some() {
                return Err(StoreError {
                    kind: StoreErrorKind::Unavailable,
                    context: format!("saving the state of migration {}", self.context.id),
                    cause: "the state's disk does not answer".into(),
                });
            }
        }
    }

    /// The phase whose cutover must be undone because saving has failed for long, unless the source `is_back`
    /// already.
    fn goes_back(&self, is_back: bool) -> Option<Phase> {
        let State::CuttingOver { phase } = self.record.state else { return None };
        (!is_back && ends(&self.context, StateWork::Phase(phase))).then_some(phase)
    }

    /// Powers on a source that a cutover has stopped, when saving has failed for long; returns what to save
    /// instead of the next step.
    pub(super) async fn back_unsaved(&mut self, error: &StoreError, is_back: &mut bool) -> Option<Decision> {
        let phase = self.goes_back(*is_back)?;
        let reason = format!("the state could not be saved for {} s: {error}", UNSAVED.as_secs());
        if let Err(error) = back(&self.context, phase).await {
            tracing::error!(migration = %self.context.id, %error, "the source is not back yet");
            return None;
        }
        tracing::error!(migration = %self.context.id, reason, "the source is powered on again, unsaved");
        *is_back = true;
        self.context.groups.mark_failed(self.context.id, &reason);
        let input = Input::WorkFailed { reason, resumable: true, cause: FailureCause::Other };
        self.decision(&input).await.ok()
    }
}

async fn back(context: &Context, from: Phase) -> Result<(), WorkError> {
    if cutover::may_be_made(context, from) {
        cutover::discard_seen(context).await?;
    }
    cutover::source_back(context, from).await?;
    Ok(cutover::give_starters_back(context).await?)
}
