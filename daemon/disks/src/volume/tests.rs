//! Volumes against faults put in place of system calls, and against what other programs do to their files.

mod hang;

use std::{
    fs,
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use warmd_cbt::{
    buffer::Buffer,
    disk::{ErrorKind, Operation, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};

use super::{
    syscalls::{Calls, Kernel},
    *,
};
use std::{io, sync::Arc, time::Duration};

/// No multiple of a sector, so that the last bytes take another path than the others.
const SIZE: Length = Length((1 << 20) + 777);

/// The kernel with faults.
#[derive(Default)]
struct Faulty {
    /// At most so many bytes in one call; 0: no limit.
    most: usize,
    /// This many calls are interrupted first.
    interrupts: AtomicUsize,
    takes_nothing: AtomicBool,
    /// Holes that are still made; later ones are refused.
    holes: Option<AtomicUsize>,
    /// Holes are accepted and not made.
    false_holes: bool,
    sync_fails: AtomicBool,
    gate: Gate,
}

/// Holds writes back while it is shut.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

impl Faulty {
    fn interrupted(&self) -> io::Result<()> {
        let taken =
            self.interrupts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if taken.is_ok() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn limit(&self, len: usize) -> usize {
        if self.most == 0 { len } else { len.min(self.most) }
    }
}

impl Calls for Arc<Faulty> {
    fn pread(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.interrupted()?;
        let len = self.limit(into.len());
        Kernel.pread(file, &mut into[..len], at)
    }

    fn pwrite(&self, file: BorrowedFd<'_>, data: &[u8], at: u64) -> io::Result<usize> {
        self.interrupted()?;
        self.gate.pass();
        if self.takes_nothing.load(Ordering::SeqCst) {
            return Ok(0);
        }
        Kernel.pwrite(file, &data[..self.limit(data.len())], at)
    }

    fn punch(&self, file: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
        self.interrupted()?;
        if self.false_holes {
            return Ok(());
        }
        if let Some(left) = &self.holes
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Kernel.punch(file, extent)
    }

    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.interrupted()?;
        if self.sync_fails.swap(false, Ordering::SeqCst) {
            return Err(rustix::io::Errno::IO.into());
        }
        Kernel.sync(file)
    }
}

struct Bench {
    dir: TempDir,
    path: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vda.raw");
        assert!(make_file(&path, SIZE).unwrap().reads_zero);
        Self { dir, path }
    }

    async fn open(&self, faults: &Arc<Faulty>) -> FileDisk {
        self.try_open(faults, VolumeOptions::default()).await.unwrap()
    }

    /// A disk whose calls are abandoned soon, once the opening had its time.
    async fn open_hasty(&self, faults: &Arc<Faulty>) -> FileDisk {
        let mut disk = self.open(faults).await;
        disk.set_deadline(hasty().deadline);
        disk
    }

    async fn try_open(&self, faults: &Arc<Faulty>, options: VolumeOptions) -> Result<FileDisk, VolumeError> {
        FileDisk::open_by(&self.path, SIZE, options, || Box::new(Arc::clone(faults))).await
    }
}

fn hasty() -> VolumeOptions {
    VolumeOptions {
        lock_wait: Duration::ZERO,
        deadline: Duration::from_millis(200),
        ..VolumeOptions::default()
    }
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(Offset(start), Length(len)).unwrap()
}

fn filled(len: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::unpooled(len);
    buffer.fill(byte);
    buffer
}

async fn write(disk: &FileDisk, at: u64, len: usize, byte: u8) {
    disk.write(Offset(at), filled(len, byte), 0..len).await.unwrap();
}

async fn fill(disk: &FileDisk) {
    write(disk, 0, SIZE.0 as usize, 0xaa).await;
}

async fn read(disk: &FileDisk, extent: Extent) -> Vec<u8> {
    disk.read(extent.start(), Buffer::unpooled(extent.len().0 as usize)).await.unwrap().to_vec()
}

#[tokio::test]
async fn short_and_interrupted_calls_are_continued() {
    for most in [0, 4096, 1000, 1] {
        let bench = Bench::new();
        let faults = Arc::new(Faulty { most, interrupts: AtomicUsize::new(3), ..Faulty::default() });
        let disk = bench.open(&faults).await;
        let len = if most == 1 { 9000 } else { SIZE.0 as usize };
        let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let mut buffer = Buffer::unpooled(len);
        buffer.copy_from_slice(&data);
        let at = SIZE.0 - len as u64;
        disk.write(Offset(at), buffer, 0..len).await.unwrap();
        disk.flush().await.unwrap();
        assert!(fs::read(&bench.path).unwrap()[at as usize..] == data, "at most {most} bytes a call");
        assert!(read(&disk, extent(at, len as u64)).await == data, "read at most {most} bytes a call");
    }
}

#[tokio::test]
async fn a_write_without_progress_fails() {
    let bench = Bench::new();
    let faults = Arc::new(Faulty { takes_nothing: AtomicBool::new(true), ..Faulty::default() });
    let disk = bench.open(&faults).await;
    let error = disk.write(Offset(0), filled(4096, 1), 0..4096).await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Media, Operation::Write));
}

