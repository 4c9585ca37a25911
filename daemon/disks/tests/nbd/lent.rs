//! Memory that was lent to a socket: for any end of the connection, its server reads the bytes that were
//! written, not the buffer's later content.

use std::time::Duration;

use crate::common::{
    in_time,
    script::{PLAIN, Script, shake, simple},
};
use rustix::io::ioctl_fionread;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};
use warmd_cbt::{
    buffer::{Buffer, BufferPool},
    units::Offset,
};
use warmd_disks::nbd::{NbdDisk, NbdOptions};

const LENGTH: usize = 256 << 10;
const HEADER: usize = 28;
const WRITTEN: u8 = 0x11;
const LATER: u8 = 0x22;

/// A server that lets the first request lie in its queue until the test lets it look.
struct Late {
    script: Script,
    look: watch::Sender<bool>,
    found: watch::Receiver<Option<Vec<u8>>>,
    queued: watch::Receiver<bool>,
}

impl Late {
    /// With `ends`, it ends its side of the first connection once the request lies there, and serves later
    /// ones.
    fn new(ends: bool) -> Self {
        let (look, looks) = watch::channel(false);
        let (find, found) = watch::channel(None);
        let (queue, queued) = watch::channel(false);
        let script = Script::raw(move |mut stream, connection| {
            let (mut looks, find, queue) = (looks.clone(), find.clone(), queue.clone());
            async move {
                shake(&mut stream, PLAIN).await.expect("a client that shakes hands");
                if connection > 0 {
                    return serve(stream).await;
                }
                while ioctl_fionread(&stream).expect("a socket's queue") < (HEADER + LENGTH) as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                queue.send_replace(true);
                if ends {
                    stream.shutdown().await.expect("the end of one side");
                }
                looks.wait_for(|look| *look).await.expect("the test goes on");
                let mut request = vec![0; HEADER + LENGTH];
                stream.read_exact(&mut request).await.expect("the request still lies there");
                find.send_replace(Some(request.split_off(HEADER)));
            }
        });
        Self { script, look, found, queued }
    }

    fn options(&self) -> NbdOptions {
        NbdOptions { connections: 1, ..self.script.options() }
    }

    /// The bytes that the server finds now.
    async fn finds(mut self) -> Vec<u8> {
        self.look.send_replace(true);
        let found = in_time(self.found.wait_for(Option::is_some)).await.expect("the server looks");
        found.clone().expect("waited for")
    }
}

/// Acknowledges writes.
async fn serve(mut stream: UnixStream) {
    let mut request = vec![0; HEADER + LENGTH];
    while stream.read_exact(&mut request).await.is_ok() {
        let cookie = u64::from_be_bytes(request[8..16].try_into().expect("eight bytes"));
        if stream.write_all(&simple(0, cookie, &[])).await.is_err() {
            return;
        }
    }
}

async fn filled(pool: &BufferPool, byte: u8) -> Buffer {
    let mut buffer = in_time(pool.take(LENGTH)).await;
    buffer.fill(byte);
    buffer
}

fn assert_as_written(found: &[u8]) {
    let wrong = found.iter().position(|byte| *byte != WRITTEN);
    assert_eq!(wrong, None, "the server read what the buffer was filled with later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_timed_out_stays_as_it_was() {
    let (late, pool) = (Late::new(false), BufferPool::new(1, LENGTH));
    let options = NbdOptions { request_timeout: Duration::from_millis(300), ..late.options() };
    let disk = NbdDisk::open(options).await.expect("the disk opens");
    let write = disk.write_at(Offset(0), filled(&pool, WRITTEN).await, 0..LENGTH, false);
    in_time(write).await.expect_err("the server does not answer");
    let _later = filled(&pool, LATER).await;
    assert_as_written(&late.finds().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_nobody_waits_for_stays_as_it_was() {
    let (mut late, pool) = (Late::new(false), BufferPool::new(1, LENGTH));
    let disk = NbdDisk::open(late.options()).await.expect("the disk opens");
    let write = disk.write_at(Offset(0), filled(&pool, WRITTEN).await, 0..LENGTH, false);
    tokio::select! {
        _ = write => panic!("the server answered"),
        queued = in_time(late.queued.wait_for(|queued| *queued)) => {
            assert!(queued.is_ok_and(|queued| *queued));
        }
    }
    let _later = filled(&pool, LATER).await;
    assert_as_written(&late.finds().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_made_again_stays_as_it_was() {
    let (late, pool) = (Late::new(true), BufferPool::new(1, LENGTH));
    let options = NbdOptions { reconnect_for: Duration::from_secs(10), ..late.options() };
    let disk = NbdDisk::open(options).await.expect("the disk opens");
    let write = disk.write_at(Offset(0), filled(&pool, WRITTEN).await, 0..LENGTH, false);
    let mut written = in_time(write).await.expect("the second connection answers");
    assert_as_written(&written);
    assert_eq!(late.script.connections(), 2, "it was not made again");
    written.fill(LATER);
    assert_as_written(&late.finds().await);
}
