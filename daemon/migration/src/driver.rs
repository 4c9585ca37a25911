//! The driver: one task that owns a migration. It waits for an event, decides the state, saves it, then acts.
//!
//! Rule: save before acting. The state in the store is never older than the work done, so a restart only
//! repeats the saved state's work from the beginning, which all work allows. No other task writes a
//! migration's state.

mod cutovers;
mod passes;
mod shown;
pub(super) mod unsaved;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock, crash,
    model::{
        request::{Request, RequestOutcome, judge},
        scheduled_cutover::ScheduledCutover,
        state::State,
        transition::{MigrationEvent, StateWork, next, work},
        verify::VerifyOrder,
        view::EventView,
    },
};
use warmd_store::MigrationUpdate;

use self::cutovers::told;
use super::{
    command::OwnerRequest,
    context::Context,
    doing::{forget_ledgers, run_with_retries, verify_alone},
    failure::{Remedy, WorkError},
    retry::Retry,
    rollback,
    snapshot_cleanup::{keep_swept, sweep},
    timing,
};

/// How long work may take to stop before it is dropped.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// How long the driver of a finished migration waits for more requests, and for readers of its verification.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct Driver {
    context: Arc<Context>,
    state: State,
    /// A cutover that is scheduled or on hold.
    scheduled_cutover: Option<ScheduledCutover>,
    inbox: mpsc::Receiver<OwnerRequest>,
    shutdown: CancellationToken,
    verify_asked: Option<VerifyOrder>,
    /// Whether an operator requested the pass: then copy windows do not suspend it.
    sync_asked: bool,
    /// Whether a started pass waits for a copy window.
    is_held: bool,
    /// Since when the target VM of a requested rollback has its disks.
    rollback_from: Option<DateTime<Utc>>,
    /// Whether the granted cutover is forced; `None` for one whose time has come.
    is_forced: Option<bool>,
    /// Whether the source was powered on although that could not be saved.
    is_back: bool,
}

/// What ended the wait.
enum Happened {
    Event(MigrationEvent, String),
    /// The state is new, or has more work, or the schedule must be asked again.
    Granted,
    ShutDown,
}

type Job<'a> = Pin<Box<dyn Future<Output = Result<(), WorkError>> + Send + 'a>>;

