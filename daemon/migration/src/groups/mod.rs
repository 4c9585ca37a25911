//! VMs that cut over together: the ready members, the running groups, and the barrier between members.
//!
//! Rule: a group owns no migration. Each driver asks here before it starts its target VM, and passes only by
//! a decision of [`warmd_core::model::coordination`] on all members. The store decides what is known of the
//! members; what is only in memory (which members are at the barrier) is lost with the daemon, and then all
//! of them come to the barrier again.
//!
//! ```text
//! drivers ── arrive ──▶ board ◀── open, halted ── coordinator, one per running group ──▶ begins cutovers
//! ```

mod auto_start;
mod barrier;
mod coordinator;
mod fifo_watch;
mod plan_cutover;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use warmd_core::model::{
    group::{Group, GroupMember},
    id::MigrationId,
};

pub(super) use self::barrier::pass;
use self::fifo_watch::{FifoWatch, Subscriber};

/// All running groups of the daemon.
#[derive(Debug, Default)]
pub struct Groups {
    state: Mutex<State>,
    /// A member has become ready.
    became_ready: Notify,
    /// The number of groups that began and ended.
    turns: FifoWatch<u64>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<u64, Arc<Running>>,
    /// Members that would begin now if they were not in a group.
    ready: BTreeMap<MigrationId, ReadyMember>,
}

/// A VM whose own cutover would begin now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyMember {
    pub(super) plan: String,
    /// On whose behalf.
    pub(super) by: String,
    /// Whether windows and forecasts are ignored.
    pub(super) force: bool,
}

/// A running group.
#[derive(Debug)]
struct Running {
    group: Group,
    board: FifoWatch<GroupChannel>,
}

/// The messages between its members and its coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct GroupChannel {
    /// Members at the barrier.
    arrived: BTreeSet<MigrationId>,
    /// Members for which it was opened. This is final.
    open: BTreeSet<MigrationId>,
    /// Failed members, with the reason.
    failed: BTreeMap<MigrationId, String>,
    /// Why no further member passes.
    halted: Option<String>,
}

impl Groups {
    /// Adds a running group; a halted one stays halted.
    fn add(&self, group: Group) -> Arc<Running> {
        let board = GroupChannel { halted: group.halted.clone(), ..GroupChannel::default() };
        let running = Arc::new(Running { group, board: FifoWatch::new(board) });
        self.lock().running.insert(running.group.id, Arc::clone(&running));
        self.turns.change(|turns| *turns += 1);
        running
    }

    fn remove(&self, id: u64) {
        self.lock().running.remove(&id);
        self.turns.change(|turns| *turns += 1);
    }

    /// Notifies when a group begins or ends.
    pub(super) fn turns(&self) -> Subscriber<u64> {
        self.turns.listen()
    }

    /// Records why a migration is undone or failed, if it is in a running group.
    pub(super) fn mark_failed(&self, id: MigrationId, why: &str) {
        if let Some((running, _)) = self.of(id) {
            running.mark_failed(id, why);
        }
    }

    /// The running group of the migration, and its membership.
    fn of(&self, id: MigrationId) -> Option<(Arc<Running>, GroupMember)> {
        let state = self.lock();
        state.running.values().find_map(|running| {
            let member = running.group.members.iter().find(|member| member.migration == id)?;
            Some((Arc::clone(running), member.clone()))
        })
    }

    fn of_plan(&self, plan: &str) -> Option<Arc<Running>> {
        self.lock().running.values().find(|running| running.group.plan == plan).map(Arc::clone)
    }

    /// Why the migration does not begin a cutover alone, if it is in a running group.
    pub(super) fn keeps(&self, id: MigrationId) -> Option<String> {
        let (running, member) = self.of(id)?;
        let plan = &running.group.plan;
        Some(if running.group.all_or_nothing {
            format!("the VMs of plan {plan} are being cut over together")
        } else {
            format!(
                "the VMs of plan {plan} are being cut over together, and it is of tier {}",
                member.tier + 1
            )
        })
    }

    /// Records whether the migration would begin now.
    pub(super) fn mark_ready(&self, id: MigrationId, ready: Option<ReadyMember>) {
        let mut state = self.lock();
        let Some(ready) = ready else {
            state.ready.remove(&id);
            return;
        };
        if state.ready.insert(id, ready.clone()) != Some(ready) {
            self.became_ready.notify_one();
        }
    }

    /// The ready members of a plan.
    fn ready_of(&self, plan: &str) -> BTreeMap<MigrationId, ReadyMember> {
        let state = self.lock();
        let theirs = state.ready.iter().filter(|(_, ready)| ready.plan == plan);
        theirs.map(|(id, ready)| (*id, ready.clone())).collect()
    }

    /// Plans with ready members.
    fn plans_ready(&self) -> BTreeSet<String> {
        self.lock().ready.values().map(|ready| ready.plan.clone()).collect()
    }

    /// Removes a migration from its group, which is halted then; the error says why that is impossible, if
    /// the barrier was opened for the migration.
    pub(super) fn leave(&self, id: MigrationId, by: &str) -> Result<(), String> {
        let Some((running, member)) = self.of(id) else { return Ok(()) };
        running.abort(format!("VM {}: its cutover was aborted by {by}", member.vm), |open| open.contains(&id))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn mark_failed(&self, id: MigrationId, why: &str) {
        self.board.change(|board| drop(board.failed.insert(id, why.to_owned())));
    }

    /// Halts the group, unless `is_late` holds for the members whose barrier is open.
    fn abort(&self, why: String, is_late: impl FnOnce(&BTreeSet<MigrationId>) -> bool) -> Result<(), String> {
        let late = self.board.change(|board| {
            let late = is_late(&board.open);
            if !late {
                board.halted.get_or_insert(why);
            }
            late
        });
        if late {
            return Err(
                "its group has passed the barrier, and its target VM is being started; if that fails, the \
                        cutover is undone automatically"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
