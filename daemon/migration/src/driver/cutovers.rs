//! The driver's handling of a cutover that has not begun: when its time comes, and when it is missed.

use std::{pin::Pin, sync::Arc};

use chrono::{DateTime, Utc};
use warmd_core::model::{
    decide::Input, event_kind::EventKind, forecast::ForecastRange, scheduled_cutover::ScheduledCutover,
};

use super::{
    super::{
        forecast,
        scheduled_cutover::{self, ScheduledStep},
    },
    Driver, Happened,
};

impl Driver {
    /// Begins a cutover whose time has come; puts a missed one on hold.
    pub(super) async fn take_turn(&mut self) -> Option<Happened> {
        loop {
            let step = self.scheduled_step().await;
            scheduled_cutover::show(&self.context, &step);
            match step {
                ScheduledStep::Begin { .. } | ScheduledStep::Missed { .. }
                    if self.shutdown.is_cancelled() =>
                {
                    return Some(Happened::ShutDown);
                }
                ScheduledStep::Begin { by, why } => {
                    self.context.log_event(EventKind::Schedule, why).await;
                    return Some(Happened::Event(Input::CutoverDue { by }));
                }
                ScheduledStep::Missed { why } => self.miss(why).await,
                ScheduledStep::None | ScheduledStep::Wait { .. } => return None,
            }
        }
    }

    /// Whether a cutover begins now, for which the running work is stopped; a missed one is put on hold.
    pub(super) async fn is_turn(&mut self) -> bool {
        match self.scheduled_step().await {
            ScheduledStep::Begin { .. } => true,
            ScheduledStep::Missed { why } => {
                self.miss(why).await;
                false
            }
            ScheduledStep::None | ScheduledStep::Wait { .. } => false,
        }
    }

    /// Returns when a cutover that has not begun needs action.
    pub(super) fn turns(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (context, scheduled_cutover) = (Arc::clone(&self.context), self.record.scheduled_cutover.clone());
        let state = self.record.state.clone();
        Box::pin(async move { scheduled_cutover::turns(&context, scheduled_cutover, state).await })
    }

    /// The requested time of a cutover.
    pub(super) fn cutover_at(&self) -> Option<DateTime<Utc>> {
        match self.record.scheduled_cutover {
            Some(ScheduledCutover::At { at, .. }) => Some(at),
            Some(ScheduledCutover::OnHold { .. }) | None => None,
        }
    }

    pub(super) async fn scheduled_step(&self) -> ScheduledStep {
        let (state, scheduled) = (&self.record.state, self.record.scheduled_cutover.as_ref());
        scheduled_cutover::judged(&self.context, scheduled, state).await
    }

    /// The forecast duration of the cutover that begins, in seconds.
    pub(super) async fn forecast(&self) -> Option<ForecastRange> {
        forecast::current_forecast(&self.context).await.ok().flatten().map(|told| told.raw)
    }

    async fn miss(&mut self, why: String) {
        tracing::warn!(migration = %self.context.id, vm = %self.context.machine.name, "{why}");
        self.take(&Input::CutoverMissed { why }).await;
    }
}
