//! Removes snapshots of ours, and waits until their disks are consolidated.
//!
//! Rule: only a snapshot with this migration's name and description is removed. Gone already is success. It
//! counts as removed when the VM does not show it any more and no redo log waits.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::{SnapshotNode, Vm},
    soap::MoRef,
    vim::{
        tasks::{self, AtDeadline},
        vm,
    },
};

use super::{Owner, Taken};

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a removal cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Snapshots that were removed.
    pub count: usize,
    /// How long the server took, consolidation included.
    pub took: Duration,
}

impl Vsphere {
    /// Removes the snapshot after its pass. Answers how long that took.
    pub async fn release(&self, taken: &Taken) -> Result<Duration> {
        Ok(self.end_snapshots(&taken.vm, &taken.owner).await?.took)
    }

    /// Removes whatever snapshots this migration has on the VM, and waits for the consolidation.
    pub async fn end_snapshots(&self, vm: &MoRef, owner: &Owner) -> Result<Removed> {
        let context = || format!("VM {}: removing the snapshot of migration {owner}", vm.id);
        match self.quiet(vm, owner).await {
            Ok((_, removed)) => Ok(removed),
            // A VM that is gone has none.
            Err(error) if error.is_gone() => Ok(Removed::default()),
            Err(error) => Err(error).during(context),
        }
    }

    /// The VM when no task runs on it, it has no snapshot of this migration, and no redo log of one waits.
    pub(super) async fn quiet(&self, of: &MoRef, owner: &Owner) -> Result<(Vm, Removed)> {
        let consolidation = Duration::from_secs(self.settings.consolidation_seconds);
        let deadline = Instant::now() + consolidation;
        let mut removed = Removed::default();
        let mut asked_to_consolidate = false;
        loop {
            let vm = self.idle(of).await?;
            let own: Vec<&SnapshotNode> = vm.snapshots.iter().filter(|node| owner.has_made(node)).collect();
            if let Some(node) = own.first() {
                let begun = Instant::now();
                self.remove(node, deadline).await?;
                removed.count += 1;
                removed.took += begun.elapsed();
            } else if removed.count > 0 && vm.consolidation_needed {
                if asked_to_consolidate {
                    let why = "its disks still need consolidation after it was asked for: in vSphere, Snapshots, \
                               Consolidate; see that its datastore has room";
                    return Err(VsphereError::blocked(format!("VM {}", of.id), why));
                }
                asked_to_consolidate = true;
                let begun = Instant::now();
                let task = vm::consolidate(&self.client, of).await?;
                tasks::wait(&self.client, &task, left(deadline), AtDeadline::Leave).await?;
                removed.took += begun.elapsed();
            } else {
                return Ok((vm, removed));
            }
            if Instant::now() > deadline {
                let why = format!("it has not ended within {} s", consolidation.as_secs());
                return Err(VsphereError::new(Kind::Timeout, format!("VM {}: consolidating", of.id), why));
            }
        }
    }

    async fn remove(&self, node: &SnapshotNode, deadline: Instant) -> Result<()> {
        let result = match vm::remove_snapshot(&self.client, &node.of).await {
            Ok(task) => tasks::wait(&self.client, &task, left(deadline), AtDeadline::Leave).await.map(drop),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.is_gone() => Ok(()),
            // Another's task came between, or the answer was lost: the caller looks at the VM again.
            Err(error)
                if (error.is_undecided() || error.kind == Kind::Blocked) && Instant::now() < deadline =>
            {
                tracing::info!(snapshot = %node.of, %error, "a snapshot's removal is looked at again");
                sleep(LOOK_AGAIN).await;
                Ok(())
            }
            result => result,
        }
    }

    /// The VM when no task runs on it.
    pub(super) async fn idle(&self, of: &MoRef) -> Result<Vm> {
        let patience = Duration::from_secs(self.settings.task_seconds);
        let begun = Instant::now();
        loop {
            let vm = self.inventory.fresh(of).await?;
            let Some(task) = tasks::first_open(&self.client, &vm.recent_tasks).await? else { return Ok(vm) };
            // Our own removal, begun by an earlier call, is waited for as long as it would have been then.
            let is_removal = task.what.ends_with("removeSnapshot") || task.what.ends_with("consolidateDisks");
            let patience =
                if is_removal { Duration::from_secs(self.settings.consolidation_seconds) } else { patience };
            if begun.elapsed() >= patience {
                let why = format!("{task}; trying again when it has ended");
                return Err(VsphereError::blocked(format!("VM {}", vm.name), why));
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
