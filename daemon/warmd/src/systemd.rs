//! What the daemon reports to systemd: that the daemon is ready, that it stops, and that it lives.
//!
//! Rule: the daemon reports that it lives only after the state's writer answered, even with a failure: a
//! daemon that cannot save must still power source VMs on, and a restarted one could not save either. Without
//! systemd (`NOTIFY_SOCKET` is not set) nothing is reported, and a systemd that cannot be reached changes
//! nothing for the migrations.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use warmd_store::Store;

/// The shortest interval, so that a wrong setting does not make a busy loop.
const SHORTEST: Duration = Duration::from_millis(50);

/// The daemon is ready.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A stop was requested, and passes commit what they have; that takes `at_most`.
pub(crate) fn stopping(at_most: Duration) {
    let micros = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Reports that the daemon lives, three times within the unit's `WatchdogSec=`, until it is dropped; nothing
/// if it has none.
pub(crate) async fn live(store: Store) {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return;
    };
    let every = (within / 3).max(SHORTEST);
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match timeout(within, store.beat()).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            // The daemon ends without help where the writer is gone.
            Ok(Err(error)) => {
                tracing::error!(%error, "the state cannot be written");
                tell(&[NotifyState::Watchdog]);
            }
            Err(_) => tracing::error!("the state does not answer: the watchdog is not fed"),
        }
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
