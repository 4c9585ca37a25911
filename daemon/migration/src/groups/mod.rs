//! VMs that cut over together: who of them is ready, which groups run, and the barrier between them.
//!
//! Rule: a group owns no migration. Each owner asks here before it starts its target VM, and nobody is let through but by what
//! [`warmd_core::model::coordination`] decides of all of them. What the store says of the members counts; what is only in memory
//! (who stands at the barrier) is lost with the daemon, and then all of them come to the barrier again.
//!
//! ```text
//! owners ── arrive ──▶ board ◀── open, halted ── coordinator, one for each running group ──▶ begins the members' cutovers
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
    /// Somebody is ready who was not.
    became_ready: Notify,
    /// Groups that began and ended so far.
    turns: FifoWatch<u64>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<u64, Arc<Running>>,
    /// Who would begin now by itself, if it were not for its group.
    ready: BTreeMap<MigrationId, ReadyMember>,
}

/// A VM whose own cutover would begin now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyMember {
    pub(super) plan: String,
    /// In whose name.
    pub(super) by: String,
    /// Whatever windows and forecasts say.
    pub(super) force: bool,
}

/// A group that runs.
#[derive(Debug)]
struct Running {
    group: Group,
    board: FifoWatch<Board>,
}

/// What its members and its coordinator tell each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Board {
    /// Who stands at the barrier.
    arrived: BTreeSet<MigrationId>,
    /// For whom it was opened. There is no way back.
    open: BTreeSet<MigrationId>,
    /// Who failed, and why.
    failed: BTreeMap<MigrationId, String>,
    /// Why nobody else is let through.
    halted: Option<String>,
}

impl Groups {
    /// Lets a group run; what it was halted by before stays.
    fn add(&self, group: Group) -> Arc<Running> {
        let board = Board { halted: group.halted.clone(), ..Board::default() };
        let running = Arc::new(Running { group, board: FifoWatch::new(board) });
        self.lock().running.insert(running.group.id, Arc::clone(&running));
        self.turns.change(|turns| *turns += 1);
        running
    }

    fn remove(&self, id: u64) {
        self.lock().running.remove(&id);
        self.turns.change(|turns| *turns += 1);
    }

    /// Tells when a group begins or ends.
    pub(super) fn turns(&self) -> Subscriber<u64> {
        self.turns.listen()
    }

    /// Notes why a migration is taken back or failed, if it is in a group that runs.
    pub(super) fn mark_failed(&self, id: MigrationId, why: &str) {
        if let Some((running, _)) = self.of(id) {
            running.mark_failed(id, why);
        }
    }

    /// The running group that the migration belongs to, and its place in that.
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

    /// Why the migration does not begin a cutover of its own, if it is in a group that runs.
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

    /// Notes whether the migration would begin now.
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

    /// Who of a plan is ready.
    fn ready_of(&self, plan: &str) -> BTreeMap<MigrationId, ReadyMember> {
        let state = self.lock();
        let theirs = state.ready.iter().filter(|(_, ready)| ready.plan == plan);
        theirs.map(|(id, ready)| (*id, ready.clone())).collect()
    }

    /// Plans of which somebody is ready.
    fn plans_ready(&self) -> BTreeSet<String> {
        self.lock().ready.values().map(|ready| ready.plan.clone()).collect()
    }

    /// Takes a migration out of its group, which goes no further then; why that cannot be, if the barrier was opened
    /// for it.
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

    /// Breaks the group, unless that comes too late for those for whom it `is_late`.
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
