//! A value that tasks watch.
//!
//! Rule: waiting tasks are woken in the order in which they began to wait. `tokio::sync::watch` wakes in a
//! random order, so that one seed of the simulation would give a different run every time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The value, and the tasks that wait for its next change.
#[derive(Debug, Default)]
pub(super) struct FifoWatch<T>(Arc<Inner<T>>);

#[derive(Debug, Default)]
struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State<T> {
    value: T,
    /// Changes so far.
    version: u64,
}

/// A task that watches it.
#[derive(Debug)]
pub(crate) struct Subscriber<T> {
    inner: Arc<Inner<T>>,
    /// The version that it has seen.
    seen: u64,
}

impl<T> FifoWatch<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(State { value, version: 0 }), changed: Notify::new() }))
    }

    /// Reads the value.
    pub(super) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().value)
    }

    /// Changes the value, and notifies all watchers.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = {
            let mut state = self.0.lock();
            state.version += 1;
            change(&mut state.value)
        };
        self.0.changed.notify_waiters();
        result
    }

    /// A subscriber that has seen the present value.
    pub(super) fn listen(&self) -> Subscriber<T> {
        Subscriber { inner: Arc::clone(&self.0), seen: self.0.lock().version }
    }
}

impl<T> Subscriber<T> {
    /// Reads the value and marks it as seen.
    pub(super) fn look<R>(&mut self, look: impl FnOnce(&T) -> R) -> R {
        let state = self.inner.lock();
        self.seen = state.version;
        look(&state.value)
    }

    /// Returns when the value differs from the seen one, and marks it as seen.
    pub(crate) async fn changed(&mut self) {
        loop {
            // Before the read: so a later change is not missed.
            let notified = self.inner.changed.notified();
            let version = self.inner.lock().version;
            if version != self.seen {
                self.seen = version;
                return;
            }
            notified.await;
        }
    }
}

impl<T> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_hear_of_a_change_in_the_order_in_which_they_came() {
        for _ in 0..20 {
            let told = FifoWatch::new(0);
            let order = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = tokio::task::JoinSet::new();
            for who in 0..10 {
                let (mut listener, order) = (told.listen(), Arc::clone(&order));
                tasks.spawn(async move {
                    listener.changed().await;
                    order.lock().unwrap().push((who, listener.look(|value| *value)));
                });
            }
            tokio::task::yield_now().await;
            told.change(|value| *value = 7);
            tasks.join_all().await;
            assert_eq!(*order.lock().unwrap(), (0..10).map(|who| (who, 7)).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_heard_of_once() {
        let told = FifoWatch::new(0);
        let mut listener = told.listen();
        told.change(|value| *value = 1);
        listener.changed().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(20), listener.changed()).await;
        assert!(again.is_err(), "there was one change");
    }
}
