//! What a pass's snapshot cost the VM, where the source reports it.
//!
//! Rule: it is kept for people and forecasts; a failure to keep it is no failure of the pass.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_core::{clock, model::view::SnapshotCost, sources::Snapshot};

use crate::context::Context;

/// The cost of a snapshot that was taken for a pass that is about to begin.
pub(super) struct CostMeter {
    made: Option<Duration>,
    begun: DateTime<Utc>,
}

impl CostMeter {
    pub(super) fn of(snapshot: &dyn Snapshot) -> Self {
        Self { made: snapshot.made_in(), begun: clock::now() }
    }

    /// Keeps it with the pass; `removed` is how long the removal took, unless that failed.
    pub(super) async fn keep(self, context: &Context, removed: Option<Duration>) {
        let Self { made: Some(made), begun } = self else { return };
        let removed = removed.map(|removed| removed.as_secs_f64());
        let cost = SnapshotCost { made: made.as_secs_f64(), removed };
        if let Err(error) = context.store.note_snapshot(context.id, begun, cost).await {
            tracing::warn!(migration = %context.id, %error, "cost of the snapshot not stored");
        }
        context.live.update(|live| {
            if let Some(pass) = live.pass.as_mut().filter(|pass| pass.started >= begun) {
                pass.snapshot = Some(cost);
            }
        });
    }
}
