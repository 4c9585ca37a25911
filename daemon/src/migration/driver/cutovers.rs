//! What the owner does about a cutover that has not begun.
//!
//! Rule: what was asked is forgotten in the step that begins the cutover, and not before. Where the plan cuts over by
//! itself, one that was undone is held in the step that undoes it: no VM is stopped again and again in the night.

use std::{pin::Pin, sync::Arc};

use chrono::{DateTime, Utc};

use super::{
    super::{
        admission::WINDOW_CLOSED,
        appointed::{self, Step},
        command::Command,
        forecast,
        retry::Retry,
        timing,
    },
    Driver, Happened,
};
use crate::{
    clock,
    model::{
        appointment::{Appointment, CutoverOrder, When},
        forecast::Range,
        plan::CutoverMode,
        request::{Request, Verdict},
        state::State,
        transition::Event,
        view::EventView,
    },
    store::Cutover,
};

impl Driver {
    /// Begins a cutover whose time has come, and holds one whose time is over.
    pub(super) async fn take_turn(&mut self) -> Option<Happened> {
        loop {
            let step = self.step().await;
            appointed::show(&self.context, &step);
            match step {
                Step::Begin { .. } | Step::Missed { .. } if self.shutdown.is_cancelled() => {
                    return Some(Happened::ShutDown);
                }
                Step::Begin { by, why } => {
                    self.context.note("schedule", why).await;
                    return Some(Happened::Event(Event::Request(Request::Cutover), by));
                }
                Step::Missed { why } => self.miss(why).await,
                Step::None | Step::Wait { .. } => return None,
            }
        }
    }

    /// Whether a cutover is to begin now, for which the work that runs is stopped; one that was missed is held.
    pub(super) async fn is_turn(&mut self) -> bool {
        match self.step().await {
            Step::Begin { .. } => true,
            Step::Missed { why } => {
                self.miss(why).await;
                false
            }
            Step::None | Step::Wait { .. } => false,
        }
    }

    /// Comes back when there is something to do about a cutover that has not begun.
    pub(super) fn turns(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (context, appointment) = (Arc::clone(&self.context), self.appointment.clone());
        let state = self.state.clone();
        Box::pin(async move { appointed::turns(&context, appointment, state).await })
    }

    /// When a cutover was asked to begin.
    pub(super) fn cutover_at(&self) -> Option<DateTime<Utc>> {
        match self.appointment {
            Some(Appointment::At { at, .. }) => Some(at),
            Some(Appointment::Hold { .. }) | None => None,
        }
    }

    async fn step(&self) -> Step {
        appointed::judged(&self.context, self.appointment.as_ref(), &self.state).await
    }

    /// What the cutover that begins is expected to take, in seconds.
    pub(super) async fn forecast(&self) -> Option<Range> {
        forecast::told(&self.context).await.ok().flatten().map(|told| told.raw)
    }

    async fn miss(&mut self, why: String) {
        tracing::warn!(migration = %self.context.id, vm = %self.context.machine.name, "{why}");
        let line = self.context.line("warmd", "warning", why.clone());
        self.appoint(Some(Appointment::Hold { why }), line).await;
    }

    /// Judges what is asked of a cutover by the clock, the plan and what was asked before, and says what is to be
    /// saved of it.
    pub(super) async fn arranged(
        &self,
        command: &Command,
        verdict: Verdict,
    ) -> (Verdict, Option<Option<Appointment>>) {
        let (plan, order, by) = (self.context.plan(), command.cutover, &command.by);
        let is_auto = plan.cutover.mode == CutoverMode::Auto;
        match (command.request, &verdict) {
            (Request::Cutover, Verdict::Accepted) if let Some(why) = self.left_to_group(order) => {
                return (Verdict::Refused(why), None);
            }
            (Request::Cutover | Request::ArrangeCutover, Verdict::Accepted) => {
                let rules = timing::asked(&self.context);
                if let Some(why) = appointed::refusal(rules.as_ref(), order, clock::now()) {
                    return (Verdict::Refused(why), None);
                }
                if order.when == When::Now
                    && !order.force
                    && let Some(why) = forecast::veto(&self.context).await
                {
                    let why =
                        format!("a cutover now is refused: {why}; wait for another pass, or use --force");
                    return (Verdict::Refused(why), None);
                }
            }
            (Request::AbortCutover, Verdict::Accepted) => {
                return match self.context.groups.leave(self.context.id, by) {
                    Ok(()) => (verdict, None),
                    Err(why) => (Verdict::Refused(why), None),
                };
            }
            // There is none to be undone, but there may be one to be taken back.
            (Request::AbortCutover, Verdict::Refused(_)) if appointed::is_before(&self.state) => {
                return match &self.appointment {
                    Some(Appointment::Hold { .. }) if is_auto => (Verdict::AlreadySo, None),
                    _ if is_auto => {
                        let why = format!("taken back by {by}");
                        (Verdict::Accepted, Some(Some(Appointment::Hold { why })))
                    }
                    Some(_) => (Verdict::Accepted, Some(None)),
                    None => (verdict, None),
                };
            }
            _ => return (verdict, None),
        }
        match (order.when, &self.appointment) {
            (When::Now, _) => (verdict, None),
            (When::At(at), Some(Appointment::At { at: before, force, .. }))
                if (at, order.force) == (*before, *force) =>
            {
                (Verdict::AlreadySo, None)
            }
            (When::At(at), _) => {
                (verdict, Some(Some(Appointment::At { at, force: order.force, by: by.clone() })))
            }
            (When::Hold, Some(Appointment::Hold { .. })) | (When::Release, None) => {
                (Verdict::AlreadySo, None)
            }
            (When::Hold, _) => (verdict, Some(Some(Appointment::Hold { why: format!("held by {by}") }))),
            (When::Release, Some(Appointment::Hold { .. })) => (verdict, Some(None)),
            (When::Release, Some(Appointment::At { .. })) => {
                let why =
                    "a cutover is asked for at a time, and is not held; take it back with `cutover --abort`";
                (Verdict::Refused(why.to_owned()), None)
            }
        }
    }

