//! The fixed pool of aligned buffers in which all data travels from the source to the target.
//!
//! Rule: memory is bounded by the pool, for any disk size. A caller that wants data in flight first
//! waits for a buffer; dropping the buffer, on any path, gives it back.
//!
//! A target gets a share of the pool ([`BufferPool::share`]), so that a hanging target leaves buffers for the
//! others, and the reserve is for final passes alone, whose VMs are off. The buffer of an abandoned call that
//! may never end is written off ([`BufferLoan::write_off`]): another takes its place at once, and its memory
//! is freed should the call end. At most as many as the pool has are written off at a time: memory is at most
//! doubled.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What O_DIRECT needs at the most on today's devices, and a memory page.
pub const ALIGNMENT: usize = 4096;

/// A fixed number of buffers of one capacity. Cloning gives another handle on the same pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
    quota: Option<[Arc<Semaphore>; 2]>,
    is_urgent: bool,
}

struct Shared {
    capacity: usize,
    count: usize,
    free: Mutex<Vec<Vec<u8>>>,
    permits: Arc<Semaphore>,
    /// For urgent work alone.
    reserve: Arc<Semaphore>,
    reserved: usize,
    /// By target: the share of all, and the extra share of urgent work.
    quotas: Mutex<BTreeMap<String, [Arc<Semaphore>; 2]>>,
    written_off: AtomicUsize,
}

impl BufferPool {
    /// A pool of `count` buffers of `capacity` bytes each; memory is taken when a buffer is first used. None
    /// is reserved.
    pub fn new(count: usize, capacity: usize) -> Self {
        Self::with_reserve(count, 0, capacity)
    }

    /// The same, of which `reserve` buffers are for urgent work alone.
    pub fn with_reserve(count: usize, reserve: usize, capacity: usize) -> Self {
        let reserve = reserve.min(count.saturating_sub(1));
        let reserved = reserve;
        let [permits, reserve] = [count - reserve, reserve].map(|count| Arc::new(Semaphore::new(count)));
        let shared = Shared {
            capacity,
            count,
            free: Mutex::new(Vec::with_capacity(count)),
            permits,
            reserve,
            reserved,
            quotas: Mutex::default(),
            written_off: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared), quota: None, is_urgent: false }
    }

    /// The part of the pool that may be in use for `target`: at most three quarters of it at once, the same
    /// three quarters for all who ask for that target's. Urgent work may use as many more as are reserved,
    /// and takes the reserve too.
    pub fn share(&self, target: &str, is_urgent: bool) -> Self {
        let mut quotas = self.shared.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        let most = three_quarters(self.shared.count);
        let quota = quotas
            .entry(target.to_owned())
            .or_insert_with(|| [most, self.shared.reserved].map(|count| Arc::new(Semaphore::new(count))));
        Self { shared: Arc::clone(&self.shared), quota: Some(quota.clone()), is_urgent }
    }

    /// Buffers that one of `disks` disks of a share should hold at the most: with several, a hanging one
    /// leaves some.
    pub fn fair(&self, disks: usize) -> usize {
        let of_target = three_quarters(self.shared.count);
        if disks > 1 { three_quarters(of_target) } else { of_target }
    }

    /// Bytes that a buffer of this pool can hold.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Buffers that are free now and not reserved.
    pub fn available(&self) -> usize {
        self.shared.permits.available_permits()
    }

    /// Buffers in abandoned calls that have not ended; others took their places.
    pub fn written_off(&self) -> usize {
        self.shared.written_off.load(SeqCst)
    }

    /// Waits for a buffer and gives it the length `len`, at most [`BufferPool::capacity`]. Its contents are
    /// what the last user left.
    ///
    /// # Panics
    /// If `len` is above the capacity: the caller's plan is wrong; untrusted data cannot cause it.
    pub async fn take(&self, len: usize) -> Buffer {
        assert!(
            len <= self.shared.capacity,
            "buffer of {len} bytes asked of a pool of {}",
            self.shared.capacity
        );
        let quota = match &self.quota {
            Some([common, reserve]) => Some(self.one_of(common, reserve).await),
            None => None,
        };
        let permit = self.one_of(&self.shared.permits, &self.shared.reserve).await;
        let recycled = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = recycled.unwrap_or_else(|| vec![0; self.shared.capacity + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let home = BufferLoan {
            shared: Arc::clone(&self.shared),
            lent: Arc::new(Mutex::new(LoanState::Held(permit, quota))),
        };
        Buffer { memory, start, len, home: Some(home) }
    }

    /// A free place, or, if there is none and the work is urgent, a reserved one.
    async fn one_of(&self, common: &Arc<Semaphore>, reserve: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        if !self.is_urgent {
            return permit(common).await;
        }
        tokio::select! {
            biased;
            permit = permit(common) => permit,
            permit = permit(reserve) => permit,
        }
    }
}

/// The most of `count` buffers for one user so that some are left for others; at least one.
fn three_quarters(count: usize) -> usize {
    (count * 3 / 4).max(1)
}

async fn permit(of: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let Ok(permit) = Arc::clone(of).acquire_owned().await else {
        unreachable!("the pool's semaphores are never closed");
    };
    permit
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("capacity", &self.capacity())
            .field("available", &self.available())
            .field("written_off", &self.written_off())
            .finish_non_exhaustive()
    }
}