#[tokio::test]
async fn nothing_goes_past_the_end() {
    let bench = Bench::new();
    let disk = bench.open(&Arc::default()).await;
    let past = disk.write(Offset(SIZE.0 - 1), filled(2, 1), 0..2).await.unwrap_err();
    let zeroed = disk.write_zeroes(extent(SIZE.0 - 1, 2)).await.unwrap_err();
    let overflow = disk.write(Offset(u64::MAX), filled(2, 1), 0..2).await.unwrap_err();
    let read = disk.read(Offset(SIZE.0), Buffer::unpooled(1)).await.unwrap_err();
    let outside = disk.write(Offset(0), filled(2, 1), 1..3).await.unwrap_err();
    for error in [past, zeroed, overflow, read, outside] {
        assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    }
    assert_eq!(fs::metadata(&bench.path).unwrap().len(), SIZE.0);
    disk.flush().await.unwrap();
}

/// Zeroes `[8191, end of disk)` in three calls and shows that exactly those bytes read zero.
async fn zeroing_is_whole(faults: Faulty) {
    let bench = Bench::new();
    let disk = bench.open(&Arc::new(faults)).await;
    fill(&disk).await;
    disk.flush().await.unwrap();
    for (from, to) in [(8191, 400_000), (400_000, 800_001), (800_001, SIZE.0)] {
        disk.write_zeroes(extent(from, to - from)).await.unwrap();
    }
    disk.flush().await.unwrap();
    let bytes = fs::read(&bench.path).unwrap();
    assert!(bytes[..8191].iter().all(|byte| *byte == 0xaa), "a byte before the range was touched");
    let stale = bytes[8191..].iter().position(|byte| *byte != 0).map(|at| at + 8191);
    assert_eq!((stale, bytes.len() as u64), (None, SIZE.0), "a stale byte, or another length");
}

#[tokio::test]
async fn zeroes_by_holes() {
    zeroing_is_whole(Faulty::default()).await;
}

#[tokio::test]
async fn zeroes_where_holes_are_refused() {
    zeroing_is_whole(Faulty { holes: Some(AtomicUsize::new(0)), ..Faulty::default() }).await;
}

#[tokio::test]
async fn zeroes_where_holes_worked_once() {
    zeroing_is_whole(Faulty { holes: Some(AtomicUsize::new(1)), ..Faulty::default() }).await;
}

#[tokio::test]
async fn zeroes_where_holes_are_not_made() {
    zeroing_is_whole(Faulty { false_holes: true, ..Faulty::default() }).await;
}

#[tokio::test]
async fn zeroes_written_in_short_calls() {
    zeroing_is_whole(Faulty { most: 10_000, holes: Some(AtomicUsize::new(0)), ..Faulty::default() }).await;
}

