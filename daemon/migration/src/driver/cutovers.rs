//! The driver's handling of a cutover that has not begun.
//!
//! Rule: a scheduled cutover is deleted in the step that begins the cutover, and not before. Where the plan
//! cuts over automatically, an undone cutover is put on hold in the step that undoes it: no VM is stopped
//! again and again in the night.

use std::{pin::Pin, sync::Arc};

use chrono::{DateTime, Utc};
use warmd_core::{
    clock,
    model::{
        forecast::ForecastRange,
        plan::CutoverMode,
        request::{Request, RequestOutcome},
        scheduled_cutover::{CutoverOrder, CutoverTime, ScheduledCutover},
        state::State,
        transition::MigrationEvent,
        view::EventView,
    },
};
use warmd_store::Cutover;

use super::{
    super::{
        admission::WINDOW_CLOSED,
        command::OwnerRequest,
        forecast,
        retry::Retry,
        scheduled_cutover::{self, ScheduledStep},
        timing,
    },
    Driver, Happened,
};

impl Driver {
    /// Begins a cutover whose time has come; puts a missed one on hold.
    pub(super) async fn take_turn(&mut self) -> Option<Happened> {
        loop {
            let step = self.step().await;
            scheduled_cutover::show(&self.context, &step);
            match step {
                ScheduledStep::Begin { .. } | ScheduledStep::Missed { .. }
                    if self.shutdown.is_cancelled() =>
                {
                    return Some(Happened::ShutDown);
                }
                ScheduledStep::Begin { by, why } => {
                    self.context.log_event("schedule", why).await;
                    return Some(Happened::Event(MigrationEvent::Request(Request::Cutover), by));
                }
                ScheduledStep::Missed { why } => self.miss(why).await,
                ScheduledStep::None | ScheduledStep::Wait { .. } => return None,
            }
        }
    }

