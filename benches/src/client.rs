//! A blocking NBD client with one request in flight, such as the peers' loops use through their libraries.
//!
//! Source: the NetworkBlockDevice project's `doc/proto.md`. It talks only to servers that the benchmark
//! started; an unexpected reply is an error and is not handled further.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

const OPT_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPT_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_SET_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_CONTEXT: u32 = 4;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const REQ_ONE: u16 = 1 << 3;
/// Flag of `base:allocation`: the extent reads as zeroes.
const ZERO: u32 = 2;
/// Bounds above the number and size of any server's option replies.
const MOST: u32 = 1 << 16;

/// Timeout of each reply.
const PATIENCE: Duration = Duration::from_mins(1);

/// An open export.
#[derive(Debug)]
pub struct BenchClient {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

/// The content of a reply.
enum Reply {
    Done,
    /// Length and flags of the first extent.
    Status(u32, u32),
}

impl BenchClient {
    /// Opens an export on a Unix socket, with structured replies and `base:allocation`.
    pub fn open(socket: &Path, export: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, size: 0, cookie: 0 };
        let _greeting: [u8; 18] = client.take()?;
        // Fixed newstyle, no padding.
        client.stream.write_all(&3_u32.to_be_bytes())?;
        client.option(OPT_STRUCTURED, &[])?;
        let name = [&(export.len() as u32).to_be_bytes(), export.as_bytes()].concat();
        let context = b"base:allocation";
        let query = [&1_u32.to_be_bytes()[..], &(context.len() as u32).to_be_bytes(), context].concat();
        client.option(OPT_SET_CONTEXT, &[name.clone(), query].concat())?;
        client.option(OPT_GO, &[name, vec![0, 0]].concat())?;
        ensure!(client.size > 0, "the server told no size");
        Ok(client)
    }

    /// Bytes in the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&mut self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.request(READ, 0, at, buffer.len() as u64, &[])?;
        self.reply(at, buffer).map(drop)
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.request(WRITE, 0, at, bytes.len() as u64, bytes)?;
        self.reply(at, &mut []).map(drop)
    }

    pub fn zero(&mut self, at: u64, length: u64) -> Result<()> {
        self.request(WRITE_ZEROES, 0, at, length, &[])?;
        self.reply(at, &mut []).map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.request(FLUSH, 0, 0, 0, &[])?;
        self.reply(0, &mut []).map(drop)
    }

    /// Asks for one extent at `at`: its length, at most `length`, and whether it reads as zeroes.
    pub fn status(&mut self, at: u64, length: u64) -> Result<(u64, bool)> {
        self.request(BLOCK_STATUS, REQ_ONE, at, length, &[])?;
        match self.reply(at, &mut [])? {
            Reply::Status(found, flags) if found > 0 => Ok((u64::from(found).min(length), flags & ZERO != 0)),
            _ => bail!("no block status at {at}"),
        }
    }

    /// Sends an option and reads its answers up to the acknowledgement.
    fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let head =
            [&OPT_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data];
        self.stream.write_all(&head.concat())?;
        loop {
            ensure!(self.u64()? == OPT_REPLY_MAGIC, "no answer to an option");
            let (_option, kind, length) = (self.u32()?, self.u32()?, self.u32()?);
            ensure!(length < MOST, "an answer of {length} bytes");
            let mut answer = vec![0; length as usize];
            self.stream.read_exact(&mut answer)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_CONTEXT => {}
                REP_INFO => {
                    if let Some((&[0, 0], rest)) = answer.split_first_chunk::<2>()
                        && let Some((size, _)) = rest.split_first_chunk()
                    {
                        self.size = u64::from_be_bytes(*size);
                    }
                }
                other => bail!("option {option} was answered by {other:#x}"),
            }
        }
    }

    fn request(&mut self, command: u16, flags: u16, at: u64, length: u64, data: &[u8]) -> Result<()> {
        self.cookie += 1;
        let length = u32::try_from(length)?;
        let head = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &at.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        self.stream.write_all(&head.concat())?;
        Ok(self.stream.write_all(data)?)
    }

    /// Reads the answer to the request in flight; data goes into `buffer`, which begins at `at` of the disk.
    fn reply(&mut self, at: u64, buffer: &mut [u8]) -> Result<Reply> {
        let mut reply = Reply::Done;
        loop {
            let magic = self.u32()?;
            if magic == SIMPLE_MAGIC {
                let (error, cookie) = (self.u32()?, self.u64()?);
                ensure!(error == 0 && cookie == self.cookie, "error {error} from the server");
                self.stream.read_exact(buffer)?;
                return Ok(reply);
            }
            ensure!(magic == STRUCTURED_MAGIC, "no reply");
            let (flags, kind) = (u16::from_be_bytes(self.take()?), u16::from_be_bytes(self.take()?));
            let (cookie, length) = (self.u64()?, self.u32()?);
            ensure!(cookie == self.cookie, "a reply to another request");
            match kind {
                0 => {}
                1 => {
                    let from =
                        (self.u64()?.checked_sub(at)).context("data from before the request")? as usize;
                    let part = buffer.get_mut(from..from + (length as usize).saturating_sub(8));
                    self.stream.read_exact(part.context("data from behind the request")?)?;
                }
                2 => {
                    let from =
                        (self.u64()?.checked_sub(at)).context("a hole from before the request")? as usize;
                    let part = self.u32()? as usize;
                    buffer.get_mut(from..from + part).context("a hole from behind the request")?.fill(0);
                }
                5 => {
                    ensure!((12..MOST).contains(&length), "a block status of {length} bytes");
                    let _context = self.u32()?;
                    reply = Reply::Status(self.u32()?, self.u32()?);
                    let mut rest = vec![0; length as usize - 12];
                    self.stream.read_exact(&mut rest)?;
                }
                other => bail!("the server answered with error {other:#x}"),
            }
            if flags & 1 != 0 {
                return Ok(reply);
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }
}

impl Drop for BenchClient {
    fn drop(&mut self) {
        // If this request is lost, the server closes the connection.
        let _ = self.request(DISCONNECT, 0, 0, 0, &[]);
    }
}
