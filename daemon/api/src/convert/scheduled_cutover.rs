//! A cutover that has not begun.

use warmd_core::model::scheduled_cutover::{ScheduledCutoverMode, ScheduledCutoverView};
use warmd_proto::v1;

use super::timestamp;

pub(super) fn awaited(awaited: ScheduledCutoverView) -> v1::ScheduledCutover {
    let ScheduledCutoverView { mode, begins, why, force } = awaited;
    let mode = match mode {
        ScheduledCutoverMode::At => v1::ScheduledCutoverMode::At,
        ScheduledCutoverMode::OnHold => v1::ScheduledCutoverMode::OnHold,
        ScheduledCutoverMode::Auto => v1::ScheduledCutoverMode::Auto,
    };
    v1::ScheduledCutover { mode: mode.into(), begins: begins.map(timestamp), why, force }
}
