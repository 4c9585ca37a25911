//! The inspection of a guest, read-only, on overlays over its replica.
//!
//! It runs at the end of the first complete pass after a start of the daemon, and again after each complete
//! pass while an error that the plan does not accept prevents the cutover. The source VM goes on running: the
//! replica equals a snapshot then, and nothing else writes to it.
//!
//! Rule: for information, and to prevent a cutover that would fail. An inspection that fails fails nothing,
//! and is reported once; what it did not find is not known.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use warmd_cbt::stop::StopSignal;
use warmd_core::model::{conversion::Conversion, event_kind::EventKind, rule::Objection};
use warmd_v2v::Guest;

use super::{
    context::Context,
    conversion::{self, facts, overlay_and_disks},
    conversion_program::ConversionProgram,
    cutover::unless_stopped,
    failure::WorkError,
    machine_changes,
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
    pub(super) fn concerns(&self, conversion: &Conversion) -> Vec<Objection> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Outcome::NotTried | Outcome::Failed => Vec::new(),
            Outcome::Done(guest) => guest.concerns(conversion),
        }
    }
}

/// Inspects the guest, if the plan asks for it and it is not yet known. A guest that keeps its cutover from
/// starting is looked at again after each pass: what is wrong may have been put right in the guest or in the
/// plan.
pub(super) async fn look(context: &Context, stop: &StopSignal) {
    let wanted = context.plan().inspect_guest;
    let wanted = wanted.unwrap_or_else(|| context.conversion().virt_v2v().is_some());
    let is_tried = context.inspected.is_tried();
    let known = context.inspected.concerns(&context.conversion());
    if !wanted || is_tried && machine_changes::open(context, &known).is_empty() {
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
            for concern in context.inspected.concerns(&context.conversion()) {
                context.warn(concern.advice()).await;
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
    let (overlay, disks) = overlay_and_disks(context).await?;
    let overlays = overlay.create_overlays(context.id, &disks).await?;
    let answer = overlays.folder.join(ANSWER);
    let input = facts(context, &overlays, &context.mapped_machine(), &answer)?;
    let program = ConversionProgram::inspection(DEADLINE);
    let ended = program.run(input.as_bytes(), &[], &mut |_| {}).await;
    if let Some(fault) = ended.fault {
        let last = ended.said.lines().last().unwrap_or_default();
        return Err(WorkError::operator(format!("{}: {fault}: {last}", program.name())));
    }
    let json = conversion::read(&answer).await.map_err(|error| WorkError::operator(error.to_string()))?;
    serde_json::from_slice(&json)
        .map_err(|error| WorkError::operator(format!("{} left no result: {error}", program.name())))
}

/// Why the conversion would fail, as the inspection found: asked before anything is stopped.
pub(super) fn check(context: &Context) -> Result<(), WorkError> {
    machine_changes::refuse(context, &context.inspected.concerns(&context.conversion()))
}
