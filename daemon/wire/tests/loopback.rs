//! Reading a disk over TLS on loopback: what comes is what lies there, and who is not named is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod movers;

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use movers::{Movers, SECRET};
use tokio::time::{sleep, timeout};
use warmd_cbt::{
    buffer::Buffer,
    disk::{ErrorKind, Operation, ReadDisk},
    units::{BLOCK, Extent, Length, Offset},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk};
use warmd_wire::{MoverExport, RemoteDisk, ZERO_DIGEST, digest_of};

const SIZE: u64 = 8 * (1 << 20) + 4096;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(Offset(start), Length(len)).unwrap()
}

/// Blocks of zeroes, of a pattern, and every fifth of noise.
fn disk(faults: &Faults) -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new("memory", Length(SIZE), faults.clone(), 7);
    for block in (0..SIZE.div_ceil(BLOCK)).filter(|block| block % 3 != 0) {
        disk.set_fill(block, block * 0x0101_0101_0101);
    }
    Arc::new(disk)
}

async fn whole(disk: &RemoteDisk, step: u64) -> Vec<u8> {
    let pieces: Vec<_> = extent(0, SIZE).split(step).collect();
    let reads = pieces.iter().map(|piece| disk.read(piece.start(), Buffer::unpooled(piece.len().0 as usize)));
    try_join_all(reads).await.unwrap().into_iter().flat_map(|buffer| buffer.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_digests_and_allocation_are_those_of_the_disk() {
    let movers = Movers::new();
    let memory = disk(&Faults::default());
    let server = movers.serve(memory.clone()).await;
    let remote = RemoteDisk::open(server.options(&movers, "target")).await.unwrap();
    assert_eq!(remote.size(), Length(SIZE));
    let contents = memory.contents();
    for step in [BLOCK, 1 << 20] {
        assert!(whole(&remote, step).await == contents, "with reads of {step} bytes");
    }
    // More than the server reads at once.
    let large = remote.read(Offset(0), Buffer::unpooled(4 << 20)).await.unwrap();
    assert!(large[..] == contents[..4 << 20]);

    let digests = remote.digests(extent(0, SIZE), BLOCK as u32).await.unwrap();
    let right: Vec<_> = contents.chunks(BLOCK as usize).map(digest_of).collect();
    assert_eq!(digests, right);
    assert_eq!((digests[0], digests[1] == ZERO_DIGEST), (ZERO_DIGEST, false));
    let wrong = remote.digests(extent(0, SIZE), 1000).await.unwrap_err();
    assert!(wrong.to_string().contains("size of blocks"), "{wrong}");

    let mut at = Offset(0);
    while let Some(rest) = Extent::between(at, Offset(SIZE)) {
        for run in remote.allocation(rest).await.unwrap() {
            assert_eq!(run.extent.start(), at, "no gap");
            at = run.extent.end();
            let range = run.extent.start().0 as usize..at.0 as usize;
            assert!(!run.zero || contents[range].iter().all(|byte| *byte == 0));
        }
    }
    remote.close().await;
}

#[tokio::test]
async fn only_the_named_mover_with_the_secret_may_read() {
    let movers = Movers::new();
    let server = movers.serve(disk(&Faults::default())).await;
    let refused = |options, what: &'static str| async move {
        let error = timeout(Duration::from_secs(10), RemoteDisk::open(options)).await.unwrap().unwrap_err();
        assert_eq!((error.kind, error.operation), (ErrorKind::Refused, Operation::Open), "{what}: {error}");
        error.to_string()
    };
    let mut options = server.options(&movers, "target");
    options.secret[31] ^= 1;
    assert!(refused(options, "wrong secret").await.contains("no such export for this mover and secret"));
    let mut options = server.options(&movers, "target");
    options.export = "other".to_owned();
    assert!(refused(options, "unknown export").await.contains("no such export for this mover and secret"));
    let options = server.options(&movers, "stranger");
    assert!(refused(options, "another mover").await.contains("no such export for this mover and secret"));
    let options = server.options(&movers, "operator");
    assert!(refused(options, "no mover").await.contains("certificate is no mover's"));

    let mut options = server.options(&movers, "target");
    options.tls = movers.identity("target").client("another").unwrap();
    assert!(refused(options, "another server").await.contains("is another mover's"));
    let others = Movers::new();
    let mut options = server.options(&movers, "target");
    options.tls = others.identity("target").client("source").unwrap();
    assert!(refused(options, "a server of another CA").await.contains("not signed by the CA"));
    let mut options = server.options(&movers, "target");
    let mut mixed = others.identity("target");
    mixed.ca = movers.identity("target").ca;
    options.tls = mixed.client("source").unwrap();
    assert!(refused(options, "a client of another CA").await.contains("refused this mover's certificate"));

    RemoteDisk::open(server.options(&movers, "target")).await.expect("nothing changed for the right one");
}

#[tokio::test]
async fn an_export_that_is_removed_ends_its_connections() {
    let movers = Movers::new();
    let server = movers.serve(disk(&Faults::default())).await;
    let mut options = server.options(&movers, "target");
    options.request_timeout = Duration::from_secs(5);
    let remote = RemoteDisk::open(options).await.unwrap();
    remote.read(Offset(0), Buffer::unpooled(4096 * 16)).await.unwrap();
    assert!(server.exports.remove("disk") && !server.exports.remove("disk"));
    sleep(Duration::from_millis(300)).await;
    let error = remote.read(Offset(0), Buffer::unpooled(4096 * 16)).await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Refused, Operation::Read), "{error}");
}

#[tokio::test]
async fn errors_of_the_disk_come_with_their_kind() {
    let movers = Movers::new();
    let faults = Faults::default();
    let server = movers.serve(disk(&faults)).await;
    let remote = RemoteDisk::open(server.options(&movers, "target")).await.unwrap();
    faults.add(DiskEvent::Read, 0, DiskFault::Fail);
    let error = remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.unwrap_err();
    let here = disk(&faults);
    faults.add(DiskEvent::Read, 0, DiskFault::Fail);
    let right = here.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.unwrap_err();
    assert_eq!(error.kind, right.kind);
    assert!(error.to_string().contains(&right.to_string()), "{error} has {right}");
    remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.expect("the next one is answered");
    let past = remote.read(Offset(SIZE - 4096), Buffer::unpooled(8192)).await.unwrap_err();
    assert!(past.to_string().contains("past the end"), "{past}");
}

#[tokio::test]
async fn a_replaced_export_of_another_size_is_not_read() {
    let movers = Movers::new();
    let server = movers.serve(disk(&Faults::default())).await;
    let remote = RemoteDisk::open(server.options(&movers, "target")).await.unwrap();
    let other = MemoryDisk::new("other", Length(BLOCK), Faults::default(), 1);
    let (id, reader) = ("disk".to_owned(), "target".to_owned());
    server.exports.add(MoverExport { id, secret: SECRET, reader, disk: Arc::new(other) });
    sleep(Duration::from_millis(500)).await;
    let error = remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("another snapshot"), "{error}");
}
