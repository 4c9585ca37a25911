//! Every message survives being written and read, and an impossible one is refused.

use std::{num::NonZeroU64, sync::Mutex, time::Duration};

use chrono::DateTime;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;
use warmd_cbt::{
    chunk::{CHUNK_BLOCKS, ChunkBits},
    disk::{ErrorKind, Operation},
    manifest::BlockHash,
    mark::ChangeMark,
    store::{ChunkRow, DiskId, PassFigures, StoreError, StoreErrorKind},
    telemetry::{Histogram, HistogramCounts, Stage, Telemetry},
    transfer::{ProgressView, TransferSettings},
    units::{BlockIndex, Extent, Length, MAX_DISK, Offset},
};

use super::*;
use crate::model::{
    id::{DiskKey, MigrationId},
    outcome::PassFailure,
    view::{AuditView, PassKind, PassView},
};

fn round_trip<T: Serialize + DeserializeOwned>(message: &T) -> T {
    let text = serde_json::to_string(message).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn key() -> impl Strategy<Value = DiskKey> {
    "[a-z\"\\\\ é]{0,8}".prop_map(DiskKey)
}

fn extent() -> impl Strategy<Value = Extent> {
    (0..MAX_DISK, 1..=MAX_DISK)
        .prop_map(|(start, len)| Extent::new(Offset(start), Length(len.min(MAX_DISK - start))).unwrap())
}

fn bits() -> impl Strategy<Value = ChunkBits> {
    vec((0..CHUNK_BLOCKS as usize, 1..3000_usize), 0..40).prop_map(|runs| {
        let mut bits = ChunkBits::default();
        for (at, len) in runs {
            bits.set(at..(at + len).min(CHUNK_BLOCKS as usize), true);
        }
        bits
    })
}

fn span() -> impl Strategy<Value = Duration> {
    (any::<u32>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds.into(), nanos))
}

fn moment() -> impl Strategy<Value = chrono::DateTime<chrono::Utc>> {
    (0..4_000_000_000_i64, 0..1_000_000_000_u32)
        .prop_map(|(seconds, nanos)| DateTime::from_timestamp(seconds, nanos).unwrap())
}

fn kind() -> impl Strategy<Value = PassKind> {
    select(vec![PassKind::Full, PassKind::Delta, PassKind::Final])
}

/// JSON keeps it exactly.
fn factor() -> impl Strategy<Value = f64> {
    (8..800_u32).prop_map(|eighths| f64::from(eighths) / 8.0)
}

prop_compose! {
    fn settings()(numbers in any::<[u32; 6]>(), batch_time in span(), factor in option::of(factor()))
        -> TransferSettings {
        let [buffers, chunk, reads_in_flight, writes_in_flight, window, zero_request] = numbers;
        TransferSettings {
            buffers: buffers as usize,
            chunk: chunk as usize,
            reads_in_flight: reads_in_flight as usize,
            writes_in_flight: writes_in_flight as usize,
            batch_bytes: u64::MAX,
            batch_time,
            window: window.into(),
            zero_request: zero_request.into(),
            read_latency_factor: factor,
        }
    }
}

prop_compose! {
    fn audit_order()((budget, from, round) in any::<(u64, u64, u64)>(), deadline in span()) -> AuditOrder {
        AuditOrder { budget: Length(budget), from: Offset(from), round, deadline }
    }
}

prop_compose! {
    fn disk_order()(
        key in key(),
        (disk, record, size, pending) in any::<(i64, Option<i64>, u64, u64)>(),
        (mark, location) in any::<(String, String)>(),
        blocks in option::of(vec((any::<u32>(), bits(), bits()), 0..3)),
        audit in option::of(audit_order()),
        latencies in vec((0..8_usize, span()), 0..3),
    ) -> DiskOrder {
        let rows = |rows: Vec<_>| {
            rows.into_iter().map(|(chunk, pending, trusted)| ChunkRow { chunk, pending, trusted }).collect()
        };
        DiskOrder {
            key,
            disk: DiskId(disk),
            record,
            size: Length(size),
            mark: ChangeMark(mark),
            location,
            pending,
            blocks: blocks.map(rows),
            audit,
            latencies,
        }
    }
}

