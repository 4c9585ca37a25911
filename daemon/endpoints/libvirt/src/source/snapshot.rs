//! Snapshots: a backup job in pull mode and a checkpoint, begun in one call for all disks at one moment.
//!
//! Rule: before the new one, the leftovers of an earlier call are ended, and checkpoints that no ledger names
//! are deleted. That loses nothing: the anchor's bitmap is older and has recorded all of their changes.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use warmd_cbt::{
    disk::{ErrorKind, ReadDisk},
    extents::ExtentSet,
    mark::Changed,
    units::{Extent, Length},
};
use warmd_core::{
    model::id::{DiskKey, MigrationId},
    sources::{Snapshot, SnapshotDisk, SnapshotRequest, SourceError, SourceErrorKind},
};
use warmd_disks::nbd::{NbdAddress, NbdDisk, NbdError, NbdOptions};

use crate::libvirt::{
    CurrentJob, DomainId, DomainStatus, DomainXml, Lane, LibvirtError, LibvirtErrorKind, RunState,
};

use super::{
    LibvirtSource,
    error::{ErrorContext, blocked, refused},
    leftovers::CleanupResult,
    marks::{self, LibvirtMark},
    plan::{self, DiskPlan, PlanError, SnapshotBase},
    room::Need,
    runtime_dirs::RuntimeDirs,
    scratch_monitor::{self, ScratchMonitor},
    tag::TAG,
};

/// The most attempts to begin, each with one obstacle less.
const ATTEMPTS: u32 = 40;

/// An open snapshot. Dropping it ends nothing: see [`warmd_core::sources::Source::end_snapshot`].
#[derive(Debug)]
struct LibvirtSnapshot {
    source: LibvirtSource,
    domain: DomainId,
    owner: MigrationId,
    disks: Vec<SnapshotDisk>,
    open: BTreeMap<DiskKey, OpenDisk>,
    /// The VM was off, and after its paused start executes nothing.
    at_rest: Option<Instant>,
    scratch_monitor: Option<ScratchMonitor>,
}

#[derive(Debug)]
struct OpenDisk {
    nbd: Arc<NbdDisk>,
    /// The meta context with the changes, or why there is none.
    changes: Result<String, String>,
}

impl LibvirtSource {
    /// Takes a snapshot; after a failure all its parts that can be ended are ended.
    pub(super) async fn take(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        let domain = super::domain_id(&request.vm)?;
        self.end(domain, request.owner).await?;
        let since = Instant::now();
        let at_rest = self.give_power(domain, request).await?;
        match self.begin(domain, request, at_rest.then_some(since)).await {
            Ok(snapshot) => Ok(Box::new(snapshot)),
            Err(error) => {
                if let Err(also) = self.end(domain, request.owner).await {
                    tracing::warn!(%domain, error = %also, "what a failed snapshot left is still there; it is ended later");
                }
                Err(error)
            }
        }
    }

    /// Ensures that QEMU runs and no other job does; returns whether the guest executes nothing.
    async fn give_power(&self, domain: DomainId, request: &SnapshotRequest) -> Result<bool, SourceError> {
        let doing = || format!("VM {domain}: taking a snapshot");
        let DomainStatus { state, text, .. } = self.libvirt.state(domain).await.context(doing)?;
        match state {
            RunState::Off => {
                self.start_paused(domain, request.owner).await?;
                return Ok(true);
            }
            RunState::Running if request.is_final => {
                return Err(refused(
                    doing(),
                    format!("the final snapshot is of a VM that is off, but it was started: it is {text}"),
                ));
            }
            RunState::Running => {}
            RunState::Paused => {
                let xml = self.libvirt.domain(domain).await.context(doing)?;
                let is_ours = self.is_at_rest(domain, &xml).await?;
                let why = match xml.tagged(TAG).filter(|_| is_ours) {
                    Some(other) => {
                        format!("it is being read for another migration, {other}: wait for that one")
                    }
                    None => format!(
                        "it is {text}: resume it (virsh resume) once the cause is gone, or shut it down"
                    ),
                };
                return Err(blocked(doing(), why));
            }
        }
        // A command of a daemon that died may take effect after its leftovers were ended: those are ended
        // too.
        if self.end_own_job(domain, request.owner).await? {
            tracing::info!(%domain, owner = %request.owner, "a backup job of an earlier daemon was ended");
        }
        let job = self.libvirt.job(domain, Lane::Urgent).await.context(doing)?;
        match job {
            CurrentJob::None => Ok(false),
            CurrentJob::Backup(job)
                if job.socket.as_ref().is_some_and(|socket| self.is_below_runtime(socket)) =>
            {
                let socket = job.socket.unwrap_or_default();
                Err(blocked(
                    doing(),
                    format!("a backup job of another migration of warmd runs on it, served at {socket}"),
                ))
            }
            CurrentJob::Backup(job) => Err(blocked(
                doing(),
                format!(
                    "a backup job that is not warmd's runs on it{}, and libvirt has one at a time: wait for its \
                     end, or end it (virsh domjobabort)",
                    job.socket.map(|socket| format!(", served at {socket}")).unwrap_or_default()
                ),
            )),
            CurrentJob::Other(name) => Err(blocked(
                doing(),
                format!("another job runs on it: {name}; trying again when it has ended"),
            )),
        }
    }

