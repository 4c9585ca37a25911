//! The driver: one task that owns a migration. It waits for an event, has it decided, saves the decision,
//! then acts.
//!
//! Rule: save before acting. The state in the store is never older than the work done, so a restart only
//! repeats the saved state's work from the beginning, which all work allows. No other task writes a
//! migration's state. What waits only says what happened: [`warmd_core::model::decide`] decides.

mod cutovers;
mod decisions;
mod passes;
mod saving;
mod shown;
pub(super) mod unsaved;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock,
    model::{
        decide::{Effect, Input, MigrationRecord, PassLeave},
        event_kind::EventKind,
        state::State,
        transition::{FailureCause, StateWork, work},
    },
};

use self::decisions::Carried;
use super::{
    command::OwnerRequest,
    context::Context,
    doing::{forget_ledgers, run_with_retries, verify_alone},
    failure::{Remedy, WorkError},
    retry::Retry,
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
    /// As saved, but for the record of the cutover, which the work changes too: see [`Context::cutover`].
    record: MigrationRecord,
    inbox: mpsc::Receiver<OwnerRequest>,
    shutdown: CancellationToken,
}

/// What ended the wait.
enum Happened {
    Event(Input),
    /// The state is new, or has more work, or the schedule must be asked again.
    Granted,
    ShutDown,
}

/// What woke a task that waits beside a job.
enum Woken {
    Ended(Result<(), WorkError>),
    ShutDown,
    /// A cutover that has not begun needs action.
    CutoverTurn,
    /// The copy windows closed.
    WindowClosed,
    Asked(Option<OwnerRequest>),
}

type Job<'a> = Pin<Box<dyn Future<Output = Result<(), WorkError>> + Send + 'a>>;

impl Driver {
    /// A driver for the migration in `context`, with its saved record.
    pub fn new(
        context: Arc<Context>,
        record: MigrationRecord,
        inbox: mpsc::Receiver<OwnerRequest>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { context, record, inbox, shutdown }
    }

    /// Drives the migration to its end, or until the daemon shuts down; returns whether it is finished.
    pub async fn run(mut self) -> bool {
        self.refresh().await;
        self.take(&Input::Restarted).await;
        loop {
            while !self.record.state.is_final() {
                match self.wait().await {
                    Happened::ShutDown => return false,
                    Happened::Granted => {}
                    Happened::Event(input) => {
                        if let Carried::ShutDown = self.take(&input).await {
                            // It may or may not be saved: a repeated step could be recorded twice.
                            return false;
                        }
                    }
                }
            }
            self.linger().await;
            if self.record.state.is_final() {
                return true;
            }
        }
    }

    /// Answers requests to a finished migration: no change, or a refusal; a rollback leads out of the state.
    /// A request after the driver's end gets a new driver.
    async fn linger(&mut self) {
        if self.record.state == State::Cancelled {
            // May be cut off anywhere: the next start continues.
            let forgetting = forget_ledgers(&self.context.store, self.context.id);
            self.shutdown.run_until_cancelled(forgetting).await;
        }
        let mut patience = SOON;
        while self.record.state.is_final() {
            if let Some(order) = self.record.verify.take() {
                let (context, stop) = (Arc::clone(&self.context), StopSignal::new());
                let stopper = stop.clone();
                let job = Box::pin(async move { verify_alone(&context, &order, &stop).await });
                if let Attended::ShutDown = self.run_job(job, &stopper, false).await {
                    return;
                }
                patience = LATER;
                continue;
            }
            let asked = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                command = self.inbox.recv() => command,
                () = tokio::time::sleep(patience) => return,
            };
            let Some(command) = asked else { return };
            self.answer(command).await;
        }
    }

    /// Does the work of the state until an event.
    async fn wait(&mut self) -> Happened {
        if let Some(happened) = self.take_turn().await {
            return happened;
        }
        let context = Arc::clone(&self.context);
        let doing = work(&self.record.state);
        let stop = StopSignal::new();
        let stopper = stop.clone();
        match doing {
            StateWork::Nothing => self.idle(std::future::pending(), true).await,
            StateWork::AwaitSchedule if let Some(order) = self.record.verify.take() => {
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
                    None => Happened::Event(Input::PassDue),
                    Some(wait) => self.wait_for(plans, wait).await,
                }
            }
            StateWork::Seed | StateWork::Sync if let Some((plans, wait)) = self.suspended() => {
                self.take(&Input::PassSuspended).await;
                let happened = self.wait_for(plans, wait).await;
                self.take(&Input::PassResumed).await;
                happened
            }
            _ => {
                self.show_next_pass(None, None);
                let in_windows = matches!(doing, StateWork::Seed | StateWork::Sync)
                    && self.record.pass != PassLeave::Requested;
                let job: Job<'_> = Box::pin(async move { run_with_retries(&context, doing, &stop).await });
                let attended = self.run_job(job, &stopper, in_windows).await;
                self.context.waits_no_more();
                match attended {
                    Attended::Job(Ok(())) => Happened::Event(Input::WorkDone),
                    Attended::Job(Err(error)) => Happened::Event(failed(&error)),
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
            let asked = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Happened::ShutDown,
                () = &mut clearing => continue,
                () = &mut turns => return Happened::Granted,
                () = &mut clock => return Happened::Granted,
                command = self.inbox.recv() => command,
            };
            let Some(command) = asked else { return Happened::ShutDown };
            if self.answer(command).await.is_some() {
                return Happened::Granted;
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
            let woken = tokio::select! {
                biased;
                result = &mut job => Woken::Ended(result),
                () = self.shutdown.cancelled() => Woken::ShutDown,
                () = &mut turns => Woken::CutoverTurn,
                () = &mut closed => Woken::WindowClosed,
                command = self.inbox.recv() => Woken::Asked(command),
            };
            match woken {
                Woken::Ended(result) => return Attended::Job(result),
                Woken::ShutDown => {
                    stopper.stop();
                    tokio::time::timeout(STOP_DEADLINE, job).await.ok();
                    return Attended::ShutDown;
                }
                Woken::CutoverTurn => {
                    if self.is_turn().await {
                        let is_done = self.stopped(job, stopper).await;
                        return if is_done { Attended::Job(Ok(())) } else { Attended::Granted };
                    }
                    turns = self.turns();
                }
                Woken::WindowClosed => {
                    if self.stopped(job, stopper).await {
                        return Attended::Job(Ok(()));
                    }
                    let why = self.suspended().map_or_else(String::new, |(_, wait)| wait.why);
                    self.context.log_event(EventKind::Schedule, format!("pass suspended: {why}")).await;
                    return Attended::Suspended;
                }
                Woken::Asked(None) => return Attended::ShutDown,
                Woken::Asked(Some(command)) => {
                    if let Some(decision) = self.answer(command).await
                        && decision.effects.contains(&Effect::StopWork)
                    {
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

    /// Waits for the next try; false if the daemon shuts down.
    async fn pause(&self, retry: &mut Retry) -> bool {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => false,
            _ = retry.pause() => true,
        }
    }
}

enum Attended {
    Job(Result<(), WorkError>),
    Granted,
    /// Stopped because data may no longer be copied.
    Suspended,
    ShutDown,
}

/// The event of work that failed.
fn failed(error: &WorkError) -> Input {
    let reason = error.to_string();
    let cause = match error.remedy {
        Remedy::NeedsDecision => return Input::StaleState { reason },
        Remedy::NextWindow => FailureCause::CutoverWindowClosed,
        Remedy::Retry | Remedy::Wait | Remedy::Operator => FailureCause::Other,
    };
    Input::WorkFailed { reason, resumable: true, cause }
}
