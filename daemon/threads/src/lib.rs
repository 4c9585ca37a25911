//! Threads for calls that may hang: those of one mounted file system, or of one block device, apart from
//! those of all others, and from the runtime's.
//!
//! Rule: a call is counted before it is begun. One for which no caller waits any more, and that has not
//! ended, hangs; while [`HANGING`] calls hang on a file system, no further one is begun there: it fails at
//! once. So a file system that answers nothing costs a bounded number of threads and buffers, and no other
//! file system, the API or the state any.
//! Knows nothing else of warmd.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    io,
    os::unix::{
        ffi::OsStringExt,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    runtime::Runtime,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::Span;

/// Calls at once on one file system; more wait.
pub const AT_ONCE: usize = 64;
/// Hanging calls at which a file system gets no further call.
pub const HANGING: usize = 32;

/// The directory of devices. The kernel itself answers for it, and at once.
const DEV: &str = "/dev";
/// The most links that are followed there.
const LINKS: u32 = 8;

static LANES: Mutex<BTreeMap<PathBuf, Arc<DevicePool>>> = Mutex::new(BTreeMap::new());

/// Buffers of abandoned calls.
static WRITTEN_OFF: AtomicU64 = AtomicU64::new(0);

/// Counts a buffer of an abandoned call.
pub fn buffer_written_off() {
    WRITTEN_OFF.fetch_add(1, SeqCst);
}

/// Their number.
pub fn buffers_written_off() -> u64 {
    WRITTEN_OFF.load(SeqCst)
}

/// The threads of one file system.
#[derive(Debug)]
pub struct DevicePool {
    place: PathBuf,
    /// Its blocking threads alone are used. Never dropped: that would wait for calls that hang.
    threads: Runtime,
    turns: Arc<Semaphore>,
    hanging: AtomicUsize,
}

/// The threads for calls on `path`, which need not be there. It is not looked at, which itself may hang, but
/// for devices in `/dev`: a disk that hangs is no reason for another one to wait.
pub fn on(path: &Path) -> io::Result<Arc<DevicePool>> {
    let mount = Mounts::now().of(path);
    match Some(path).filter(|_| mount == Path::new(DEV) || mount == Path::new("/")).and_then(device_at) {
        Some((major, minor)) => named(format!("device {major}:{minor}").into()),
        None => named(mount),
    }
}

/// The mounts.
#[derive(Debug)]
pub struct Mounts(Vec<u8>);

impl Mounts {
    /// As it is now.
    pub fn now() -> Self {
        Self(std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// The mount that `path` is on, by its spelling.
    pub fn of(&self, path: &Path) -> PathBuf {
        mount_of(path, &self.0)
    }
}

/// The threads for calls on the place of that name.
pub fn named(place: PathBuf) -> io::Result<Arc<DevicePool>> {
    let mut lanes = LANES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lane) = lanes.get(&place) {
        return Ok(Arc::clone(lane));
    }
    let lane = Arc::new(DevicePool::new(place.clone())?);
    lanes.insert(place, Arc::clone(&lane));
    Ok(lane)
}

/// How many calls hang, by file system; only those where one does.
pub fn hanging() -> Vec<(PathBuf, usize)> {
    let lanes = LANES.lock().unwrap_or_else(PoisonError::into_inner);
    let all = lanes.values().map(|lane| (lane.place.clone(), lane.hanging.load(SeqCst)));
    all.filter(|(_, hanging)| *hanging > 0).collect()
}

impl DevicePool {
    fn new(place: PathBuf) -> io::Result<Self> {
        let mut threads = tokio::runtime::Builder::new_current_thread();
        let threads = threads.max_blocking_threads(AT_ONCE).thread_name("may-hang").build()?;
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Ok(Self { place, threads, turns, hanging: AtomicUsize::new(0) })
    }

    /// Runs `work` on a thread of its own, in the caller's span. Waits for a turn among calls that do not
    /// hang. The future that is dropped abandons the call.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.turn().await?;
        self.run_in(turn, work).await
    }

    /// The same within `deadline`, which includes the wait for a turn. A call that has not ended by then is
    /// abandoned, with [`io::ErrorKind::TimedOut`].
    pub async fn run_within<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        tokio::time::timeout(deadline, self.run(work)).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} s", deadline.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }

    /// A turn: the call that has it is begun at once. Until then it has not happened, and cannot happen
    /// later.
    pub async fn turn(&self) -> io::Result<ThreadTurn> {
        self.admit()?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(io::Error::other)?;
        // More may hang by now.
        self.admit()?;
        Ok(ThreadTurn(turn))
    }

    /// Runs `work` in its turn.
    pub async fn run_in<T: Send + 'static>(
        self: &Arc<Self>,
        turn: ThreadTurn,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (span, one_is_gone) = (Span::current(), Arc::new(AtomicBool::new(false)));
        let end = |of_call| End { lane: Arc::clone(self), of_call, one_is_gone: Arc::clone(&one_is_gone) };
        let (ours, theirs) = (end(false), end(true));
        let running = self.threads.spawn_blocking(move || {
            // Also when it ends in a panic.
            let _held = (theirs, turn.0);
            span.in_scope(work)
        });
        let answer = running.await.map_err(io::Error::other);
        drop(ours);
        answer
    }

    fn admit(&self) -> io::Result<()> {
        let hanging = self.hanging.load(SeqCst);
        if hanging < HANGING {
            return Ok(());
        }
        let place = self.place.display();
        let why = format!("{hanging} calls hang on {place}: no more are made until it answers");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

/// A call that may be begun.
#[derive(Debug)]
pub struct ThreadTurn(OwnedSemaphorePermit);

/// One end of a call: the call's own, or its waiter's. A waiter that goes first leaves a call that hangs,
/// which is counted until it ends.
#[derive(Debug)]
struct End {
    lane: Arc<DevicePool>,
    of_call: bool,
    one_is_gone: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        let is_first = !self.one_is_gone.swap(true, SeqCst);
        match (self.of_call, is_first) {
            (false, true) => {
                self.lane.hanging.fetch_add(1, SeqCst);
            }
            (true, false) => {
                self.lane.hanging.fetch_sub(1, SeqCst);
            }
            _ => {}
        }
    }
}

