//! Panics of the daemon's tasks, which the runtime catches and no test would see.

use std::{cell::RefCell, panic, sync::Once};

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Begins to record this process's panics, by thread.
pub(super) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            SEEN.with_borrow_mut(|seen| seen.push(format!("panic: {panic}")));
            before(panic);
        }));
    });
}

/// The panics of this thread since the last call.
pub(super) fn taken() -> Vec<String> {
    SEEN.take()
}
