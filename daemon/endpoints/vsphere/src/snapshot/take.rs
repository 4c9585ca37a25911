//! Makes a snapshot of all disks at one moment.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use warmd_cbt::mark::ChangeMark;

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::{Connection, Power, SnapshotNode, VirtualDisk, Vm, devices},
    settings::{Quiesce, ReaderKind},
    soap::{FaultKind, MoRef},
    tracking::{self, Mark},
    vim::{
        properties, server,
        tasks::{self, AtDeadline},
        vm,
    },
};

use super::{Owner, Taken, TakenDisk};

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
    /// Whether change tracking must be reliable: the VM may write meanwhile, or a tracked pass came before. A
    /// VM that is off and not tracked is read whole and compared. What is not known is not off.
    fn needs_tracking(&self, vm: &Vm) -> bool {
        let is_tracked = |anchor: &ChangeMark| Mark::read(anchor).is_none_or(|mark| mark.change_id.is_some());
        vm.power != Some(Power::Off)
            || self.disks.iter().any(|(_, anchor)| anchor.as_ref().is_some_and(is_tracked))
    }
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a server is asked for a snapshot whose call got no answer.
const LOOKS: u32 = 3;

/// The privileges on the VM that a pass needs, until its snapshot is removed.
const READ: [&str; 4] = [
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
    SNAPSHOTS[0],
    SNAPSHOTS[1],
];
const SNAPSHOTS: [&str; 2] = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"];

impl Vsphere {
    /// Makes the snapshot. If that fails, none is left as far as the server lets it.
    pub async fn take(&self, request: &VmSnapshotRequest) -> Result<Taken> {
        let context = || format!("VM {}: taking a snapshot", request.vm.id);
        let result = self.make(request).await.during(context);
        if let Err(error) = &result
            && !error.is_gone()
            && let Err(also) = self.end_snapshots(&request.vm, &request.owner).await
        {
            tracing::warn!(vm = %request.vm, error = %also, "what a failed snapshot may have left is looked at later");
        }
        result
    }

    async fn make(&self, request: &VmSnapshotRequest) -> Result<Taken> {
        let (vm, _) = self.quiet(&request.vm, &request.owner).await?;
        check_allowed(&vm, request)?;
        // Without the last of these a snapshot would stay.
        let wanted =
            if self.settings.reader.kind == ReaderKind::Outside { &SNAPSHOTS[..] } else { &READ[..] };
        server::require(&self.client, &vm.of, wanted).await?;
        let mut warnings = Vec::new();
        let mut vm = vm;
        let mut switched_tracking_on = false;
        if !vm.tracking_enabled && !request.is_final && self.settings.enable_change_tracking {
            match tracking::may_switch_on(&vm) {
                Ok(()) => {
                    vm = self.switch_tracking_on(&vm, &request.owner).await?;
                    check_allowed(&vm, request)?;
                    switched_tracking_on = true;
                }
                Err(why) => warnings.push(format!("changed-block tracking stays off: {why}")),
            }
        }
        let quiesce = self.settings.quiesce == Quiesce::Try && vm.power == Some(Power::On);
        let (of, quiesced, made_in) = self.create(&vm, &request.owner, quiesce, &mut warnings).await?;
        // Others may have made one in the same moment, and whose comes first decides what tracking says.
        let after = self.inventory.fresh(&vm.of).await?;
        let own = after.snapshots.iter().find(|node| node.of == of);
        let own = own.ok_or_else(|| {
            VsphereError::blocked(
                "looking at it",
                "others removed the snapshot that was just made; trying again",
            )
        })?;
        judge_others(&after, request)?;
        judge_moment(own, request)?;
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
            warnings,
        })
    }

    /// Creates it, and answers whether the guest was brought to rest and how long the server took.
    async fn create(
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

    async fn create_once(&self, vm: &Vm, owner: &Owner, quiesce: bool) -> Result<(MoRef, Option<Duration>)> {
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
                    let own = vm.snapshots.iter().find(|node| owner.has_made(node));
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

    /// Switches tracking on, and makes it take effect by a snapshot that is removed at once.
    async fn switch_tracking_on(&self, vm: &Vm, owner: &Owner) -> Result<Vm> {
        let context = || "switching changed-block tracking on".to_owned();
        tracing::info!(vm = vm.name, "changed-block tracking is switched on");
        self.set_tracking_with_note(vm, owner).await.during(context)?;
        // It takes effect when the VM is stunned: by a snapshot made and removed.
        self.create_once(vm, owner, false).await.during(context)?;
        let (vm, _) = self.quiet(&vm.of, owner).await.during(context)?;
        if !vm.tracking_enabled {
            return Err(VsphereError::failed(context(), "the server took it, and it is still off"));
        }
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

/// Whether the snapshot failed because of what it asked of the guest.
fn is_about_quiescing(error: &VsphereError) -> bool {
    match error.fault() {
        Some(FaultKind::Quiesce(_) | FaultKind::ToolsUnavailable) => true,
        // Older releases say no more than that the VM's state did not allow it.
        Some(FaultKind::InvalidState(_)) => true,
        _ => false,
    }
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
