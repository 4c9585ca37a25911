//! A cutover that has not begun.

use warmd_proto::v1;

use super::timestamp;
use crate::model::appointment::{AwaitedCutover, AwaitedMode};

pub(super) fn awaited(awaited: AwaitedCutover) -> v1::AwaitedCutover {
    let AwaitedCutover { mode, begins, why, force } = awaited;
    let mode = match mode {
        AwaitedMode::At => v1::AwaitedMode::At,
        AwaitedMode::Hold => v1::AwaitedMode::Hold,
        AwaitedMode::Auto => v1::AwaitedMode::Auto,
    };
    v1::AwaitedCutover { mode: mode.into(), begins: begins.map(timestamp), why, force }
}
