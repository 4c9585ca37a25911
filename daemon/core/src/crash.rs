//! Named points at which a test can end the process as `kill -9` does.
//!
//! Rule: a release build, or one without the feature `crash-points`, contains none of this. With the feature,
//! the environment variable `WARMD_CRASH_AT=NAME` or `NAME:N` names the point and the pass over it (from 1)
//! that is the last.

/// Ends the process here if the test requested it.
#[cfg(all(feature = "crash-points", debug_assertions))]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    static AT: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let at = AT.get_or_init(|| {
        let text = std::env::var("WARMD_CRASH_AT").ok()?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), nth.parse().unwrap_or(1)))
    });
    if let Some((wanted, nth)) = at
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth
    {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).ok();
        std::process::abort();
    }
}

/// Does nothing: the feature is off.
#[cfg(not(all(feature = "crash-points", debug_assertions)))]
pub fn point(_name: &str) {}
