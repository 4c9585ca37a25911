//! A network between the daemon and a disk server: it delays, loses, throttles, cuts, blocks or changes data.
//!
//! Rule: it works on the stream, below any protocol, except for the answers that it changes. A lost packet
//! delays all later packets until it is sent again.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// The largest packet: with a loss of one packet in a hundred, packets must be small.
const PACKET: usize = 16 << 10;
/// The time until a lost packet is sent again.
const SENT_AGAIN: Duration = Duration::from_millis(200);
/// The first bytes of NBD's simple and structured replies. Only a change of these bytes can be detected,
/// because the protocol has no checksums.
const ANSWERS: [[u8; 4]; 2] = [[0x67, 0x44, 0x66, 0x98], [0x66, 0x8e, 0x33, 0xef]];
const LOOK: Duration = Duration::from_millis(2);

/// The present behaviour of the network.
#[derive(Debug, Default)]
struct Weather {
    delay_ms: AtomicU64,
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// Lost packets in a thousand.
    loss: AtomicU64,
    /// No packet arrives any more, and no side gets an error.
    silent: AtomicBool,
    /// Number of next packets to the daemon, of those that begin with an answer, in which a byte is changed.
    garble: AtomicU64,
    /// Connections of an earlier generation are cut.
    age: AtomicU64,
    closed: AtomicBool,
    /// Numbers of connections made and cut.
    made: AtomicU64,
    cuts: AtomicU64,
    /// Numbers of packets lost and delayed.
    lost: AtomicU64,
    late: AtomicU64,
}

/// A network with one server behind it.
#[derive(Debug)]
pub(super) struct Proxy {
    weather: Arc<Weather>,
    address: String,
}

trait Stream: Read + Write + Send + Sized + 'static {
    fn twin(&self) -> std::io::Result<Self>;
    fn end(&self);
}

impl Stream for TcpStream {
    fn twin(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
    fn end(&self) {
        self.shutdown(Shutdown::Both).ok();
    }
}

impl Stream for UnixStream {
    fn twin(&self) -> std::io::Result<Self> {
        self.try_clone()
    }
    fn end(&self) {
        self.shutdown(Shutdown::Both).ok();
    }
}

impl Proxy {
    /// A TCP port of this host in front of a server on a Unix socket.
    pub(super) fn tcp(server: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let weather = Arc::new(Weather::default());
        listener.set_nonblocking(true)?;
        let (server, sky) = (server.to_owned(), Arc::clone(&weather));
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        thread::spawn(move || serve(accept, &server, &sky));
        Ok(Self { weather, address })
    }

    /// `HOST:PORT`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn delay(&self, delay: Duration) {
        self.weather.delay_ms.store(delay.as_millis() as u64, Relaxed);
    }

    pub(super) fn rate(&self, bytes_per_second: u64) {
        self.weather.rate.store(bytes_per_second, Relaxed);
    }

    pub(super) fn loss(&self, per_thousand: u64) {
        self.weather.loss.store(per_thousand, Relaxed);
    }

    pub(super) fn silence(&self, silent: bool) {
        self.weather.silent.store(silent, Relaxed);
    }

    pub(super) fn garble(&self, packets: u64) {
        self.weather.garble.store(packets, Relaxed);
    }

    /// Whether all requested bytes have been garbled.
    pub(super) fn has_garbled(&self) -> bool {
        self.weather.garble.load(Relaxed) == 0
    }

    /// Cuts every connection; new ones are accepted.
    pub(super) fn cut(&self) {
        self.weather.age.fetch_add(1, Relaxed);
    }

    /// Number of connections cut.
    pub(super) fn cuts(&self) -> u64 {
        self.weather.cuts.load(Relaxed)
    }

    /// Connections made so far.
    pub(super) fn made(&self) -> u64 {
        self.weather.made.load(Relaxed)
    }

    /// Packets that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.weather.lost.load(Relaxed)
    }

    /// Packets that the network delayed so far.
    pub(super) fn late(&self) -> u64 {
        self.weather.late.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.closed.store(true, Relaxed);
        self.cut();
    }
}

fn serve<S: Stream>(accept: impl Fn() -> std::io::Result<S>, server: &Path, weather: &Arc<Weather>) {
    while !weather.closed.load(Relaxed) {
        match accept() {
            Ok(near) => {
                if let Ok(far) = UnixStream::connect(server) {
                    weather.made.fetch_add(1, Relaxed);
                    join(near, far, weather).ok();
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => pause(LOOK),
            Err(_) => return,
        }
    }
}

fn join<S: Stream>(near: S, far: UnixStream, weather: &Arc<Weather>) -> Result<()> {
    let age = weather.age.load(Relaxed);
    let alive = Arc::new(());
    one_way(near.twin()?, far.twin()?, weather, false, &alive).context("no thread")?;
    one_way(far.twin()?, near.twin()?, weather, true, &alive).context("no thread")?;
    let weather = Arc::clone(weather);
    thread::spawn(move || {
        // Its threads drop it when the connection has ended.
        while weather.age.load(Relaxed) == age && Arc::strong_count(&alive) > 1 {
            pause(LOOK);
        }
        if Arc::strong_count(&alive) > 1 {
            weather.cuts.fetch_add(1, Relaxed);
        }
        near.end();
        far.end();
    });
    Ok(())
}

/// One direction: one thread receives packets, another delivers each when it is due.
fn one_way(
    mut from: impl Stream,
    to: impl Stream,
    weather: &Arc<Weather>,
    home: bool,
    alive: &Arc<()>,
) -> Result<()> {
    let (queue, due): (SyncSender<(Instant, Vec<u8>)>, _) = sync_channel(1024);
    let sky = Arc::clone(weather);
    thread::Builder::new().spawn(move || arrive(&due, to, &sky))?;
    let (sky, alive) = (Arc::clone(weather), Arc::clone(alive));
    thread::Builder::new().spawn(move || {
        let mut packet = vec![0; PACKET];
        while let Ok(len) = from.read(&mut packet) {
            if len == 0 {
                break;
            }
            let mut bytes = packet.get(..len).unwrap_or_default().to_vec();
            let answers = ANSWERS.iter().any(|magic| packet.starts_with(magic));
            if home
                && answers
                && sky.garble.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
                && let Some(first) = bytes.first_mut()
            {
                *first ^= 0xff;
            }
            let mut delay = Duration::from_millis(sky.delay_ms.load(Relaxed));
            if rand::random_range(0..1000) < sky.loss.load(Relaxed) {
                sky.lost.fetch_add(1, Relaxed);
                delay += SENT_AGAIN;
            }
            if !delay.is_zero() {
                sky.late.fetch_add(1, Relaxed);
            }
            if queue.send((Instant::now() + delay, bytes)).is_err() {
                break;
            }
        }
        drop(alive);
    })?;
    Ok(())
}

fn arrive(due: &Receiver<(Instant, Vec<u8>)>, mut to: impl Stream, weather: &Weather) {
    while let Ok((when, bytes)) = due.recv() {
        pause(when.saturating_duration_since(Instant::now()));
        while weather.silent.load(Relaxed) && !weather.closed.load(Relaxed) {
            pause(LOOK);
        }
        let rate = weather.rate.load(Relaxed);
        if rate > 0 {
            weather.late.fetch_add(1, Relaxed);
            pause(Duration::from_secs_f64(bytes.len() as f64 / rate as f64));
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    to.end();
}

#[allow(clippy::disallowed_methods, reason = "a thread of its own, and time is what it makes")]
fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}
