//! The writing half of a socket; a Unix socket's gets a write's data by reference, where the kernel can do
//! that.
//!
//! Rule: lending saves time, and is never required. Where the kernel refuses it, from the beginning or in the
//! middle, the rest is copied, as on other sockets.
//!
//! Copying into a socket is the sender's largest cost after the hashing; `vmsplice` puts the pages themselves
//! into a pipe, and `splice` (Linux 6.5 and later without copying) hands them on to the socket.

use std::{
    io::{self, IoSlice},
    ops::Range,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::{
    net::sockopt,
    pipe::{IoSliceRaw, PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, vmsplice},
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, Interest},
    net::{UnixStream, tcp, unix},
};
use warmd_cbt::buffer::ALIGNMENT;

use super::payload::{Payload, can_part};

/// Bytes that the socket shall hold for the server: less, and sender and server wake each other for every
/// piece.
const SEND_BUFFER: usize = 1 << 20;
/// Below this a socket's buffer is too small for lending to pay.
const LEAST_BUFFER: usize = 512 << 10;
/// Bytes that the pipe may hold; what an unprivileged user may ask for.
const PIPE: usize = 1 << 20;
/// Data below this is copied.
const LEAST: usize = 32 << 10;

/// The writing half of a socket.
#[derive(Debug)]
pub(super) enum Output {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf, Lending),
}

/// Whether a Unix socket gets data by reference. Found out at the first write: most connections only read.
#[derive(Debug)]
pub(super) enum Lending {
    Untried,
    By(Pipe),
    Never,
}

/// Through which pages go to a socket. Empty whenever nothing is being sent.
#[derive(Debug)]
pub(super) struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
}

impl Output {
    pub(super) fn unix(socket: unix::OwnedWriteHalf) -> Self {
        Self::Unix(socket, Lending::Untried)
    }

    /// Sends `headers`, then a range of `payload`, whose memory must stay unchanged until the server has
    /// acknowledged it.
    pub(super) async fn send(
        &mut self,
        headers: &[u8],
        payload: &Payload,
        range: Range<usize>,
    ) -> io::Result<()> {
        let data = payload.bytes(range);
        let whole = data.len() / ALIGNMENT * ALIGNMENT;
        let Self::Unix(socket, lending) = self else { return self.copy(headers, data).await };
        if whole < LEAST || !is_at_page(data) {
            return self.copy(headers, data).await;
        }
        if matches!(lending, Lending::Untried) {
            *lending = Pipe::for_socket(socket.as_ref()).map_or(Lending::Never, Lending::By);
        }
        let Lending::By(pipe) = lending else { return self.copy(headers, data).await };
        payload.lend();
        socket.write_all(headers).await?;
        let lent = pipe.lend(socket.as_ref(), &data[..whole]).await?;
        if lent < whole {
            tracing::debug!("the kernel lends no memory to this socket: from now on it is copied");
            *lending = Lending::Never;
        }
        socket.write_all(&data[lent..]).await
    }

    async fn copy(&mut self, headers: &[u8], data: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(headers), IoSlice::new(data)];
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let written = self.write_vectored(left).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }
}

impl Pipe {
    /// None if lending would not pay or work.
    fn for_socket(socket: &UnixStream) -> Option<Self> {
        if !widen(socket) {
            return None;
        }
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // An unprivileged user with many pipes gets small ones, through which data goes in too many pieces.
        fcntl_setpipe_size(&input, PIPE).ok()?;
        Some(Self { input, output })
    }

    /// Hands whole pages on to the socket; gives the bytes that it took, fewer only if the kernel cannot do
    /// that. Then, or after an error, the pipe is not used again: it may still contain data.
    async fn lend(&self, socket: &UnixStream, data: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < data.len() {
            let mut filled = match fill(&self.input, &data[sent..]) {
                Ok(filled) if filled > 0 => filled,
                Ok(_) => return Ok(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(sent),
            };
            while filled > 0 {
                socket.writable().await?;
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MORE;
                let moved = socket.try_io(Interest::WRITABLE, || {
                    Ok(splice(&self.output, None, socket, None, filled, flags)?)
                });
                match moved {
                    Ok(0) => return Ok(sent),
                    Ok(moved) => (filled, sent) = (filled - moved, sent + moved),
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => return Ok(sent),
                        _ => return Err(error),
                    },
                }
            }
        }
        Ok(sent)
    }
}

/// Whether the socket has, or got, a buffer with which lending pays.
fn widen(socket: &UnixStream) -> bool {
    // The limit of the system holds for the second, which asks for no privilege.
    let _ = sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER));
    can_part() && sockopt::socket_send_buffer_size(socket).is_ok_and(|size| size >= LEAST_BUFFER)
}

fn is_at_page(data: &[u8]) -> bool {
    data.as_ptr().align_offset(ALIGNMENT) == 0
}

/// Puts the pages of `data` into an empty pipe, as many as fit; gives the bytes.
#[allow(unsafe_code)]
fn fill(pipe: &OwnedFd, data: &[u8]) -> io::Result<usize> {
    let slice = IoSliceRaw::from_slice(data);
    // SAFETY: the pages are only read, and `Payload` keeps them as they are until the server has answered for
    // them, or parts the memory from them; without the flag GIFT they stay this process's own.
    Ok(unsafe { vmsplice(pipe, &[slice], SpliceFlags::NONBLOCK) }?)
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Unix(socket, _) => Pin::new(socket).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket, _) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket, _) => Pin::new(socket).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Unix(socket, _) => Pin::new(socket).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