/// A buffer's place in its pool.
#[derive(Clone)]
pub struct BufferLoan {
    shared: Arc<Shared>,
    lent: Arc<Mutex<LoanState>>,
}

enum LoanState {
    /// The pool's place, and the share's.
    Held(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    WrittenOff,
    GivenBack,
}

impl BufferLoan {
    /// Lets another buffer take this one's place, which may never come back; not if as many as the pool has
    /// are written off already, or it came back meanwhile. Returns whether it did.
    pub fn write_off(&self) -> bool {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let one_more = |now: usize| (now < self.shared.count).then_some(now + 1);
        let counted = matches!(*lent, LoanState::Held(..))
            && self.shared.written_off.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        if counted {
            *lent = LoanState::WrittenOff;
        }
        counted
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *lent, LoanState::GivenBack) {
            LoanState::Held(permit, quota) => {
                self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
                drop((permit, quota));
            }
            LoanState::WrittenOff => {
                self.shared.written_off.fetch_sub(1, SeqCst);
            }
            LoanState::GivenBack => {}
        }
    }
}

impl fmt::Debug for BufferLoan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").finish_non_exhaustive()
    }
}

/// Bytes aligned to [`ALIGNMENT`], lent by a [`BufferPool`] and returned on drop.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    home: Option<BufferLoan>,
}

impl Buffer {
    /// A buffer outside any pool, for single requests and tests.
    pub fn unpooled(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len, home: None }
    }

    /// Its place in its pool, to be written off if its user never ends; `None` outside any pool.
    pub fn loan(&self) -> Option<BufferLoan> {
        self.home.clone()
    }

    /// Its capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.memory.len() - ALIGNMENT
    }

    /// Puts its bytes into other memory. The old memory is never used again, nor freed: for a caller that
    /// cannot tell whether another reader still uses it.
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
        if let Some(loan) = self.home.take() {
            loan.give_back(std::mem::take(&mut self.memory));
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

    #[tokio::test]
    async fn hanging_target_leaves_buffers_to_others_and_the_reserve() {
        let pool = BufferPool::with_reserve(16, 2, 4096);
        let [hung, other] = ["hung", "other"].map(|target| pool.share(target, false));
        let late = Duration::from_millis(20);
        let mut held = Vec::new();
        while let Ok(buffer) = tokio::time::timeout(late, hung.take(1)).await {
            held.push(buffer);
        }
        assert_eq!(held.len(), 12, "three quarters");
        assert!(
            tokio::time::timeout(late, pool.share("hung", false).take(1)).await.is_err(),
            "one share for all"
        );
        let others = [other.take(1).await, other.take(1).await];
        assert!(tokio::time::timeout(late, other.take(1)).await.is_err(), "the reserve is not for all");
        let urgent = pool.share("hung", true);
        let finals = [urgent.take(1).await, urgent.take(1).await];
        drop((others, finals));
        assert_eq!(pool.available(), 2);
    }

    #[tokio::test]
    async fn buffers_that_never_come_back_are_replaced_up_to_a_cap() {
        let pool = BufferPool::new(4, 4096);
        let mut lost = Vec::new();
        for _ in 0..4 {
            let buffer = pool.share("hung", false).take(1).await;
            let loan = buffer.loan().unwrap();
            assert!(loan.write_off() && !loan.write_off(), "once");
            lost.push(buffer);
        }
        assert_eq!((pool.written_off(), pool.available()), (4, 4));
        let beyond = pool.share("hung", false).take(1).await;
        assert!(!beyond.loan().unwrap().write_off(), "memory is at most doubled");
        drop(beyond);
        let loan = lost[0].loan().unwrap();
        drop(lost);
        assert_eq!((pool.written_off(), pool.available()), (0, 4), "none is counted twice");
        assert!(!loan.write_off(), "it came back");
        assert_eq!((pool.written_off(), pool.available()), (0, 4));
    }
}
