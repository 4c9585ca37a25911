//! How a decision is saved, and what follows then.
//!
//! Rule: nothing of a decision is in force, shown or begun before it is saved. Where the save of a step fails
//! for long with the source off, `unsaved.rs` powers the source on, and the undo is saved instead.

use warmd_core::{
    clock, crash,
    model::{
        decide::{Decision, Effect, JournalLine, Save, SavedStep},
        event_kind::EventKind,
        scheduled_cutover::ScheduledCutover,
        view::EventView,
    },
};
use warmd_store::MigrationUpdate;

use super::{
    super::{retry::Retry, scheduled_cutover},
    Driver,
};

impl Driver {
    /// Saves the decision, with retries, and carries it out; false if the daemon shut down before.
    pub(super) async fn carry_out(&mut self, decision: Decision) -> bool {
        match &decision.save {
            Save::Nothing => self.record = decision.record,
            Save::Line { line, must } => {
                if !self.journal(line, *must).await && *must {
                    return false;
                }
                self.record = decision.record;
            }
            Save::Schedule { line } => {
                if !self.save_schedule(decision.record.scheduled_cutover.clone(), line).await {
                    return false;
                }
                self.record = decision.record;
                self.show_schedule().await;
            }
            Save::Step(_) => return self.save_step(decision).await,
        }
        true
    }

    /// Writes a journal line, with retries if it `must` be written; returns whether it is written.
    async fn journal(&self, line: &JournalLine, must: bool) -> bool {
        let (mut retry, line) = (Retry::forever(), self.event(line));
        while let Err(error) = self.context.store.append_events(vec![line.clone()]).await {
            tracing::error!(migration = %self.context.id, %error, "journal not written");
            if !must || !self.pause(&mut retry).await {
                return false;
            }
        }
        true
    }

    /// Saves the scheduled cutover with a line of the journal; returns whether it is saved.
    async fn save_schedule(&self, scheduled_cutover: Option<ScheduledCutover>, line: &JournalLine) -> bool {
        let (mut retry, line) = (Retry::forever(), self.event(line));
        let (store, id) = (&self.context.store, self.context.id);
        while let Err(error) = store.save_appointment(id, scheduled_cutover.clone(), vec![line.clone()]).await
        {
            tracing::error!(migration = %id, %error, "what is asked of the cutover is not saved");
            if !self.pause(&mut retry).await {
                return false;
            }
        }
        true
    }

    async fn show_schedule(&self) {
        scheduled_cutover::show(&self.context, &self.scheduled_step().await);
    }

    /// Saves the new state with all that changes with it, then carries it out. Nothing continues without the
    /// save; false if the daemon shut down before.
    async fn save_step(&mut self, mut decision: Decision) -> bool {
        let mut is_back = false;
        while let Save::Step(step) = &decision.save {
            let update = self.update(&decision, step).await;
            let mut retry = Retry::forever();
            let undo = loop {
                let Err(error) = self.saved(update.clone(), is_back).await else { break None };
                tracing::error!(migration = %self.context.id, %error, "state not saved; nothing goes on until it is");
                if let Some(undo) = self.back_unsaved(&error, &mut is_back).await
                    && undo.record.state != decision.record.state
                {
                    break Some(undo);
                }
                if !self.pause(&mut retry).await {
                    return false;
                }
            };
            match undo {
                // Replaces the step that could not be saved; saving this one is awaited in the same way.
                Some(undo) => decision = undo,
                None => break,
            }
        }
        self.enter(decision).await;
        true
    }

    async fn update(&self, decision: &Decision, step: &SavedStep) -> MigrationUpdate {
        let record = &decision.record;
        MigrationUpdate {
            events: step.lines.iter().map(|line| self.event(line)).collect(),
            cutover: step.cutover.then(|| record.cutover.clone()),
            scheduled_cutover: step.scheduled_cutover.then(|| record.scheduled_cutover.clone()),
            change_rates: if step.change_rates { self.change_rates().await } else { None },
            forecast: if step.forecast { Some(self.forecast().await) } else { None },
            ..MigrationUpdate::to(record.state.clone(), clock::now())
        }
    }

    /// Puts a saved step in force.
    async fn enter(&mut self, decision: Decision) {
        let Decision { record, save, effects, .. } = decision;
        let Save::Step(step) = save else { return };
        if step.cutover {
            self.context.set_cutover(record.cutover.clone());
        }
        let by = step.lines.last().map_or("warmd", |line| line.by.as_str());
        let vm = &self.context.machine.name;
        tracing::info!(migration = %self.context.id, vm, by, "{}", step.text);
        let before = std::mem::replace(&mut self.record, record).state;
        self.context.set_state(self.record.state.clone());
        for effect in effects {
            let (context, id) = (&self.context, self.context.id);
            match effect {
                // The caller stops what it runs.
                Effect::StopWork => {}
                Effect::FailInGroup { reason } => context.groups.mark_failed(id, &reason),
                Effect::Show => self.show(&before),
                Effect::CountFinished => {
                    let (plan, vm) = (context.plan(), &context.machine.name);
                    context.engine.metrics.finished(id, &plan.name, vm, clock::now());
                }
                Effect::CountUnfinished => context.engine.metrics.again(id),
                Effect::DropVerification { text } => context.log_event(EventKind::Verification, text).await,
                Effect::RefreshForecast => self.refresh().await,
            }
        }
        crash::point(&format!("state.{}", self.record.state.name()));
    }

    fn event(&self, line: &JournalLine) -> EventView {
        self.context.journal_entry(&line.by, line.kind.clone(), line.text.clone())
    }
}
