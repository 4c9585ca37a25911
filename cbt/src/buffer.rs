//! The fixed pool of aligned buffers in which all data travels from the source to the target.
//!
//! Rule: memory is bounded by the pool, whatever the disk's size. Whoever wants data in flight first waits for a
//! buffer; dropping the buffer, on whatever path, gives it back.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What O_DIRECT needs at the most on today's devices, and a memory page.
pub const ALIGNMENT: usize = 4096;

/// A fixed number of buffers of one capacity. Cloning gives another handle on the same pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    capacity: usize,
    free: Mutex<Vec<Vec<u8>>>,
    permits: Arc<Semaphore>,
}

impl BufferPool {
    /// A pool of `count` buffers of `capacity` bytes each; memory is taken when a buffer is first used.
    pub fn new(count: usize, capacity: usize) -> Self {
        let permits = Arc::new(Semaphore::new(count));
        Self { shared: Arc::new(Shared { capacity, free: Mutex::new(Vec::with_capacity(count)), permits }) }
    }

    /// Bytes that a buffer of this pool can hold.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Buffers that nobody holds now.
    pub fn available(&self) -> usize {
        self.shared.permits.available_permits()
    }

    /// Waits for a buffer and gives it the length `len`, at most [`BufferPool::capacity`]. Its contents are whatever
    /// the last user left.
    ///
    /// # Panics
    /// If `len` is above the capacity: the caller's plan is wrong, and no outside data can cause it.
    pub async fn take(&self, len: usize) -> Buffer {
        assert!(
            len <= self.shared.capacity,
            "buffer of {len} bytes asked of a pool of {}",
            self.shared.capacity
        );
        let Ok(permit) = Arc::clone(&self.shared.permits).acquire_owned().await else {
            unreachable!("the pool's semaphore is never closed");
        };
        let recycled = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = recycled.unwrap_or_else(|| vec![0; self.shared.capacity + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer { memory, start, len, home: Some((Arc::clone(&self.shared), permit)) }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("capacity", &self.capacity())
            .field("available", &self.available())
            .finish()
    }
}

/// Bytes aligned to [`ALIGNMENT`], lent by a [`BufferPool`] and given back on drop.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    home: Option<(Arc<Shared>, OwnedSemaphorePermit)>,
}

impl Buffer {
    /// A buffer outside any pool, for single requests and tests.
    pub fn unpooled(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len, home: None }
    }

    /// Bytes that it could hold.
    pub fn capacity(&self) -> usize {
        self.memory.len() - ALIGNMENT
    }

    /// Puts its bytes into other memory. That before is never used again, nor freed: for who cannot tell whether
    /// somebody else still reads it.
    pub fn move_away(&mut self) {
        let mut memory = vec![0; self.memory.len()];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        memory[start..start + self.len].copy_from_slice(self);
        std::mem::forget(std::mem::replace(&mut self.memory, memory));
        self.start = start;
    }

    /// Changes its length; bytes past the old length hold old contents.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity(), "buffer of {} bytes resized to {len}", self.capacity());
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((shared, permit)) = self.home.take() {
            let memory = std::mem::take(&mut self.memory);
            shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
            drop(permit);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(2, 10_000);
        let first = pool.take(10_000).await;
        let second = pool.take(1).await;
        assert_eq!(first.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!((first.len(), second.len(), pool.available()), (10_000, 1, 0));
        let third = tokio::time::timeout(Duration::from_millis(20), pool.take(1)).await;
        assert!(third.is_err(), "a third buffer came out of a pool of two");
        drop(first);
        assert_eq!(pool.take(7).await.len(), 7);
    }

    #[tokio::test]
    async fn a_buffer_that_moved_away_is_as_it_was_and_comes_back() {
        let pool = BufferPool::new(1, 5000);
        let mut buffer = pool.take(4500).await;
        buffer.fill(3);
        let before = buffer.as_ptr();
        buffer.move_away();
        assert_ne!(buffer.as_ptr(), before);
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!((buffer.to_vec(), buffer.capacity()), (vec![3; 4500], 5000));
        drop(buffer);
        assert_eq!(pool.available(), 1);
    }
}
