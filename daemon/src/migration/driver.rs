//! The one task that owns a migration: it waits for one event, asks for the next state, saves it, then acts.
//!
//! Rule: saved before acted. The state in the store is never behind what was done, so a restart only does the saved
//! state's work again, from the beginning, and all work bears that. Nobody else writes a migration's state.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use warmd_cbt::{mutant::mutant, stop::StopSignal};

use super::{
    command::Command,
    context::Context,
    cutover,
    failure::{Remedy, WorkError},
    forecast, pass, prepare,
    retry::Retry,
    sweep::sweep,
    verify,
};
use crate::{
    clock, crash,
    model::{
        phase::Phase,
        request::{Request, Verdict, judge},
        state::State,
        transition::{Event, Work, next, work},
        verify::VerifyOrder,
        view::{CutoverView, EventView, PassKind, PhaseView},
    },
    store::{Change, Cutover},
};

/// How long work that was told to stop may take before it is dropped where it stands.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// How often work that failed in passing is tried again before a person is asked.
const ATTEMPTS: u32 = 10;
/// A pass that copied for so long before it failed counts as a new beginning.
const LONG: Duration = Duration::from_mins(5);

/// How the outcome of a phase begins that failed.
pub(super) const PHASE_FAILED: &str = "failed: ";

/// A migration's owner.
#[derive(Debug)]
pub struct Driver {
    context: Arc<Context>,
    state: State,
    inbox: mpsc::Receiver<Command>,
    shutdown: CancellationToken,
    verify_asked: Option<VerifyOrder>,
}

/// What ended the waiting.
enum Happened {
    Event(Event, String),
    /// A request was carried out: the state is a new one, or the same with something more to do.
    Granted,
    ShutDown,
}

type Job<'a> = Pin<Box<dyn Future<Output = Result<(), WorkError>> + Send + 'a>>;

impl Driver {
    /// An owner of the migration in `context`, which the store has in `state`.
    pub fn new(
        context: Arc<Context>,
        state: State,
        inbox: mpsc::Receiver<Command>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { context, state, inbox, shutdown, verify_asked: None }
    }

