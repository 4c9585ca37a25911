//! Servers that lie, stop, or talk nonsense: each is a clear error, never a panic or a hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{
    buffer, dirty, extent, in_time,
    script::{
        NbdRequest, PLAIN, Reply, STRUCTURED, Script, chunk, chunk_claiming, data, error, hole, option_reply,
    },
    script::{simple, status},
    stale,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warmd_cbt::{
    disk::{ErrorKind, ReadDisk, WriteDisk},
    units::Offset,
};
use warmd_disks::nbd::{Errno, NbdCause, NbdDisk, NbdError, NbdOptions, Violation, list_exports};

/// Reads 4096 bytes at 8192 from a server that answers with these bytes; gives the error.
async fn failed_read(
    export: common::script::ScriptedExport,
    answer: impl Fn(NbdRequest) -> Vec<u8> + Send + Sync + 'static,
) -> NbdError {
    in_time(async {
        let server = Script::new(export, move |request| Reply::Bytes(answer(request)));
        let disk = NbdDisk::open(server.options()).await.unwrap();
        let error = disk.read_at(Offset(8192), stale(4096)).await.unwrap_err();
        let again = disk.read_at(Offset(0), stale(512)).await.unwrap_err();
        if matches!(error.cause, NbdCause::Protocol(_)) {
            assert!(matches!(again.cause, NbdCause::Closed(_)), "the connection still serves: {again}");
        }
        error
    })
    .await
}

#[track_caller]
fn assert_violation(error: &NbdError, expected: &Violation) {
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    match &error.cause {
        NbdCause::Protocol(found) => assert_eq!(found, expected),
        other => panic!("expected {expected:?}, found {other:?}"),
    }
}

#[tokio::test]
async fn broken_replies_to_a_read_end_the_connection() {
    type Answer = Box<dyn Fn(NbdRequest) -> Vec<u8> + Send + Sync>;
    let plain: Vec<(Answer, Violation)> = vec![
        (Box::new(|_| vec![0x11; 16]), Violation::ReplyMagic(0x1111_1111)),
        (Box::new(|_| simple(0, 0xdead, &[])), Violation::UnknownCookie(0xdead)),
        (Box::new(|r| simple(0, r.cookie + (1 << 32), &[])), Violation::UnknownCookie(2 << 32)),
        (Box::new(|r| chunk(true, 0, r.cookie, &[])), Violation::NotNegotiated),
    ];
    for (answer, expected) in plain {
        assert_violation(&failed_read(PLAIN, answer).await, &expected);
    }

    let outside = |offset, length| Violation::OutsideRequest { offset, length };
    let length = |kind, length| Violation::ChunkLength { kind, length };
    let half = vec![1; 2048];
    let (first, second) = (half.clone(), half.clone());
    let structured: Vec<(Answer, Violation)> = vec![
        (Box::new(|r| simple(0, r.cookie, &[0; 4096])), Violation::SimpleReply),
        (Box::new(|r| chunk_claiming(true, 1, r.cookie, u32::MAX, &[])), length(1, u32::MAX)),
        (Box::new(|r| chunk_claiming(true, 1, r.cookie, 8 + 4097, &[])), length(1, 8 + 4097)),
        (Box::new(|r| chunk(true, 1, r.cookie, &data(8192, &[]))), length(1, 8)),
        (Box::new(|r| chunk(true, 1, r.cookie, &data(8191, &[0; 4096]))), outside(8191, 4096)),
        (Box::new(|r| chunk(true, 1, r.cookie, &data(12288, &[0; 1]))), outside(12288, 1)),
        (Box::new(|r| chunk(true, 2, r.cookie, &hole(8192, 4097))), outside(8192, 4097)),
        (Box::new(|r| chunk(true, 2, r.cookie, &hole(u64::MAX, 4096))), outside(u64::MAX, 4096)),
        (Box::new(|r| chunk(true, 2, r.cookie, &hole(8192, 0))), outside(8192, 0)),
        (Box::new(|r| chunk(true, 2, r.cookie, &[0; 13])), length(2, 13)),
        (
            Box::new(move |r| {
                let one = chunk(false, 1, r.cookie, &data(8192, &first));
                [one.clone(), one].concat()
            }),
            Violation::Overlap { offset: 8192, length: 2048 },
        ),
        (
            Box::new(move |r| chunk(true, 1, r.cookie, &data(8192, &second))),
            Violation::Incomplete { missing: 2048 },
        ),
        (Box::new(|r| chunk(true, 0, r.cookie, &[])), Violation::Incomplete { missing: 4096 }),
        (Box::new(|r| chunk(false, 0, r.cookie, &[])), Violation::EmptyChunk),
        (Box::new(|r| chunk(true, 0, r.cookie, &[1])), length(0, 1)),
        (Box::new(|r| chunk(true, 99, r.cookie, &[0; 8])), Violation::ChunkType(99)),
        (Box::new(|r| chunk(true, 5, r.cookie, &status(7, &[(4096, 0)]))), Violation::ChunkMismatch(5)),
        (Box::new(|r| chunk(true, 0x8001, r.cookie, &[0, 0])), length(0x8001, 2)),
        (Box::new(|r| chunk_claiming(true, 0x8001, r.cookie, 1 << 30, &[])), length(0x8001, 1 << 30)),
        (Box::new(|r| chunk(true, 0x8001, r.cookie, &error(0, b""))), Violation::ErrorZero),
        (Box::new(|r| chunk(true, 0x8001, r.cookie, b"\0\0\0\x05\xff\xff")), Violation::ErrorMessage(0xffff)),
    ];
    for (answer, expected) in structured {
        assert_violation(&failed_read(STRUCTURED, answer).await, &expected);
    }
}