    /// Why a cutover of this VM alone is not granted, if those of its plan move together.
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

    /// Saves what was asked of the cutover, with a line of the journal; whether it is saved.
    pub(super) async fn appoint(&mut self, appointment: Option<Appointment>, line: EventView) -> bool {
        let mut retry = Retry::forever();
        let (store, id) = (&self.context.store, self.context.id);
        while let Err(error) = store.save_appointment(id, appointment.clone(), vec![line.clone()]).await {
            tracing::error!(migration = %id, %error, "what is asked of the cutover is not saved");
            if !self.pause(&mut retry).await {
                return false;
            }
        }
        self.appointment = appointment;
        appointed::show(&self.context, &self.step().await);
        true
    }

    /// What is remembered of the last cutover from `event` on; `None` if it stays as it is.
    pub(super) fn remembered(&self, event: &Event) -> Option<Cutover> {
        let known = self.context.cutover();
        let (attempt, taken_back) = (known.attempt + 1, known.taken_back);
        match event {
            Event::Request(Request::Cutover) => {
                let arranged = matches!(self.appointment, Some(Appointment::At { force: true, .. }));
                let forced = self.is_forced.unwrap_or(arranged);
                Some(Cutover { attempt, taken_back, forced, ..Cutover::default() })
            }
            Event::Request(Request::Rollback) => {
                let given_over = self.goes_back_from.or(known.given_over);
                Some(Cutover { rolled_back: Some(clock::now()), given_over, ..known })
            }
            _ => None,
        }
    }

    /// What becomes of it in the step to `state`; `None` if it stays as it is.
    #[expect(clippy::option_option, reason = "nothing, or that there is none, is to be saved")]
    pub(super) fn appointment_in(&self, state: &State) -> Option<Option<Appointment>> {
        let was_before = appointed::is_before(&self.state);
        match state {
            // Nothing was stopped yet, and the plan says when: the next window is as good.
            State::Undoing { reason, .. } if reason.ends_with(WINDOW_CLOSED) => None,
            State::Undoing { reason, .. }
                if !was_before && self.context.plan().cutover.mode == CutoverMode::Auto =>
            {
                let why = format!("the last cutover was undone: {reason}");
                Some(Some(Appointment::Hold { why }))
            }
            // Who went back wants to know why before it goes forward again.
            State::RollingBack if self.context.plan().cutover.mode == CutoverMode::Auto => {
                Some(Some(Appointment::Hold { why: "it was rolled back".to_owned() }))
            }
            State::CuttingOver { .. } | State::Cancelling if was_before && self.appointment.is_some() => {
                Some(None)
            }
            _ => None,
        }
    }
}

/// What was arranged, for the journal.
pub(super) fn told(arranged: Option<&Option<Appointment>>) -> String {
    match arranged {
        None => String::new(),
        Some(None) => ": no cutover is waited for".to_owned(),
        Some(Some(Appointment::At { at, force, .. })) => {
            let forced = if *force { ", also outside the windows" } else { "" };
            format!(": at {}{forced}", at.format("%Y-%m-%d %H:%M:%S UTC"))
        }
        Some(Some(Appointment::Hold { why })) => format!(": {why}"),
    }
}
