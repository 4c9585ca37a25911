//! Random requests on a server that dies again and again, against a model in memory: in the end both hold the
//! same.

use std::time::Duration;

use crate::common::{
    buffer, extent, noise, seed,
    server::{Server, tempdir},
    stale, write_file,
};
use futures::future::try_join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, oneshot};
use warmd_cbt::{
    disk::{DiskError, ErrorKind, ReadDisk, WriteDisk},
    units::Offset,
};
use warmd_disks::nbd::{NbdDisk, NbdOptions};

const SIZE: usize = 4 << 20;
/// Each round gives every lane of the disk one request, so that none overlap.
const LANES: usize = 16;
const ROUNDS: usize = 60;

enum Step {
    Write(usize, Vec<u8>),
    Zero(usize, usize),
    Read(usize, usize),
}

fn step(random: &mut StdRng, lane: usize) -> Step {
    let width = SIZE / LANES;
    let at = random.random_range(0..width - 1);
    let len = random.random_range(1..=(width - at).min(100_000));
    let at = lane * width + at;
    match random.random_range(0..3) {
        0 => Step::Write(at, noise(random.random(), len)),
        1 => Step::Zero(at, len),
        _ => Step::Read(at, len),
    }
}

async fn act(disk: &NbdDisk, step: &Step, model: &[u8]) -> Result<(), DiskError> {
    match step {
        Step::Write(at, bytes) => {
            disk.write(Offset(*at as u64), buffer(bytes), 0..bytes.len()).await?;
        }
        Step::Zero(at, len) => disk.write_zeroes(extent(*at as u64, *len as u64)).await?,
        Step::Read(at, len) => {
            let read = disk.read(Offset(*at as u64), stale(*len)).await?;
            assert!(read[..] == model[*at..at + len], "wrong bytes of {len} at {at}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_again_and_again_loses_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let dir = tempdir();
    let mut model = noise(random.random(), SIZE);
    write_file(&dir.path().join("disk"), &model);
    let arguments = ["--filter=delay", "file", "disk", "rdelay=3ms", "wdelay=3ms"];
    let mut server = Server::nbdkit_in(dir, &arguments).await;
    let path = server.path("disk");
    let options = NbdOptions { in_flight: 4, ..server.options("").writable() };
    let disk = NbdDisk::open(options).await.unwrap();

    let (kill, mut orders) = mpsc::channel::<(Duration, oneshot::Sender<()>)>(1);
    let killer = tokio::spawn(async move {
        while let Some((after, done)) = orders.recv().await {
            tokio::time::sleep(after).await;
            server.restart().await;
            let _ = done.send(());
        }
        server
    });

    let mut losses = 0;
    for round in 0..ROUNDS {
        let steps: Vec<_> = (0..LANES).map(|lane| step(&mut random, lane)).collect();
        let killed = round % 4 == 3;
        let (done, back) = oneshot::channel();
        if killed {
            kill.send((Duration::from_micros(random.random_range(0..6000)), done)).await.unwrap();
        }
        let work = try_join_all(steps.iter().map(|step| act(&disk, step, &model)));
        tokio::time::timeout(crate::common::PATIENCE, work).await.expect("the requests hang").unwrap();
        for step in &steps {
            match step {
                Step::Write(at, bytes) => model[*at..at + bytes.len()].copy_from_slice(bytes),
                Step::Zero(at, len) => model[*at..at + len].fill(0),
                Step::Read(..) => {}
            }
        }
        if killed {
            back.await.unwrap();
        }
        if let Err(error) = disk.flush().await {
            assert!(killed, "a loss where none can be: {error}");
            assert_eq!(error.kind, ErrorKind::Connection, "{error}");
            losses += 1;
            // With a file behind it, nothing is really gone: what counts is that the change was sent.
            disk.flush().await.unwrap();
        }
    }
    println!("{losses} flushes of {ROUNDS} told of a lost connection");
    assert!(losses > 0, "no kill ever met an unflushed write");
    drop((kill, disk));
    let _server = killer.await.unwrap();
    assert!(std::fs::read(path).unwrap() == model, "the disk differs from the model");
}
