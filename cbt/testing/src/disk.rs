//! A disk in memory with a volatile cache: unflushed writes may be lost, kept, or torn at a power failure.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;

use super::faults::{DiskEvent, DiskFault, Faults, Random};
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, ErrorKind, Operation, ReadDisk, WriteDisk},
    manifest::BlockHash,
    units::{BLOCK, Extent, Length, Offset, blocks_in},
};

/// Requests must begin at a block and end at one or at the disk's end.
pub struct MemoryDisk {
    name: String,
    size: Length,
    faults: Faults,
    state: Mutex<State>,
    on_write: OnceLock<Box<dyn Fn(Extent) + Send + Sync>>,
}

struct State {
    blocks: Vec<Block>,
    random: Random,
    knows_holes: bool,
    zeroes_by_writing: bool,
    /// Hashes of fills, by fill and length.
    known: HashMap<(u64, usize), BlockHash>,
}

#[derive(Clone)]
struct Block {
    durable: Content,
    /// Written since the last flush, the newest last.
    dirty: Vec<Content>,
}

/// Mostly a fill, to keep big disks cheap.
#[derive(Clone, PartialEq, Eq)]
enum Content {
    /// These eight bytes again and again.
    Fill(u64),
    Bytes(Arc<[u8]>),
}

impl MemoryDisk {
    /// A disk of zeroes.
    pub fn new(name: &str, size: Length, faults: Faults, seed: u64) -> Self {
        let zero = Block { durable: Content::Fill(0), dirty: Vec::new() };
        let state = State {
            blocks: vec![zero; blocks_in(size) as usize],
            random: Random::new(seed),
            knows_holes: true,
            zeroes_by_writing: false,
            known: HashMap::new(),
        };
        Self { name: name.to_owned(), size, faults, state: Mutex::new(state), on_write: OnceLock::new() }
    }

    /// Whether queries of holes are answered (at random: short, cut up, or claiming data) or refused.
    pub fn set_knows_holes(&self, knows: bool) {
        self.state().knows_holes = knows;
    }

    /// Whether it reports that zeroing costs it as much as writing.
    pub fn set_zeroes_by_writing(&self, does: bool) {
        self.state().zeroes_by_writing = does;
    }

    /// Called with the extent before each write and each zeroing. At most one.
    pub fn on_write(&self, watch: impl Fn(Extent) + Send + Sync + 'static) {
        let _ = self.on_write.set(Box::new(watch));
    }

    /// Writes `fill` durably into a block: its eight bytes again and again.
    pub fn set_fill(&self, block: u64, fill: u64) {
        let content = Block { durable: Content::Fill(fill), dirty: Vec::new() };
        self.state().blocks[block as usize] = content;
    }