    async fn begin(
        &self,
        domain: DomainId,
        request: &SnapshotRequest,
        at_rest: Option<Instant>,
    ) -> Result<LibvirtSnapshot, SourceError> {
        let doing = || format!("VM {domain}: taking a snapshot");
        let owner = request.owner;
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        let (mut plans, number) = self.prepare(domain, request, &xml).await?;

        let runs_as = xml.runs_as;
        let dirs = self
            .in_runtime_dirs(owner, move |dirs| dirs.make(runs_as).map(|()| dirs))
            .await
            .context(|| format!("making private directories for {domain}'s snapshot"))?;
        let reserve = self.settings.scratch_reserve_mib << 20;
        if at_rest.is_none() {
            let rate = self.rates.expected(domain, Instant::now());
            scratch_monitor::check_room(dirs.scratch_dir(), Need::at(reserve, rate)).await?;
        }
        let socket = dirs.socket();
        let name = self.begin_job(domain, owner, &xml, &mut plans, number, &dirs, &socket).await?;
        let scratch_monitor = at_rest.is_none().then(|| {
            let dir = dirs.scratch_dir().to_owned();
            ScratchMonitor::watch(self.libvirt.clone(), domain, owner, dir, reserve, self.rates.clone())
        });

        let mut snapshot = LibvirtSnapshot {
            source: self.clone(),
            domain,
            owner,
            disks: Vec::new(),
            open: BTreeMap::new(),
            at_rest,
            scratch_monitor,
        };
        for plan in plans {
            let open = self
                .open(&plan, &socket)
                .await
                .map_err(|error| nbd_error(format!("{}: opening disk {}", doing(), plan.key), error))?;
            let size = Length(open.nbd.len());
            if let Some(disk) = xml.disks.iter().find(|disk| disk.target == plan.key.0) {
                self.remember(domain, disk, size.0);
            }
            let mark = match plan.tracking {
                SnapshotBase::Untracked(_) => LibvirtMark::Untracked { number, image: Some(plan.image) },
                SnapshotBase::Whole(_) | SnapshotBase::Since(_) => {
                    LibvirtMark::Checkpoint { name: name.clone(), size, image: plan.image }
                }
            };
            snapshot.disks.push(SnapshotDisk { key: plan.key.clone(), size, mark: mark.write() });
            snapshot.open.insert(plan.key, open);
        }
        Ok(snapshot)
    }

    /// Plans the disks, and deletes the migration's checkpoints that no anchor names. Returns the new one's
    /// number.
    async fn prepare(
        &self,
        domain: DomainId,
        request: &SnapshotRequest,
        xml: &DomainXml,
    ) -> Result<(Vec<DiskPlan>, u64), SourceError> {
        let doing = || format!("VM {domain}: taking a snapshot");
        let owner = request.owner;
        let own = self.own_checkpoints(domain, owner).await.context(doing)?;
        let looks = self.look(&xml.disks).await;
        let wrong = |error: PlanError| {
            let kind = match error {
                PlanError::Missing(_) => SourceErrorKind::NotFound,
                PlanError::Lun(_) | PlanError::OtherImage { .. } => SourceErrorKind::Refused,
            };
            SourceError::new(kind, doing(), error)
        };
        let plans = plan::plan(owner, &request.disks, &xml.disks, &looks, &own).map_err(wrong)?;
        if request.is_final {
            plan::same_images(&request.disks, &plans).map_err(wrong)?;
        }
        let anchors: Vec<LibvirtMark> =
            request.disks.iter().filter_map(|(_, anchor)| LibvirtMark::read(anchor.as_ref()?)).collect();
        let number =
            marks::next_number(owner, own.iter().map(|checkpoint| checkpoint.name.as_str()), &anchors);
        let keep: Vec<&str> = anchors.iter().filter_map(LibvirtMark::checkpoint).collect();
        if own.iter().any(|checkpoint| !keep.contains(&checkpoint.name.as_str())) {
            tracing::info!(%domain, %owner, "deleting checkpoints that no ledger names");
            if let Err(error) = self.delete_checkpoints(domain, &own, &keep).await {
                // They cost the guest a little and the snapshot nothing; the next one tries again.
                tracing::warn!(%domain, %owner, %error, "checkpoints that no ledger names are still there");
            }
        }
        Ok((plans, number))
    }

