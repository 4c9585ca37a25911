//! Change tracking of a VM: switched on, brought into effect, left as it was.
//!
//! Rule: a setting is not tracking. It takes effect when the VM is stunned, and a disk that shows no change
//! id is not tracked yet: only a snapshot made after that counts as the start.

use std::time::Duration;

use warmd_cbt::mark::ChangeMark;

use crate::{
    Vsphere,
    error::{During as _, Result, VsphereError},
    inventory::Vm,
    soap::{FaultKind, MoRef},
    tracking,
    vim::{
        server,
        tasks::{self, AtDeadline},
        vm,
    },
};

use super::{Owner, VmSnapshotRequest, remove::RedoLogEvidence, take::is_tracked};

/// What is done about a VM's tracking before a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TrackingStep {
    None,
    /// It stays as it is, for this reason.
    NotNow(String),
    SwitchOn,
    /// It is switched on, and not in effect.
    Activate,
}

fn tracking_step(vm: &Vm, request: &VmSnapshotRequest, is_allowed: bool) -> TrackingStep {
    // A disk that was copied without a change id had its stun: by that pass's snapshot.
    let lacks = |(uuid, anchor): &(String, Option<ChangeMark>)| {
        vm.disk(uuid).is_some_and(|disk| disk.backing.change_id.is_none())
            && anchor.as_ref().is_none_or(is_tracked)
    };
    let (is_wanted, step, as_it_is) = if vm.tracking_enabled {
        (request.disks.iter().any(lacks), TrackingStep::Activate, "is on, and not in effect")
    } else {
        (is_allowed, TrackingStep::SwitchOn, "stays off")
    };
    // A VM that is off does not write any more.
    if request.is_final || !is_wanted {
        return TrackingStep::None;
    }
    match tracking::may_switch_on(vm) {
        Ok(()) => step,
        Err(why) => TrackingStep::NotNow(format!("changed-block tracking {as_it_is}: {why}")),
    }
}

impl Vsphere {
    /// Switches tracking on where it is off and may be, and brings it into effect where it is not: it was
    /// switched on by others, or by a call of warmd whose answer was lost. Answers the VM after that, and
    /// whether tracking was switched on.
    pub(super) async fn with_tracking(
        &self,
        vm: Vm,
        request: &VmSnapshotRequest,
        warnings: &mut Vec<String>,
    ) -> Result<(Vm, bool)> {
        match tracking_step(&vm, request, self.settings.enable_change_tracking) {
            TrackingStep::None => Ok((vm, false)),
            TrackingStep::NotNow(why) => {
                warnings.push(why);
                Ok((vm, false))
            }
            TrackingStep::SwitchOn => Ok((self.switch_tracking_on(&vm, &request.owner).await?, true)),
            TrackingStep::Activate => {
                tracing::info!(vm = vm.name, "changed-block tracking is on, and is brought into effect");
                let context = || "bringing changed-block tracking into effect".to_owned();
                Ok((self.stun(&vm, &request.owner).await.during(context)?, false))
            }
        }
    }

    /// Switches tracking on, and brings it into effect.
    async fn switch_tracking_on(&self, vm: &Vm, owner: &Owner) -> Result<Vm> {
        let context = || "switching changed-block tracking on".to_owned();
        server::require(&self.client, &vm.of, &["VirtualMachine.Config.ChangeTracking"])
            .await
            .during(context)?;
        tracing::info!(vm = vm.name, "changed-block tracking is switched on");
        self.set_tracking_with_note(vm, owner).await.during(context)?;
        let vm = self.stun(vm, owner).await.during(context)?;
        if !vm.tracking_enabled {
            return Err(VsphereError::failed(context(), "the server took it, and it is still off"));
        }
        Ok(vm)
    }

    /// Tracking takes effect when the VM is stunned: by a snapshot that is made and removed at once.
    async fn stun(&self, vm: &Vm, owner: &Owner) -> Result<Vm> {
        self.create_once(vm, owner, false).await?;
        let (vm, _) = self.quiet(&vm.of, owner, RedoLogEvidence::OwnRemoval).await?;
        Ok(vm)
    }

    /// Switches it on, and notes in the same call for whom. Without the privilege for notes it stays on
    /// afterwards.
    async fn set_tracking_with_note(&self, vm: &Vm, owner: &Owner) -> Result<()> {
        let notes = tracking::with_note(&vm.annotation, owner);
        match self.set_tracking_and_notes(&vm.of, true, &notes).await {
            Err(error) if matches!(error.fault(), Some(FaultKind::NoPermission { .. })) => {
                tracing::warn!(vm = vm.name, %error, "changed-block tracking will stay on: it cannot be noted");
                self.set_tracking(&vm.of, true).await
            }
            result => result,
        }
    }

