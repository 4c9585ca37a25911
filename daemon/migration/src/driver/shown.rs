//! The driver's view of its migration.
//!
//! Rule: a state is shown once it is saved, never before.

use warmd_core::{
    clock,
    model::{phase::Phase, state::State, view::CutoverView},
};

use super::{
    super::{forecast, rollback},
    Driver,
};

impl Driver {
    pub(super) fn show(&self, before: &State) {
        let state = self.record.state.clone();
        let rolled_back =
            (state == State::RollingBack).then(|| format!("rolled back: {}", rollback::loss(&self.context)));
        self.context.live.update(|view| {
            view.since = clock::now();
            (view.next_pass, view.next_pass_why, view.scheduled_cutover) = (None, None, None);
            view.waiting = None;
            let begins = matches!(state, State::CuttingOver { phase: Phase::CatchUpDelta });
            if begins && !matches!(before, State::CuttingOver { .. }) {
                view.cutover = Some(CutoverView::begun(clock::now()));
            }
            // A cutover that waited for its admission over a restart has no phase yet that shows it.
            if view.cutover.is_none() && matches!(state, State::Undoing { .. }) {
                view.cutover = Some(CutoverView::begun(clock::now()));
            }
            if let Some(cutover) = &mut view.cutover {
                match (&state, before) {
                    (
                        State::Undoing { reason, .. } | State::Failed { reason, .. },
                        State::CuttingOver { .. },
                    ) => {
                        cutover.failure = Some(reason.clone());
                    }
                    (State::RollingBack, _) => cutover.failure = rolled_back,
                    (State::Done, _)
                    | (State::Synced, State::Undoing { .. })
                    | (State::Paused { .. }, State::RollingBack) => {
                        cutover.ended = Some(clock::now());
                    }
                    _ => {}
                }
            }
            view.state = state;
        });
    }

    /// Updates the past in the view.
    pub(super) async fn refresh(&self) {
        match forecast::current_forecast(&self.context).await {
            Ok(told) => self.context.live.update(|view| {
                view.forecast = told.map(|told| told.view);
                view.downtime_forecast = view.forecast.as_ref().map(|forecast| forecast.downtime.expected);
            }),
            Err(error) => tracing::warn!(migration = %self.context.id, %error, "no forecast"),
        }
    }
}
