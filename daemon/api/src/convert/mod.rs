//! From the daemon's nouns to the messages of `warmd.v1`.
//!
//! Rule: every match names every variant, so that a new one cannot be forgotten here.

mod enums;
mod events;
mod explained;
mod forecast;
mod grant;
mod group;
mod limit;
mod migration;
mod pass;
mod plan;
mod quota;
mod scheduled_cutover;
mod telemetry;
mod verify;

use chrono::{DateTime, Utc};
use prost_types::{Duration, Timestamp};
use warmd_core::model::report::KeySince;
use warmd_proto::v1;

pub(super) use self::{
    events::event,
    explained::explained,
    grant::grant,
    group::{group, plan_cutover},
    limit::limit,
    migration::migration,
    plan::{endpoint, finding, inventory, plan, plan_change},
    quota::quota,
};

pub(super) fn key_since(key: KeySince) -> v1::EarlierKey {
    v1::EarlierKey { key: key.key, since: Some(timestamp(key.since)) }
}

fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp::from(std::time::SystemTime::from(at))
}

/// A length of time that may have been computed from a rate: what is no length of time is left out.
fn seconds(seconds: f64) -> Option<Duration> {
    let whole = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    // To the microsecond: these are not measured more exactly, and a float's last digits only look like
    // precision.
    Duration::try_from(std::time::Duration::from_micros(u64::try_from(whole.as_micros()).ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_length_of_time_is_left_out() {
        for wrong in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
        assert_eq!(seconds(12.5).map(|d| d.to_string()), Some("12.500s".to_owned()));
        assert_eq!(seconds(0.1 + 0.2).map(|d| d.nanos), Some(300_000_000));
    }
}
