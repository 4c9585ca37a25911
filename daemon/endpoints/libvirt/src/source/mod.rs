//! The source `libvirt`: QEMU guests under a libvirtd on this host.
//!
//! Rule: QEMU's own machinery does the tracking (a checkpoint's bitmap in a qcow2 image) and keeps the moment
//! (a backup job in pull mode); warmd only names, begins and ends them. A VM that is off is started paused
//! for as long as its disks are read, and never executes an instruction.
//!
//! An operator must know: while checkpoints exist, QEMU refuses to revert the VM to an internal snapshot (and
//! libvirt's attempt ends the VM), and a VM whose disks are being read at rest cannot be started by others.
//!
//! ```text
//!            ┌─ QEMU ───────────────────────────────────────┐
//!  guest ───▶│ vda.qcow2 ◀─ bitmaps warmd-<migration>-<n>   │
//!            │     └─ copy before write ─▶ N.scratch        │
//!            │ NBD server: vda, + what changed since bitmap ├──▶ unix socket ──▶ NbdDisk
//!            └──────────────────────────────────────────────┘
//! ```

mod definitions;
mod describe;
mod error;
mod files;
mod hardware;
mod hold_off;
mod leftovers;
mod marks;
mod needs;
mod place;
mod plan;
mod power;
mod release;
mod room;
mod runtime_dirs;
mod scratch_monitor;
mod settings;
mod sizes;
mod snapshot;
mod tag;

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use warmd_cbt::{mark::ChangeMark, units::Length};

use crate::libvirt::{DomainId, LibvirtClient};

pub use settings::LibvirtSourceSettings;

use error::{ErrorContext, refused};
use marks::LibvirtMark;
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{Machine, MachineDisk, PowerState, VmSummary},
        rule::Objection,
    },
    sources::{
        HoldOff, HowStopped, Leftover, MigratedMark, ShutdownPolicy, Snapshot, SnapshotRequest, Source,
        SourceError, SourceErrorKind,
    },
};

/// Below this, libvirt cannot back up some disks incrementally and others whole in one job.
const OLDEST: (u32, u32) = (7, 0);

/// VMs that are queried at the same time for a list of all.
const PARALLEL_VMS: usize = 8;

/// A source `libvirt`.
#[derive(Clone, Debug)]
pub struct LibvirtSource {
    libvirt: LibvirtClient,
    settings: Arc<LibvirtSourceSettings>,
    seen: sizes::KnownSizes,
    rates: room::Rates,
}

impl LibvirtSource {
    /// A source by these settings, which are checked but not tried.
    pub fn new(settings: &LibvirtSourceSettings) -> Result<Self, SourceError> {
        settings.check()?;
        Ok(Self {
            libvirt: LibvirtClient::new(&settings.uri),
            settings: Arc::new(settings.clone()),
            seen: sizes::KnownSizes::default(),
            rates: room::Rates::default(),
        })
    }
}

fn domain_id(vm: &VmId) -> Result<DomainId, SourceError> {
    vm.0.parse().map_err(|error: uuid::Error| {
        SourceError::new(SourceErrorKind::NotFound, format!("VM {vm:?}: libvirt's ids are UUIDs"), error)
    })
}

#[async_trait]
impl Source for LibvirtSource {
    async fn check(&self) -> Result<String, SourceError> {
        let doing = || format!("reaching {}", self.libvirt.uri());
        let (version, library) = self.libvirt.version().await.context(doing)?;
        if library < OLDEST {
            let (major, minor) = OLDEST;
            return Err(refused(doing(), format!("{version} is too old: {major}.{minor} is needed")));
        }
        // A probe of every snapshot's steps, under an id that no migration has.
        self.in_runtime_dirs(MigrationId::generate(), |dirs| dirs.make(None).and_then(|()| dirs.clear()))
            .await
            .context(|| {
                format!(
                    "making private directories in {} and {}",
                    self.settings.runtime_dir.display(),
                    self.settings.scratch_dir.display()
                )
            })?;
        Ok(version)
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        let domains = self.libvirt.domains().await.context(|| "listing VMs".to_owned())?;
        stream::iter(domains)
            .map(|(domain, name)| self.summary(domain, name))
            .buffered(PARALLEL_VMS)
            .try_filter_map(|summary| std::future::ready(Ok(summary)))
            .try_collect()
            .await
    }

    async fn names(&self) -> Result<Vec<(VmId, String)>, SourceError> {
        let domains = self.libvirt.domains().await.context(|| "listing VMs".to_owned())?;
        Ok(domains.into_iter().map(|(domain, name)| (VmId(domain.to_string()), name)).collect())
    }

    async fn describe(&self, vm: &str) -> Result<Machine, SourceError> {
        self.machine(self.find(vm).await?).await
    }

    async fn objections(&self, vm: &VmId) -> Result<Vec<Objection>, SourceError> {
        self.objections_to(domain_id(vm)?).await
    }

    async fn can_finish(&self, vm: &VmId, _owner: MigrationId, disks: &[DiskKey]) -> Result<(), SourceError> {
        self.check_finish(domain_id(vm)?, disks).await
    }

    async fn disk_keys(&self, vm: &VmId) -> Result<Vec<DiskKey>, SourceError> {
        self.keys(domain_id(vm)?).await
    }

    async fn disk_sizes_if_known(&self, vm: &VmId) -> Result<Vec<(DiskKey, Option<Length>)>, SourceError> {
        self.sizes_if_known(domain_id(vm)?).await
    }

    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError> {
        self.power_of(domain_id(vm)?).await
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        self.take(request).await
    }

    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError> {
        self.end(domain_id(vm)?, owner).await.map(drop)
    }

    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        let keep: Vec<LibvirtMark> = keep.iter().filter_map(LibvirtMark::read).collect();
        let keep: Vec<&str> = keep.iter().filter_map(LibvirtMark::checkpoint).collect();
        self.release(domain_id(vm)?, owner, &keep).await
    }

    async fn leftovers(&self, known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        self.remains(known).await
    }

    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        self.stop(domain_id(vm)?, policy).await
    }

    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError> {
        self.start(domain_id(vm)?).await
    }

    async fn starters(&self, vm: &VmId, owner: MigrationId) -> Result<HoldOff, SourceError> {
        self.starters_of(domain_id(vm)?, owner).await
    }

    async fn hold_off(&self, vm: &VmId, moved: &MigratedMark, was: &HoldOff) -> Result<(), SourceError> {
        self.take_starters(domain_id(vm)?, moved, was).await
    }

    async fn let_go(&self, vm: &VmId, owner: MigrationId, was: &HoldOff) -> Result<(), SourceError> {
        self.give_starters_back(domain_id(vm)?, owner, was).await
    }

    fn host(&self, _machine: &Machine) -> Option<String> {
        place::this_host()
    }

    fn datastore(&self, disk: &MachineDisk) -> Option<String> {
        place::datastore(&disk.location)
    }
}
