//! What is cleared away before a migration rests.
//!
//! Rule: no production VM lives on a snapshot while nothing is copied.

use std::time::Duration;

use super::context::Context;

/// How long the source may take for it.
const DEADLINE: Duration = Duration::from_mins(1);

/// Ends a snapshot that work which was cut off may have left open. What cannot be ended now is ended by the next pass.
pub(super) async fn sweep(context: &Context) {
    let ending = context.source.end_snapshot(&context.vm, context.id);
    match tokio::time::timeout(DEADLINE, ending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => context.note("warning", format!("a snapshot may be left open: {error}")).await,
        Err(_) => context.note("warning", "a snapshot may be left open: no answer".to_owned()).await,
    }
}
