//! Peers that vanish, stall or come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod movers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use movers::{Movers, proxy::Proxy};
use tokio::time::{sleep, timeout};
use warmd_cbt::{
    buffer::Buffer,
    disk::{ErrorKind, ReadDisk},
    units::{BLOCK, Length, Offset},
};
use warmd_cbt_testing::{Faults, MemoryDisk};
use warmd_wire::RemoteDisk;

const BLOCKS: u64 = 256;

fn disk() -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new("memory", Length(BLOCKS * BLOCK), Faults::default(), 7);
    (0..BLOCKS).for_each(|block| disk.set_fill(block, block + 1));
    Arc::new(disk)
}

async fn read(remote: &RemoteDisk, block: u64) {
    let buffer = remote.read(Offset(block * BLOCK), Buffer::unpooled(BLOCK as usize)).await.unwrap();
    assert_eq!(buffer[..8], (block + 1).to_le_bytes(), "block {block}");
}

/// Waits until `is_so`; how long that took.
async fn took(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(15), waiting).await.unwrap_or_else(|_| panic!("{what}: not within 15 s"));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peer_is_noticed_by_both_sides_idle_and_busy() {
    let movers = Movers::new();
    let memory = disk();
    let unused = Arc::strong_count(&memory) + 1;
    let server = movers.serve(memory.clone()).await;
    let proxy = Proxy::start(server.address).await;
    let mut options = server.options(&movers, "target");
    options.address = proxy.address.to_string();
    options.request_timeout = Duration::from_secs(12);
    let idle = RemoteDisk::open(options.clone()).await.unwrap();
    let busy = Arc::new(RemoteDisk::open(options).await.unwrap());
    took("all connections", || idle.connections() + busy.connections() == 8).await;
    let reader = Arc::clone(&busy);
    let reading = tokio::spawn(async move {
        for block in (0..BLOCKS).cycle() {
            let place = Offset(block * BLOCK);
            if let Err(error) = reader.read(place, Buffer::unpooled(BLOCK as usize)).await {
                return error;
            }
        }
        unreachable!("a cycle has no end")
    });
    // Longer than the silence that counts: pings keep an idle connection.
    sleep(Duration::from_secs(9)).await;
    assert_eq!((idle.connections(), busy.connections()), (4, 4));
    assert_eq!(Arc::strong_count(&memory), unused + 8, "each connection has the disk");
    proxy.stall();
    let (here, there) = tokio::join!(
        took("the readers notice", || idle.connections() + busy.connections() == 0),
        took("the server notices", || Arc::strong_count(&memory) == unused),
    );
    assert!(here < Duration::from_secs(10) && there < Duration::from_secs(10), "{here:?} {there:?}");
    let error = reading.await.unwrap();
    assert!(matches!(error.kind, ErrorKind::Connection | ErrorKind::Timeout), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_repeated_when_connections_are_cut() {
    let movers = Movers::new();
    let server = movers.serve(disk()).await;
    let proxy = Proxy::start(server.address).await;
    let mut options = server.options(&movers, "target");
    options.address = proxy.address.to_string();
    let remote = Arc::new(RemoteDisk::open(options).await.unwrap());
    let reader = Arc::clone(&remote);
    let reading = tokio::spawn(async move {
        for block in 0..BLOCKS {
            read(&reader, block).await;
            sleep(Duration::from_millis(5)).await;
        }
    });
    for _ in 0..3 {
        sleep(Duration::from_millis(300)).await;
        proxy.cut();
    }
    timeout(Duration::from_secs(30), reading).await.unwrap().unwrap();
    took("all connections come back", || remote.connections() == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_does_not_come_back_is_a_lost_connection() {
    let movers = Movers::new();
    let server = movers.serve(disk()).await;
    let mut options = server.options(&movers, "target");
    options.request_timeout = Duration::from_secs(2);
    let remote = RemoteDisk::open(options.clone()).await.unwrap();
    read(&remote, 3).await;
    server.kill();
    let begun = Instant::now();
    sleep(Duration::from_millis(100)).await;
    let error = remote.read(Offset(0), Buffer::unpooled(BLOCK as usize)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let error = RemoteDisk::open(options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert!(error.to_string().contains("export disk of the mover at 127.0.0.1"), "{error}");
}
