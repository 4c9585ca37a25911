//! The journal.

use warmd_core::model::view::EventView;
use warmd_proto::v1;

use super::timestamp;

/// A line of the journal.
pub(crate) fn event(event: EventView) -> v1::Event {
    v1::Event {
        at: Some(timestamp(event.at)),
        migration_id: event.migration.map(|id| id.to_string()),
        by: event.by,
        kind: event.kind.into(),
        text: event.text,
    }
}