    /// The bytes of the whole disk as a read sees them.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size.0 as usize];
        let state = self.state();
        for (block, place) in state.blocks.iter().zip(bytes.chunks_mut(BLOCK as usize)) {
            block.now().fill(place);
        }
        bytes
    }

    /// All contents that the block may have after a crash now, without torn writes: the durable one first.
    pub fn versions(&self, block: u64) -> Vec<BlockHash> {
        let extent =
            Extent::new(Offset(block * BLOCK), Length(BLOCK)).and_then(|extent| extent.clip(self.size));
        let len = extent.map_or(0, |extent| extent.len().0 as usize);
        let mut state = self.state();
        let State { blocks, known, .. } = &mut *state;
        let block = &blocks[block as usize];
        std::iter::once(&block.durable).chain(&block.dirty).map(|content| content.hash(len, known)).collect()
    }

    /// A power failure: each block keeps its durable content, or any write since, or parts of two.
    pub fn crash(&self) {
        let mut state = self.state();
        let State { blocks, random, .. } = &mut *state;
        for block in blocks {
            let last = block.dirty.len() as u64;
            let survivor = block.version(random.below(last + 1)).clone();
            block.durable = if last > 0 && random.percent(20) {
                torn(&survivor, block.version(random.below(last + 1)))
            } else {
                survivor
            };
            block.dirty.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other tasks run meanwhile, so that calls overlap and end out of order; sometimes a whole pass fits in
    /// between.
    async fn dawdle(&self) {
        let times = {
            let random = &mut self.state().random;
            let most = if random.percent(2) { 200 } else { 4 };
            random.below(most)
        };
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }

    fn error(&self, operation: Operation, extent: Option<Extent>, kind: ErrorKind) -> DiskError {
        DiskError::new(kind, operation, self.name.clone(), extent, "a fault of the test's")
    }

    fn chance_kind(&self) -> ErrorKind {
        let kinds = [ErrorKind::Connection, ErrorKind::Timeout, ErrorKind::Media, ErrorKind::NoSpace];
        kinds[self.state().random.below(kinds.len() as u64) as usize]
    }

    fn check(&self, operation: Operation, at: Offset, len: usize) -> Result<Extent, DiskError> {
        let extent = Extent::new(at, Length(len as u64)).filter(|extent| extent.within(self.size));
        let refused = || self.error(operation, extent, ErrorKind::Refused);
        let extent = extent.ok_or_else(refused)?;
        let aligned = at.0.is_multiple_of(BLOCK)
            && (extent.end().0.is_multiple_of(BLOCK) || extent.end().0 == self.size.0);
        if aligned { Ok(extent) } else { Err(refused()) }
    }

    /// A write that the `new` contents describe, block by block.
    async fn put(
        &self,
        operation: Operation,
        extent: Extent,
        new: impl Fn(usize) -> Content,
    ) -> Result<(), DiskError> {
        if let Some(watch) = self.on_write.get() {
            watch(extent);
        }
        let (life, fault) = self.faults.strike(DiskEvent::Write);
        if fault != Some(DiskFault::Crash) {
            self.dawdle().await;
        }
        if fault.is_some() || self.faults.lives(life) {
            // A write that fails, or during which the power fails, may have written a part.
            let mut state = self.state();
            let State { blocks, random, .. } = &mut *state;
            for (at, block) in extent.blocks().enumerate() {
                let ended_before = fault == Some(DiskFault::Fail) && !self.faults.lives(life);
                if fault.is_none() || (!ended_before && random.percent(50)) {
                    blocks[block as usize].dirty.push(new(at));
                }
            }
        }
        self.dawdle().await;
        if fault.is_some() || !self.faults.lives(life) {
            return Err(self.error(operation, Some(extent), self.chance_kind()));
        }
        Ok(())
    }
}

#[async_trait]
impl ReadDisk for MemoryDisk {
    fn size(&self) -> Length {
        self.size
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { max_request: 1 << 30, in_flight: 64 }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = self.check(Operation::Read, at, buffer.len())?;
        let (life, fault) = self.faults.strike(DiskEvent::Read);
        self.dawdle().await;
        if fault.is_some() || !self.faults.lives(life) {
            return Err(self.error(Operation::Read, Some(extent), self.chance_kind()));
        }
        let state = self.state();
        for (block, place) in extent.blocks().zip(buffer.chunks_mut(BLOCK as usize)) {
            state.blocks[block as usize].now().fill(place);
        }
        Ok(buffer)
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        let (life, fault) = self.faults.strike(DiskEvent::Allocation);
        self.dawdle().await;
        if fault.is_some() || !self.faults.lives(life) {
            return Err(self.error(Operation::Allocation, Some(extent), self.chance_kind()));
        }
        let mut state = self.state();
        let State { blocks, random, knows_holes, .. } = &mut *state;
        if !*knows_holes {
            return Err(self.error(Operation::Allocation, Some(extent), ErrorKind::Refused));
        }
        let mut parts: Vec<Allocation> = Vec::new();
        let reach = if random.percent(30) { 1 + random.below(4) } else { u64::MAX };
        let mut step = BLOCK;
        let mut at = extent.start();
        while at < extent.end() && (parts.len() as u64) < reach {
            if random.percent(10) {
                step = [4096, 12288, BLOCK][random.below(3) as usize];
            }
            let end = Offset((at.0 / step + 1) * step).min(extent.end());
            let Some(part) = Extent::between(at, end) else { break };
            let is_zero = part.blocks().all(|block| *blocks[block as usize].now() == Content::Fill(0));
            parts.push(Allocation { extent: part, zero: is_zero && !random.percent(10) });
            at = end;
        }
        Ok(parts)
    }
}

#[async_trait]
impl WriteDisk for MemoryDisk {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        let extent = self.check(Operation::Write, at, range.len())?;
        let bytes = &buffer[range];
        let blocks: Vec<_> = bytes.chunks(BLOCK as usize).map(Content::of).collect();
        self.put(Operation::Write, extent, |at| blocks[at].clone()).await?;
        Ok(buffer)
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        let extent = self.check(Operation::WriteZeroes, extent.start(), extent.len().0 as usize)?;
        self.put(Operation::WriteZeroes, extent, |_| Content::Fill(0)).await
    }

    fn zeroes_by_writing(&self) -> bool {
        self.state().zeroes_by_writing
    }

    async fn flush(&self) -> Result<(), DiskError> {
        // Only writes before the call count; a flush may include more, but callers must not rely on it.
        let written: Vec<usize> = self.state().blocks.iter().map(|block| block.dirty.len()).collect();
        let (life, fault) = self.faults.strike(DiskEvent::Flush);
        self.dawdle().await;
        let lives = self.faults.lives(life);
        let mut state = self.state();
        let State { blocks, random, .. } = &mut *state;
        if fault.is_none() && lives {
            for (block, count) in blocks.iter_mut().zip(written) {
                if let Some(newest) = block.dirty.drain(..count.min(block.dirty.len())).next_back() {
                    block.durable = newest;
                }
            }
            return Ok(());
        }
        if fault == Some(DiskFault::Fail) && lives {
            // Writes that cannot be written back are dropped.
            for block in blocks {
                if let Some(newest) = block.dirty.drain(..).next_back().filter(|_| random.percent(50)) {
                    block.durable = newest;
                }
            }
        }
        drop(state);
        Err(self.error(Operation::Flush, None, self.chance_kind()))
    }
}

