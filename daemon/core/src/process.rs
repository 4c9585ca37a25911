//! What the operating system reports about this process.
//!
//! Rule: for information only; an unknown value is `None`.

use std::fs;

use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

/// CPU seconds that the process has used, over all its threads.
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Bytes of memory that are its own and in RAM.
pub fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// Open file descriptors, without the one used to count them.
pub fn open_fds() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(open.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_uses_grows_with_use() {
        let (fds, before) = (open_fds().unwrap(), cpu_seconds());
        let held: Vec<_> = (0..64).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close files too.
        assert!(open_fds().unwrap() >= fds.min(32) + held.len() as u64 / 2);
        let memory = vec![1_u8; 32 << 20];
        assert!(resident_bytes().unwrap() > memory.len() as u64);
        assert!(cpu_seconds() > before);
    }
}
