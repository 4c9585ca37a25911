//! Makes a snapshot of all disks at one moment.

use warmd_cbt::mark::ChangeMark;

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::{Connection, Power, SnapshotNode, VirtualDisk, Vm, devices},
    settings::{Quiesce, ReaderKind},
    soap::MoRef,
    tracking::{self, Mark},
    vim::{properties, server},
};

use super::{LastStart, Owner, Taken, TakenDisk, remove::RedoLogEvidence};

/// Each disk by its backing's UUID, with its ledger's anchor.
pub type Anchors = Vec<(String, Option<ChangeMark>)>;

/// What to make a snapshot of.
#[derive(Clone, Debug)]
pub struct VmSnapshotRequest {
    pub owner: Owner,
    pub vm: MoRef,
    pub disks: Anchors,
    /// The final one: the VM is off.
    pub is_final: bool,
}

impl VmSnapshotRequest {
    /// The evidence that redo logs without a snapshot are of this migration.
    fn evidence(&self) -> RedoLogEvidence<'_> {
        RedoLogEvidence::Anchors(&self.disks)
    }

    /// Whether change tracking must be reliable: the VM may write meanwhile, or a tracked pass came before. A
    /// VM that is off and not tracked is read whole and compared. What is not known is not off.
    fn needs_tracking(&self, vm: &Vm) -> bool {
        vm.power != Some(Power::Off)
            || self.disks.iter().any(|(_, anchor)| anchor.as_ref().is_some_and(is_tracked))
    }
}

/// Whether the disk was tracked when it was copied; a mark that is not understood may say so.
pub(super) fn is_tracked(anchor: &ChangeMark) -> bool {
    Mark::read(anchor).is_none_or(|mark| mark.change_id.is_some())
}

/// The privileges on the VM that a pass needs, until its snapshot is removed.
const READ: [&str; 5] = [
    "VirtualMachine.Config.DiskLease",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
    SNAPSHOTS[0],
    SNAPSHOTS[1],
];
const SNAPSHOTS: [&str; 2] = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"];

/// The privileges on the VM that a pass with this reader needs. Without the last of them a snapshot would
/// stay.
pub(crate) fn pass_privileges(reader: ReaderKind) -> &'static [&'static str] {
    if reader == ReaderKind::Outside { &SNAPSHOTS } else { &READ }
}

impl Vsphere {
    /// Makes the snapshot. If that fails, none is left as far as the server lets it.
    pub async fn take(&self, request: &VmSnapshotRequest) -> Result<Taken> {
        let context = || format!("VM {}: taking a snapshot", request.vm.id);
        let result = self.make(request).await.during(context);
        if let Err(error) = &result
            && !error.is_gone(&request.vm)
            && let Err(also) = self.quiet(&request.vm, &request.owner, request.evidence()).await
        {
            tracing::warn!(vm = %request.vm, error = %also, "what a failed snapshot may have left is looked at later");
        }
        result
    }

    async fn make(&self, request: &VmSnapshotRequest) -> Result<Taken> {
        let (vm, _) = self.quiet(&request.vm, &request.owner, request.evidence()).await?;
        check_allowed(&vm, request)?;
        server::require(&self.client, &vm.of, pass_privileges(self.settings.reader.kind)).await?;
        let mut warnings = Vec::new();
        let (vm, switched_tracking_on) = self.with_tracking(vm, request, &mut warnings).await?;
        // It took a while.
        check_allowed(&vm, request)?;
        // Before the snapshot: a start after this look counts.
        let last_start = if request.is_final { self.last_start(&vm.of).await? } else { LastStart::Unknown };
        let quiesce = self.settings.quiesce == Quiesce::Try && vm.power == Some(Power::On);
        let (of, quiesced, made_in) = self.create(&vm, &request.owner, quiesce, &mut warnings).await?;
        // Others may have made one in the same moment, and whose comes first decides what tracking says.
        let (after, own) = self.only_own(&vm.of, &request.owner, &of).await?;
        judge_others(&after, request)?;
        judge_moment(&own, request)?;
        let is_reliable = is_trackable(&vm, &request.owner) && is_trackable(&after, &request.owner);
        if !is_reliable {
            let why = "it has snapshots of others, or disks to be consolidated: its changes are not tracked, and the next \
                       pass compares all of it";
            warnings.push(why.to_owned());
        }
        let disks = self.disks_in(&of, request, is_reliable, &mut warnings).await?;
        Ok(Taken {
            of,
            vm: vm.of,
            owner: request.owner.clone(),
            disks,
            quiesced,
            made_in,
            switched_tracking_on,
            last_start,
            warnings,
        })
    }

