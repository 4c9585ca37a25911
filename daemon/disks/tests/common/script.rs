//! A scripted NBD server: an orderly handshake, or not, then the test's answers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use warmd_disks::nbd::{NbdAddress, NbdOptions};

use super::server::tempdir;

/// A request as it came from the wire.
#[derive(Clone, Debug)]
pub struct NbdRequest {
    /// Which request of this connection it is, from 0.
    pub number: usize,
    /// Which connection it came by, from 0.
    pub connection: usize,
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// The server's action after a request.
pub enum Reply {
    Bytes(Vec<u8>),
    Silence,
    /// These bytes, then the end of the connection.
    Hangup(Vec<u8>),
}

/// The server's description of its export.
#[derive(Clone, Copy)]
pub struct ScriptedExport {
    pub size: u64,
    pub flags: u16,
    pub structured: bool,
}

/// 1 MiB: has flags, FLUSH, FUA, TRIM, WRITE_ZEROES.
pub const PLAIN: ScriptedExport = ScriptedExport { size: 1 << 20, flags: 0b110_1101, structured: false };
/// The same with structured replies and the context `base:allocation`, whose number is 7.
pub const STRUCTURED: ScriptedExport = ScriptedExport { structured: true, ..PLAIN };

/// A server that answers every request by a function.
pub struct Script {
    dir: TempDir,
    task: JoinHandle<()>,
    connections: Arc<AtomicUsize>,
}

impl Script {
    pub fn new(export: ScriptedExport, answer: impl Fn(NbdRequest) -> Reply + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::raw(move |stream, connection| {
            let answer = Arc::clone(&answer);
            async move {
                // A client that goes away in the middle is the case of many tests.
                let _ = serve(stream, export, connection, answer.as_ref()).await;
            }
        })
    }

    /// A server that says `bytes` at once and nothing more, whatever it receives.
    pub fn parrot(bytes: Vec<u8>) -> Self {
        Self::raw(move |mut stream, _| {
            let bytes = bytes.clone();
            async move {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
    }

    pub fn raw<F>(serve: impl Fn(UnixStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = tempdir();
        let listener = UnixListener::bind(dir.path().join("socket")).expect("a socket to listen on");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, counter.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { dir, task, connections }
    }

    /// Options for it, with reconnecting off.
    pub fn options(&self) -> NbdOptions {
        let address = NbdAddress::Unix(self.dir.path().join("socket"));
        let reconnect_for = std::time::Duration::ZERO;
        NbdOptions { reconnect_for, ..NbdOptions::new(address, "x").writable() }
    }

    /// Connections that it has taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The server's part of a handshake.
pub async fn shake(stream: &mut UnixStream, export: ScriptedExport) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").await?;
    stream.read_u32().await?;
    loop {
        stream.read_u64().await?;
        let (option, length) = (stream.read_u32().await?, stream.read_u32().await?);
        stream.read_exact(&mut vec![0; length as usize]).await?;
        match option {
            7 => {
                let mut info = vec![0, 0];
                info.extend(export.size.to_be_bytes());
                info.extend(export.flags.to_be_bytes());
                stream.write_all(&option_reply(option, 3, &info)).await?;
                return stream.write_all(&option_reply(option, 1, &[])).await;
            }
            8 if export.structured => stream.write_all(&option_reply(option, 1, &[])).await?,
            10 if export.structured => {
                stream.write_all(&option_reply(option, 4, b"\x00\x00\x00\x07base:allocation")).await?;
                stream.write_all(&option_reply(option, 1, &[])).await?;
            }
            _ => stream.write_all(&option_reply(option, 1 << 31 | 1, b"no")).await?,
        }
    }
}

async fn serve(
    mut stream: UnixStream,
    export: ScriptedExport,
    connection: usize,
    answer: &(impl Fn(NbdRequest) -> Reply + Sync),
) -> std::io::Result<()> {
    shake(&mut stream, export).await?;
    for number in 0.. {
        stream.read_u32().await?;
        let (flags, command) = (stream.read_u16().await?, stream.read_u16().await?);
        let (cookie, offset) = (stream.read_u64().await?, stream.read_u64().await?);
        let length = stream.read_u32().await?;
        if command == 1 {
            stream.read_exact(&mut vec![0; length as usize]).await?;
        }
        if command == 2 {
            break;
        }
        match answer(NbdRequest { number, connection, flags, command, cookie, offset, length }) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::Silence => {}
            Reply::Hangup(bytes) => return stream.write_all(&bytes).await,
        }
    }
    Ok(())
}

/// The bytes of a reply to an option.
pub fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// The bytes of a simple reply.
pub fn simple(errno: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
    bytes.extend(errno.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The bytes of a chunk of a structured reply.
pub fn chunk(done: bool, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    chunk_claiming(done, kind, cookie, body.len() as u32, body)
}

/// The same, with a length that may be wrong.
pub fn chunk_claiming(done: bool, kind: u16, cookie: u64, length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// The body of a data chunk.
pub fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), bytes].concat()
}

/// The body of a hole chunk.
pub fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

/// The body of a block status chunk.
pub fn status(context: u32, descriptors: &[(u32, u32)]) -> Vec<u8> {
    let mut body = context.to_be_bytes().to_vec();
    for (length, flags) in descriptors {
        body.extend(length.to_be_bytes());
        body.extend(flags.to_be_bytes());
    }
    body
}

/// The body of an error chunk.
pub fn error(errno: u32, message: &[u8]) -> Vec<u8> {
    let mut body = errno.to_be_bytes().to_vec();
    body.extend((message.len() as u16).to_be_bytes());
    body.extend(message);
    body
}
