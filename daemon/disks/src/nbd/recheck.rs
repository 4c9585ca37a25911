//! Reads back writes at places where an older change may have been applied later.
//!
//! Rule: a flush counts only when the suspect places contain what was written there. A different place was
//! overwritten: then the flush fails, and all writes since the last good flush are repeated.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;
use warmd_cbt::{
    buffer::Buffer,
    disk::ReadDisk,
    manifest::is_zero,
    units::{Extent, Length, Offset},
};

use super::{
    disk::NbdDisk,
    error::{NbdCause, NbdError, RequestAt},
    late_changes::SUSPECT,
    wire::NbdCommand,
};

/// Bytes that one request reads back.
const STEP: u64 = 1 << 20;

/// One disk's writes to suspect places since its last flush.
#[derive(Debug)]
pub(super) struct Recheck {
    suspects: Vec<Extent>,
    /// When none of them is suspect any longer, even if the disk stays open.
    until: Instant,
    written: Mutex<Vec<(Extent, Content)>>,
}

/// The content that a place must have.
#[derive(Clone, Copy, Debug)]
enum Content {
    Zeroes,
    Bytes(blake3::Hash),
}

/// The places to read back after one flush.
pub(super) struct Due(Vec<(Extent, Content)>);

impl Recheck {
    pub(super) fn new(suspects: Vec<Extent>) -> Self {
        Self { suspects, until: Instant::now() + SUSPECT, written: Mutex::default() }
    }

    /// `buffer[range]` was written at `at`, before any caller may learn of it.
    pub(super) fn wrote(&self, at: u64, buffer: &Buffer, range: Range<usize>) {
        for from in range.clone().step_by(STEP as usize) {
            let to = range.end.min(from + STEP as usize);
            let place = Extent::new(Offset(at + (from - range.start) as u64), Length((to - from) as u64));
            if let Some(place) = place.filter(|place| self.is_suspect(*place)) {
                self.note(place, Content::Bytes(blake3::hash(&buffer[from..to])));
            }
        }
    }

    /// The extent was zeroed.
    pub(super) fn zeroed(&self, extent: Extent) {
        if self.is_suspect(extent) {
            self.note(extent, Content::Zeroes);
        }
    }

    /// The writes before a flush that begins now.
    pub(super) fn due(&self) -> Due {
        Due(std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn is_suspect(&self, place: Extent) -> bool {
        let meets = |suspect: &Extent| suspect.start() < place.end() && place.start() < suspect.end();
        Instant::now() < self.until && self.suspects.iter().any(meets)
    }

    fn note(&self, place: Extent, content: Content) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((place, content));
    }
}

impl Due {
    /// Reads it back.
    pub(super) async fn check(self, disk: &NbdDisk) -> Result<(), NbdError> {
        for (place, content) in self.0 {
            let holds = match content {
                Content::Bytes(hash) => blake3::hash(&read(disk, place).await?) == hash,
                Content::Zeroes => is_zeroed(disk, place).await?,
            };
            if !holds {
                let at =
                    RequestAt { command: NbdCommand::Write, offset: place.start().0, length: place.len().0 };
                return Err(NbdError::of(NbdCause::Overwritten).at(at));
            }
        }
        Ok(())
    }
}

async fn read(disk: &NbdDisk, place: Extent) -> Result<Buffer, NbdError> {
    disk.read_at(place.start(), Buffer::unpooled(place.len().0 as usize)).await
}

/// Ranges that the server calls zero are not read.
async fn is_zeroed(disk: &NbdDisk, extent: Extent) -> Result<bool, NbdError> {
    let mut at = extent.start();
    while let Some(rest) = Extent::new(at, Length(extent.end().0.saturating_sub(at.0))) {
        let told = disk.allocation(rest).await.ok().and_then(|told| told.first().copied());
        if let Some(told) = told.filter(|told| told.zero && told.extent.start() == at) {
            at = told.extent.end();
            continue;
        }
        let Some(step) = Extent::new(at, Length(rest.len().0.min(STEP))) else { break };
        if !is_zero(&read(disk, step).await?) {
            return Ok(false);
        }
        at = step.end();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_stays_open_is_not_read_back_for_ever() {
        let extent = |start| Extent::new(Offset(start), Length(512)).unwrap();
        let recheck = Recheck::new(vec![extent(0)]);
        recheck.zeroed(extent(0));
        recheck.zeroed(extent(512));
        assert_eq!(recheck.due().0.len(), 1, "what is suspect is read back");
        tokio::time::advance(SUSPECT).await;
        recheck.zeroed(extent(0));
        assert!(recheck.due().0.is_empty(), "an hour has passed");
    }
}