    /// Begins the job and the checkpoint, and returns the checkpoint's name. A disk whose bitmap turns out to
    /// be broken is asked for whole; a name that a leftover bitmap in an image uses is skipped.
    #[allow(clippy::too_many_arguments, reason = "one step of `begin`, which has all of these at hand")]
    async fn begin_job(
        &self,
        domain: DomainId,
        owner: MigrationId,
        xml: &DomainXml,
        plans: &mut [DiskPlan],
        mut number: u64,
        dirs: &RuntimeDirs,
        socket: &Path,
    ) -> Result<String, SourceError> {
        let doing = || format!("VM {domain}: beginning a backup job");
        let mut attempt = 0;
        loop {
            let name = format!("{}{number}", marks::prefix(owner));
            let backup = plan::backup_xml(plans, &xml.disks, dirs, socket);
            let checkpoint = plan::checkpoint_xml(plans, &xml.disks, owner, &name);
            let error = match self.libvirt.backup_begin(domain, &backup, checkpoint.as_deref()).await {
                Ok(()) => return Ok(name),
                Err(error) => error,
            };
            attempt += 1;
            match error.kind {
                _ if attempt >= ATTEMPTS => return Err(error).context(doing),
                // After any refusal a job of this migration must not block others.
                LibvirtErrorKind::WrongState
                | LibvirtErrorKind::Busy
                | LibvirtErrorKind::Unsupported
                | LibvirtErrorKind::Failed
                    if self.end_own_job(domain, owner).await? =>
                {
                    tracing::info!(%domain, %owner, "a backup job of an earlier daemon was in the way and was ended");
                }
                LibvirtErrorKind::CheckpointInconsistent | LibvirtErrorKind::NoSuchCheckpoint => {
                    if !forget_anchors(plans, &error) {
                        return Err(error).context(doing);
                    }
                }
                LibvirtErrorKind::BitmapExists | LibvirtErrorKind::CheckpointExists => {
                    number = number.saturating_add(1);
                }
                LibvirtErrorKind::Unsupported if error.to_string().contains("qcow2 v2") => {
                    let why = format!(
                        "an image is of qcow2's old version, which keeps no bitmaps; convert it while the VM is \
                         off: qemu-img amend -f qcow2 -o compat=1.1 IMAGE ({error})"
                    );
                    return Err(refused(doing(), why));
                }
                _ => return Err(error).context(doing),
            }
        }
    }

    async fn open(&self, plan: &DiskPlan, socket: &Path) -> Result<OpenDisk, NbdError> {
        let context = format!("qemu:dirty-bitmap:backup-{}", plan.key);
        let mut options = NbdOptions::new(NbdAddress::Unix(socket.to_owned()), plan.key.0.clone());
        options.connections = self.settings.connections;
        // The server is QEMU itself, on this host: it does not restore a dropped connection.
        options.reconnect_for = Duration::from_secs(5);
        if matches!(plan.tracking, SnapshotBase::Since(_)) {
            options = options.context(context.clone());
        }
        let nbd = NbdDisk::open(options).await?;
        let changes = match &plan.tracking {
            SnapshotBase::Untracked(reason) | SnapshotBase::Whole(reason) => Err(reason.clone()),
            SnapshotBase::Since(anchor) if anchor.size.0 != nbd.len() => {
                Err(format!("its size was {} bytes and is {} now", anchor.size, nbd.len()))
            }
            SnapshotBase::Since(_) if !nbd.contexts().any(|granted| granted == context) => {
                Err(format!("QEMU does not serve the bitmap of its changes ({context})"))
            }
            SnapshotBase::Since(_) => Ok(context),
        };
        Ok(OpenDisk { nbd: Arc::new(nbd), changes })
    }
}