#[tokio::test]
async fn holes_are_told() {
    let bench = Bench::new();
    let disk = bench.open(&Arc::default()).await;
    write(&disk, 65536, 65536, 1).await;
    let whole = Extent::whole(SIZE).unwrap();
    let runs = disk.allocation(whole).await.unwrap();
    let told: Vec<_> = runs.iter().map(|run| (run.extent, run.zero)).collect();
    let rest = extent(131_072, SIZE.0 - 131_072);
    assert_eq!(told, [(extent(0, 65536), true), (extent(65536, 65536), false), (rest, true)]);
    disk.write_zeroes(extent(65536, 65536)).await.unwrap();
    let runs = disk.allocation(whole).await.unwrap();
    assert!(runs.len() == 1 && runs[0].zero && runs[0].extent == whole, "{runs:?}");
}

#[tokio::test]
async fn after_a_failed_flush_nothing_counts_until_reopened() {
    let bench = Bench::new();
    let faults = Arc::new(Faulty { sync_fails: AtomicBool::new(true), ..Faulty::default() });
    let disk = bench.open(&faults).await;
    write(&disk, 0, 4096, 1).await;
    let error = disk.flush().await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::Media, Operation::Flush));
    // The kernel would now say that all is well.
    assert!(disk.flush().await.is_err(), "a flush after a failed flush succeeded");
    assert!(disk.write(Offset(0), filled(1, 1), 0..1).await.is_err());
    assert!(disk.read(Offset(0), Buffer::unpooled(1)).await.is_err());
    assert!(disk.write_zeroes(extent(0, 1)).await.is_err());
    drop(disk);
    let disk = bench.open(&faults).await;
    write(&disk, 0, 4096, 1).await;
    disk.flush().await.unwrap();
}