    /// The disks by the snapshot's own settings: those of its moment.
    async fn disks_in(
        &self,
        of: &MoRef,
        request: &VmSnapshotRequest,
        is_reliable: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<TakenDisk>> {
        let paths = ["config.hardware.device", "config.changeTrackingEnabled"];
        let object = properties::read_properties(&self.client, of, &paths).await?;
        let disks = devices::disks(object.need("config.hardware.device")?);
        let is_on = object.flag("config.changeTrackingEnabled") == Some(true);
        let tracking_enabled = is_reliable && is_on;
        let mut taken = Vec::new();
        for (uuid, _) in &request.disks {
            let disk = disks.iter().find(|disk| disk.uuid.as_deref() == Some(uuid)).ok_or_else(|| {
                let why = "it is not in the snapshot: was it removed, replaced, or made independent?";
                VsphereError::new(Kind::NotFound, format!("disk {uuid}"), why)
            })?;
            taken.push(with_mark(disk, of, uuid, tracking_enabled, warnings));
        }
        Ok(taken)
    }
}

/// A disk with the mark of the snapshot's moment.
fn with_mark(
    disk: &VirtualDisk,
    snapshot: &MoRef,
    uuid: &str,
    tracking_enabled: bool,
    warnings: &mut Vec<String>,
) -> TakenDisk {
    let text = disk.backing.change_id.as_deref();
    let change_id = text.and_then(|text| text.parse().ok()).filter(|_| tracking_enabled);
    if tracking_enabled && change_id.is_none() {
        warnings.push(match text {
            None => {
                format!("{} has no change id though tracking is on: it is compared, not tracked", disk.label)
            }
            Some(text) => format!("{} has a change id that is not understood: {text:?}", disk.label),
        });
    }
    let mark =
        Mark { disk: uuid.to_owned(), capacity: disk.capacity.0, snapshot: snapshot.id.clone(), change_id };
    TakenDisk { disk: disk.clone(), mark, tracking_enabled }
}

/// Refuses a VM of which no snapshot may be made now.
fn check_allowed(vm: &Vm, request: &VmSnapshotRequest) -> Result<()> {
    let context = || format!("{} ({})", vm.name, vm.of.id);
    match &vm.connection {
        Some(Connection::Connected) => {}
        other => {
            let state = match other {
                Some(Connection::Lost(state)) => state.as_str(),
                _ => "not told",
            };
            let why =
                format!("vCenter does not reach it (its state is {state}): see that its ESXi host answers");
            return Err(VsphereError::new(Kind::Unreachable, context(), why));
        }
    }
    if request.is_final && vm.power != Some(Power::Off) {
        let why = "the final snapshot is of a VM that is off, and it is not: find out who started it";
        return Err(VsphereError::refused(context(), why));
    }
    if vm.power == Some(Power::Suspended) {
        return Err(VsphereError::blocked(context(), "it is suspended: resume it, or shut it down"));
    }
    judge_others(vm, request)?;
    if vm.consolidation_needed && request.needs_tracking(vm) {
        let why = "its disks need consolidation, and a snapshot now could make tracking say too little: in vSphere, \
                   Snapshots, Consolidate";
        return Err(VsphereError::blocked(context(), why));
    }
    for (uuid, _) in &request.disks {
        let disk = vm.disk(uuid).ok_or_else(|| {
            VsphereError::new(Kind::NotFound, context(), format!("it has no disk {uuid} any more"))
        })?;
        if let Some(obstacle) = tracking::obstacle(disk) {
            let why = format!("{}: {}; {}", disk.label, obstacle.why, obstacle.remedy);
            return Err(VsphereError::refused(context(), why));
        }
    }
    Ok(())
}

/// Refuses a final snapshot in whose moment the VM was not off: a look before it does not see a start.
fn judge_moment(own: &SnapshotNode, request: &VmSnapshotRequest) -> Result<()> {
    if !request.is_final || own.power == Some(Power::Off) {
        return Ok(());
    }
    let why = "the VM was not off at the moment of its final snapshot: find out who started it";
    Err(VsphereError::refused("looking at it", why))
}

/// Refuses a VM that has snapshots of others, where tracking has to be right.
fn judge_others(vm: &Vm, request: &VmSnapshotRequest) -> Result<()> {
    let others = tracking::snapshots_of_others(vm, |node| request.owner.has_made(node));
    if others.is_empty() {
        return Ok(());
    }
    if let Some(owner) = others.iter().find_map(|node| Owner::of(node)) {
        let why = format!("it has a snapshot of migration {owner} of warmd: wait for that one, or cancel it");
        return Err(VsphereError::blocked(format!("{} ({})", vm.name, vm.of.id), why));
    }
    if !request.needs_tracking(vm) {
        return Ok(());
    }
    let names: Vec<String> = others.iter().map(|node| describe(node)).collect();
    let why = format!(
        "it has snapshots that are not warmd's ({}), with which changed-block tracking is not to be trusted: delete them; \
         if they are a backup's, wait for its end",
        names.join(", ")
    );
    Err(VsphereError::blocked(format!("{} ({})", vm.name, vm.of.id), why))
}

/// Whether nothing on the VM makes its change tracking wrong.
fn is_trackable(vm: &Vm, owner: &Owner) -> bool {
    tracking::snapshots_of_others(vm, |node| owner.has_made(node)).is_empty() && !vm.consolidation_needed
}

fn describe(node: &SnapshotNode) -> String {
    let since = node.created.map(|created| format!(" of {}", created.format("%Y-%m-%d %H:%M UTC")));
    format!("{:?}{}", node.name, since.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::tests_support, snapshot::tests::node};

    const DISK: &str = "6000c29a-0001";

    fn vm() -> Vm {
        let mut vm = tests_support::vm();
        vm.disks.truncate(1);
        vm
    }

    fn request(is_final: bool, anchored: bool) -> VmSnapshotRequest {
        let anchor = anchored.then(|| ChangeMark("x".to_owned()));
        VmSnapshotRequest {
            owner: Owner::new("m-1"),
            vm: MoRef::vm("vm-57"),
            disks: vec![(DISK.to_owned(), anchor)],
            is_final,
        }
    }

    #[test]
    fn a_vm_in_order_passes() {
        check_allowed(&vm(), &request(false, true)).unwrap();
        check_allowed(&Vm { power: Some(Power::Off), ..vm() }, &request(true, true)).unwrap();
        let owner = Owner::new("m-1");
        let own = node(&owner.snapshot_name(), &owner.description());
        check_allowed(&Vm { snapshots: vec![own], ..vm() }, &request(false, true)).unwrap();
    }

    #[test]
    fn what_makes_tracking_wrong_is_refused() {
        let other = Owner::new("m-2");
        let theirs = node(&other.snapshot_name(), &other.description());
        for (vm, request, kind, word) in [
            (
                Vm { snapshots: vec![node("before update", "")], ..vm() },
                request(false, false),
                Kind::Blocked,
                "before update",
            ),
            (Vm { snapshots: vec![theirs], ..vm() }, request(false, false), Kind::Blocked, "m-2"),
            (
                Vm { consolidation_needed: true, ..vm() },
                request(false, false),
                Kind::Blocked,
                "consolidation",
            ),
            (vm(), request(true, true), Kind::Refused, "off"),
            (Vm { power: None, ..vm() }, request(true, true), Kind::Refused, "off"),
            (Vm { power: Some(Power::Suspended), ..vm() }, request(false, false), Kind::Blocked, "suspended"),
            (Vm { disks: Vec::new(), ..vm() }, request(false, false), Kind::NotFound, DISK),
            (
                Vm { connection: Some(Connection::Lost("disconnected".to_owned())), ..vm() },
                request(true, true),
                Kind::Unreachable,
                "disconnected",
            ),
            (Vm { connection: None, ..vm() }, request(false, false), Kind::Unreachable, "reach"),
        ] {
            let error = check_allowed(&vm, &request).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_final_snapshot_is_of_a_vm_that_was_off_in_its_moment() {
        let of = |power| SnapshotNode { power, ..node("x", "") };
        judge_moment(&of(Some(Power::Off)), &request(true, true)).unwrap();
        judge_moment(&of(Some(Power::On)), &request(false, true)).unwrap();
        for power in [Some(Power::On), Some(Power::Suspended), None] {
            let error = judge_moment(&of(power), &request(true, true)).unwrap_err();
            assert_eq!(error.kind, Kind::Refused, "{power:?}");
            // Tracked or not.
            let error = judge_moment(&of(power), &request(true, false)).unwrap_err();
            assert_eq!(error.kind, Kind::Refused, "{power:?}");
        }
    }

    #[test]
    fn cold_copy_allows_other_snapshots_and_a_warm_one_does_not() {
        let off = Vm { power: Some(Power::Off), snapshots: vec![node("old", "")], ..vm() };
        check_allowed(&off, &request(true, false)).unwrap();
        assert!(check_allowed(&off, &request(true, true)).is_err());
        // Its passes before the final one are of a VM that is off, too.
        check_allowed(&off, &request(false, false)).unwrap();
        assert!(!is_trackable(&off, &Owner::new("m-1")) && is_trackable(&vm(), &Owner::new("m-1")));
        let untracked =
            Mark { disk: DISK.to_owned(), capacity: 1, snapshot: "s".to_owned(), change_id: None };
        let mut again = request(true, false);
        again.disks[0].1 = Some(untracked.write());
        check_allowed(&off, &again).unwrap();
        for power in [Some(Power::On), None] {
            assert!(check_allowed(&Vm { power, ..off.clone() }, &request(false, false)).is_err());
        }
    }

    #[test]
    fn a_disk_without_a_change_id_is_told_of_and_compared() {
        let mut disk = vm().disks.remove(0);
        let snapshot = MoRef::new("VirtualMachineSnapshot", "snapshot-70");
        let marked = |disk: &VirtualDisk, on| {
            let mut warnings = Vec::new();
            let taken = with_mark(disk, &snapshot, DISK, on, &mut warnings);
            (taken.mark.change_id.is_some(), warnings.len())
        };
        assert_eq!(marked(&disk, true), (true, 0));
        assert_eq!(marked(&disk, false), (false, 0), "a change id from before tracking was switched off");
        disk.backing.change_id = None;
        assert_eq!(marked(&disk, true), (false, 1));
        disk.backing.change_id = Some("*".to_owned());
        assert_eq!(marked(&disk, true), (false, 1));
    }
}