/// Asks for the disk that the error names whole, or for all if it names none; false if all are requested
/// whole already.
fn forget_anchors(plans: &mut [DiskPlan], error: &LibvirtError) -> bool {
    let is_named = plans.iter().any(|plan| error.names(&plan.key.0));
    let mut any = false;
    for plan in plans.iter_mut().filter(|plan| matches!(plan.tracking, SnapshotBase::Since(_))) {
        if !is_named || error.names(&plan.key.0) {
            tracing::warn!(disk = %plan.key, %error, "its changes are not known; all of it will be compared");
            plan.tracking = SnapshotBase::Whole(error.cause.to_string());
            any = true;
        }
    }
    any
}

fn nbd_error(context: String, error: NbdError) -> SourceError {
    let kind = match error.kind() {
        ErrorKind::Connection => SourceErrorKind::Unreachable,
        ErrorKind::Timeout => SourceErrorKind::Timeout,
        ErrorKind::Media | ErrorKind::NoSpace | ErrorKind::Refused | ErrorKind::Protocol => {
            SourceErrorKind::Failed
        }
    };
    SourceError::new(kind, context, error)
}

impl LibvirtSnapshot {
    fn disk(&self, key: &DiskKey) -> Result<&OpenDisk, SourceError> {
        self.open.get(key).ok_or_else(|| {
            let context = format!("VM {}: looking for disk {key}", self.domain);
            SourceError::new(SourceErrorKind::NotFound, context, "it is not in this snapshot")
        })
    }
}

#[async_trait]
impl Snapshot for LibvirtSnapshot {
    fn disks(&self) -> &[SnapshotDisk] {
        &self.disks
    }

    async fn changed(&self, key: &DiskKey) -> Result<Changed, SourceError> {
        let disk = self.disk(key)?;
        let context = match &disk.changes {
            Ok(context) => context,
            Err(reason) => return Ok(Changed::Unknown(reason.clone())),
        };
        let size = Length(disk.nbd.len());
        let mut changed = ExtentSet::new(size);
        if let Some(whole) = Extent::whole(size) {
            let told = disk.nbd.dirty_extents(context, whole, |extent| changed.insert(extent)).await;
            told.map_err(|error| {
                nbd_error(format!("VM {}: reading what changed on disk {key}", self.domain), error)
            })?;
        }
        Ok(Changed::Known(changed))
    }

    async fn open(&self, key: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError> {
        Ok(Arc::clone(&self.disk(key)?.nbd) as Arc<dyn ReadDisk>)
    }

    fn ended_early(&self) -> Option<SourceError> {
        let why = self.scratch_monitor.as_ref()?.why()?;
        Some(blocked(format!("VM {}: reading its snapshot", self.domain), why))
    }

    async fn release(self: Box<Self>) -> Result<(), SourceError> {
        let Self { source, domain, owner, open, at_rest, scratch_monitor, .. } = *self;
        drop(scratch_monitor);
        drop(open);
        let ended = source.end(domain, owner).await?;
        // Its state does not show it: resumed, ended and started once more.
        let was_let_run = at_rest.and_then(|since| source.libvirt.was_let_run_since(domain, since));
        match ended {
            CleanupResult::AtRest if was_let_run == Some(true) => Err(refused(
                format!("VM {domain}: ending the snapshot"),
                "libvirt tells that the VM was let run while its disks were read at rest: what was read is not taken for \
                 its last state; find out who started it, then go on",
            )),
            CleanupResult::AtRest => Ok(()),
            CleanupResult::AsItShould | CleanupResult::Resumed if at_rest.is_none() => Ok(()),
            CleanupResult::Resumed => Err(refused(
                format!("VM {domain}: ending the snapshot"),
                "the VM was started while its disks were read at rest: shut it down before going on",
            )),
            // Whether its guest ran before that is not known.
            CleanupResult::AsItShould => Err(refused(
                format!("VM {domain}: ending the snapshot"),
                "the VM was ended while its disks were read at rest, and may have run before: what was \
                 read is not taken for its last state; find out who started or stopped it, then go on",
            )),
        }
    }
}
