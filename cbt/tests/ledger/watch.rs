//! The invariants, checked at every write and at every commit.

use std::sync::{Arc, Mutex};

use warmd_cbt::{store::DiskId, units::blocks_in};
use warmd_cbt_testing::{MemoryDisk, MemoryStore};

pub(crate) const DISK: DiskId = DiskId(7);

/// The violations that were seen.
#[derive(Clone, Default)]
pub(crate) struct Violations(Arc<Mutex<Vec<String>>>);

impl Violations {
    pub(crate) fn first(&self) -> Option<String> {
        self.0.lock().unwrap().first().cloned()
    }

    fn add(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

/// Watches every write and every commit from now on.
pub(crate) fn watch(target: &Arc<MemoryDisk>, store: &Arc<MemoryStore>) -> Violations {
    let violations = Violations::default();
    let (seen, ledger) = (violations.clone(), Arc::clone(store));
    target.on_write(move |extent| {
        let durable = ledger.view(DISK).unwrap();
        for block in extent.blocks() {
            if !durable.pending.contains(block) {
                seen.add(format!("block {block} is written though not pending"));
            }
            if durable.trusted.contains(block) {
                seen.add(format!("block {block} is written though still trusted"));
            }
        }
    });
    let (seen, disk) = (violations.clone(), Arc::clone(target));
    store.on_commit(move |before, after, _| {
        let mut beyond = after.trusted.clone();
        beyond.subtract(&after.pending);
        if !beyond.is_empty() {
            seen.add(format!("trusted but not pending: {:?}", beyond.extents().collect::<Vec<_>>()));
        }
        for block in 0..blocks_in(after.pending.size()) {
            let known = !after.pending.contains(block) || after.trusted.contains(block);
            if !known {
                continue;
            }
            let what = match (before.pending.contains(block), after.pending.contains(block)) {
                (true, false) => "drained",
                (_, true) => "trusted",
                (false, false) => "not pending",
            };
            let manifest = after.hashes[block as usize];
            let versions = disk.versions(block);
            if versions.iter().any(|version| *version != manifest) {
                seen.add(format!("block {block} is {what} with {manifest:?}, but may hold {versions:?}"));
            }
        }
    });
    violations
}
