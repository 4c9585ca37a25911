//! What the driver does with an event: it has it decided, finds out the facts that this needs, has the
//! decision saved, and answers.
//!
//! Rule: the answer comes last, so that an accepted request is never lost.

use warmd_core::{
    clock,
    model::{
        decide::{Decision, Fact, Facts, Input, PlanFacts, RollbackFacts, Undecided, decide},
        request::{Request, RequestOutcome},
        transition::IllegalStep,
    },
};

use super::{
    super::{command::OwnerRequest, forecast, rollback, scheduled_cutover, timing},
    Driver,
};

/// What became of an event.
pub(super) enum Carried {
    /// The decision is saved and in force.
    Out(Box<Decision>),
    /// The event is impossible in this state.
    Ignored,
    /// The daemon is shutting down: the decision may or may not be saved.
    ShutDown,
}

impl Driver {
    /// Decides on the event, saves the decision, and carries it out.
    pub(super) async fn take(&mut self, input: &Input) -> Carried {
        match self.decision(input).await {
            Ok(decision) => {
                if self.carry_out(decision.clone()).await {
                    Carried::Out(Box::new(decision))
                } else {
                    Carried::ShutDown
                }
            }
            Err(step) => {
                tracing::error!(migration = %self.context.id, %step, "ignored");
                Carried::Ignored
            }
        }
    }

    /// Takes a request, and answers it; returns the decision if it is accepted.
    pub(super) async fn answer(&mut self, command: OwnerRequest) -> Option<Decision> {
        let OwnerRequest { request, by, answer } = command;
        // The daemon is shutting down, or has a defect: the caller learns that from the missing outcome.
        let Carried::Out(decision) = self.take(&Input::Request { request, by }).await else { return None };
        let outcome = decision.answer.clone()?;
        let is_accepted = outcome == RequestOutcome::Accepted;
        // The caller may have disconnected.
        answer.send(outcome).ok();
        is_accepted.then_some(*decision)
    }

    /// The decision on the event.
    pub(super) async fn decision(&mut self, input: &Input) -> Result<Decision, IllegalStep> {
        self.record.cutover = self.context.cutover();
        let plan = self.context.plan();
        let mut facts = Facts {
            plan: PlanFacts {
                name: plan.name.clone(),
                mode: plan.cutover.mode,
                is_grouped: plan.is_grouped(),
            },
            group_keeps: self.context.groups.keeps(self.context.id),
            ..Facts::default()
        };
        loop {
            match decide(&self.record, input, &facts, clock::now()) {
                Ok(decision) => return Ok(decision),
                Err(Undecided::Illegal(step)) => return Err(step),
                // It is known then, and not asked for again.
                Err(Undecided::Needs(fact)) => self.find_out(fact, input, &mut facts).await,
            }
        }
    }

    async fn find_out(&self, fact: Fact, input: &Input, facts: &mut Facts) {
        let (context, asked) = (&self.context, asked(input));
        match fact {
            Fact::Rules => {
                let rules = timing::asked(context);
                let order = asked.and_then(|(request, _)| request.cutover_order());
                let refusal =
                    order.and_then(|order| scheduled_cutover::refusal(rules.as_ref(), order, clock::now()));
                facts.rules = Some(refusal.map_or(Ok(()), Err));
            }
            Fact::Forecast => {
                facts.forecast = Some(forecast::veto(context).await.map_or(Ok(()), Err));
            }
            Fact::GroupLeft => {
                let by = asked.map_or("warmd", |(_, by)| by);
                facts.group_left = Some(context.groups.leave(context.id, by));
            }
            Fact::Rollback => {
                let found = rollback::judged(context).await;
                let loss = rollback::loss(context);
                facts.rollback = Some(found.map(|since| RollbackFacts { since, loss }));
            }
        }
    }
}

/// The request, and who requests it.
fn asked(input: &Input) -> Option<(&Request, &str)> {
    match input {
        Input::Request { request, by } => Some((request, by)),
        _ => None,
    }
}
