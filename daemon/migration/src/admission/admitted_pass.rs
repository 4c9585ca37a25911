//! A pass with its admission.
//!
//! Rule: a pass has its admission before it requests a snapshot, and gives it back after the snapshot is
//! released. A pre-copy that is preempted for a cutover stops in the usual way, and queues again.

use std::pin::pin;

use warmd_cbt::stop::StopSignal;
use warmd_core::model::{event_kind::EventKind, view::PassKind};

use super::{
    Admission,
    migration_admission::{For, at_once, wait},
};
use crate::{
    context::Context,
    failure::WorkError,
    pass::{self, OnDrained, PassEnd},
};

/// Runs one pass once it is admitted. `then` sees the snapshot while it is open and drained.
pub(in super::super) async fn pass(
    context: &Context,
    kind: PassKind,
    stop: &StopSignal,
    then: Option<&dyn OnDrained>,
) -> Result<PassEnd, WorkError> {
    if let Some(admission) = context.admissions.acquired() {
        return pass::perform_pass(context, &admission, kind, stop, then).await;
    }
    if kind == PassKind::Final {
        // The VM is down: no waiting.
        return pass::perform_pass(context, &at_once(context), kind, stop, then).await;
    }
    let what = if then.is_some() { For::Comparison } else { For::PreCopy };
    loop {
        let admission = wait(context, what, stop).await?;
        let result = unless_recalled(context, &admission, kind, stop, then).await;
        let preempted = admission.stop_signal.is_stopped() && !stop.is_stopped();
        drop(admission);
        if !preempted || matches!(result, Ok(PassEnd::Drained)) {
            return result;
        }
        let failure = result.err().map_or_else(String::new, |error| format!(" ({error})"));
        context
            .log_event(EventKind::Schedule, format!("pass preempted: a cutover needs its place{failure}"))
            .await;
    }
}

async fn unless_recalled(
    context: &Context,
    admission: &Admission,
    kind: PassKind,
    stop: &StopSignal,
    then: Option<&dyn OnDrained>,
) -> Result<PassEnd, WorkError> {
    let own = StopSignal::new();
    let mut run = pin!(pass::perform_pass(context, admission, kind, &own, then));
    tokio::select! {
        biased;
        result = &mut run => return result,
        () = stop.stopped() => {}
        () = admission.stop_signal.stopped() => {}
    }
    own.stop();
    run.await
}
