//! The inspection of a guest, read-only, on overlays over its replica.
//!
//! It runs once in the daemon's life, at the end of a pass, while the source VM goes on running: the replica
//! equals a snapshot then, and nothing else writes to it.
//!
//! Rule: for information, and to prevent a cutover that would fail. An inspection that fails fails nothing,
//! and is reported once; what it did not find is not known.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use warmd_cbt::stop::StopSignal;
use warmd_core::model::{
    conversion::Conversion,
    event_kind::EventKind,
    rule::{Rule, Severity},
};
use warmd_v2v::{Concern, Guest};

use super::{
    context::Context,
    conversion::{self, facts, overlay_of},
    conversion_program::ConversionProgram,
    cutover::unless_stopped,
    failure::WorkError,
    program,
};

/// The most time that it may take.
const DEADLINE: Duration = Duration::from_mins(10);
/// The name of the result's file.
const ANSWER: &str = "guest.json";

/// What is known of a guest.
#[derive(Debug, Default)]
pub(super) struct Inspected(Mutex<Outcome>);

#[derive(Clone, Debug, Default)]
enum Outcome {
    #[default]
    NotTried,
    Failed,
    Done(Box<Guest>),
}

impl Inspected {
    fn set(&self, outcome: Outcome) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }

    fn is_tried(&self) -> bool {
        !matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Outcome::NotTried)
    }

    /// What speaks against this conversion of the guest, if it was inspected.
    pub(super) fn concerns(&self, conversion: &Conversion) -> Vec<(Rule, String)> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Outcome::NotTried | Outcome::Failed => Vec::new(),
            Outcome::Done(guest) => {
                let concerns = guest.concerns(conversion).into_iter();
                concerns.map(|(concern, text)| (rule(concern), text)).collect()
            }
        }
    }
}

fn rule(concern: Concern) -> Rule {
    match concern {
        Concern::NeedsConversion => Rule::GuestNeedsConversion,
        Concern::NotConvertible => Rule::GuestNotConvertible,
        Concern::NamesDisks => Rule::GuestNamesDisks,
        Concern::NamesInterfaces => Rule::GuestNamesInterfaces,
    }
}

/// Inspects the guest, if the plan asks for it and it is not yet known. A guest that keeps its cutover from
/// starting is looked at again after each pass: what is wrong may have been put right in the guest or in the
/// plan.
pub(super) async fn look(context: &Context, stop: &StopSignal) {
    let wanted = context.plan().inspect_guest;
    let wanted = wanted.unwrap_or_else(|| context.conversion().virt_v2v().is_some());
    let is_tried = context.inspected.is_tried();
    if !wanted || is_tried && open_errors(context).is_empty() {
        return;
    }
    context
        .log_event(
            EventKind::Inspection,
            "the guest is read on the replica, while the source VM runs".to_owned(),
        )
        .await;
    let looked = unless_stopped(stop, Box::pin(inspect(context))).await;
    // Its overlays need no room any more, however it ended.
    if let Err(error) = conversion::remove_overlays(context).await {
        tracing::warn!(migration = %context.id, %error, "overlays of the inspection not removed");
    }
    match looked {
        Ok(guest) => {
            context.log_event(EventKind::Inspection, format!("the guest is {}", guest.summary())).await;
            context.inspected.set(Outcome::Done(Box::new(guest)));
            for (rule, found) in context.inspected.concerns(&context.conversion()) {
                context.warn(format!("{found} ({}): {}", rule.id(), rule.facts().help)).await;
            }
        }
        // The next pass tries again.
        Err(_) if stop.is_stopped() => {}
        Err(error) => {
            // What an earlier inspection found stays known.
            if !is_tried {
                context.inspected.set(Outcome::Failed);
            }
            context.warn(format!("the guest is not inspected: {error}")).await;
        }
    }
}

async fn inspect(context: &Context) -> Result<Guest, WorkError> {
    let overlay = overlay_of(context).await?;
    let disks = context.made_disks().await?;
    if let Some(why) = disks.iter().find_map(|disk| overlay.refusal(disk)) {
        return Err(WorkError::operator(why));
    }
    let overlays = overlay.create_overlays(context.id, &disks).await?;
    let answer = overlays.folder.join(ANSWER);
    let input = facts(context, &overlays, &context.mapped_machine(), &answer)?;
    let program = ConversionProgram::inspection(DEADLINE);
    let variables = program.variables.iter().map(|(name, value)| (name.as_str(), value.as_os_str()));
    let order = program::Order {
        command: &program.command,
        input: input.as_bytes(),
        variables: &variables.collect::<Vec<_>>(),
        deadline: program.timeout,
    };
    let ended = program::run_told(&order, &mut |_| {}).await;
    if let Some(fault) = ended.fault {
        let last = ended.said.lines().last().unwrap_or_default();
        return Err(WorkError::operator(format!("{}: {fault}: {last}", program.name())));
    }
    let json = conversion::read(&answer).await.map_err(|error| WorkError::operator(error.to_string()))?;
    serde_json::from_slice(&json)
        .map_err(|error| WorkError::operator(format!("{} left no result: {error}", program.name())))
}

/// The errors that the inspection found and the plan does not accept.
fn open_errors(context: &Context) -> Vec<String> {
    let plan = context.plan();
    let over = plan.override_by_name(&context.machine.name, &context.vm);
    let concerns = context.inspected.concerns(&context.conversion());
    concerns
        .into_iter()
        .filter(|(rule, _)| rule.severity() == Severity::Error && !plan.accepts(over, *rule))
        .map(|(rule, found)| format!("{found} ({}): {}", rule.id(), rule.facts().help))
        .collect()
}

/// Why the conversion would fail, as the inspection found: asked before anything is stopped.
pub(super) fn check(context: &Context) -> Result<(), WorkError> {
    let open = open_errors(context);
    if open.is_empty() {
        return Ok(());
    }
    Err(WorkError::operator(format!("the source VM was not stopped: {}", open.join("; "))))
}
