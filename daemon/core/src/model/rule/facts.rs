//! The documentation of each rule: its id, its severity, its finding and its remedy.
//!
//! Rule: these are the texts of the table in `daemon/docs/preflight.md`, word for word; change both together.

use super::{Rule, RuleDoc, Severity};

impl Rule {
    pub fn facts(self) -> RuleDoc {
        use Severity::{Error, Warning};
        let (id, severity, finds, help) = match self {
            Self::PlanWrong => (
                "plan-wrong",
                Error,
                "something in the plan is wrong as it is written",
                "correct the plan's file",
            ),
            Self::HookMissing => (
                "hook-missing",
                Error,
                "a hook's program is not on the daemon's host, or cannot be run",
                "install it there, make it executable, or correct `command`",
            ),
            Self::BootCheckUnsupported => (
                "boot-check-unsupported",
                Error,
                "the boot check asks for signs of life that this target cannot see",
                "remove `serial` and `guest_agent` from the boot check, or use `tcp`",
            ),
            Self::ConversionMissing => (
                "conversion-missing",
                Error,
                "a conversion's program, or virt-v2v, is not on the daemon's host, is too old, or cannot be run",
                "install it there, make it executable, or correct `command`",
            ),
            Self::ConversionNoOverlay => (
                "conversion-no-overlay",
                Error,
                "the target cannot put a conversion's overlays over the disks, or lacks a program for it",
                "set `conversion = \"none\"`, or install `qemu-img` and make the target answer",
            ),
            Self::ConversionLocation => (
                "conversion-location",
                Error,
                "no overlay can be put over the location that the plan gives a disk that is to be converted",
                "give the disk another location in `[vm.NAME.disks]`, or set `conversion = \"none\"` for the VM",
            ),
            Self::ConversionConfined => (
                "conversion-confined",
                Warning,
                "the service that the daemon runs in forbids its programs what a conversion that runs a VM (virt-v2v, \
                 libguestfs) needs",
                "install `daemon/deploy/warmd-conversion.conf`, or see in conversion.md how the command can work without it; nothing, if \
                 it runs no VM",
            ),
            Self::GuestNeedsConversion => (
                "guest-needs-conversion",
                Warning,
                "the inspected guest has no virtio in its initramfs, and the plan converts nothing",
                "set `conversion = \"virt-v2v\"`, or keep the disks on the bus that they have on the source",
            ),
            Self::GuestNotConvertible => (
                "guest-not-convertible",
                Error,
                "virt-v2v cannot convert the inspected guest: its system, its boot loader, its keys or its free space",
                "do what the finding says, or set `conversion = \"none\"` for the VM",
            ),
            Self::GuestNamesDisks => (
                "guest-names-disks",
                Warning,
                "the inspected guest's fstab names disks by device names that change with their bus, and the plan converts nothing",
                "write UUIDs into the guest's /etc/fstab, or set `conversion = \"virt-v2v\"`",
            ),
            Self::GuestNamesInterfaces => (
                "guest-names-interfaces",
                Warning,
                "the inspected guest configures network interfaces by names, and it is not certain which MAC addresses they belong to",
                "name them in `interfaces` of the VM's conversion",
            ),
            Self::WindowNeverOpens => (
                "window-never-opens",
                Warning,
                "by its windows and blackouts, data is never copied, or no cutover ever begins",
                "correct the windows or the blackouts",
            ),
            Self::WindowNeverFits => (
                "window-never-fits",
                Warning,
                "no window for cutovers of the coming year is as long as `max_downtime`, or as the downtime that is \
                 expected of a migration",
                "widen the windows of `schedule.cutover`, or make the downtime shorter",
            ),
            Self::NoCommonWindow => (
                "no-common-window",
                Warning,
                "the VMs move together, and at no time of the coming year the windows for cutovers of all of them are open",
                "give them windows that overlap, or begin their cutover with `--force`",
            ),
            Self::TierMissing => (
                "tier-missing",
                Error,
                "the plan has tiers, and the VM is in none of them",
                "name it in the `vms` of a `[[cutover.tiers]]`, or add a last tier with `vms = [\"*\"]`",
            ),
            Self::TierUnmatched => (
                "tier-unmatched",
                Warning,
                "no VM of the plan is in the tier, or the tiers before it have taken them",
                "correct its `vms`, or leave it for VMs that are to come",
            ),
            Self::SourceUnknown => (
                "source-unknown",
                Error,
                "the source is not in the daemon's configuration",
                "add it there and restart the daemon, or correct `source`",
            ),
            Self::SourceUnreachable => (
                "source-unreachable",
                Error,
                "the source does not answer, or the daemon lacks there what every snapshot needs",
                "see `warmctl source check NAME`",
            ),
            Self::TargetUnknown => (
                "target-unknown",
                Error,
                "the target is not in the daemon's configuration",
                "add it there and restart the daemon, or correct `target`",
            ),
            Self::TargetUnreachable => (
                "target-unreachable",
                Error,
                "the target does not answer, or the daemon cannot write there",
                "see `warmctl target check NAME`",
            ),
            Self::EndpointFixed => (
                "endpoint-fixed",
                Error,
                "the plan has another source or target than the one by which it moves VMs now",
                "cancel those migrations first, or give the plan another name",
            ),
            Self::VmNone => (
                "vm-none",
                Error,
                "`vms` selects no VM of the source",
                "correct the patterns: see `warmctl source vms NAME`",
            ),
            Self::PatternUnmatched => (
                "pattern-unmatched",
                Warning,
                "a pattern or an exclusion of `vms` matches no VM of the source",
                "correct it, or leave it for VMs that are to come",
            ),
            Self::VmIsMigrated => (
                "vm-is-migrated",
                Warning,
                "the VM was moved here by warmd; a pattern does not select it",
                "name it in full in `vms` if it is to move again",
            ),
            Self::VmUnknown => (
                "vm-unknown",
                Error,
                "the source has no such VM, or more than one of that name",
                "correct `vms`, or name the VM by its id: see `warmctl source vms NAME`",
            ),
            Self::VmUnreadable => (
                "vm-unreadable",
                Error,
                "the source cannot describe the VM",
                "see that its disks' images are there and can be read",
            ),
            Self::VmTwice => {
                ("vm-twice", Error, "two names in the plan mean one VM", "remove one of them from `vms`")
            }
            Self::VmTaken => (
                "vm-taken",
                Error,
                "another plan moves the VM already",
                "remove it from one of the plans, or cancel its migration",
            ),
            Self::VmFixed => (
                "vm-fixed",
                Error,
                "the plan changes the name or a disk's location of a VM whose migration has begun",
                "leave it as it was, or cancel that migration first",
            ),
            Self::VmPaused => (
                "vm-paused",
                Warning,
                "the VM is paused: no snapshot can be taken of it",
                "resume it, or shut it down",
            ),
            Self::VmTransient => (
                "vm-transient",
                Error,
                "the VM is transient: it is gone for good when it is off, and a cutover would end it",
                "define it (`virsh define`)",
            ),
            Self::VmSaved => (
                "vm-saved",
                Error,
                "the VM is off with a saved memory image: its disks are inconsistent without that image",
                "start it, and shut it down if it is to be off",
            ),
            Self::VmBusy => (
                "vm-busy",
                Warning,
                "a job of another tool runs on the VM: no snapshot is taken meanwhile",
                "wait for its end, or end it",
            ),
            Self::StartBlocked => (
                "start-blocked",
                Error,
                "something that the VM's start needs is missing: once it is off, it could be neither read nor started again",
                "bring back the file, pool, network or secret, or take the device out of the VM's definition",
            ),
            Self::StartDoubtful => (
                "start-doubtful",
                Warning,
                "warmd cannot check whether something that the VM's start needs is there: its file system does not answer, or \
                 warmd may not look",
                "make the file system answer, and let the daemon read it; the VM is not stopped before that",
            ),
            Self::VmElsewhere => (
                "vm-elsewhere",
                Error,
                "the VM is off here because libvirt migrated it to another host, where it runs",
                "move it from the host where it is, or migrate it back first",
            ),
            Self::SharedStorage => (
                "shared-storage",
                Warning,
                "disks of the VM are on storage that other hosts may have too, and from where the VM could be migrated live or started",
                "do not do that while warmd moves it, and do not let a cluster do it: on another host the VM is not held off",
            ),
            Self::VmCrashed => (
                "vm-crashed",
                Warning,
                "the VM is off because QEMU crashed or could not go on: its disks are as the crash left them",
                "start it, see that it is well, and shut it down if it is to be off",
            ),
            Self::VmAutostart => (
                "vm-autostart",
                Warning,
                "the VM is started together with its host (autostart)",
                "nothing: a cutover turns that off on the source once the VM is off, and on on the target at its end; an \
                 undo and a rollback give it back",
            ),
            Self::DiskNone => {
                ("disk-none", Error, "the VM has no disks that can be copied", "remove it from the plan")
            }
            Self::DiskUnknown => (
                "disk-unknown",
                Error,
                "`[vm.NAME.disks]` names a disk that the VM has not",
                "correct the disk's name",
            ),
            Self::DiskUnsupported => (
                "disk-unsupported",
                Error,
                "a disk cannot be copied: a LUN passed through, an independent or multi-writer disk, one \
                 without bytes",
                "make it an ordinary disk, or detach it",
            ),
            Self::DiskShared => (
                "disk-shared",
                Warning,
                "a disk is shareable: another VM may write to it while it is copied, and after the cutover",
                "stop the others that have it before the cutover, and move all of them in one go",
            ),
            Self::TrackingUnavailable => (
                "tracking-unavailable",
                Warning,
                "the source cannot track a disk's changes: every pass compares the whole disk",
                "do what the reason says, for a raw image convert it to qcow2, or give the passes the time",
            ),
            Self::VmHasSnapshots => (
                "vm-has-snapshots",
                Warning,
                "the VM has snapshots: they are not moved, and it cannot be reverted to them while it is",
                "delete them, or keep the source VM for as long as they are needed",
            ),
            Self::ForeignSnapshots => (
                "foreign-snapshots",
                Error,
                "a running VM has snapshots of others: with them its change tracking is not reliable, so no \
                 pass is made",
                "delete them, or wait for the end of the backup; or shut the VM down, which needs no \
                 tracking",
            ),
            Self::ConsolidationNeeded => (
                "consolidation-needed",
                Error,
                "redo logs of the VM's disks wait to be consolidated: until then its change tracking is not \
                 reliable",
                "consolidate them (in vSphere: Snapshots, Consolidate)",
            ),
            Self::TrackingSwitchedOn => (
                "tracking-switched-on",
                Warning,
                "changed-block tracking is off on the VM: the first pass switches it on, with one more \
                 snapshot",
                "nothing; it is off again after the migration",
            ),
            Self::QuiesceUnavailable => (
                "quiesce-unavailable",
                Warning,
                "the guest's file systems cannot be quiesced for snapshots: each pass is crash-consistent",
                "start VMware Tools in the guest, or leave it so: the final pass is of a VM that is off",
            ),
            Self::CheckpointsThere => (
                "checkpoints-there",
                Warning,
                "the VM has checkpoints of another tool, which may delete warmd's along with its own",
                "stop that tool's backups of this VM for the time, or expect passes that compare everything",
            ),
            Self::DeviceUnmapped => (
                "device-unmapped",
                Warning,
                "the VM has devices that stay behind: passed through, TPMs, shared folders",
                "see that the guest can do without, or attach such devices on the target",
            ),
            Self::FirmwareState => (
                "firmware-state",
                Warning,
                "the VM boots by UEFI: its variables (boot entries, keys) are not moved",
                "see that it boots by the default path, or enter them again on the target",
            ),
            Self::HardwareUnmapped => (
                "hardware-unmapped",
                Error,
                "the target cannot make such a machine: architecture, chipset, firmware, processor, disks or MACs",
                "change the VM, or prepare the target for it",
            ),
            Self::HardwareChanged => (
                "hardware-changed",
                Warning,
                "a device or a setting of the VM is not carried over, or is another one on the target",
                "see that the guest can do without, or set it on the target after the move",
            ),
            Self::HardwareUnclassified => (
                "hardware-unclassified",
                Warning,
                "the VM has an element or attribute that warmd does not know: it is not carried over",
                "find out what it is for, and set it on the target after the move if the VM needs it",
            ),
            Self::MediumBehind => (
                "medium-behind",
                Warning,
                "the medium in a CD-ROM or floppy drive stays behind: the drive comes up empty",
                "eject it, or copy the image and insert it on the target after the move",
            ),
            Self::DefinitionsDiffer => (
                "definitions-differ",
                Warning,
                "the running VM is not what its definition says: the target is made by the definition",
                "restart the VM on the source, or make the two agree (`virsh edit`, `--live --config`)",
            ),
            Self::DiskInOneDefinition => (
                "disk-in-one-definition",
                Error,
                "the running VM has a disk that its definition has not, or has as another image, or the other way round: it would be \
                 lost, or cannot be copied",
                "attach or detach it both live and in the definition (`--live --config`), or restart the VM",
            ),
            Self::BootLost => (
                "boot-lost",
                Error,
                "the VM's boot loader or kernel stays on the source: it would not boot on the target",
                "install a boot loader in the guest, or accept it (`accept` in the plan) if it can boot from its disk",
            ),
            Self::TpmState => (
                "tpm-state",
                Error,
                "the VM has a TPM, whose state is not moved: what is encrypted with it cannot be opened",
                "have the recovery keys at hand or suspend BitLocker, then accept it (`accept` in the plan)",
            ),
            Self::ProtectionLost => (
                "protection-lost",
                Error,
                "the VM is protected from its host (SEV, TDX, wrapped keys), and would not be on the target",
                "keep it where it is, or accept it (`accept` in the plan)",
            ),
            Self::EncryptionLost => (
                "encryption-lost",
                Error,
                "a disk is encrypted on the source, and would lie in plain text on the target",
                "put the target on encrypted storage, then accept it (`accept` in the plan)",
            ),
            Self::IsolationLost => (
                "isolation-lost",
                Error,
                "what keeps a network interface apart (filter, VLAN, isolated or virtual port, link down) cannot be kept by \
                 the target: a VLAN takes Open vSwitch, an SR-IOV pool, or from libvirt 11 on a bridge that filters VLANs; an \
                 isolated port takes a Linux bridge",
                "make the filter or network on the target, or accept it (`accept` in the plan)",
            ),
            Self::NameUnusable => (
                "name-unusable",
                Error,
                "the VM's name cannot be used on the target",
                "set `name` in its `[vm.NAME]`",
            ),
            Self::NameTwice => (
                "name-twice",
                Error,
                "two VMs that move to this target would get the same name",
                "set `name` in the `[vm.NAME]` of one of them",
            ),
            Self::NameTaken => (
                "name-taken",
                Error,
                "the target has a VM of that name already",
                "set another `name` in the VM's `[vm.NAME]`, or rename the one on the target",
            ),
            Self::MacTaken => (
                "mac-taken",
                Warning,
                "another VM that moves, or one on the target, has the same MAC address",
                "see that the two are never on one network at the same time, or change one",
            ),
            Self::NetworkUnknown => (
                "network-unknown",
                Error,
                "the target has no such network, or it is not active",
                "map it in `[networks]`, or make or start it on the target",
            ),
            Self::StorageUnknown => (
                "storage-unknown",
                Error,
                "the target has no storage of that name, or it cannot be written to",
                "correct `[storage]`, or add the storage to the target in the daemon's configuration and see that it is mounted",
            ),
            Self::StorageUnmatched => (
                "storage-unmatched",
                Warning,
                "`[storage]` maps a datastore that no disk of the plan's VMs lies in",
                "correct its name, or leave it for VMs that are to come",
            ),
            Self::Capacity => (
                "capacity",
                Warning,
                "the disks, when they are full, are larger than the free space on the target; they begin sparse",
                "make room, or give some disks locations of their own in `[vm.NAME.disks]`",
            ),
            Self::LocationUnusable => (
                "location-unusable",
                Error,
                "the location that the plan gives a disk is not there, not of its size, in use, or another migration's",
                "correct it in `[vm.NAME.disks]`, or make a volume of exactly the disk's size there",
            ),
            Self::StateRoom => (
                "state-room",
                Warning,
                "the file system of the daemon's state has too little free space for a cutover: none begins before it has enough",
                "make room on the file system of `state_dir`",
            ),
        };
        RuleDoc { id, severity, finds, help }
    }
}
