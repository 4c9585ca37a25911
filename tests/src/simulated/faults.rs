//! Faults by the name of the call that they strike.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFault {
    /// It fails with a temporary error, this many times.
    Passing(u32),
    /// It is blocked by a temporary obstacle until the fault is removed.
    Blocked,
    /// It is refused until the fault is removed.
    Refused,
    /// It does not answer until the fault is removed.
    Hang,
    /// It succeeds, and then reports a temporary error, once.
    LostAnswer,
    /// The caller's task panics in it, this many times.
    Panic(u32),
}

/// The faults of one world, shared by its endpoints.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    faults: Arc<Mutex<BTreeMap<String, InjectedFault>>>,
    /// How often each call was made.
    calls: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Faults {
    /// Sets `fault` for the call `name`, such as `target.create`.
    pub fn set(&self, name: &str, fault: InjectedFault) {
        self.lock().insert(name.to_owned(), fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Removes the fault of the call `name`.
    pub fn lift(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Whether any fault is set for `name`.
    pub fn holds(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Whether an obstacle blocks the call `name`.
    pub fn is_blocked(&self, name: &str) -> bool {
        self.lock().get(name) == Some(&InjectedFault::Blocked)
    }

    /// How often the call `name` was made.
    pub fn struck(&self, name: &str) -> u64 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.get(name).copied().unwrap_or_default()
    }

    /// Waits for, or reports, the fault of this call: `Err(true)` if it is temporary, `Err(false)` if not.
    /// After `Ok(true)` the call is executed, and its answer lost.
    pub async fn strike(&self, name: &str) -> Result<bool, bool> {
        tracing::trace!(call = name, "asked");
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
        loop {
            {
                let mut faults = self.lock();
                match faults.get(name).copied() {
                    None => return Ok(false),
                    Some(InjectedFault::Blocked) => return Err(true),
                    Some(InjectedFault::Refused) => return Err(false),
                    Some(InjectedFault::LostAnswer) => {
                        faults.remove(name);
                        return Ok(true);
                    }
                    Some(InjectedFault::Passing(left)) => {
                        if left <= 1 {
                            faults.remove(name);
                        } else {
                            faults.insert(name.to_owned(), InjectedFault::Passing(left - 1));
                        }
                        return Err(true);
                    }
                    Some(InjectedFault::Panic(left)) => {
                        if left <= 1 {
                            faults.remove(name);
                        } else {
                            faults.insert(name.to_owned(), InjectedFault::Panic(left - 1));
                        }
                        drop(faults);
                        panic!("a panic of the test in {name}");
                    }
                    Some(InjectedFault::Hang) => {}
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Whether a read of the state is to fail. The fault is that of `store.read WHAT`, for reads whose
    /// description begins with WHAT.
    pub fn strikes_read(&self, what: &str) -> bool {
        let mut faults = self.lock();
        let is_meant =
            |name: &str| name.strip_prefix("store.read ").is_some_and(|begin| what.starts_with(begin));
        let Some((name, fault)) = faults.iter_mut().find(|(name, _)| is_meant(name)) else { return false };
        match fault {
            InjectedFault::Passing(left) if *left > 1 => *left -= 1,
            InjectedFault::Passing(_) => {
                let name = name.clone();
                faults.remove(&name);
            }
            _ => {}
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, InjectedFault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