    async fn set_tracking_and_notes(&self, vm: &MoRef, on: bool, notes: &str) -> Result<()> {
        let within = Duration::from_secs(self.settings.task_seconds);
        let task = vm::reconfigure(&self.client, vm, |spec| {
            spec.text("annotation", vm::notes(notes)).text("changeTrackingEnabled", on)
        });
        tasks::wait(&self.client, &task.await?, within, AtDeadline::Leave).await.map(drop)
    }

    /// Switches tracking off again if it was switched on for this migration. Answers whether it did. On a VM
    /// that runs this takes effect with its next stun or start.
    pub async fn restore_tracking(&self, of: &MoRef, owner: &Owner) -> Result<bool> {
        let context = || format!("VM {}: switching changed-block tracking off again", of.id);
        let vm = self.inventory.fresh(of).await.during(context)?;
        if tracking::switched_on_for(&vm.annotation).as_ref() != Some(owner) {
            return Ok(false);
        }
        let notes = tracking::without_note(&vm.annotation);
        self.set_tracking_and_notes(of, false, &notes).await.during(context)?;
        let now = self.inventory.fresh(of).await.during(context)?;
        if tracking::switched_on_for(&now.annotation).is_some() {
            return Err(VsphereError::failed(context(), "its notes were set, and are others"));
        }
        Ok(true)
    }

    /// Switches tracking of a VM on or off; how it is already is success.
    pub async fn set_tracking(&self, vm: &MoRef, on: bool) -> Result<()> {
        let within = Duration::from_secs(self.settings.task_seconds);
        let task = vm::reconfigure(&self.client, vm, |spec| spec.text("changeTrackingEnabled", on)).await?;
        tasks::wait(&self.client, &task, within, AtDeadline::Leave).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::tests_support, snapshot::tests::node, tracking::Mark};

    fn vm(tracking_enabled: bool, in_effect: bool) -> Vm {
        let mut vm = Vm { tracking_enabled, ..tests_support::vm() };
        for disk in &mut vm.disks {
            disk.backing.has_parent = false;
            disk.backing.change_id = in_effect.then(|| "x/1".to_owned());
        }
        vm
    }

    fn request(vm: &Vm, anchor: Option<&ChangeMark>) -> VmSnapshotRequest {
        let disk = |disk: &crate::inventory::VirtualDisk| (disk.uuid.clone().unwrap(), anchor.cloned());
        VmSnapshotRequest {
            owner: Owner::new("m-1"),
            vm: vm.of.clone(),
            disks: vm.disks.iter().map(disk).collect(),
            is_final: false,
        }
    }

    #[test]
    fn tracking_that_is_on_and_not_in_effect_is_activated() {
        let step = |vm: &Vm| tracking_step(vm, &request(vm, None), true);
        assert_eq!(step(&vm(false, false)), TrackingStep::SwitchOn);
        assert_eq!(step(&vm(true, true)), TrackingStep::None);
        assert_eq!(step(&vm(true, false)), TrackingStep::Activate);
        let mut one = vm(true, true);
        one.disks[1].backing.change_id = None;
        assert_eq!(step(&one), TrackingStep::Activate, "one disk of several lacks it");
        // The plan's policy is about switching it on.
        let on = vm(true, false);
        assert_eq!(tracking_step(&on, &request(&on, None), false), TrackingStep::Activate);
        assert_eq!(tracking_step(&vm(false, false), &request(&on, None), false), TrackingStep::None);
        let others = Vm { snapshots: vec![node("by hand", "")], ..vm(true, false) };
        assert!(matches!(step(&others), TrackingStep::NotNow(_)));
        let last = VmSnapshotRequest { is_final: true, ..request(&on, None) };
        assert_eq!(tracking_step(&on, &last, true), TrackingStep::None);
    }

    #[test]
    fn a_vm_is_not_stunned_at_each_pass_for_an_untracked_disk() {
        let on = vm(true, false);
        let mark = |change_id: Option<&str>| Mark {
            disk: "d".to_owned(),
            capacity: 1,
            snapshot: "s".to_owned(),
            change_id: change_id.and_then(|id| id.parse().ok()),
        };
        let untracked = request(&on, Some(&mark(None).write()));
        assert_eq!(tracking_step(&on, &untracked, true), TrackingStep::None);
        let id = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81";
        let tracked = request(&on, Some(&mark(Some(id)).write()));
        assert_eq!(tracking_step(&on, &tracked, true), TrackingStep::Activate);
    }
}
