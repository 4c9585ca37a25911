//! Ctrl-C in a program of the harness: every wait ends with an error, so that all fixtures end in order.
//!
//! Rule: fixtures are ended by their own `Drop`, never by the signal.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP end waits instead of the process.
pub fn catch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term, mut hup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                    ASKED.store(true, Relaxed);
                }
            });
        })
        .context("no thread for signals")?;
    Ok(())
}

/// Returns an error once a signal was caught.
pub fn check() -> Result<()> {
    if ASKED.load(Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