prop_compose! {
    fn order()(
        (id, plan, vm, number, generation) in any::<(u128, String, String, u32, u64)>(),
        kind in kind(),
        started in moment(),
        settings in settings(),
        rates in vec(any::<(String, NonZeroU64)>(), 0..3),
        disks in vec(disk_order(), 0..3),
    ) -> PassOrder {
        let pass = PassLabels { migration: MigrationId(Uuid::from_u128(id)), plan, vm, kind };
        let ceiling = |(scope, bytes_per_second)| RateCeiling { scope, bytes_per_second };
        let ceilings = rates.into_iter().map(ceiling).collect();
        PassOrder { pass, number, generation, started, settings, ceilings, disks }
    }
}

prop_compose! {
    fn sums()(all in any::<[u64; 7]>()) -> PassFigures {
        let [read, written, zeroed, skipped, drained, requests, batches] = all;
        PassFigures { read, written, zeroed, skipped, drained, requests, batches }
    }
}

fn change() -> impl Strategy<Value = PassEvent> {
    let hash = (any::<u64>(), any::<[u8; 16]>()).prop_map(|(at, hash)| (BlockIndex(at), BlockHash(hash)));
    let change = prop_oneof![
        vec(extent(), 0..5).prop_map(BlockChange::Claim),
        (vec(extent(), 0..5), vec(hash, 0..5), sums())
            .prop_map(|(extents, hashes, figures)| BlockChange::Drain { extents, hashes, figures }),
    ];
    (any::<(i64, u64)>(), change).prop_map(|((disk, generation), change)| {
        PassEvent::Change(LedgerChange { disk: DiskId(disk), generation, change })
    })
}

fn counts() -> impl Strategy<Value = HistogramCounts> {
    vec(span(), 0..6).prop_map(|times| {
        let histogram = Histogram::default();
        for time in times {
            histogram.record(time);
        }
        histogram.counts()
    })
}

fn figures() -> impl Strategy<Value = PassEvent> {
    let stage = || select(Stage::ALL.to_vec());
    let disk = (key(), any::<[u64; 4]>(), vec((stage(), counts()), 0..4), vec((stage(), any::<u64>()), 0..4));
    vec(disk, 0..3).prop_map(|disks| {
        let disks =
            disks.into_iter().map(|(key, [total, drained, read, held_back], latencies, in_flight)| {
                let progress = ProgressView { total, drained, read, held_back, ..ProgressView::default() };
                DiskFigures { key, progress, telemetry: Telemetry::default(), latencies, in_flight }
            });
        PassEvent::Progress(disks.collect())
    })
}

fn outcome() -> impl Strategy<Value = PassResult> {
    let disk = (
        select(vec![CopySide::Source, CopySide::Target]),
        select(vec![
            Operation::Open,
            Operation::Read,
            Operation::Allocation,
            Operation::Write,
            Operation::WriteZeroes,
            Operation::Flush,
        ]),
        select(vec![
            ErrorKind::Connection,
            ErrorKind::Timeout,
            ErrorKind::Media,
            ErrorKind::NoSpace,
            ErrorKind::Refused,
            ErrorKind::Protocol,
        ]),
    );
    let store = select(vec![StoreErrorKind::Unavailable, StoreErrorKind::Corrupt, StoreErrorKind::NotFound]);
    let cause = prop_oneof![
        disk.prop_map(|(side, operation, kind)| PassFailureCause::Disk { side, operation, kind }),
        store.prop_map(PassFailureCause::State),
        Just(PassFailureCause::Other),
    ];
    prop_oneof![
        Just(PassResult::Drained),
        Just(PassResult::Stopped),
        (cause, any::<String>()).prop_map(|(cause, text)| PassResult::Failed(PassFault { cause, text })),
    ]
}

