//! What the daemon reports to systemd: that the daemon is ready, that it stops, and that it lives.
//!
//! Rule: it is said to live only after the state's writer answered, if only that nothing can be written now: a daemon that
//! cannot save still has to power sources on, and a new one could save no more. Without systemd (`NOTIFY_SOCKET` is not set) nothing
//! is reported, and a systemd that cannot be reached changes nothing for the migrations.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use warmd_store::Store;

/// At the least, so that a wrong setting does not make a busy loop.
const SHORTEST: Duration = Duration::from_millis(50);

/// The daemon answers, and works.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A stop was requested, and passes commit what they have; that takes `at_most`.
pub(crate) fn stopping(at_most: Duration) {
    let micros = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Tells that the daemon lives, three times within the unit's `WatchdogSec=`, for as long as it is let; nothing if it has
/// none.
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
