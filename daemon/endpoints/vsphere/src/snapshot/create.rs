//! Creates a snapshot on the server, and leaves one of this migration.
//!
//! Rule: an answer that was lost is no failure: the VM is looked at. A call that the server carried out late
//! leaves a second snapshot: the one that was answered is kept, and the other is removed before a disk is
//! read.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    Vsphere,
    error::{Kind, Result, VsphereError},
    inventory::{SnapshotNode, Vm},
    soap::{FaultKind, MoRef},
    vim::{
        tasks::{self, AtDeadline},
        vm,
    },
};

use super::Owner;

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a server is asked for a snapshot whose call got no answer.
const LOOKS: u32 = 3;

impl Vsphere {
    /// Creates it, and answers whether the guest was brought to rest and how long the server took.
    pub(super) async fn create(
        &self,
        vm: &Vm,
        owner: &Owner,
        quiesce: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(MoRef, bool, Option<Duration>)> {
        match self.create_once(vm, owner, quiesce).await {
            Err(error) if quiesce && is_about_quiescing(&error) => {
                warnings.push(format!(
                    "the guest could not be brought to rest, so this pass copies it as after a power failure; the final \
                     pass is of the VM when it is off ({error})"
                ));
                let (of, took) = self.create_once(vm, owner, false).await?;
                Ok((of, false, took))
            }
            Err(error) => Err(error),
            Ok((of, took)) => Ok((of, quiesce, took)),
        }
    }

    pub(super) async fn create_once(
        &self,
        vm: &Vm,
        owner: &Owner,
        quiesce: bool,
    ) -> Result<(MoRef, Option<Duration>)> {
        let within = Duration::from_secs(self.settings.snapshot_seconds);
        let (name, description) = (owner.snapshot_name(), owner.description());
        let begun = vm::create_snapshot(&self.client, &vm.of, &name, &description, quiesce).await;
        let result = match begun {
            Ok(task) => tasks::wait(&self.client, &task, within, AtDeadline::Cancel).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(done) => match done.result.as_ref().and_then(crate::soap::Element::moref) {
                Some(of) => Ok((of, done.took)),
                None => self.adopt(&vm.of, owner, within).await?.map(|of| (of, done.took)).ok_or_else(|| {
                    VsphereError::failed("creating it", "the task succeeded, and there is no snapshot")
                }),
            },
            Err(error) if error.is_undecided() => {
                tracing::info!(vm = %vm.of, %error, "whether a snapshot was made is looked at");
                match self.adopt(&vm.of, owner, within).await? {
                    Some(of) => Ok((of, None)),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The snapshot that a call made whose answer was lost, once no task runs on the VM.
    async fn adopt(&self, vm: &MoRef, owner: &Owner, within: Duration) -> Result<Option<MoRef>> {
        let deadline = Instant::now() + within;
        let mut looks = 0;
        loop {
            match self.idle(vm).await {
                Ok(vm) => {
                    // Of several, the one that was made last: parents come first.
                    let own = vm.snapshots.iter().rfind(|node| owner.has_made(node));
                    looks += 1;
                    // The server may carry out a call some time after the connection was lost.
                    if own.is_some() || looks == LOOKS {
                        return Ok(own.map(|node| node.of.clone()));
                    }
                    sleep(LOOK_AGAIN).await;
                }
                Err(error)
                    if matches!(error.kind, Kind::Unreachable | Kind::Timeout)
                        && Instant::now() < deadline =>
                {
                    sleep(LOOK_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The VM with the snapshot `made`, as the only one of this migration.
    pub(super) async fn only_own(
        &self,
        of: &MoRef,
        owner: &Owner,
        made: &MoRef,
    ) -> Result<(Vm, SnapshotNode)> {
        let deadline = Instant::now() + Duration::from_secs(self.settings.consolidation_seconds);
        loop {
            let vm = self.inventory.fresh(of).await?;
            let kept = vm.snapshots.iter().find(|node| node.of == *made).cloned().ok_or_else(|| {
                let why = "others removed the snapshot that was just made; trying again";
                VsphereError::blocked("looking at it", why)
            })?;
            let Some(second) = second_own(&vm, owner, made) else { return Ok((vm, kept)) };
            if Instant::now() > deadline {
                let why = format!("{} is still there beside {made}", second.of);
                return Err(VsphereError::new(Kind::Timeout, "removing a second snapshot of warmd", why));
            }
            tracing::warn!(vm = vm.name, second = %second.of, "a call that seemed lost made a second snapshot");
            self.idle(of).await?;
            self.remove(of, second, deadline).await?;
        }
    }
}

/// A snapshot of this migration beside the one that was made for this pass.
fn second_own<'a>(vm: &'a Vm, owner: &Owner, made: &MoRef) -> Option<&'a SnapshotNode> {
    vm.snapshots.iter().find(|node| owner.has_made(node) && node.of != *made)
}

/// Whether the snapshot failed because of what it asked of the guest.
fn is_about_quiescing(error: &VsphereError) -> bool {
    match error.fault() {
        Some(FaultKind::Quiesce(_) | FaultKind::ToolsUnavailable) => true,
        // Older releases say no more than that the VM's state did not allow it.
        Some(FaultKind::InvalidState(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::tests_support::vm, snapshot::tests::node};

    #[test]
    fn a_second_snapshot_of_the_migration_is_found() {
        let owner = Owner::new("m-1");
        let own = |id: &str| SnapshotNode {
            of: MoRef::new("VirtualMachineSnapshot", id),
            ..node(&owner.snapshot_name(), &owner.description())
        };
        let made = own("snapshot-8").of;
        let second = |snapshots: Vec<SnapshotNode>| {
            second_own(&Vm { snapshots, ..vm() }, &owner, &made).map(|node| node.of.id.clone())
        };
        assert_eq!(second(vec![own("snapshot-8"), node("by hand", "")]), None);
        for order in [["snapshot-7", "snapshot-8"], ["snapshot-8", "snapshot-7"]] {
            assert_eq!(second(order.map(own).to_vec()).as_deref(), Some("snapshot-7"));
        }
    }

    #[test]
    fn only_faults_about_the_guest_lead_to_a_snapshot_without_it() {
        let by = |kind| {
            is_about_quiescing(&VsphereError::of_fault(
                "x",
                crate::soap::Fault { kind, message: String::new() },
            ))
        };
        assert!(by(FaultKind::Quiesce("ApplicationQuiesceFault".to_owned())));
        assert!(!by(FaultKind::NoSpace) && !by(FaultKind::TaskInProgress));
        assert!(!by(FaultKind::Unknown("x".to_owned())));
    }
}
