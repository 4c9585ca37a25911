//! How far the target lies behind the source: what would be lost if the source were lost now (RPO).

use chrono::{DateTime, Utc};
use warmd_core::format;
use warmd_proto::v1::{Migration, MigrationState, PassKind};

use super::{super::labels, is_copying};

/// The lag at `now`, in words; none of a migration whose source VM does not write any more, or is no business
/// of warmd's.
pub(super) fn lag(migration: &Migration, now: DateTime<Utc>) -> Option<String> {
    use MigrationState as S;
    if matches!(
        migration.state(),
        S::Unspecified | S::CuttingOver | S::RollingBack | S::Done | S::Cancelling | S::Cancelled
    ) {
        return None;
    }
    let none = "there is no complete copy yet".to_owned();
    let Some(pass) = &migration.pass else { return Some(none).filter(|_| is_known(migration)) };
    let Some(begun) = labels::at(pass.started.as_ref()) else { return Some(none) };
    let (age, moment) = (format::between(begun, now), format::moment(begun));
    Some(match (is_copying(migration), pass.kind(), &pass.error) {
        (false, _, None) => format!("{age} (the target is as of {moment} UTC)"),
        (true, PassKind::Full, _) | (false, PassKind::Full, Some(_)) => none,
        (true, ..) => format!("over {age} (after pass {}: as of {moment} UTC)", pass.number),
        (false, _, Some(_)) => format!("over {age} (pass {} of {moment} UTC failed)", pass.number),
    })
}

/// Whether anything is known of it: nothing is of one that the daemon cannot read.
fn is_known(migration: &Migration) -> bool {
    migration.state() != MigrationState::Failed || !migration.disks.is_empty()
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use warmd_proto::v1::Pass;

    use super::*;

    #[test]
    fn the_lag_is_since_the_last_pass_that_ended_well_began() {
        use MigrationState as S;

        let at = |second: i64| Some(Timestamp { seconds: 1_795_342_560 + second, nanos: 0 });
        let now = DateTime::from_timestamp(1_795_342_560 + 200, 0).unwrap();
        let told = |state: MigrationState, kind: PassKind, ended, error: Option<&str>| {
            let error = error.map(str::to_owned);
            let pass = Pass { number: 3, kind: kind.into(), started: at(0), ended, error, ..Pass::default() };
            lag(&Migration { state: state.into(), pass: Some(pass), ..Migration::default() }, now)
        };
        let none = Some("there is no complete copy yet".to_owned());
        assert_eq!(lag(&Migration { state: S::Seeding.into(), ..Migration::default() }, now), none);
        assert_eq!(told(S::Seeding, PassKind::Full, None, None), none);
        assert_eq!(told(S::Failed, PassKind::Full, at(5), Some("no room")), none);
        assert_eq!(
            told(S::Synced, PassKind::Full, at(5), None).unwrap(),
            "3m 20s (the target is as of 2026-11-22 10:16:00 UTC)"
        );
        assert_eq!(
            told(S::Syncing, PassKind::Delta, None, None).unwrap(),
            "over 3m 20s (after pass 3: as of 2026-11-22 10:16:00 UTC)"
        );
        assert_eq!(
            told(S::Syncing, PassKind::Delta, at(5), Some("it broke")).unwrap(),
            "over 3m 20s (pass 3 of 2026-11-22 10:16:00 UTC failed)"
        );
        let unreadable = Migration { state: S::Failed.into(), ..Migration::default() };
        assert_eq!(lag(&unreadable, now), None);
        for state in [S::CuttingOver, S::Done, S::Cancelled] {
            assert_eq!(told(state, PassKind::Final, at(5), None), None);
        }
    }
}