impl Block {
    fn now(&self) -> &Content {
        self.dirty.last().unwrap_or(&self.durable)
    }

    fn version(&self, number: u64) -> &Content {
        (number as usize).checked_sub(1).and_then(|at| self.dirty.get(at)).unwrap_or(&self.durable)
    }
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        let mut fill = [0; 8];
        let known = bytes.len().min(8);
        fill[..known].copy_from_slice(&bytes[..known]);
        let (words, rest) = bytes.as_chunks::<8>();
        if words.iter().all(|word| *word == fill) && *rest == fill[..rest.len()] {
            Self::Fill(u64::from_le_bytes(fill))
        } else {
            Self::Bytes(bytes.into())
        }
    }

    fn hash(&self, len: usize, known: &mut HashMap<(u64, usize), BlockHash>) -> BlockHash {
        let hash = || {
            let mut bytes = vec![0; len];
            self.fill(&mut bytes);
            BlockHash::of(&bytes)
        };
        match self {
            Self::Fill(fill) => *known.entry((*fill, len)).or_insert_with(hash),
            Self::Bytes(_) => hash(),
        }
    }

    fn fill(&self, place: &mut [u8]) {
        match self {
            Self::Fill(0) => place.fill(0),
            Self::Fill(fill) => {
                let (words, rest) = place.as_chunks_mut::<8>();
                words.fill(fill.to_le_bytes());
                rest.copy_from_slice(&fill.to_le_bytes()[..rest.len()]);
            }
            Self::Bytes(bytes) => place.copy_from_slice(&bytes[..place.len()]),
        }
    }
}

/// The first half of one and the second half of the other.
fn torn(first: &Content, second: &Content) -> Content {
    let mut bytes = vec![0; BLOCK as usize];
    let half = bytes.len() / 2;
    match (first, second) {
        (Content::Fill(_), Content::Fill(_)) => {
            first.fill(&mut bytes[..half]);
            second.fill(&mut bytes[half..]);
            Content::of(&bytes)
        }
        _ => first.clone(),
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