    /// Whether a cutover begins now, for which the running work is stopped; a missed one is put on hold.
    pub(super) async fn is_turn(&mut self) -> bool {
        match self.step().await {
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
        let (context, scheduled_cutover) = (Arc::clone(&self.context), self.scheduled_cutover.clone());
        let state = self.state.clone();
        Box::pin(async move { scheduled_cutover::turns(&context, scheduled_cutover, state).await })
    }

    /// The requested time of a cutover.
    pub(super) fn cutover_at(&self) -> Option<DateTime<Utc>> {
        match self.scheduled_cutover {
            Some(ScheduledCutover::At { at, .. }) => Some(at),
            Some(ScheduledCutover::OnHold { .. }) | None => None,
        }
    }

    async fn step(&self) -> ScheduledStep {
        scheduled_cutover::judged(&self.context, self.scheduled_cutover.as_ref(), &self.state).await
    }

    /// The forecast duration of the cutover that begins, in seconds.
    pub(super) async fn forecast(&self) -> Option<ForecastRange> {
        forecast::told(&self.context).await.ok().flatten().map(|told| told.raw)
    }

    async fn miss(&mut self, why: String) {
        tracing::warn!(migration = %self.context.id, vm = %self.context.machine.name, "{why}");
        let line = self.context.journal_entry("warmd", "warning", why.clone());
        self.schedule_cutover(Some(ScheduledCutover::OnHold { why }), line).await;
    }

    /// Judges a cutover request by the clock, the plan and earlier requests, and returns what to save of it.
    pub(super) async fn scheduled(
        &self,
        command: &OwnerRequest,
        outcome: RequestOutcome,
    ) -> (RequestOutcome, Option<Option<ScheduledCutover>>) {
        let (plan, order, by) = (self.context.plan(), command.cutover, &command.by);
        let is_auto = plan.cutover.mode == CutoverMode::Auto;
        match (command.request, &outcome) {
            (Request::Cutover, RequestOutcome::Accepted) if let Some(why) = self.left_to_group(order) => {
                return (RequestOutcome::Refused(why), None);
            }
            (Request::Cutover | Request::ScheduleCutover, RequestOutcome::Accepted) => {
                let rules = timing::asked(&self.context);
                if let Some(why) = scheduled_cutover::refusal(rules.as_ref(), order, clock::now()) {
                    return (RequestOutcome::Refused(why), None);
                }
                if order.when == CutoverTime::Now
                    && !order.force
                    && let Some(why) = forecast::veto(&self.context).await
                {
                    let why =
                        format!("a cutover now is refused: {why}; wait for another pass, or use --force");
                    return (RequestOutcome::Refused(why), None);
                }
            }
            (Request::AbortCutover, RequestOutcome::Accepted) => {
                return match self.context.groups.leave(self.context.id, by) {
                    Ok(()) => (outcome, None),
                    Err(why) => (RequestOutcome::Refused(why), None),
                };
            }
            // There is none to undo, but there may be a scheduled one to withdraw.
            (Request::AbortCutover, RequestOutcome::Refused(_))
                if scheduled_cutover::is_before(&self.state) =>
            {
                return match &self.scheduled_cutover {
                    Some(ScheduledCutover::OnHold { .. }) if is_auto => (RequestOutcome::NoChange, None),
                    _ if is_auto => {
                        let why = format!("aborted by {by}");
                        (RequestOutcome::Accepted, Some(Some(ScheduledCutover::OnHold { why })))
                    }
                    Some(_) => (RequestOutcome::Accepted, Some(None)),
                    None => (outcome, None),
                };
            }
            _ => return (outcome, None),
        }
        match (order.when, &self.scheduled_cutover) {
            (CutoverTime::Now, _) => (outcome, None),
            (CutoverTime::At(at), Some(ScheduledCutover::At { at: before, force, .. }))
                if (at, order.force) == (*before, *force) =>
            {
                (RequestOutcome::NoChange, None)
            }
            (CutoverTime::At(at), _) => {
                (outcome, Some(Some(ScheduledCutover::At { at, force: order.force, by: by.clone() })))
            }
            (CutoverTime::Hold, Some(ScheduledCutover::OnHold { .. })) | (CutoverTime::Unhold, None) => {
                (RequestOutcome::NoChange, None)
            }
            (CutoverTime::Hold, _) => {
                (outcome, Some(Some(ScheduledCutover::OnHold { why: format!("put on hold by {by}") })))
            }
            (CutoverTime::Unhold, Some(ScheduledCutover::OnHold { .. })) => (outcome, Some(None)),
            (CutoverTime::Unhold, Some(ScheduledCutover::At { .. })) => {
                let why =
                    "a cutover is asked for at a time, and is not held; take it back with `cutover --abort`";
                (RequestOutcome::Refused(why.to_owned()), None)
            }
        }
    }

    /// Why a cutover of this VM alone is refused, if the VMs of its plan move together.
    fn left_to_group(&self, order: CutoverOrder) -> Option<String> {
        let plan = &self.context.plan();
        if order.in_group {
            return None;
        }
        if let Some(why) = self.context.groups.keeps(self.context.id) {
            return Some(format!(
                "{why}: see `plan show {}`, or take it back with `plan cutover {} --abort`",
                plan.name, plan.name
            ));
        }
        let is_alone = !plan.is_grouped() || order.force;
        (!is_alone).then(|| {
            format!(
                "the VMs of plan {} move together: use `plan cutover {}`, or --force to move this one alone",
                plan.name, plan.name
            )
        })
    }

    /// Saves the scheduled cutover with a line of the journal; returns whether it is saved.
    pub(super) async fn schedule_cutover(
        &mut self,
        scheduled_cutover: Option<ScheduledCutover>,
        line: EventView,
    ) -> bool {
        let mut retry = Retry::forever();
        let (store, id) = (&self.context.store, self.context.id);
        while let Err(error) = store.save_appointment(id, scheduled_cutover.clone(), vec![line.clone()]).await
        {
            tracing::error!(migration = %id, %error, "what is asked of the cutover is not saved");
            if !self.pause(&mut retry).await {
                return false;
            }
        }
        self.scheduled_cutover = scheduled_cutover;
        scheduled_cutover::show(&self.context, &self.step().await);
        true
    }

    /// The last cutover's record after `event`; `None` if unchanged.
    pub(super) fn remembered(&self, event: &MigrationEvent) -> Option<Cutover> {
        let known = self.context.cutover();
        let (attempt, reclaimed_at) = (known.attempt + 1, known.reclaimed_at);
        match event {
            MigrationEvent::Request(Request::Cutover) => {
                let scheduled =
                    matches!(self.scheduled_cutover, Some(ScheduledCutover::At { force: true, .. }));
                let forced = self.is_forced.unwrap_or(scheduled);
                Some(Cutover { attempt, reclaimed_at, forced, ..Cutover::default() })
            }
            MigrationEvent::Request(Request::Rollback) => {
                let handed_over_at = self.rollback_from.or(known.handed_over_at);
                Some(Cutover { rolled_back: Some(clock::now()), handed_over_at, ..known })
            }
            _ => None,
        }
    }

    /// The scheduled cutover after the step to `state`; `None` if unchanged.
    #[expect(clippy::option_option, reason = "nothing, or that there is none, is to be saved")]
    pub(super) fn scheduled_cutover_in(&self, state: &State) -> Option<Option<ScheduledCutover>> {
        let was_before = scheduled_cutover::is_before(&self.state);
        match state {
            // Nothing was stopped yet, and the plan sets the time: the next window will do.
            State::Undoing { reason, .. } if reason.ends_with(WINDOW_CLOSED) => None,
            State::Undoing { reason, .. }
                if !was_before && self.context.plan().cutover.mode == CutoverMode::Auto =>
            {
                let why = format!("the last cutover was undone: {reason}");
                Some(Some(ScheduledCutover::OnHold { why }))
            }
            // After a rollback an operator investigates before the next cutover.
            State::RollingBack if self.context.plan().cutover.mode == CutoverMode::Auto => {
                Some(Some(ScheduledCutover::OnHold { why: "it was rolled back".to_owned() }))
            }
            State::CuttingOver { .. } | State::Cancelling
                if was_before && self.scheduled_cutover.is_some() =>
            {
                Some(None)
            }
            _ => None,
        }
    }
}

/// What was scheduled, for the journal.
pub(super) fn told(scheduled: Option<&Option<ScheduledCutover>>) -> String {
    match scheduled {
        None => String::new(),
        Some(None) => ": no cutover is waited for".to_owned(),
        Some(Some(ScheduledCutover::At { at, force, .. })) => {
            let forced = if *force { ", also outside the windows" } else { "" };
            format!(": at {}{forced}", at.format("%Y-%m-%d %H:%M:%S UTC"))
        }
        Some(Some(ScheduledCutover::OnHold { why })) => format!(": {why}"),
    }
}
