//! What applying a plan changes.
//!
//! Rule: applying is repeatable: what is there already is kept, and a plan with an error changes nothing at all.

use std::collections::BTreeSet;

use serde_json::Value;

use super::control::{ControlError, ControlErrorKind};
use crate::{
    model::plan::Plan,
    sources::{SourceError, SourceErrorKind},
    targets::{TargetError, TargetErrorKind},
};

/// What applying a plan again means for a migration that it moves: what of it is another than before, from what to what.
pub fn applied_again(before: &Plan, now: &Plan) -> String {
    let fields = |plan: &Plan| match serde_json::to_value(plan) {
        Ok(Value::Object(fields)) => fields,
        // A plan that cannot be written could not have been saved either.
        _ => serde_json::Map::new(),
    };
    let (before, now, name) = (fields(before), fields(now), &now.name);
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let changes: Vec<_> = names
        .into_iter()
        .map(|field| (field, before.get(field), now.get(field)))
        .filter(|(_, before, now)| before != now)
        .map(|(field, before, now)| format!("{field} was {} and is {}", shown(before), shown(now)))
        .collect();
    match changes.as_slice() {
        [] => format!("plan {name} applied again, unchanged"),
        changes => format!("plan {name} applied again: {}", changes.join("; ")),
    }
}

impl From<SourceError> for ControlError {
    fn from(error: SourceError) -> Self {
        let kind = match error.kind {
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout => ControlErrorKind::Unavailable,
            SourceErrorKind::NotFound => ControlErrorKind::NotFound,
            SourceErrorKind::Refused | SourceErrorKind::StillRunning => ControlErrorKind::Refused,
            SourceErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<TargetError> for ControlError {
    fn from(error: TargetError) -> Self {
        let kind = match error.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout => ControlErrorKind::Unavailable,
            TargetErrorKind::NotFound => ControlErrorKind::NotFound,
            TargetErrorKind::Conflict | TargetErrorKind::NoSpace | TargetErrorKind::Refused => {
                ControlErrorKind::Refused
            }
            TargetErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