    /// Drives the migration to its end, or until the daemon shuts down.
    pub async fn run(mut self) {
        self.refresh().await;
        if let Ok(state) = next(&self.state, &Event::Restarted) {
            self.enter(state, &Event::Restarted, "warmd", Vec::new()).await;
        }
        if !self.state.is_final() && !self.state.is_busy() {
            sweep(&self.context).await;
        }
        while !self.state.is_final() {
            match self.wait().await {
                Happened::ShutDown => return,
                Happened::Granted => {}
                Happened::Event(event, by) => match next(&self.state, &event) {
                    Ok(state) => {
                        self.enter(state, &event, &by, Vec::new()).await;
                    }
                    Err(step) => tracing::error!(migration = %self.context.id, %step, "ignored"),
                },
            }
        }
        // Requests of a finished migration are still judged: "already so", or why not.
        loop {
            if let Some(order) = self.verify_asked.take() {
                let (context, stop) = (Arc::clone(&self.context), StopSignal::new());
                let stopper = stop.clone();
                let job = Box::pin(async move { verify_alone(&context, &order, &stop).await });
                if let Attended::ShutDown = self.attend(job, &stopper).await {
                    return;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                command = self.inbox.recv() => match command {
                    None => return,
                    Some(command) => { self.grant(command).await; }
                },
            }
        }
    }

    /// Does what the state means until something happens.
    async fn wait(&mut self) -> Happened {
        let context = Arc::clone(&self.context);
        let doing = work(&self.state);
        let stop = StopSignal::new();
        let stopper = stop.clone();
        match doing {
            Work::Nothing => self.idle(None).await,
            Work::AwaitSchedule if let Some(order) = self.verify_asked.take() => {
                let job = Box::pin(async move { verify_alone(&context, &order, &stop).await });
                match self.attend(job, &stopper).await {
                    Attended::Job(_) | Attended::Granted => Happened::Granted,
                    Attended::ShutDown => Happened::ShutDown,
                }
            }
            Work::AwaitSchedule => {
                let due = self.due().await;
                self.context.live.update(|view| view.next_pass = Some(due));
                let happened = self.idle(Some(due)).await;
                self.context.live.update(|view| view.next_pass = None);
                happened
            }
            _ => {
                let job: Job<'_> = Box::pin(async move { persist(&context, doing, &stop).await });
                match self.attend(job, &stopper).await {
                    Attended::Job(Ok(())) => Happened::Event(Event::WorkDone, "warmd".to_owned()),
                    Attended::Job(Err(error)) => {
                        let event = Event::WorkFailed { reason: error.to_string(), resumable: true };
                        Happened::Event(event, "warmd".to_owned())
                    }
                    Attended::Granted => Happened::Granted,
                    Attended::ShutDown => Happened::ShutDown,
                }
            }
        }
    }

    /// Waits for a request, or for the schedule.
    async fn idle(&mut self, due: Option<DateTime<Utc>>) -> Happened {
        loop {
            let clock = async {
                match due {
                    Some(due) => {
                        let left = (due - clock::now()).to_std().unwrap_or_default();
                        tokio::time::sleep(left).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Happened::ShutDown,
                () = clock => return Happened::Event(Event::PassDue, "schedule".to_owned()),
                command = self.inbox.recv() => {
                    let Some(command) = command else { return Happened::ShutDown };
                    if self.grant(command).await {
                        return Happened::Granted;
                    }
                }
            }
        }
    }

    /// Lets `job` run and answers requests meanwhile. A request that changes the state then ends the job, before the new
    /// state's work begins: whatever it drained stays drained, and nothing of it runs on.
    async fn attend(&mut self, mut job: Job<'_>, stopper: &StopSignal) -> Attended {
        loop {
            tokio::select! {
                biased;
                result = &mut job => return Attended::Job(result),
                () = self.shutdown.cancelled() => {
                    stopper.stop();
                    tokio::time::timeout(STOP_DEADLINE, job).await.ok();
                    return Attended::ShutDown;
                }
                command = self.inbox.recv() => {
                    let Some(command) = command else { return Attended::ShutDown };
                    let before = self.state.clone();
                    if self.grant(command).await && self.state != before {
                        stopper.stop();
                        if tokio::time::timeout(STOP_DEADLINE, job).await.is_err() {
                            sweep(&self.context).await;
                        }
                        return Attended::Granted;
                    }
                }
            }
        }
    }

    /// Judges and journals a request, and if it is accepted takes it into the state; only then is it answered, so that
    /// an accepted request is never forgotten. Whether it was accepted.
    async fn grant(&mut self, command: Command) -> bool {
        let is_verify = command.request == Request::Verify;
        let verdict = match judge(&self.state, command.request) {
            Verdict::Accepted if is_verify && self.verify_asked.is_some() => {
                Verdict::Refused("a verification waits already; ask again when it runs".to_owned())
            }
            Verdict::Accepted if is_verify => {
                command.order.refusal(&self.state).map_or(Verdict::Accepted, Verdict::Refused)
            }
            verdict => verdict,
        };
        let accepted = verdict == Verdict::Accepted;
        let text = match &verdict {
            Verdict::Accepted if is_verify => format!("verify accepted: {}", command.order),
            Verdict::Accepted => format!("{} accepted", command.request.name()),
            Verdict::AlreadySo => format!("{}: already so", command.request.name()),
            Verdict::Refused(why) => why.clone(),
        };
        let line = self.context.line(&command.by, "request", text);
        let event = Event::Request(command.request);
        let saved = match next(&self.state, &event) {
            Ok(state) if accepted && state != self.state => {
                let lines = if mutant("request-not-told") { Vec::new() } else { vec![line] };
                self.enter(state, &event, &command.by, lines).await
            }
            _ => self.journal(line, accepted).await,
        };
        if accepted && !saved {
            // The daemon is shutting down; who asked is told so by getting no verdict.
            return false;
        }
        if accepted && is_verify {
            self.verify_asked = Some(command.order);
        }
        // Whoever asked may have gone away.
        command.answer.send(verdict).ok();
        accepted
    }

    /// Writes a line of the journal; one that `must` be there is tried until it is. Whether it is there.
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

    /// Saves the new state with its journal lines, then lets it be seen. Without the save nothing goes on; false if the
    /// daemon was shut down before.
    async fn enter(&mut self, state: State, event: &Event, by: &str, mut lines: Vec<EventView>) -> bool {
        if state == self.state {
            return true;
        }
        let text = format!("{} → {state}{}", self.state, because(event));
        let begins = *event == Event::Request(Request::Cutover);
        let cutover =
            begins.then(|| Cutover { attempt: self.context.cutover().attempt + 1, ..Cutover::default() });
        if !mutant("step-not-told") {
            lines.push(self.context.line(by, "state", text.clone()));
        }
        let step =
            Change { cutover: cutover.clone(), events: lines, ..Change::to(state.clone(), clock::now()) };
        let mut retry = Retry::forever();
        while let Err(error) = self.context.store.save_state(self.context.id, step.clone()).await {
            tracing::error!(migration = %self.context.id, %error, "state not saved; nothing goes on until it is");
            if !self.pause(&mut retry).await {
                return false;
            }
        }
        if let Some(cutover) = cutover {
            self.context.set_cutover(cutover);
        }
        tracing::info!(migration = %self.context.id, vm = %self.context.machine.name, by, "{text}");
        let before = std::mem::replace(&mut self.state, state);
        self.show(&before);
        // It was judged in another state: in this one it may do harm.
        if let Some(order) = self.verify_asked.take() {
            let text = format!("{} that waited is dropped: it is {} now; ask again", order.mode, self.state);
            self.context.note("verification", text).await;
        }
        if !self.state.is_busy() {
            // All passes are looked at for it: once when work has come to its end, not at each of its steps.
            self.refresh().await;
        }
        crash::point(&format!("state.{}", self.state.name()));
        true
    }

    fn show(&self, before: &State) {
        let state = self.state.clone();
        self.context.live.update(|view| {
            view.since = clock::now();
            let begins = matches!(state, State::CuttingOver { phase: Phase::LastDelta });
            if begins && !matches!(before, State::CuttingOver { .. }) {
                let (phases, started) = (Vec::new(), clock::now());
                view.cutover =
                    Some(CutoverView { started, ended: None, phases, failure: None, downtime: None });
            }
            if let Some(cutover) = &mut view.cutover {
                match (&state, before) {
                    (
                        State::Undoing { reason, .. } | State::Failed { reason, .. },
                        State::CuttingOver { .. },
                    ) => {
                        cutover.failure = Some(reason.clone());
                    }
                    (State::Done, _) | (State::Synced, State::Undoing { .. }) => {
                        cutover.ended = Some(clock::now());
                    }
                    _ => {}
                }
            }
            view.state = state;
        });
    }

    /// Brings what the view says of the past up to date.
    async fn refresh(&self) {
        match forecast::downtime(&self.context).await {
            Ok(forecast) => self.context.live.update(|view| view.downtime_forecast = forecast),
            Err(error) => tracing::warn!(migration = %self.context.id, %error, "no forecast"),
        }
    }

    /// When the next delta is due: an interval after the last pass ended.
    async fn due(&self) -> DateTime<Utc> {
        let last = match self.context.store.last_pass(self.context.id).await {
            // One that was cut off has no end: it counts from its start, so that it is not repeated at once.
            Ok(pass) => pass.map(|pass| pass.view.ended.unwrap_or(pass.view.started)),
            Err(error) => {
                tracing::error!(migration = %self.context.id, %error, "passes not read");
                None
            }
        };
        warmd_schedules::next_due(last, self.context.plan().schedule.interval, clock::now())
    }
}

enum Attended {
    Job(Result<(), WorkError>),
    Granted,
    ShutDown,
}

fn because(event: &Event) -> String {
    match event {
        Event::Request(request) => format!(" ({} asked)", request.name()),
        Event::WorkFailed { reason, .. } => format!(" because {reason}"),
        Event::WorkDone => String::new(),
        Event::Restarted => " (after a restart)".to_owned(),
        Event::PassDue => " (a delta is due)".to_owned(),
    }
}

/// Does `doing`, and again while its failures may pass: undo and clean-up for ever, a phase within its deadline,
/// everything else a limited number of times.
async fn persist(context: &Context, doing: Work, stop: &StopSignal) -> Result<(), WorkError> {
    let mut retry = match doing {
        Work::Undo(_) | Work::Clean => Retry::forever(),
        Work::Phase(phase) => Retry::until(cutover::deadline(context, phase)),
        Work::Begin | Work::Prepare | Work::Seed | Work::Sync | Work::Nothing | Work::AwaitSchedule => {
            Retry::times(ATTEMPTS)
        }
    };
    loop {
        let begun = tokio::time::Instant::now();
        let error = match act(context, doing, stop).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if matches!(doing, Work::Seed | Work::Sync) && begun.elapsed() > LONG {
            // It came a long way: a full pass of days may meet more than ten short failures.
            retry = Retry::times(ATTEMPTS);
        }
        let endless = matches!(doing, Work::Undo(_) | Work::Clean);
        if error.remedy == Remedy::Operator && !endless || stop.is_stopped() {
            return Err(error);
        }
        context.note("failure", format!("{doing:?}: {error}")).await;
        tokio::select! {
            biased;
            () = stop.stopped() => return Err(error),
            more = retry.pause() => if !more { return Err(error); },
        }
    }
}

async fn act(context: &Context, doing: Work, stop: &StopSignal) -> Result<(), WorkError> {
    match doing {
        Work::Nothing | Work::AwaitSchedule | Work::Begin => Ok(()),
        Work::Prepare => prepare::prepare(context).await,
        Work::Seed => pass::run(context, PassKind::Full, stop, None).await.and_then(ended),
        Work::Sync => pass::run(context, PassKind::Delta, stop, None).await.and_then(ended),
        Work::Phase(phase) => run_phase(context, phase, stop).await,
        Work::Undo(phase) => cutover::undo(context, phase).await,
        Work::Clean => cutover::clean(context).await,
    }
}

fn ended(end: pass::PassEnd) -> Result<(), WorkError> {
    match end {
        pass::PassEnd::Drained => Ok(()),
        pass::PassEnd::Stopped => Err(WorkError::passing("the pass was stopped before its end")),
    }
}

/// One attempt at a phase: within its deadline, recorded from its beginning to its end.
async fn run_phase(context: &Context, phase: Phase, stop: &StopSignal) -> Result<(), WorkError> {
    let (attempt, started) = (context.cutover().attempt, clock::now());
    context.store.begin_phase(context.id, attempt, phase, started).await?;
    show_phase(context, PhaseView { phase, started, ended: None, outcome: None });
    let deadline = cutover::deadline(context, phase);
    let result = match tokio::time::timeout(deadline, cutover::run(context, phase, stop)).await {
        Ok(result) => result,
        Err(_) => Err(WorkError::operator(format!(
            "phase {phase} was not done within its deadline of {}",
            humantime::format_duration(deadline)
        ))),
    };
    let outcome = match &result {
        Ok(note) => note.clone().unwrap_or_else(|| "done".to_owned()),
        Err(error) => format!("{PHASE_FAILED}{error}"),
    };
    context.store.end_phase(context.id, attempt, phase, clock::now(), &outcome).await?;
    let downtime = forecast::measured_downtime(&context.cutover());
    context.live.update(|view| {
        if let Some(cutover) = &mut view.cutover {
            cutover.downtime = downtime;
            if let Some(last) = cutover.phases.last_mut() {
                (last.ended, last.outcome) = (Some(clock::now()), Some(outcome));
            }
        }
    });
    result.map(|_| ())
}

fn show_phase(context: &Context, phase: PhaseView) {
    context.live.update(|view| {
        let started = phase.started;
        let cutover = view.cutover.get_or_insert_with(|| CutoverView {
            started,
            ended: None,
            phases: Vec::new(),
            failure: None,
            downtime: None,
        });
        // A phase that is tried again is shown once.
        cutover.phases.retain(|shown| shown.phase != phase.phase);
        cutover.phases.push(phase);
    });
}

/// A verification that was asked for by itself, beside the waiting for the next pass.
async fn verify_alone(context: &Context, order: &VerifyOrder, stop: &StopSignal) -> Result<(), WorkError> {
    verify::show(context, order);
    let result = verify::alone(context, order, stop).await;
    let error = match result {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => "it was stopped before its end; asked for again, it goes on".to_owned(),
        Err(error) => error.to_string(),
    };
    context.note("verification", format!("no verdict: {error}")).await;
    context.live.update(|view| {
        if let Some(verification) = &mut view.verification {
            (verification.ended, verification.error) = (Some(clock::now()), Some(error));
        }
    });
    Ok(())
}