#[tokio::test]
async fn a_volume_that_changed_is_noticed() {
    type Change = fn(&Bench);
    let changes: [(&str, Change); 4] = [
        ("shrunk", |bench| fs::File::options().write(true).open(&bench.path).unwrap().set_len(4096).unwrap()),
        ("grown", |bench| {
            fs::File::options().write(true).open(&bench.path).unwrap().set_len(SIZE.0 * 2).unwrap();
        }),
        ("removed", |bench| fs::remove_file(&bench.path).unwrap()),
        ("replaced", |bench| {
            let other = bench.dir.path().join("other");
            make_file(&other, SIZE).unwrap();
            fs::rename(other, &bench.path).unwrap();
        }),
    ];
    for (what, change) in changes {
        let bench = Bench::new();
        let disk = bench.open(&Arc::default()).await;
        write(&disk, 0, 4096, 1).await;
        change(&bench);
        let len = fs::metadata(&bench.path).map(|metadata| metadata.len()).ok();
        let error = disk.write(Offset(65536), filled(4096, 1), 0..4096).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{what}: {error}");
        assert_eq!(
            fs::metadata(&bench.path).map(|metadata| metadata.len()).ok(),
            len,
            "{what}: length changed"
        );
        assert!(disk.flush().await.is_err(), "{what}: flushed all the same");
    }
    // Moved away and replaced by another: the open file is whole and has a name, only the path shows it.
    let bench = Bench::new();
    let disk = bench.open(&Arc::default()).await;
    fs::rename(&bench.path, bench.dir.path().join("moved")).unwrap();
    make_file(&bench.path, SIZE).unwrap();
    assert_eq!(disk.flush().await.unwrap_err().kind, ErrorKind::Refused);
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let bench = Bench::new();
    let first = bench.open(&Arc::default()).await;
    let error = bench.try_open(&Arc::default(), hasty()).await.unwrap_err();
    assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
    // A lock of our own is no conflict: what the volume holds is still known.
    assert_eq!(error.kind(), VolumeErrorKind::Timeout);
    drop(first);
    bench.try_open(&Arc::default(), VolumeOptions::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_volume_of_that_size_is_refused() {
    let bench = Bench::new();
    let open =
        |path: PathBuf, size| async move { FileDisk::open(&path, size, hasty()).await.unwrap_err().kind() };
    assert_eq!(open(bench.path.clone(), Length(4096)).await, VolumeErrorKind::Conflict);
    assert_eq!(open(bench.dir.path().join("none"), SIZE).await, VolumeErrorKind::NotFound);
    assert_eq!(open(bench.dir.path().to_owned(), SIZE).await, VolumeErrorKind::Refused);
    assert_eq!(open("/dev/null".into(), SIZE).await, VolumeErrorKind::Refused);
}

#[test]
fn making_a_file_bears_repetition_and_being_cut_off() {
    let bench = Bench::new();
    assert!(make_file(&bench.path, SIZE).unwrap().reads_zero, "nothing was written to it yet");
    fs::write(&bench.path, vec![1; SIZE.0 as usize]).unwrap();
    assert!(!make_file(&bench.path, SIZE).unwrap().reads_zero);
    assert_eq!(fs::read(&bench.path).unwrap()[0], 1, "finding it emptied it");
    let error = make_file(&bench.path, Length(SIZE.0 * 2)).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::Conflict);
    assert_eq!(fs::metadata(&bench.path).unwrap().len(), SIZE.0);
    // Interrupted before it had its name: old bytes under the temporary name must not come through.
    let path = bench.dir.path().join("vdb.raw");
    fs::write(bench.dir.path().join("vdb.raw.part"), b"stale").unwrap();
    assert!(make_file(&path, SIZE).unwrap().reads_zero);
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    assert!(!bench.dir.path().join("vdb.raw.part").exists());
    // A link put where warmd's own file should be leads nowhere.
    let link = bench.dir.path().join("vdc.raw");
    std::os::unix::fs::symlink(&bench.path, &link).unwrap();
    assert_eq!(make_file(&link, SIZE).unwrap_err().kind(), VolumeErrorKind::Refused);
    remove_file(&path).unwrap();
    remove_file(&path).unwrap();
}

/// Random writes, zeroes and reads through random faults, against bytes in memory.
#[tokio::test]
async fn any_sequence_equals_the_model() {
    let seed =
        std::env::var("WARMD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("WARMD_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let bench = Bench::new();
        let faults = Arc::new(Faulty {
            most: [0, 0, 777, 8192][random.random_range(0..4)],
            interrupts: AtomicUsize::new(random.random_range(0..20)),
            holes: (round % 3 != 0).then(|| AtomicUsize::new(random.random_range(0..4))),
            false_holes: round % 5 == 4,
            ..Faulty::default()
        });
        let options = VolumeOptions { direct: round % 2 == 0, ..VolumeOptions::default() };
        let disk = bench.try_open(&faults, options).await.unwrap();
        let mut model = vec![0; SIZE.0 as usize];
        for _ in 0..40 {
            let start = random.random_range(0..SIZE.0);
            let granule = [1, 512, 4096][random.random_range(0..3)];
            let start = start / granule * granule;
            let len = random.random_range(1..=(SIZE.0 - start).min(200_000));
            let piece = extent(start, len);
            let range = start as usize..(start + len) as usize;
            match random.random_range(0..4) {
                0 => {
                    disk.write_zeroes(piece).await.unwrap();
                    model[range].fill(0);
                }
                1 => assert!(read(&disk, piece).await == model[range], "round {round}: read {piece}"),
                2 => disk.flush().await.unwrap(),
                _ => {
                    let before = [0, 1, 4096][random.random_range(0..3)];
                    let mut buffer = filled(before + len as usize, 0);
                    random.fill(&mut buffer[..]);
                    model[range].copy_from_slice(&buffer[before..]);
                    disk.write(Offset(start), buffer, before..before + len as usize).await.unwrap();
                }
            }
        }
        disk.flush().await.unwrap();
        let wrong = fs::read(&bench.path).unwrap().iter().zip(&model).position(|(is, should)| is != should);
        assert_eq!(wrong, None, "round {round}: first wrong byte");
    }
}