fn audit() -> impl Strategy<Value = DiskAudit> {
    let view = (any::<[u64; 3]>(), vec(any::<(u64, u64)>(), 0..3), option::of(any::<String>())).prop_map(
        |([checked, holes, mismatched_bytes], mismatches, error)| AuditView {
            checked,
            holes,
            mismatched_bytes,
            mismatches,
            error,
        },
    );
    (key(), option::of(view), any::<(u64, u64)>()).prop_map(|(key, audit, (pending, next))| DiskAudit {
        key,
        audit,
        pending,
        next: Offset(next),
    })
}

fn event() -> impl Strategy<Value = PassEvent> {
    let began = (any::<u32>(), kind(), moment(), option::of(any::<String>())).prop_map(
        |(number, kind, started, error)| {
            PassEvent::Began(PassView {
                number,
                kind,
                started,
                ended: None,
                error: error.map(PassFailure::from),
                cpu: None,
                snapshot: None,
                disks: Vec::new(),
            })
        },
    );
    prop_oneof![
        began,
        vec(audit(), 0..3).prop_map(PassEvent::Audited),
        Just(PassEvent::Draining),
        vec((key(), any::<u64>()), 0..3).prop_map(PassEvent::Opened),
        change(),
        figures(),
        Just(PassEvent::Drained),
        (key(), any::<u64>()).prop_map(|(disk, millis)| PassEvent::HeldBack { disk, millis }),
        Just(PassEvent::Measured),
        (moment(), outcome()).prop_map(|(at, outcome)| PassEvent::Ended { at, outcome }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_order_survives_the_wire(order in order()) {
        prop_assert_eq!(&round_trip(&order), &order);
    }

    #[test]
    fn an_event_survives_the_wire(event in event()) {
        prop_assert_eq!(&round_trip(&event), &event);
    }
}

#[test]
fn an_impossible_message_is_refused() {
    let refused = |text: &str, why: &str| {
        let error = serde_json::from_str::<LedgerChange>(text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let claim = |start: u64, len: u64| {
        format!(r#"{{"disk":1,"generation":0,"change":{{"claim":[[{start},{len}]]}}}}"#)
    };
    assert!(serde_json::from_str::<LedgerChange>(&claim(0, 1)).is_ok());
    refused(&claim(5, 0), "5+0 is no run of bytes on a disk");
    refused(&claim(MAX_DISK, 1), "is no run of bytes on a disk");
    refused(&claim(u64::MAX, 2), "is no run of bytes on a disk");
    let row = serde_json::from_str::<ChunkRow>(r#"{"chunk":0,"pending":[9,9],"trusted":[]}"#);
    assert!(row.unwrap_err().to_string().contains("these bytes are no set of blocks"));
    let counts = |text: &str| serde_json::from_str::<HistogramCounts>(text).unwrap_err().to_string();
    assert!(counts(r#"{"buckets":[[60000,1]],"sum":0,"max":0}"#).contains("no bucket 60000"));
    let twice = format!(r#"{{"buckets":[[1,{0}],[2,{0}]],"sum":0,"max":0}}"#, u64::MAX);
    assert!(counts(&twice).contains("overflow"));
}

/// Notes its name, and fails if it should.
struct Noted<'a>(&'static str, bool, &'a Mutex<Vec<&'static str>>);

#[async_trait::async_trait]
impl PassObserver for Noted<'_> {
    async fn observe(&self, _event: &PassEvent) -> Result<(), StoreError> {
        self.2.lock().unwrap().push(self.0);
        let failed = || StoreError {
            kind: StoreErrorKind::Unavailable,
            context: self.0.to_owned(),
            cause: "a fault of the test's".into(),
        };
        if self.1 { Err(failed()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn observers_get_an_event_in_their_order_until_one_fails() {
    let seen = Mutex::default();
    let mut observers = Observers::default();
    observers.add(Noted("counted", false, &seen));
    observers.add(Noted("recorded", true, &seen));
    observers.add(Noted("shown", false, &seen));
    let error = observers.observe(&PassEvent::Measured).await.unwrap_err();
    assert_eq!(error.context, "recorded");
    drop(observers);
    assert_eq!(*seen.lock().unwrap(), ["counted", "recorded"]);
}
