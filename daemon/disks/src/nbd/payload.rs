//! The data of a write, and whether a socket may still reference its pages.
//!
//! Rule: memory that was lent to a socket is written again only after the server has acknowledged the write,
//! and so has read it all; or else after it was parted from the socket's copy. Otherwise a server that
//! notices a lost connection late would read the buffer's later content from its queue, and write that to the
//! disk.

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};
use warmd_cbt::buffer::{ALIGNMENT, Buffer};

/// A write's data.
#[derive(Debug)]
pub(super) struct Payload {
    /// Always there until the payload ends.
    buffer: Option<Buffer>,
    loan: AtomicU8,
}

/// No socket has seen its pages.
const NONE: u8 = 0;
/// A socket has, and its server's answer is due.
const LENT: u8 = 1;
/// A socket has that was lost since.
const ASTRAY: u8 = 2;

impl Payload {
    pub(super) fn new(buffer: Buffer) -> Self {
        Self { buffer: Some(buffer), loan: AtomicU8::new(NONE) }
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[range])
    }

    /// Before a part of it goes out by reference.
    pub(super) fn lend(&self) {
        self.loan.fetch_max(LENT, Ordering::Relaxed);
    }

    /// A request that carried it failed: it stays unknown whether its pages were read.
    pub(super) fn stray(&self) {
        let _ = self.loan.compare_exchange(LENT, ASTRAY, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The buffer, after every request that carried it was acknowledged.
    pub(super) fn acknowledged(mut self) -> Option<Buffer> {
        let mut buffer = self.buffer.take()?;
        if *self.loan.get_mut() == ASTRAY {
            part(&mut buffer);
        }
        Some(buffer)
    }
}

impl Drop for Payload {
    /// Not acknowledged: its caller is gone, or has the error.
    fn drop(&mut self) {
        if let Some(mut buffer) = self.buffer.take()
            && *self.loan.get_mut() != NONE
        {
            part(&mut buffer);
        }
    }
}

/// Whether memory can be parted from pages that the kernel still holds; not if all of it is locked, for
/// example.
pub(super) fn can_part() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        // Buffers begin and end where pages of this size do; larger ones reach into other memory.
        if page_size() != ALIGNMENT {
            return false;
        }
        let mut page = Buffer::unpooled(ALIGNMENT);
        page.fill(0xa5);
        forget_pages(&mut page) && page.iter().all(|byte| *byte == 0)
    })
}

/// Puts the bytes on other pages; the old pages stay unchanged with their readers.
fn part(buffer: &mut Buffer) {
    let bytes = buffer.to_vec();
    if forget_pages(buffer) {
        buffer.copy_from_slice(&bytes);
    } else {
        // Parting was tested before the first lending. A leak is better than a disk with wrong bytes.
        tracing::error!(
            "memory cannot be parted from a lost connection's: {} bytes are abandoned",
            bytes.len()
        );
        buffer.move_away();
    }
}

/// The buffer's whole pages are given back to the kernel, and read as zeroes. Only whole pages are ever lent.
#[allow(unsafe_code)]
fn forget_pages(buffer: &mut Buffer) -> bool {
    let whole = buffer.len() / ALIGNMENT * ALIGNMENT;
    // SAFETY: the buffer begins at a page, as large as `can_part` has seen to, so that whole pages inside it
    // are meant, which no other code can reach during `&mut`; as memory of the allocator they are private and
    // anonymous, so that they read as zeroes afterwards, which are valid bytes.
    unsafe { madvise(buffer.as_mut_ptr().cast(), whole, Advice::LinuxDontNeed) }.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        let mut buffer = Buffer::unpooled(3 * ALIGNMENT + 10);
        buffer.fill(7);
        Payload::new(buffer)
    }

    #[test]
    fn parting_keeps_the_bytes_and_changes_the_pages() {
        assert!(can_part(), "memory cannot be parted on this machine");
        let payload = payload();
        payload.lend();
        payload.stray();
        assert_eq!(payload.acknowledged().expect("the buffer").to_vec(), vec![7; 3 * ALIGNMENT + 10]);
    }

    #[test]
    fn only_what_was_lent_goes_astray() {
        let payload = payload();
        payload.stray();
        assert_eq!(payload.loan.load(Ordering::Relaxed), NONE);
        payload.lend();
        payload.stray();
        payload.lend();
        assert_eq!(payload.loan.load(Ordering::Relaxed), ASTRAY, "another loan hid the first one's loss");
    }
}
