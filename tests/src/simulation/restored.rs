//! The durable state restored from an older copy, as an operator might do in error.

use rusqlite::Connection;
use warmd_core::model::{id::MigrationId, state::State};

use super::{
    durable::{Durable, open},
    groups::GroupSeen,
    world::Truth,
};

/// A copy of the durable state.
#[derive(Debug)]
pub(super) struct Copy {
    name: String,
    db: Connection,
    /// Blocks that it trusts; the daemon dies after a write to one of them.
    awaited: Vec<((MigrationId, String), usize)>,
}

impl Durable {
    /// Copies the present state; only the first copy is kept.
    pub(super) fn copy(&mut self, truth: &mut Truth) -> rusqlite::Result<()> {
        truth.copy_at = None;
        if self.copy.is_none() {
            let name = self.name.replace('?', "c?");
            let db = open(&name)?;
            self.db.execute("VACUUM INTO ?", [&name])?;
            let mut awaited = Vec::new();
            if truth.chance.happens(500) {
                let trusted = truth.ledgers.iter().map(|(key, ledger)| (key, &ledger.trusted));
                awaited.extend(trusted.flat_map(|(key, of)| of.iter().map(|block| (key.clone(), *block))));
            } else if truth.chance.happens(700) {
                truth.dies_at = Some(truth.steps + truth.chance.magnitude(100));
            }
            self.copy = Some(Copy { name, db, awaited });
            truth.note(format_args!("==== the state is copied"));
        }
        Ok(())
    }

    /// Makes the daemon die when the target differs from a block that the copy trusts.
    pub(super) fn outdate(&mut self, truth: &mut Truth) {
        let Some(copy) = &mut self.copy else { return };
        let pending = |(key, block): &(_, usize)| {
            truth.ledgers.get(key).is_none_or(|ledger| ledger.pending.contains(block))
        };
        if !copy.awaited.iter().all(pending) {
            copy.awaited.clear();
            truth.dies_at = Some(truth.steps + truth.chance.magnitude(16));
        }
    }

    /// Replaces the state by the copy, if the daemon can survive that.
    pub(super) fn restore(&mut self, truth: &mut Truth) -> rusqlite::Result<()> {
        let Some(copy) = self.copy.take() else { return Ok(()) };
        let count: u32 = copy.db.query_row("SELECT count(*) FROM migrations", [], |row| row.get(0))?;
        // The daemon cannot know any more where the disks of a cancelled migration are.
        let too_late = |state: &State| matches!(state, State::Cancelling | State::Cancelled);
        if count != truth.states.len() as u32 || truth.states.values().any(too_late) {
            return Ok(());
        }
        (self.name, self.db) = (copy.name, copy.db);
        self.last_line =
            self.db.query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))?;
        self.seen.clear();
        self.disks.clear();
        // The ledgers are true again only after the daemon has detected the restore.
        truth.stale = truth.ledgers.keys().cloned().collect();
        truth.ledgers.clear();
        self.look_at_ledgers(truth)?;
        for made in truth.targets.values_mut() {
            made.forgotten = made.exists;
        }
        truth.told = self.sources_that_run()?;
        truth.group = truth.group.take().map(|_| GroupSeen::default());
        self.look_at_groups(truth)?;
        for (id, vm, state, json) in self.saved_states()? {
            self.states.insert(id.to_string(), json);
            if let Some(found) = truth.vms.get_mut(&vm) {
                found.is_in(&state);
                // The daemon does not start a VM if its state does not know that it stopped the VM.
                (found.wanted, found.starters.put_back) = (None, true);
            }
            truth.states.insert(id, state);
        }
        // The guest prefers to write content that the copy believes to be on the target.
        let trusted = truth.ledgers.iter().flat_map(|((_, disk), ledger)| {
            ledger.trusted.iter().map(|block| (ledger.vm.clone(), disk.clone(), *block))
        });
        for (vm, disk, block) in trusted.collect::<Vec<_>>() {
            if truth.chance.happens(500) {
                truth.guest_reverts(&vm, &disk, block);
            }
        }
        truth.counts.add("restores");
        truth.note(format_args!("==== the state is put back from its copy"));
        Ok(())
    }
}