#[tokio::test]
async fn a_read_in_chunks_of_any_order_is_put_together() {
    let server = Script::new(STRUCTURED, |r| {
        let late = chunk(false, 1, r.cookie, &data(r.offset + 3000, &[3; 1096]));
        let zero = chunk(false, 2, r.cookie, &hole(r.offset + 1000, 2000));
        let early = chunk(false, 1, r.cookie, &data(r.offset, &[1; 1000]));
        Reply::Bytes([late, zero, early, chunk(true, 0, r.cookie, &[])].concat())
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let read = in_time(disk.read_at(Offset(8192), stale(4096))).await.unwrap();
    assert_eq!(read[..], [vec![1; 1000], vec![0; 2000], vec![3; 1096]].concat());
}

#[tokio::test]
async fn an_error_chunk_fails_only_its_request_and_keeps_the_words() {
    let server = Script::new(STRUCTURED, |r| {
        if r.number > 0 {
            return Reply::Bytes(chunk(true, 1, r.cookie, &data(r.offset, &vec![9; r.length as usize])));
        }
        let some = chunk(false, 1, r.cookie, &data(r.offset, &[1; 512]));
        let mut at = error(5, b"bad\nsector");
        at.extend((r.offset + 512).to_be_bytes());
        let second = chunk(false, 0x8001, r.cookie, &error(22, b"never mind"));
        Reply::Bytes(
            [some, chunk(false, 0x8002, r.cookie, &at), second, chunk(true, 0, r.cookie, &[])].concat(),
        )
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let failed = in_time(disk.read_at(Offset(8192), stale(4096))).await.unwrap_err();
    assert_eq!((failed.kind(), failed.errno()), (ErrorKind::Media, Some(Errno::EIO)));
    let text = failed.to_string();
    assert_eq!(text, "NBD READ of 4096 bytes at 8192: the server answers EIO (5) (\"bad sector\")");
    assert_eq!(in_time(disk.read_at(Offset(0), stale(16))).await.unwrap()[..], [9; 16]);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn streams_that_end_early_are_lost_connections() {
    for cut in [1, 15, 16, 20, 27, 28, 100] {
        let server = Script::new(STRUCTURED, move |r| {
            let whole = chunk(true, 1, r.cookie, &data(r.offset, &vec![1; r.length as usize]));
            Reply::Hangup(whole[..cut].to_vec())
        });
        let disk = NbdDisk::open(server.options()).await.unwrap();
        let error = in_time(disk.read_at(Offset(8192), stale(4096))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "cut after {cut} bytes: {error}");
    }
}

#[tokio::test]
async fn data_for_a_write_ends_the_connection() {
    let server =
        Script::new(STRUCTURED, |r| Reply::Bytes(chunk(true, 1, r.cookie, &data(r.offset, &[0; 16]))));
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let error = in_time(disk.write_at(Offset(0), buffer(&[1; 512]), 0..512, false)).await.unwrap_err();
    assert_violation(&error, &Violation::ChunkMismatch(1));
}

#[tokio::test]
async fn broken_block_status_is_refused() {
    type Body = Vec<u8>;
    let length = |length| Violation::ChunkLength { kind: 5, length };
    let cases: Vec<(Body, Violation)> = vec![
        (status(7, &[]), length(4)),
        (status(7, &[(0, 0)]), Violation::StatusExtent),
        (status(7, &[(4096, 0), (0, 1)]), Violation::StatusExtent),
        // What follows the request's end, or a descriptor that reaches past it, is no answer.
        (status(7, &[(65536, 0), (512, 1), (512, 0)]), Violation::StatusExtent),
        (status(7, &[(65537, 0), (512, 1)]), Violation::StatusExtent),
        (status(7, &[(65536, 0), (0, 1)]), Violation::StatusExtent),
        (status(8, &[(4096, 0)]), Violation::StatusContext(8)),
        (status(7, &[(4096, 0)])[..11].to_vec(), length(11)),
    ];
    for (body, expected) in cases {
        let server = Script::new(STRUCTURED, move |r| Reply::Bytes(chunk(true, 5, r.cookie, &body)));
        let disk = NbdDisk::open(server.options()).await.unwrap();
        let error = in_time(disk.block_status(extent(0, 65536), false)).await.unwrap_err();
        assert_violation(&error, &expected);
    }
    let told_nothing = |r: NbdRequest| Reply::Bytes(chunk(true, 0, r.cookie, &[]));
    let server = Script::new(STRUCTURED, told_nothing);
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let error = in_time(disk.allocation(extent(0, 65536))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    let told_twice = |r: NbdRequest| {
        let once = status(7, &[(4096, 0)]);
        Reply::Bytes([chunk(false, 5, r.cookie, &once), chunk(true, 5, r.cookie, &once)].concat())
    };
    let server = Script::new(STRUCTURED, told_twice);
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let error = in_time(disk.block_status(extent(0, 65536), false)).await.unwrap_err();
    assert_violation(&error, &Violation::StatusContext(7));
}

#[tokio::test]
async fn a_last_descriptor_past_the_requests_end_is_cut() {
    for body in [
        status(7, &[(65536, 1), (512, 0)]),
        status(7, &[(4096, 1), (61440, 1), (u32::MAX, 0)]),
        status(7, &[(65536 + 512, 1)]),
    ] {
        let server = Script::new(STRUCTURED, move |r| Reply::Bytes(chunk(true, 5, r.cookie, &body)));
        let disk = NbdDisk::open(server.options()).await.unwrap();
        let told = in_time(disk.block_status(extent(0, 65536), false)).await.unwrap();
        let runs: Vec<_> = told[0].runs.iter().map(|run| (run.extent, run.flags)).collect();
        assert_eq!(runs, [(extent(0, 65536), 1)]);
    }
}

#[tokio::test]
async fn a_short_block_status_is_asked_on_until_the_range_is_covered() {
    let server = Script::new(STRUCTURED, |r| {
        // One kilobyte at a time, every third dirty; the last reaches past what was asked.
        let flags = u32::from((r.offset / 1024).is_multiple_of(3));
        Reply::Bytes(chunk(true, 5, r.cookie, &status(7, &[(1024, flags)])))
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let found = in_time(dirty(&disk, "base:allocation", extent(1024, 10_000))).await.unwrap();
    assert_eq!(found, [extent(3072, 1024), extent(6144, 1024), extent(9216, 1024)]);
}

#[tokio::test]
async fn silence_is_a_timeout_that_ends_the_connection() {
    let server = Script::new(PLAIN, |r| match r.number {
        0 => Reply::Silence,
        _ => Reply::Bytes(simple(0, r.cookie, &vec![7; r.length as usize])),
    });
    let options = NbdOptions { request_timeout: Duration::from_millis(100), ..server.options() };
    let disk = NbdDisk::open(options).await.unwrap();
    let error = in_time(disk.read_at(Offset(512), stale(512))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("512 bytes at 512"), "{error}");
    let after = in_time(disk.read_at(Offset(0), stale(512))).await.unwrap_err();
    assert_eq!(after.kind(), ErrorKind::Connection, "{after}");
}

#[tokio::test]
async fn a_server_that_stops_reading_is_a_timeout() {
    let info = [&[0, 0][..], &(64u64 << 20).to_be_bytes(), &[0, 0b10_1101]].concat();
    let answers = [
        b"NBDMAGICIHAVEOPT\x00\x03".to_vec(),
        option_reply(8, 1 << 31 | 1, b""),
        option_reply(7, 3, &info),
        option_reply(7, 1, b""),
    ]
    .concat();
    let server = Script::raw(move |mut stream, _| {
        let answers = answers.clone();
        async move {
            stream.write_all(&answers).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    let options = NbdOptions { request_timeout: Duration::from_millis(200), ..server.options() };
    let disk = NbdDisk::open(options).await.unwrap();
    let error = in_time(disk.write_at(Offset(0), stale(32 << 20), 0..32 << 20, false)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn a_write_acknowledged_before_it_was_sent_is_a_lie() {
    let info = [&[0, 0][..], &(64u64 << 20).to_be_bytes(), &[0, 0b10_1101]].concat();
    let answers = [
        b"NBDMAGICIHAVEOPT\x00\x03".to_vec(),
        option_reply(8, 1 << 31 | 1, b""),
        option_reply(7, 3, &info),
        option_reply(7, 1, b""),
    ]
    .concat();
    let server = Script::raw(move |mut stream, _| {
        let answers = answers.clone();
        async move {
            stream.write_all(&answers).await.unwrap();
            // The handshake's 4 + 16 + 25 bytes and the request's header, but not its data.
            stream.read_exact(&mut [0; 4 + 16 + 25 + 28]).await.unwrap();
            stream.write_all(&simple(0, 1 << 32, &[])).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let error = in_time(disk.write_at(Offset(0), stale(32 << 20), 0..32 << 20, false)).await.unwrap_err();
    assert_violation(&error, &Violation::EarlyAck);
    let after = in_time(disk.read_at(Offset(0), stale(512))).await.unwrap_err();
    assert_eq!(after.kind(), ErrorKind::Connection, "the connection was kept: {after}");
}

#[tokio::test]
async fn a_cancelled_read_is_drained_and_its_buffer_comes_back() {
    let server = Script::new(PLAIN, |r| {
        if r.number == 0 {
            return Reply::Silence;
        }
        let late = simple(0, 1 << 32, &[1; 4096]);
        Reply::Bytes([late, simple(0, r.cookie, &vec![2; r.length as usize])].concat())
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let pool = warmd_cbt::buffer::BufferPool::new(1, 4096);
    let lent = pool.take(4096).await;
    let cancelled = tokio::time::timeout(Duration::from_millis(50), disk.read_at(Offset(0), lent)).await;
    assert!(cancelled.is_err());
    assert_eq!(pool.available(), 0, "the reply may still come: its buffer must wait for it");
    assert_eq!(in_time(disk.read_at(Offset(512), stale(512))).await.unwrap()[..], [2; 512]);
    assert_eq!(in_time(pool.take(1)).await.len(), 1);
}

#[tokio::test]
async fn server_that_refuses_to_zero_gets_written_zeroes() {
    let written = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&written);
    let server = Script::new(PLAIN, move |r| {
        let refused = r.command == 6;
        if r.command == 1 {
            seen.lock().unwrap().push((r.offset, r.length));
        }
        Reply::Bytes(simple(if refused { 95 } else { 0 }, r.cookie, &[]))
    });
    let disk = NbdDisk::open(server.options()).await.unwrap();
    in_time(disk.write_zeroes(extent(4096, 900_000))).await.unwrap();
    let mut written = written.lock().unwrap().clone();
    written.sort_unstable();
    let mut at = 4096;
    for (offset, length) in written {
        assert_eq!(offset, at, "a gap, or the same place twice");
        at += u64::from(length);
    }
    assert_eq!(at, 4096 + 900_000);
}

#[tokio::test]
async fn an_error_of_the_zeroing_itself_is_not_papered_over() {
    let server =
        Script::new(PLAIN, |r| Reply::Bytes(simple(if r.command == 6 { 28 } else { 0 }, r.cookie, &[])));
    let disk = NbdDisk::open(server.options()).await.unwrap();
    let error = in_time(disk.write_zeroes(extent(0, 65536))).await.unwrap_err();
    assert_eq!((error.kind, error.extent), (ErrorKind::NoSpace, Some(extent(0, 65536))));
}

#[tokio::test]
async fn a_server_without_flush_is_refused_unless_trusted() {
    let no_flush = common::script::ScriptedExport { flags: 1, ..PLAIN };
    let server = Script::new(no_flush, |r| Reply::Bytes(simple(0, r.cookie, &[])));
    let disk = NbdDisk::open(server.options()).await.unwrap();
    assert_eq!(in_time(disk.flush()).await.unwrap_err().kind, ErrorKind::Refused);
    let trusted = NbdOptions { trust_without_flush: true, ..server.options() };
    in_time(NbdDisk::open(trusted).await.unwrap().flush()).await.unwrap();
    let reader = NbdOptions { writable: false, ..server.options() };
    in_time(NbdDisk::open(reader).await.unwrap().flush()).await.unwrap();
}

#[tokio::test]
async fn a_flush_whose_connection_breaks_is_not_made_again() {
    let flushes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&flushes);
    let server = Script::new(PLAIN, move |r| {
        let breaks = r.command == 3 && seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        if breaks { Reply::Hangup(Vec::new()) } else { Reply::Bytes(simple(0, r.cookie, &[])) }
    });
    let options = NbdOptions { reconnect_for: Duration::from_secs(10), ..server.options() };
    let disk = NbdDisk::open(options).await.unwrap();
    in_time(disk.write(Offset(0), buffer(&[1; 512]), 0..512)).await.unwrap();
    let error = in_time(disk.flush()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert_eq!(flushes.load(std::sync::atomic::Ordering::SeqCst), 1);
    in_time(disk.flush()).await.expect("the loss was reported by the flush that met it");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn write_on_a_lost_connection_is_repeated_unchanged() {
    let server = Script::new(PLAIN, |r| match (r.connection, r.number) {
        (0..3, _) => Reply::Hangup(Vec::new()),
        _ => Reply::Bytes(simple(0, r.cookie, &[])),
    });
    let options = NbdOptions { reconnect_for: Duration::from_secs(10), ..server.options() };
    let disk = NbdDisk::open(options).await.unwrap();
    let back = in_time(disk.write_at(Offset(512), buffer(&[5; 1024]), 512..1024, false)).await.unwrap();
    assert_eq!(back[..], [5; 1024]);
    assert_eq!(server.connections(), 4);
    in_time(disk.flush()).await.expect("no write was acknowledged before a loss");
}

#[tokio::test]
async fn a_server_that_is_shutting_down_is_left_and_found_again() {
    let server = Script::new(PLAIN, |r| match r.connection {
        0 => Reply::Bytes(simple(108, r.cookie, &[])),
        _ => Reply::Bytes(simple(0, r.cookie, &vec![4; r.length as usize])),
    });
    let options = NbdOptions { reconnect_for: Duration::from_secs(10), ..server.options() };
    let disk = NbdDisk::open(options).await.unwrap();
    assert_eq!(in_time(disk.read_at(Offset(0), stale(64))).await.unwrap()[..], [4; 64]);
}

#[tokio::test]
async fn hostile_handshakes_are_refused() {
    let greeting = || b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    let no_structure = || [greeting(), option_reply(8, 1 << 31 | 1, b"")].concat();
    let structure = || [greeting(), option_reply(8, 1, b"")].concat();
    let with = |start: Vec<u8>, rest: Vec<u8>| [start, rest].concat();
    let mut lying = option_reply(7, 3, &[]);
    lying[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let info = |size: u64| [&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat();
    let blocks = [0, 3, 0, 0, 0, 3, 0, 0, 16, 0, 0, 1, 0, 0];
    let endless = (0..100).flat_map(|_| option_reply(7, 3, &[0, 9])).collect();
    let context = |id: u8, name: &str| option_reply(10, 4, &[&[0, 0, 0, id], name.as_bytes()].concat());
    let cases = [
        (b"SSH-2.0-OpenSSH_9".to_vec(), Violation::Greeting(0x5353_482d_322e_302d)),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53".to_vec(), Violation::Greeting(0x0000_4202_8186_1253)),
        (with(greeting(), vec![9; 20]), Violation::OptionMagic(0x0909_0909_0909_0909)),
        (with(greeting(), option_reply(7, 1, b"")), Violation::OptionMismatch { asked: 8, got: 7 }),
        (with(greeting(), option_reply(8, 2, b"")), Violation::OptionReply { option: 8, kind: 2 }),
        (with(no_structure(), lying), Violation::OptionLength { kind: 3, length: u32::MAX }),
        (with(no_structure(), option_reply(7, 1, b"")), Violation::NoExportInfo),
        (with(no_structure(), option_reply(7, 3, &[0])), Violation::OptionGarbled { kind: 3 }),
        (
            with(no_structure(), option_reply(7, 3, &blocks)),
            Violation::BlockSizes { minimum: 3, maximum: 65536 },
        ),
        (with(no_structure(), endless), Violation::OptionEndless { option: 7, limit: 64 }),
        (
            [no_structure(), option_reply(7, 3, &info(u64::MAX)), option_reply(7, 1, b"")].concat(),
            Violation::ExportSize(u64::MAX),
        ),
        (with(structure(), context(1, "base:other")), Violation::ContextGrant("base:other".into())),
        (
            [structure(), context(1, "base:allocation"), context(2, "base:allocation")].concat(),
            Violation::ContextGrant("base:allocation".into()),
        ),
    ];
    for (bytes, expected) in cases {
        let server = Script::parrot(bytes);
        let error = in_time(NbdDisk::open(server.options())).await.unwrap_err();
        assert_violation(&error, &expected);
    }

    let refusal = with(no_structure(), option_reply(7, 1 << 31 | 6, b"no such disk\x07"));
    let error = in_time(NbdDisk::open(Script::parrot(refusal).options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = "the server refuses the export \"x\": it has no export of that name (\"no such disk \")";
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn a_server_that_never_answers_the_handshake_is_a_timeout() {
    let server = Script::parrot(b"NBDMAGIC".to_vec());
    let options = NbdOptions { handshake_timeout: Duration::from_millis(50), ..server.options() };
    let error = in_time(NbdDisk::open(options)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn an_endless_list_of_exports_is_cut_off() {
    let mut bytes = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    (0..10_001).for_each(|_| bytes.extend(option_reply(3, 2, &[0, 0, 0, 1, b'x'])));
    let server = Script::parrot(bytes);
    let listed = in_time(list_exports(&server.options().address, Duration::from_secs(9))).await;
    assert_violation(&listed.unwrap_err(), &Violation::OptionEndless { option: 3, limit: 10_000 });
}

#[tokio::test]
async fn nobody_listening_is_a_connection_error() {
    let mut options = Script::parrot(Vec::new()).options();
    options.address = "unix:/nonexistent/socket".parse().unwrap();
    let error = in_time(NbdDisk::open(options)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
}

/// A server with one block in memory, whose first connection delays its write.
struct Hoarder {
    block: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    /// On this signal the first connection applies and answers the write that it holds.
    answer: tokio::sync::watch::Sender<bool>,
    script: Script,
}

const OLD: [u8; 4096] = [0x11; 4096];
const NEW: [u8; 4096] = [0x22; 4096];

impl Hoarder {
    /// With `hangs_up`, the first connection ends unanswered, and its write is applied when the second one is
    /// to flush.
    fn new(hangs_up: bool) -> Self {
        let block = std::sync::Arc::new(std::sync::Mutex::new(vec![0; 4096]));
        let held = std::sync::Arc::new(std::sync::Mutex::new(None::<Vec<u8>>));
        let (answer, told) = tokio::sync::watch::channel(false);
        let shared = std::sync::Arc::clone(&block);
        let script = Script::raw(move |mut stream, connection| {
            let (block, held, mut told) =
                (std::sync::Arc::clone(&shared), std::sync::Arc::clone(&held), told.clone());
            async move {
                common::script::shake(&mut stream, PLAIN).await.unwrap();
                let mut header = [0; 28];
                while stream.read_exact(&mut header).await.is_ok() {
                    let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
                    let length = u32::from_be_bytes(header[24..28].try_into().unwrap()) as usize;
                    let reply = match header[7] {
                        0 => simple(0, cookie, &block.lock().unwrap()[..length]),
                        1 => {
                            let mut data = vec![0; length];
                            stream.read_exact(&mut data).await.unwrap();
                            if connection == 0 && hangs_up {
                                *held.lock().unwrap() = Some(data);
                                return;
                            }
                            if connection == 0 {
                                told.wait_for(|told| *told).await.unwrap();
                            }
                            *block.lock().unwrap() = data;
                            simple(0, cookie, &[])
                        }
                        3 => {
                            if let Some(late) = held.lock().unwrap().take() {
                                *block.lock().unwrap() = late;
                            }
                            simple(0, cookie, &[])
                        }
                        _ => return,
                    };
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            }
        });
        Self { block, answer, script }
    }

    fn options(&self) -> NbdOptions {
        self.script.options()
    }

    /// For what must not be answered.
    fn hasty(&self) -> NbdOptions {
        NbdOptions { request_timeout: Duration::from_millis(300), ..self.options() }
    }

    /// Writes what is older; the write is abandoned.
    async fn give_up(&self) {
        let disk = NbdDisk::open(self.hasty()).await.unwrap();
        in_time(disk.write_at(Offset(0), buffer(&OLD), 0..4096, false))
            .await
            .expect_err("the server does not answer");
    }
}

#[tokio::test]
async fn nothing_newer_is_written_while_an_older_write_may_land() {
    let server = Hoarder::new(false);
    server.give_up().await;
    let early = in_time(NbdDisk::open(server.hasty())).await.expect_err("the older write is not over");
    assert_eq!(early.kind(), ErrorKind::Timeout, "{early}");
    assert!(early.to_string().contains("earlier connection"), "{early}");
    let reader = NbdOptions { writable: false, ..server.options() };
    in_time(NbdDisk::open(reader)).await.expect("reading is not writing");
    server.answer.send_replace(true);
    let disk = loop {
        match in_time(NbdDisk::open(server.options())).await {
            Ok(disk) => break disk,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{error}"),
        }
    };
    assert_eq!(server.block.lock().unwrap()[..], OLD, "it was answered, so it has landed");
    in_time(disk.write_at(Offset(0), buffer(&NEW), 0..4096, false)).await.unwrap();
    in_time(disk.sync()).await.unwrap();
    assert_eq!(server.block.lock().unwrap()[..], NEW);
}

#[tokio::test]
async fn older_write_over_a_newer_one_is_found_by_the_flush() {
    let server = Hoarder::new(true);
    server.give_up().await;
    let disk = in_time(NbdDisk::open(server.options())).await.unwrap();
    in_time(disk.write_at(Offset(0), buffer(&NEW), 0..4096, false)).await.unwrap();
    let overwritten = in_time(disk.flush()).await.expect_err("the block holds the older write");
    assert_eq!(server.block.lock().unwrap()[..], OLD, "the older write did not land");
    assert_eq!((overwritten.kind, overwritten.extent), (ErrorKind::Connection, Some(extent(0, 4096))));
    in_time(disk.write_at(Offset(0), buffer(&NEW), 0..4096, false)).await.unwrap();
    in_time(disk.flush()).await.expect("it was written again");
    assert_eq!(server.block.lock().unwrap()[..], NEW);
}

#[tokio::test]
async fn where_an_earlier_process_may_have_written_a_flush_reads_back() {
    let server = Hoarder::new(true);
    server.give_up().await;
    // Another process: it does not know of the write, and finds the export by another name.
    let disk = NbdOptions { export: "y".into(), unknown_past: true, ..server.options() };
    let disk = in_time(NbdDisk::open(disk)).await.unwrap();
    in_time(disk.write_at(Offset(0), buffer(&NEW), 0..4096, false)).await.unwrap();
    let overwritten = in_time(disk.flush()).await.expect_err("the block holds the older write");
    assert!(overwritten.to_string().contains("landed over"), "{overwritten}");
}
