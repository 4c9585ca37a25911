//! The clean-up before a migration rests.
//!
//! Rule: no production VM runs on a snapshot while nothing is copied.

use std::time::Duration;

use warmd_cbt::stop::StopSignal;
use warmd_core::{model::event_kind::EventKind, sources::SourceErrorKind};

use super::{
    context::Context,
    failure::{Remedy, WorkError},
    retry::Retry,
    waiting::RetryReporter,
};

/// The time limit for the source.
const DEADLINE: Duration = Duration::from_mins(1);

/// The pause before a retry.
const AGAIN: Duration = Duration::from_mins(1);

/// Ends a snapshot that interrupted work may have left open. If that fails, the next pass ends it.
pub(super) async fn sweep(context: &Context) {
    if let Err(why) = end(context).await {
        context.log_event(EventKind::Warning, format!("a snapshot may be left open: {why}")).await;
    }
}

/// The same with retries, before work that may wait long before its first call of the source: after a crash a
/// snapshot may be open without a scratch monitor.
pub(super) async fn sweep_first(context: &Context, stop: &StopSignal) -> Result<(), WorkError> {
    let (mut retry, mut waiting) = (Retry::forever(), RetryReporter::new(context));
    while !context.is_swept() {
        let Err(why) = end(context).await else { break };
        let error = WorkError { remedy: Remedy::Wait, cause: why.into() };
        let Some(pause) = retry.next_pause() else { return Err(error) };
        waiting.report("a snapshot that an earlier daemon may have left open", &error, pause).await;
        tokio::select! {
            biased;
            () = stop.stopped() => return Err(error),
            () = tokio::time::sleep(pause) => {}
        }
    }
    context.waits_no_more();
    Ok(())
}

/// The same where no pass follows automatically: until the snapshot is ended, then waits for ever. May be cut
/// off anywhere.
pub(super) async fn keep_swept(context: &Context) {
    let mut told = false;
    while let Err(why) = end(context).await {
        if told {
            tracing::warn!(migration = %context.id, why, "a snapshot may still be left open");
        } else {
            let text = format!("a snapshot may be left open, trying again every minute: {why}");
            context.log_event(EventKind::Warning, text).await;
            told = true;
        }
        tokio::time::sleep(AGAIN).await;
    }
    if told {
        context.log_event(EventKind::Warning, "no snapshot is left open".to_owned()).await;
    }
    std::future::pending::<()>().await;
}

async fn end(context: &Context) -> Result<(), String> {
    let ending = context.source.end_snapshot(&context.vm, context.id);
    let ended = match tokio::time::timeout(DEADLINE, ending).await {
        Ok(Ok(())) => Ok(()),
        // Without a VM there is nothing to end.
        Ok(Err(error)) if error.kind == SourceErrorKind::NotFound => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the source does not answer".to_owned()),
    };
    if ended.is_ok() {
        context.swept();
    }
    ended
}
