//! The content of a simulated disk: blocks that copies share until one of them is written.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use warmd_cbt::{
    manifest::{BlockHash, RootHasher},
    units::{BLOCK, Length},
};

const BYTES: usize = BLOCK as usize;
/// The version of every new page: equal versions mean equal bytes, higher versions are later.
static VERSIONS: AtomicU64 = AtomicU64::new(1);

/// One block; the last one of a disk may be short.
#[derive(Clone, Debug)]
struct Page {
    version: u64,
    bytes: Arc<Vec<u8>>,
}

/// A disk's contents.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    size: u64,
    pages: Vec<Page>,
}

impl Pages {
    /// A disk of `size` bytes, filled with `byte`.
    pub(super) fn filled(size: u64, byte: u8) -> Self {
        let page = |len| Page { version: VERSIONS.fetch_add(1, Relaxed), bytes: Arc::new(vec![byte; len]) };
        let (whole, tail) = (size as usize / BYTES, size as usize % BYTES);
        let full = page(BYTES);
        let mut pages = vec![full; whole];
        if tail > 0 {
            pages.push(page(tail));
        }
        Self { size, pages }
    }

    /// In bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many blocks it has.
    pub(super) fn blocks(&self) -> usize {
        self.pages.len()
    }

    /// Fills `into` from `at`.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let place = at as usize + done;
            let bytes = &self.pages[place / BYTES].bytes[place % BYTES..];
            let len = bytes.len().min(into.len() - done);
            into[done..done + len].copy_from_slice(&bytes[..len]);
            done += len;
        }
    }

    /// Puts `bytes` at `at`.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.change(at, bytes.len(), |page, from| page.copy_from_slice(&bytes[from..from + page.len()]));
    }

    /// Puts `len` times `byte` at `at`.
    pub(super) fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.change(at, len as usize, |page, _| page.fill(byte));
    }

    fn change(&mut self, at: u64, len: usize, mut change: impl FnMut(&mut [u8], usize)) {
        let mut done = 0;
        while done < len {
            let place = at as usize + done;
            let page = &mut self.pages[place / BYTES];
            page.version = VERSIONS.fetch_add(1, Relaxed);
            let bytes = Arc::make_mut(&mut page.bytes);
            let from = place % BYTES;
            let until = bytes.len().min(from + len - done);
            change(&mut bytes[from..until], done);
            done += until - from;
        }
    }

    /// Whether a block is all zero.
    pub(super) fn is_zero(&self, block: usize) -> bool {
        self.pages[block].bytes.first() == Some(&0) && blank(&self.pages[block].bytes)
    }

    /// Whether a block is equal in both.
    pub(super) fn same(&self, other: &Self, block: usize) -> bool {
        let (one, two) = (&self.pages[block], &other.pages[block]);
        one.version == two.version || one.bytes == two.bytes
    }

    /// The blocks in which they differ.
    pub(super) fn differing(&self, other: &Self) -> Vec<usize> {
        (0..self.blocks()).filter(|block| !self.same(other, *block)).collect()
    }

    /// The blocks, with their versions, in which this is newer than `other`.
    pub(super) fn newer_than(&self, other: &Self) -> Vec<(usize, u64)> {
        let both = self.pages.iter().zip(&other.pages).enumerate();
        both.filter(|(_, (own, theirs))| own.version > theirs.version)
            .map(|(block, (own, _))| (block, own.version))
            .collect()
    }

    /// Copies each block of `other` that is newer than its own, unless its number and version are to be
    /// skipped.
    pub(super) fn take_newer(&mut self, other: &Self, skips: impl Fn(usize, u64) -> bool) {
        for (block, version) in other.newer_than(self) {
            if !skips(block, version) {
                self.take(other, block);
            }
        }
    }

    /// Copies a block of `other`.
    pub(super) fn take(&mut self, other: &Self, block: usize) {
        self.pages[block].clone_from(&other.pages[block]);
    }

    /// Copies the first `len` bytes of a block of `other`.
    pub(super) fn take_some(&mut self, other: &Self, block: usize, len: u64) {
        let theirs = &other.pages[block].bytes;
        let some = &theirs[..theirs.len().min(len as usize)];
        self.write((block * BYTES) as u64, some);
    }

    /// The manifest's root, computed from its published definition.
    pub(super) fn root(&self) -> Option<String> {
        let mut root = RootHasher::new(Length(self.size));
        for page in &self.pages {
            root.update(&BlockHash::of_blocks(&page.bytes));
        }
        root.finish()
    }
}

fn blank(bytes: &[u8]) -> bool {
    bytes[..bytes.len() - 1] == bytes[1..]
}
