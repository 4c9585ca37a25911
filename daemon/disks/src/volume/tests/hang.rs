//! Volumes whose writes hang, or are abandoned while they run.
//!
//! Rule: a gate that a test shuts is always opened again at the test's end, as threads wait for it.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use warmd_cbt::{
    buffer::BufferPool,
    disk::{ErrorKind, Operation, WriteDisk},
    units::Offset,
};

use super::{Bench, Faulty, filled, hasty, write};
use crate::volume::VolumeErrorKind;

/// Opens the gate at the test's end in all cases: the runtime waits for threads that wait for the gate.
struct Opens(Arc<Faulty>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.gate.open();
    }
}

#[tokio::test]
async fn a_hung_write_is_fenced_off() {
    let bench = Bench::new();
    let faults = Arc::new(Faulty::default());
    let disk = bench.open_hasty(&faults).await;
    let _opens = Opens(Arc::clone(&faults));
    faults.gate.shut();
    let error = disk.write(Offset(0), filled(4096, 1), 0..4096).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    let error = disk.flush().await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Timeout, Operation::Flush), "{error}");
    drop(disk);
    let error = bench.try_open(&faults, hasty()).await.unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::Timeout, "the stale write may still land: {error}");
    faults.gate.open();
    let disk = bench.open(&faults).await;
    write(&disk, 0, 4096, 2).await;
    disk.flush().await.unwrap();
    assert_eq!(fs::read(&bench.path).unwrap()[..4096], [2; 4096]);
}

#[tokio::test]
async fn hanging_file_system_takes_not_all_buffers_or_threads() {
    const DISKS: usize = 5;
    let faults = Arc::new(Faulty::default());
    let _opens = Opens(Arc::clone(&faults));
    let lane = warmd_threads::named("disks that hang".into()).unwrap();
    let pool = BufferPool::with_reserve(96, 8, 4096);
    let share = pool.share("hung", false);
    let mut benches = Vec::new();
    for _ in 0..=DISKS {
        let bench = Bench::new();
        let mut disk = bench.open_hasty(&faults).await;
        disk.set_lane(Arc::clone(&lane));
        benches.push((bench, Arc::new(disk)));
    }
    faults.gate.shut();
    let (_bench, mut spare) = benches.pop().unwrap();
    // A refusal must come without a wait for this.
    Arc::get_mut(&mut spare).unwrap().set_deadline(Duration::from_mins(1));
    let mut writes = tokio::task::JoinSet::new();
    for (_, disk) in &benches {
        for at in 0..16 {
            let (disk, share) = (Arc::clone(disk), share.clone());
            writes.spawn(async move {
                let buffer = tokio::time::timeout(Duration::from_secs(9), share.take(4096)).await.unwrap();
                disk.write(Offset(at * 4096), buffer, 0..4096).await
            });
        }
    }
    while let Some(write) = writes.join_next().await {
        assert_eq!(write.unwrap().unwrap_err().kind, ErrorKind::Timeout);
    }
    // The begun calls hang, in buffers that are written off, and no further call begins.
    let begun = faults.gate.waiting.load(Ordering::SeqCst);
    assert!((warmd_threads::HANGING..=warmd_threads::AT_ONCE).contains(&begun), "{begun}");
    assert_eq!((pool.written_off(), pool.available()), (begun, 88));
    let asked = std::time::Instant::now();
    let error = spare.write(Offset(0), filled(4096, 1), 0..4096).await.unwrap_err();
    assert!(error.to_string().contains("calls hang on disks that hang"), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(20), "it waited");
    assert_eq!(faults.gate.waiting.load(Ordering::SeqCst), begun);

    faults.gate.open();
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while pool.written_off() > 0 {
        assert!(tokio::time::Instant::now() < until, "{} never came back", pool.written_off());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    write(&spare, 0, 4096, 1).await;
}

#[tokio::test]
async fn an_abandoned_write_breaks_the_disk_off() {
    let bench = Bench::new();
    let faults = Arc::new(Faulty::default());
    let disk = Arc::new(bench.open(&faults).await);
    let _opens = Opens(Arc::clone(&faults));
    faults.gate.shut();
    let writer = {
        let disk = Arc::clone(&disk);
        tokio::spawn(async move { disk.write(Offset(0), filled(4096, 1), 0..4096).await })
    };
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while faults.gate.waiting.load(Ordering::SeqCst) == 0 {
        assert!(tokio::time::Instant::now() < until, "the write never began");
        tokio::task::yield_now().await;
    }
    writer.abort();
    assert!(writer.await.is_err());
    assert!(disk.flush().await.is_err(), "a flush may not answer for an abandoned write");
    faults.gate.open();
}
