//! What a schedule is asked with: what is known of a migration.

use chrono::{DateTime, Utc};
use warmd_schedules::{
    Tz,
    rules::{Facts, LastPass},
};

use crate::{
    model::id::MigrationId,
    store::{PassRow, Store, StoreError},
};

/// What is known of the migration, told in `zone`, whose cutover is asked for at `cutover_at`.
pub(super) async fn facts(
    store: &Store,
    id: MigrationId,
    zone: Tz,
    cutover_at: Option<DateTime<Utc>>,
) -> Result<Facts, StoreError> {
    // One that was cut off has no end: it counts from its start, so that it is not repeated at once.
    let last = store.last_pass(id).await?.map(|PassRow { view, .. }| LastPass {
        snapshot: view.started,
        ended: view.ended.unwrap_or(view.started),
    });
    Ok(Facts { last, cutover_at, ..Facts::unknown(zone) })
}
