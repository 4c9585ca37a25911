//! What libvirt reported of domains' starts and stops: a bounded record that can be asked whether a domain
//! ran meanwhile.
//!
//! Rule: an absent event counts as "it did not run" only while the record had no gap; else the answer is
//! unknown. Times are this host's monotonic clock, at the event's arrival.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};

use uuid::Uuid;

use super::ffi::LibvirtConnection;

/// The most events that are kept.
const KEPT: usize = 4096;

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainChange {
    Started,
    Paused,
    Resumed,
    Stopped,
}

/// The events of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// The connection that they come from.
    connection: Weak<LibvirtConnection>,
    /// Since when no event was missed.
    since: Option<Instant>,
    events: VecDeque<(Instant, Uuid, DomainChange)>,
}

impl Kept {
    fn note(&mut self, at: Instant, domain: Uuid, happening: DomainChange) {
        if self.events.len() == KEPT
            && let Some((oldest, ..)) = self.events.pop_front()
        {
            self.since = self.since.max(Some(oldest));
        }
        self.events.push_back((at, domain, happening));
    }

    /// Whether it was started more than `own_starts` times, or resumed.
    fn ran_since(&self, domain: Uuid, when: Instant, own_starts: usize, is_alive: bool) -> Option<bool> {
        let since = self.events.iter().filter(|(at, whose, _)| *at >= when && *whose == domain);
        let count = |wanted| since.clone().filter(|(_, _, what)| *what == wanted).count();
        if count(DomainChange::Resumed) > 0 || count(DomainChange::Started) > own_starts {
            return Some(true);
        }
        (is_alive && self.since.is_some_and(|since| since < when)).then_some(false)
    }
}

impl Record {
    /// Keeps the events of a new connection from now on.
    pub(super) fn follow(self: &Arc<Self>, connection: &Arc<LibvirtConnection>) {
        let record = Arc::downgrade(self);
        let listener = Box::new(move |domain, event, _detail| {
            let happening = match event {
                2 => DomainChange::Started,
                3 => DomainChange::Paused,
                4 => DomainChange::Resumed,
                5 | 8 => DomainChange::Stopped,
                _ => return,
            };
            if let Some(record) = record.upgrade() {
                record.lock().note(Instant::now(), domain, happening);
            }
        });
        let listens = connection.listen(listener);
        if let Err(failure) = &listens {
            tracing::warn!(?failure, "libvirt tells no events; domains are looked at all the same");
        }
        let mut kept = self.lock();
        kept.connection = Arc::downgrade(connection);
        kept.since = listens.is_ok().then(Instant::now);
    }

    /// Whether the domain was resumed, or started more than `own_starts` times, at or after `when`; `None` if
    /// that is unknown.
    pub(super) fn ran_since(&self, domain: Uuid, when: Instant, own_starts: usize) -> Option<bool> {
        let kept = self.lock();
        kept.ran_since(
            domain,
            when,
            own_starts,
            kept.connection.upgrade().is_some_and(|open| open.is_alive()),
        )
    }

    /// The domain's events that are kept, oldest first.
    pub(super) fn of(&self, domain: Uuid) -> Vec<(Instant, DomainChange)> {
        let kept = self.lock();
        let own = kept.events.iter().filter(|(_, whose, _)| *whose == domain);
        own.map(|(at, _, what)| (*at, *what)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn silence_counts_only_without_a_gap() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut kept = Kept { since: Some(at(10)), ..Kept::default() };
        kept.note(at(20), one, DomainChange::Started);
        kept.note(at(30), one, DomainChange::Stopped);
        assert_eq!(kept.ran_since(one, at(15), 0, true), Some(true));
        assert_eq!(kept.ran_since(one, at(25), 0, true), Some(false));
        assert_eq!(kept.ran_since(other, at(15), 0, true), Some(false));
        // Before the record began, and after the connection broke.
        assert_eq!(kept.ran_since(other, at(5), 0, true), None);
        assert_eq!(kept.ran_since(one, at(25), 0, false), None);
        assert_eq!(kept.ran_since(one, at(15), 0, false), Some(true));
        for _ in 0..KEPT {
            kept.note(at(40), other, DomainChange::Paused);
        }
        assert_eq!((kept.events.len(), kept.ran_since(one, at(25), 0, true)), (KEPT, None));
        assert_eq!(kept.ran_since(one, at(35), 0, true), Some(false));
    }

    #[test]
    fn a_start_of_ones_own_is_no_run_and_any_other_is() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let domain = Uuid::from_u128(1);
        let mut kept = Kept { since: Some(at(1)), ..Kept::default() };
        kept.note(at(10), domain, DomainChange::Started);
        kept.note(at(10), domain, DomainChange::Paused);
        assert_eq!(kept.ran_since(domain, at(9), 1, true), Some(false));
        let mut resumed = Kept { events: kept.events.clone(), ..Kept::default() };
        resumed.note(at(11), domain, DomainChange::Resumed);
        assert_eq!(resumed.ran_since(domain, at(9), 1, true), Some(true));
        // Stopped, and started by another user before the next look.
        kept.note(at(12), domain, DomainChange::Stopped);
        kept.note(at(13), domain, DomainChange::Started);
        assert_eq!(kept.ran_since(domain, at(9), 1, true), Some(true));
    }
}
