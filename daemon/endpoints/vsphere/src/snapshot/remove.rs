//! Removes snapshots of ours, and waits until their disks are consolidated.
//!
//! Rule: only a snapshot with this migration's name and description is removed. Gone already is success. It
//! counts as removed when the VM does not show it any more and no redo log of it waits: those that a removal
//! left, before a crash too, are consolidated. Those of others are theirs.

use std::{
    collections::BTreeSet,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use warmd_cbt::mark::ChangeMark;

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::{SnapshotNode, Vm},
    soap::MoRef,
    tracking::{ChangeId, Mark, change_id_now},
    vim::{
        tasks::{self, AtDeadline, Running},
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

/// What tells, beside what this process did itself, that redo logs without a snapshot are of this migration.
#[derive(Clone, Copy, Debug)]
pub(super) enum RedoLogEvidence<'a> {
    /// Nothing else.
    OwnRemoval,
    /// The ledgers' anchors: a disk that still has its anchor's change id had no other snapshot since.
    Anchors(&'a [(String, Option<ChangeMark>)]),
    /// What the server says was done to the VM lately, by the user that warmd has.
    RecentTasks,
}

impl Vsphere {
    /// Removes the snapshot after its pass. Answers how long that took.
    pub async fn release(&self, taken: &Taken) -> Result<Duration> {
        Ok(self.end_snapshots(&taken.vm, &taken.owner).await?.took)
    }

    /// Removes whatever snapshots this migration has on the VM, and waits for the consolidation.
    pub async fn end_snapshots(&self, vm: &MoRef, owner: &Owner) -> Result<Removed> {
        let context = || format!("VM {}: removing the snapshot of migration {owner}", vm.id);
        match self.quiet(vm, owner, RedoLogEvidence::RecentTasks).await {
            Ok((_, removed)) => Ok(removed),
            // A VM that is gone has none.
            Err(error) if error.is_gone(vm) => Ok(Removed::default()),
            Err(error) => Err(error).during(context),
        }
    }

    /// The VM when no task runs on it, it has no snapshot of this migration, and no redo log of one waits.
    pub(super) async fn quiet(
        &self,
        of: &MoRef,
        owner: &Owner,
        evidence: RedoLogEvidence<'_>,
    ) -> Result<(Vm, Removed)> {
        let consolidation = Duration::from_secs(self.settings.consolidation_seconds);
        let deadline = Instant::now() + consolidation;
        let mut removed = Removed::default();
        let mut asked_to_consolidate = false;
        loop {
            let vm = self.idle(of).await?;
            let own: Vec<&SnapshotNode> = vm.snapshots.iter().filter(|node| owner.has_made(node)).collect();
            if let Some(node) = own.first() {
                let begun = Instant::now();
                self.remove(of, node, deadline).await?;
                removed.count += 1;
                removed.took += begun.elapsed();
            } else if vm.consolidation_needed && self.left_redo_logs(&vm, evidence).await? {
                if asked_to_consolidate {
                    let why = "its disks still need consolidation after it was asked for: in vSphere, Snapshots, \
                               Consolidate; see that its datastore has room";
                    return Err(VsphereError::blocked(format!("VM {}", of.id), why));
                }
                asked_to_consolidate = true;
                let begun = Instant::now();
                tracing::info!(vm = vm.name, "redo logs that a removal left are consolidated");
                let task = vm::consolidate(&self.client, of).await?;
                tasks::wait(&self.client, &task, left(deadline), AtDeadline::Leave).await?;
                removed.took += begun.elapsed();
            } else {
                self.unconsolidated().remove(of);
                return Ok((vm, removed));
            }
            if Instant::now() > deadline {
                let why = format!("it has not ended within {} s", consolidation.as_secs());
                return Err(VsphereError::new(Kind::Timeout, format!("VM {}: consolidating", of.id), why));
            }
        }
    }

    /// Whether the VM's redo logs without a snapshot come from a removal by this migration.
    async fn left_redo_logs(&self, vm: &Vm, evidence: RedoLogEvidence<'_>) -> Result<bool> {
        if self.unconsolidated().contains(&vm.of) {
            return Ok(true);
        }
        match evidence {
            RedoLogEvidence::OwnRemoval => Ok(false),
            RedoLogEvidence::Anchors(anchors) => Ok(are_at_anchors(vm, anchors)),
            RedoLogEvidence::RecentTasks => {
                let user = &self.client.account().user;
                let tasks = tasks::recent(&self.client, &vm.recent_tasks).await?;
                Ok(tasks
                    .iter()
                    .any(|task| removes(task) && task.by.as_deref().is_some_and(|by| same_user(by, user))))
            }
        }
    }

    /// The VMs from which this process removed a snapshot, until they are seen without redo logs.
    fn unconsolidated(&self) -> MutexGuard<'_, BTreeSet<MoRef>> {
        self.unconsolidated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn remove(&self, of: &MoRef, node: &SnapshotNode, deadline: Instant) -> Result<()> {
        // Before the call: its answer may be lost.
        self.unconsolidated().insert(of.clone());
        let result = match vm::remove_snapshot(&self.client, &node.of).await {
            Ok(task) => tasks::wait(&self.client, &task, left(deadline), AtDeadline::Leave).await.map(drop),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.is_gone(&node.of) => Ok(()),
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
    pub(crate) async fn idle(&self, of: &MoRef) -> Result<Vm> {
        let patience = Duration::from_secs(self.settings.task_seconds);
        let begun = Instant::now();
        loop {
            let vm = self.inventory.fresh(of).await?;
            let Some(task) = tasks::first_open(&self.client, &vm.recent_tasks).await? else { return Ok(vm) };
            // Our own removal, begun by an earlier call, is waited for as long as it would have been then.
            let patience = if removes(&task) {
                Duration::from_secs(self.settings.consolidation_seconds)
            } else {
                patience
            };
            if begun.elapsed() >= patience {
                let why = format!("{task}; trying again when it has ended");
                return Err(VsphereError::blocked(format!("VM {}", vm.name), why));
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Whether the task merges redo logs. The API's names differ in capital letters by release.
fn removes(task: &Running) -> bool {
    let what = task.what.to_ascii_lowercase();
    what.ends_with("removesnapshot")
        || what.ends_with("consolidatedisks")
        || what.ends_with("consolidatevmdisks")
}

/// Whether the disks had no snapshot after the one that the anchors are of.
fn are_at_anchors(vm: &Vm, anchors: &[(String, Option<ChangeMark>)]) -> bool {
    let mut marks = anchors.iter().filter_map(|(uuid, anchor)| {
        let id = Mark::read(anchor.as_ref()?)?.change_id?;
        Some((uuid, id))
    });
    let is_at = |(uuid, id): (&String, ChangeId)| change_id_now(vm, uuid) == Some(id);
    marks.next().is_some_and(is_at) && marks.all(is_at)
}

/// Whether the server's name of a user is the one of the settings: `DOMAIN\\name`, `name@domain` or `name`. A
/// domain is written by its DNS name or by the first label of that, and may be left out.
fn same_user(reported: &str, ours: &str) -> bool {
    let (reported, ours) = (reported.to_lowercase(), ours.to_lowercase());
    let ((name, domain), (our_name, our_domain)) = (parts(&reported), parts(&ours));
    let is_short = |short: &str, long: &str| {
        long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    !our_name.is_empty()
        && name == our_name
        && (domain.is_empty()
            || our_domain.is_empty()
            || domain == our_domain
            || !domain.contains('.') && is_short(domain, our_domain)
            || !our_domain.contains('.') && is_short(our_domain, domain))
}

/// A user's name and domain, which is empty if none is given.
fn parts(user: &str) -> (&str, &str) {
    match (user.rsplit_once('\\'), user.split_once('@')) {
        (Some((domain, name)), _) => (name, domain),
        (None, Some((name, domain))) => (name, domain),
        (None, None) => (user, ""),
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests_support;

    const EPOCH: &str = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63";

    fn anchors(vm: &Vm, sequences: &[Option<u64>]) -> Vec<(String, Option<ChangeMark>)> {
        let each = vm.disks.iter().zip(sequences).map(|(disk, sequence)| {
            let uuid = disk.uuid.clone().unwrap();
            let mark = Mark {
                disk: uuid.clone(),
                capacity: 1,
                snapshot: "s".to_owned(),
                change_id: sequence.map(|sequence| format!("{EPOCH}/{sequence}").parse().unwrap()),
            };
            (uuid, Some(mark.write()))
        });
        each.collect()
    }

    #[test]
    fn redo_logs_are_ours_if_no_other_snapshot_came_since() {
        let mut vm = tests_support::vm();
        for disk in &mut vm.disks {
            disk.backing.change_id = Some(format!("{EPOCH}/7"));
        }
        assert_eq!(vm.disks.len(), 2);
        assert!(are_at_anchors(&vm, &anchors(&vm, &[Some(7), Some(7)])));
        assert!(are_at_anchors(&vm, &anchors(&vm, &[Some(7), None])));
        for others in [[Some(6), Some(6)], [Some(7), Some(6)], [None, None]] {
            assert!(!are_at_anchors(&vm, &anchors(&vm, &others)), "{others:?}");
        }
        assert!(!are_at_anchors(&vm, &[(vm.disks[0].uuid.clone().unwrap(), None)]));
        vm.disks[0].backing.change_id = None;
        assert!(!are_at_anchors(&vm, &anchors(&vm, &[Some(7), Some(7)])));
    }

    #[test]
    fn a_user_is_known_in_each_way_of_writing_it() {
        for reported in ["VSPHERE.LOCAL\\Warmd", "warmd@vsphere.local", "warmd", "vsphere.local\\warmd"] {
            assert!(same_user(reported, "warmd@vsphere.local"), "{reported}");
        }
        assert!(same_user("CORP\\warmd", "warmd@corp.example.com"));
        for reported in [
            "VSPHERE.LOCAL\\backup",
            "",
            "warmd2@vsphere.local",
            "CORP\\warmd",
            "warmd@vsphere.local.example",
        ] {
            assert!(!same_user(reported, "warmd@vsphere.local"), "{reported}");
        }
        assert!(!same_user("", ""));
    }
}