/// The number of the block device at a path below `/dev`. Links are followed there alone: a look elsewhere
/// may hang.
fn device_at(path: &Path) -> Option<(u32, u32)> {
    let mut path = spelled_out(path);
    for _ in 0..LINKS {
        if !path.starts_with(DEV) {
            return None;
        }
        let found = std::fs::symlink_metadata(&path).ok()?;
        if found.file_type().is_block_device() {
            return Some((rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev())));
        }
        path = spelled_out(&path.parent()?.join(std::fs::read_link(&path).ok()?));
    }
    None
}

/// Without `.` and `..`.
fn spelled_out(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The mount that `path` is on, by its spelling.
fn mount_of(path: &Path, mounts: &[u8]) -> PathBuf {
    let all = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let all = all.map(|mount| PathBuf::from(std::ffi::OsString::from_vec(unescaped(mount))));
    all.filter(|mount| path.starts_with(mount))
        .max_by_key(|mount| mount.as_os_str().len())
        .unwrap_or_else(|| PathBuf::from("/"))
}

/// `\040` and its like are a space and its like.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "how a test fails")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_place_is_known_by_the_deepest_mount_above_it() {
        let mounts = b"22 1 0:20 / / rw - ext4 a rw\n23 22 0:21 / /mnt/nfs\\040one rw - nfs b rw\n24 22 0:22 / /mnt rw - x c rw\n";
        for (path, mount) in [
            ("/mnt/nfs one/vm/disk", "/mnt/nfs one"),
            ("/mnt/nfs onesie", "/mnt"),
            ("/var/x", "/"),
            ("relative", "/"),
        ] {
            assert_eq!(mount_of(Path::new(path), mounts), PathBuf::from(mount), "{path}");
        }
    }

    #[test]
    fn each_device_has_threads_of_its_own() {
        let devices = std::fs::read_dir("/dev").unwrap().flatten().map(|entry| entry.path());
        let devices: Vec<_> = devices.filter_map(|path| Some((device_at(&path)?, path))).collect();
        for (one, path) in &devices {
            let lane = on(path).unwrap();
            assert_eq!(lane.place, PathBuf::from(format!("device {}:{}", one.0, one.1)));
            let name = path.file_name().unwrap();
            let otherwise = Path::new("/dev/./none/..").join(name);
            assert!(Arc::ptr_eq(&lane, &on(&otherwise).unwrap()), "{}", otherwise.display());
            for (other, path) in &devices {
                assert_eq!(one == other, Arc::ptr_eq(&lane, &on(path).unwrap()));
            }
        }
        for none in ["/dev/null", "/dev/none", "/dev/../etc/passwd", "/dev/fd/0", "/etc/passwd"] {
            assert_eq!(device_at(Path::new(none)), None, "{none}");
        }
    }

    #[tokio::test]
    async fn a_call_without_a_turn_is_not_begun_and_does_not_hang() {
        let lane = named(PathBuf::from("without a turn")).unwrap();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(lane.turn().await.unwrap());
        }
        let late = tokio::time::timeout(Duration::from_millis(50), lane.turn()).await;
        assert!(late.is_err());
        assert_eq!(lane.hanging.load(SeqCst), 0);
        assert_eq!(lane.run_in(turns.remove(0), || 7).await.unwrap(), 7);
        assert!(lane.turn().await.is_ok(), "it was given back");
    }

    #[tokio::test]
    async fn calls_that_hang_are_counted_bounded_and_harm_no_other_place() {
        let [lane, other] = ["hung", "well"].map(|name| named(PathBuf::from(name)).unwrap());
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let hang = || {
            let (lane, gate) = (Arc::clone(&lane), Arc::clone(&gate));
            async move {
                let call = lane.run(move || gate.lock().unwrap().recv().is_ok());
                tokio::time::timeout(Duration::from_millis(200), call).await
            }
        };
        // More at once than may hang: the begun calls hang, the others fail at once from then on.
        let calls = futures::future::join_all((0..3 * AT_ONCE).map(|_| hang())).await;
        assert!(calls.iter().all(|call| !matches!(call, Ok(Ok(_)))));
        assert_eq!(lane.hanging.load(SeqCst), AT_ONCE);
        let error = lane.run(|| ()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("64 calls hang on hung"), "{error}");
        assert!(hanging().contains(&(PathBuf::from("hung"), AT_ONCE)));
        assert_eq!(other.run(|| 7).await.unwrap(), 7);
        assert_eq!(tokio::task::spawn_blocking(|| 8).await.unwrap(), 8);

        drop(release);
        for _ in 0..500 {
            if lane.hanging.load(SeqCst) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(lane.run(|| 9).await.unwrap(), 9, "it answers again");
        let ended = lane.run(|| panic!("in a call")).await;
        assert!(ended.is_err() && lane.hanging.load(SeqCst) == 0);
    }
}