impl Driver {
    /// A driver for the migration in `context`, which is in `state` in the store, with its scheduled cutover.
    pub fn new(
        context: Arc<Context>,
        (state, scheduled_cutover): (State, Option<ScheduledCutover>),
        inbox: mpsc::Receiver<OwnerRequest>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            context,
            state,
            scheduled_cutover,
            inbox,
            shutdown,
            verify_asked: None,
            sync_asked: false,
            is_held: false,
            rollback_from: None,
            is_forced: None,
            is_back: false,
        }
    }

    /// Drives the migration to its end, or until the daemon shuts down; returns whether it is finished.
    pub async fn run(mut self) -> bool {
        self.refresh().await;
        let restarted = MigrationEvent::Restarted {
            start_requested: self.context.cutover().start_requested_at.is_some(),
        };
        if let Ok(state) = next(&self.state, &restarted) {
            self.transition(state, &restarted, "warmd", Vec::new()).await;
        }
        loop {
            while !self.state.is_final() {
                match self.wait().await {
                    Happened::ShutDown => return false,
                    Happened::Granted => {}
                    Happened::Event(event, by) => match next(&self.state, &event) {
                        Ok(state) => {
                            if !self.transition(state, &event, &by, Vec::new()).await {
                                // It may or may not be saved: a repeated step could be recorded twice.
                                return false;
                            }
                        }
                        Err(step) => tracing::error!(migration = %self.context.id, %step, "ignored"),
                    },
                }
            }
            self.linger().await;
            if self.state.is_final() {
                return true;
            }
        }
    }

    /// Answers requests to a finished migration: no change, or a refusal; a rollback leads out of the state.
    /// A request after the driver's end gets a new driver.
    async fn linger(&mut self) {
        if self.state == State::Cancelled {
            // May be cut off anywhere: the next start continues.
            let forgetting = forget_ledgers(&self.context.store, self.context.id);
            self.shutdown.run_until_cancelled(forgetting).await;
        }
        let mut patience = SOON;
        while self.state.is_final() {
            if let Some(order) = self.verify_asked.take() {
                let (context, stop) = (Arc::clone(&self.context), StopSignal::new());
                let stopper = stop.clone();
                let job = Box::pin(async move { verify_alone(&context, &order, &stop).await });
                if let Attended::ShutDown = self.run_job(job, &stopper, false).await {
                    return;
                }
                patience = LATER;
                continue;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                command = self.inbox.recv() => match command {
                    None => return,
                    Some(command) => { self.handle_request(command).await; }
                },
                () = tokio::time::sleep(patience) => return,
            }
        }
    }

    /// Does the work of the state until an event.
    async fn wait(&mut self) -> Happened {
        if let Some(happened) = self.take_turn().await {
            return happened;
        }
        let context = Arc::clone(&self.context);
        let doing = work(&self.state);
        let stop = StopSignal::new();
        let stopper = stop.clone();
        match doing {
            StateWork::Nothing => self.idle(std::future::pending(), true).await,
            StateWork::AwaitSchedule if let Some(order) = self.verify_asked.take() => {
                self.show_next_pass(None, None);
                let job = Box::pin(async move { verify_alone(&context, &order, &stop).await });
                match self.run_job(job, &stopper, false).await {
                    Attended::Job(_) | Attended::Granted | Attended::Suspended => Happened::Granted,
                    Attended::ShutDown => Happened::ShutDown,
                }
            }
            StateWork::AwaitSchedule => {
                let plans = context.plans();
                let facts = self.facts().await;
                match timing::next_pass(&context, &facts, clock::now()) {
                    None if self.shutdown.is_cancelled() => Happened::ShutDown,
                    None => Happened::Event(MigrationEvent::PassDue, "schedule".to_owned()),
                    Some(wait) => self.wait_for(plans, wait).await,
                }
            }
            StateWork::Seed | StateWork::Sync if let Some((plans, wait)) = self.suspended() => {
                self.is_held = true;
                let happened = self.wait_for(plans, wait).await;
                self.is_held = false;
                happened
            }
            _ => {
                self.show_next_pass(None, None);
                let in_windows = matches!(doing, StateWork::Seed | StateWork::Sync) && !self.sync_asked;
                let job: Job<'_> = Box::pin(async move { run_with_retries(&context, doing, &stop).await });
                let attended = self.run_job(job, &stopper, in_windows).await;
                self.context.waits_no_more();
                match attended {
                    Attended::Job(Ok(())) => Happened::Event(MigrationEvent::WorkDone, "warmd".to_owned()),
                    Attended::Job(Err(error)) => {
                        let reason = error.to_string();
                        let event = match error.remedy {
                            Remedy::NeedsDecision => MigrationEvent::StaleState { reason },
                            Remedy::Retry | Remedy::Wait | Remedy::Operator => {
                                MigrationEvent::WorkFailed { reason, resumable: true }
                            }
                        };
                        Happened::Event(event, "warmd".to_owned())
                    }
                    Attended::Granted | Attended::Suspended => Happened::Granted,
                    Attended::ShutDown => Happened::ShutDown,
                }
            }
        }
    }

    /// Waits for a request, the time of a cutover, or `clock`.
    async fn idle(&mut self, clock: impl Future<Output = ()>, is_rest: bool) -> Happened {
        let mut clock = std::pin::pin!(clock);
        let mut turns = self.turns();
        let context = Arc::clone(&self.context);
        // With no pass soon nothing else ends an open snapshot; an earlier daemon's has no scratch monitor.
        let mut clearing = Box::pin(async move {
            if is_rest || !context.is_swept() {
                keep_swept(&context).await;
            } else {
                std::future::pending::<()>().await;
            }
        });
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Happened::ShutDown,
                () = &mut clearing => {}
                () = &mut turns => return Happened::Granted,
                () = &mut clock => return Happened::Granted,
                command = self.inbox.recv() => {
                    let Some(command) = command else { return Happened::ShutDown };
                    if self.handle_request(command).await {
                        return Happened::Granted;
                    }
                }
            }
        }
    }

    /// Runs `job` and answers requests meanwhile. A request that changes the state ends the job, before the
    /// new state's work begins: what it drained stays drained, and none of it keeps running. So do a
    /// cutover's time, and the end of the copy windows for a job that obeys them.
    async fn run_job(&mut self, mut job: Job<'_>, stopper: &StopSignal, in_windows: bool) -> Attended {
        let context = Arc::clone(&self.context);
        let closed =
            async { if in_windows { timing::closed(&context).await } else { std::future::pending().await } };
        let mut closed = std::pin::pin!(closed);
        let mut turns = self.turns();
        loop {
            tokio::select! {
                biased;
                result = &mut job => return Attended::Job(result),
                () = self.shutdown.cancelled() => {
                    stopper.stop();
                    tokio::time::timeout(STOP_DEADLINE, job).await.ok();
                    return Attended::ShutDown;
                }
                () = &mut turns => {
                    if self.is_turn().await {
                        let is_done = self.stopped(job, stopper).await;
                        return if is_done { Attended::Job(Ok(())) } else { Attended::Granted };
                    }
                    turns = self.turns();
                }
                () = &mut closed => {
                    if self.stopped(job, stopper).await {
                        return Attended::Job(Ok(()));
                    }
                    let why = self.suspended().map_or_else(String::new, |(_, wait)| wait.why);
                    self.context.log_event("schedule", format!("pass suspended: {why}")).await;
                    return Attended::Suspended;
                }
                command = self.inbox.recv() => {
                    let Some(command) = command else { return Attended::ShutDown };
                    let before = self.state.clone();
                    if self.handle_request(command).await && self.state != before {
                        stopper.stop();
                        // If it is dropped, the next work begins with the clean-up.
                        tokio::time::timeout(STOP_DEADLINE, job).await.ok();
                        return Attended::Granted;
                    }
                    turns = self.turns();
                }
            }
        }
    }

    /// Stops `job`; returns whether it was done nevertheless. A job that does not stop in time is dropped,
    /// and its leftovers are removed.
    async fn stopped(&self, job: Job<'_>, stopper: &StopSignal) -> bool {
        stopper.stop();
        if let Ok(result) = tokio::time::timeout(STOP_DEADLINE, job).await {
            return result.is_ok();
        }
        sweep(&self.context).await;
        false
    }

    /// Judges and journals a request, and applies an accepted one to the state; only then answers, so that an
    /// accepted request is never lost. Returns whether it was accepted.
    async fn handle_request(&mut self, command: OwnerRequest) -> bool {
        let is_verify = command.request == Request::Verify;
        let outcome = match judge(&self.state, command.request) {
            RequestOutcome::Accepted if is_verify && self.verify_asked.is_some() => {
                RequestOutcome::Refused("a verification waits already; ask again when it runs".to_owned())
            }
            RequestOutcome::Accepted if is_verify => {
                command.order.refusal(&self.state).map_or(RequestOutcome::Accepted, RequestOutcome::Refused)
            }
            // The suspended pass continues at once, regardless of the schedule.
            RequestOutcome::NoChange if command.request == Request::Sync && self.is_held => {
                RequestOutcome::Accepted
            }
            RequestOutcome::Accepted if command.request == Request::Rollback => {
                match rollback::judged(&self.context).await {
                    Ok(since) => {
                        self.rollback_from = since;
                        RequestOutcome::Accepted
                    }
                    Err(why) => RequestOutcome::Refused(why),
                }
            }
            outcome => outcome,
        };
        let (outcome, scheduled) = self.scheduled(&command, outcome).await;
        let accepted = outcome == RequestOutcome::Accepted;
        let text = match &outcome {
            RequestOutcome::Accepted if is_verify => format!("verify accepted: {}", command.order),
            RequestOutcome::Accepted if command.request == Request::Rollback => {
                format!("rollback accepted: {}", rollback::loss(&self.context))
            }
            RequestOutcome::Accepted => {
                format!("{} accepted{}", command.request.name(), told(scheduled.as_ref()))
            }
            RequestOutcome::NoChange => format!("{}: no change", command.request.name()),
            RequestOutcome::Refused(why) => why.clone(),
        };
        let line = self.context.journal_entry(&command.by, "request", text);
        let event = MigrationEvent::Request(command.request);
        let saved = match next(&self.state, &event) {
            Ok(state) if accepted && state != self.state => {
                self.is_forced = Some(command.cutover.force);
                let saved = self.transition(state, &event, &command.by, vec![line]).await;
                self.is_forced = None;
                saved
            }
            _ => match scheduled {
                Some(scheduled_cutover) if accepted => self.schedule_cutover(scheduled_cutover, line).await,
                _ => self.journal(line, accepted).await,
            },
        };
        if accepted && !saved {
            // The daemon is shutting down; the caller learns that from the missing outcome.
            return false;
        }
        if accepted && is_verify {
            self.verify_asked = Some(command.order);
        }
        if accepted && command.request == Request::Sync {
            self.sync_asked = true;
        }
        // The caller may have disconnected.
        command.answer.send(outcome).ok();
        accepted
    }

    /// Writes a journal line, with retries if it `must` be written; returns whether it is written.
    async fn journal(&self, line: EventView, must: bool) -> bool {
        let mut retry = Retry::forever();
        while let Err(error) = self.context.store.append_events(vec![line.clone()]).await {
            tracing::error!(migration = %self.context.id, %error, "journal not written");
            if !must || !self.pause(&mut retry).await {
                return false;
            }
        }
        true
    }

    /// Waits for the next try; false if the daemon shuts down.
    async fn pause(&self, retry: &mut Retry) -> bool {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => false,
            _ = retry.pause() => true,
        }
    }

    /// Saves the new state with its journal lines, then shows it. Nothing continues without the save; false
    /// if the daemon shut down before.
    async fn transition(
        &mut self,
        state: State,
        event: &MigrationEvent,
        by: &str,
        mut lines: Vec<EventView>,
    ) -> bool {
        if state == self.state {
            return true;
        }
        let text = format!("{} → {state}{}", self.state, because(event));
        let begins = *event == MigrationEvent::Request(Request::Cutover);
        let cutover = self.remembered(event);
        lines.push(self.context.journal_entry(by, "state", text.clone()));
        let scheduled_cutover = self.scheduled_cutover_in(&state);
        let step = MigrationUpdate {
            cutover: cutover.clone(),
            scheduled_cutover: scheduled_cutover.clone(),
            change_rates: self.change_rates_in(&state).await,
            forecast: if begins { Some(self.forecast().await) } else { None },
            events: lines,
            ..MigrationUpdate::to(state.clone(), clock::now())
        };
        let mut retry = Retry::forever();
        while let Err(error) = self.saved(step.clone()).await {
            tracing::error!(migration = %self.context.id, %error, "state not saved; nothing goes on until it is");
            if let Some((undoing, event)) = self.back_unsaved(&error).await
                && undoing != state
            {
                // Replaces the step that could not be saved; saving this one is awaited in the same way.
                return Box::pin(self.transition(undoing, &event, "warmd", Vec::new())).await;
            }
            if !self.pause(&mut retry).await {
                return false;
            }
        }
        if let Some(cutover) = cutover {
            self.context.set_cutover(cutover);
        }
        if let Some(scheduled_cutover) = scheduled_cutover {
            self.scheduled_cutover = scheduled_cutover;
        }
        tracing::info!(migration = %self.context.id, vm = %self.context.machine.name, by, "{text}");
        self.is_back = false;
        let before = std::mem::replace(&mut self.state, state);
        if let State::Undoing { reason, .. } = &self.state {
            self.context.groups.mark_failed(self.context.id, reason);
        }
        self.sync_asked &= matches!(self.state, State::Seeding | State::Syncing);
        self.show(&before);
        if self.state.is_final() {
            let (id, vm) = (self.context.id, &self.context.machine.name);
            self.context.engine.metrics.finished(id, &self.context.plan().name, vm, clock::now());
        } else if before.is_final() {
            self.context.engine.metrics.again(self.context.id);
        }
        // It was judged in another state: in this one it may do harm.
        if let Some(order) = self.verify_asked.take() {
            let text = format!("{} that waited is dropped: it is {} now; ask again", order.mode, self.state);
            self.context.log_event("verification", text).await;
        }
        if !self.state.is_busy() {
            // Loads all passes: once at the end of the work, not at each of its steps.
            self.refresh().await;
        }
        crash::point(&format!("state.{}", self.state.name()));
        true
    }
}

enum Attended {
    Job(Result<(), WorkError>),
    Granted,
    /// Stopped because data may no longer be copied.
    Suspended,
    ShutDown,
}

fn because(event: &MigrationEvent) -> String {
    match event {
        MigrationEvent::Request(request) => format!(" ({} asked)", request.name()),
        MigrationEvent::WorkFailed { reason, .. } | MigrationEvent::StaleState { reason } => {
            format!(" because {reason}")
        }
        MigrationEvent::WorkDone => String::new(),
        MigrationEvent::Restarted { .. } => " (after a restart)".to_owned(),
        MigrationEvent::PassDue => " (a delta is due)".to_owned(),
    }
}
