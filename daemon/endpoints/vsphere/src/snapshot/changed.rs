//! What changed on a disk between the anchor and a snapshot.

use warmd_cbt::mark::{ChangeMark, Changed};

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::Vm,
    soap::MoRef,
    tracking::{ChangeId, Since, TrackedDisk, Walk, after_fault, change_id_now, since},
    vim::{events, vm},
};

use super::{LastStart, Taken};

/// Whether the disk's tracking is the one of this change id.
fn is_still_tracked(vm: &Vm, disk: &str, id: &ChangeId) -> bool {
    change_id_now(vm, disk).is_some_and(|there| there.same_epoch(id))
}

impl Vsphere {
    /// What changed on the disk with this backing UUID since the anchor. What cannot be known is an answer,
    /// not a failure.
    pub async fn changed(&self, taken: &Taken, uuid: &str, anchor: Option<&ChangeMark>) -> Result<Changed> {
        let context = || format!("VM {}: asking what changed on disk {uuid}", taken.vm.id);
        let disk = taken
            .disk(uuid)
            .ok_or_else(|| VsphereError::new(Kind::NotFound, context(), "it is not in this snapshot"))?;
        let now = TrackedDisk { mark: &disk.mark, tracking_enabled: disk.tracking_enabled };
        let id = match since(anchor, &now) {
            Since::Ask(id) => id.to_string(),
            Since::Unknown(why) => return Ok(Changed::Unknown(why)),
        };
        let mut walk = Walk::new(disk.disk.capacity);
        while let Some(at) = walk.next() {
            let key = disk.disk.key;
            let answer =
                vm::query_changed_areas(&self.client, &taken.vm, Some(&taken.of), key, at, &id).await;
            let areas = match answer {
                Ok(areas) => areas,
                Err(error) => match error.fault().and_then(after_fault) {
                    Some(why) => return Ok(Changed::Unknown(format!("{why} ({})", error.cause))),
                    None => return Err(error).during(context),
                },
            };
            if let Err(nonsense) = walk.take(&areas) {
                tracing::warn!(vm = %taken.vm, disk = uuid, %nonsense, "what the server says is not believed");
                return Ok(Changed::Unknown(format!("the server's answer is not believed: {nonsense}")));
            }
        }
        tracing::debug!(vm = %taken.vm, disk = uuid, pages = walk.pages(), "what changed is known");
        Ok(Changed::Known(walk.changed()))
    }

    /// Fails if a VM that is off has changed since this snapshot of it, which was the final one: it was
    /// started in between, and what it wrote was not copied. Asked before the snapshot is released. Only
    /// evidence fails: changed blocks, lost tracking, a start among the server's events, or a server that no
    /// longer reports starts. One that never reported them passes.
    pub async fn is_unchanged(&self, taken: &Taken) -> Result<()> {
        let context = || format!("VM {}: looking whether it ran since its final snapshot", taken.vm.id);
        let now = self.inventory.fresh(&taken.vm).await.during(context)?;
        for disk in &taken.disks {
            let Some(id) = &disk.mark.change_id else { continue };
            // The key is that of now, not of the snapshot's moment.
            let Some(key) = now.disk(&disk.mark.disk).map(|disk| disk.key) else {
                let why = format!("its disk {} is gone", disk.mark.disk);
                return Err(VsphereError::refused(context(), why));
            };
            let mut walk = Walk::new(disk.disk.capacity);
            while let Some(at) = walk.next() {
                let asked =
                    vm::query_changed_areas(&self.client, &taken.vm, None, key, at, &id.to_string()).await;
                let areas = match asked {
                    Ok(areas) => areas,
                    Err(error) if matches!(error.kind, Kind::Unreachable | Kind::Timeout | Kind::Blocked) => {
                        return Err(error).during(context);
                    }
                    // A start whose stop was not orderly ends the tracking that the mark is of.
                    Err(error) if !is_still_tracked(&now, &disk.mark.disk, id) => {
                        let why = format!(
                            "disk {} is not tracked any more as it was at the final snapshot, so the VM may have run \
                             since: what was read may not be its last state; find out who started it, then go on ({error})",
                            disk.mark.disk
                        );
                        return Err(VsphereError::refused(context(), why));
                    }
                    Err(error) => {
                        tracing::info!(vm = %taken.vm, %error, "the server does not say whether the VM ran");
                        break;
                    }
                };
                if walk.take(&areas).is_err() {
                    break;
                }
                if areas.areas.iter().any(|(_, length)| *length > 0) {
                    let why = "its disks have changed since the final snapshot, so it was started and stopped again: \
                               what was read is not its last state; find out who started it, then go on";
                    return Err(VsphereError::refused(context(), why));
                }
            }
        }
        let last_start = self.last_start(&taken.vm).await.during(context)?;
        if last_start == LastStart::Unknown && taken.last_start != LastStart::Unknown {
            let why = "the server reported when the VM was started before, and does not now: try again";
            return Err(VsphereError::new(Kind::Failed, context(), why));
        }
        if taken.last_start.is_before_a_start(last_start) {
            let why = "the server's events say that it was started since the final snapshot: what was read is not its last \
                       state; find out who started it, then go on";
            return Err(VsphereError::refused(context(), why));
        }
        Ok(())
    }

    /// The VM's last start by the server's events. That it does not say is no failure; that it cannot be
    /// reached is one.
    pub(super) async fn last_start(&self, vm: &MoRef) -> Result<LastStart> {
        match events::last_start(&self.client, vm).await {
            Ok(Some(key)) => Ok(LastStart::Event(key)),
            Ok(None) => Ok(LastStart::NoneReported),
            Err(error) if matches!(error.kind, Kind::Unreachable | Kind::Timeout) => Err(error),
            Err(error) => {
                tracing::info!(%vm, %error, "the server does not say when the VM was started");
                Ok(LastStart::Unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests_support;

    #[test]
    fn tracking_of_another_epoch_or_none_is_not_the_marks() {
        let mut vm = tests_support::vm();
        let uuid = vm.disks[0].uuid.clone().unwrap();
        let epoch = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63";
        let id: ChangeId = format!("{epoch}/7").parse().unwrap();
        for (there, is_still) in [
            (Some(format!("{epoch}/7")), true),
            // A later snapshot of the same tracking.
            (Some(format!("{epoch}/9")), true),
            (Some("52 00 c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/1".to_owned()), false),
            (Some("*".to_owned()), false),
            (None, false),
        ] {
            vm.disks[0].backing.change_id.clone_from(&there);
            assert_eq!(is_still_tracked(&vm, &uuid, &id), is_still, "{there:?}");
        }
        assert!(!is_still_tracked(&vm, "no such disk", &id));
    }
}
