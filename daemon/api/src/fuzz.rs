//! Drives the API's handling of messages, over bytes in memory: for the fuzz target and its corpus.
//!
//! Rule: what runs here is what runs in production, up to the first question to
//! [`warmd_core::control::Control`].

use prost::Message;
use warmd_core::model::limit::ScopeName;
use warmd_proto::v1;

use super::{limits, plans};

/// Takes `bytes` for the message that `kind` names, as from a client; whether the API would pass it on.
pub fn message(kind: u8, bytes: &[u8]) -> bool {
    match kind % 4 {
        0 => v1::PlansApplyRequest::decode(bytes).is_ok_and(|request| {
            plans::parsed(&request.toml).is_ok_and(|plan| super::convert::plan(&plan).is_ok())
        }),
        1 => v1::LimitsSetRequest::decode(bytes).is_ok_and(|request| {
            limits::judged(request.change).is_ok() && ScopeName::parse(&request.scope).is_some()
        }),
        2 => v1::MigrationsWatchRequest::decode(bytes).is_ok(),
        _ => v1::MigrationsEventsRequest::decode(bytes).is_ok(),
    }
}
