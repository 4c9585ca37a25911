//! A snapshot, with a reader for each disk that is opened.
//!
//! Rule: readers are closed in order before the snapshot is removed: what they leave open keeps the host's
//! memory. The final one is given back only if the VM is off, and nothing has changed since.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use warmd_cbt::{
    disk::ReadDisk,
    mark::{ChangeMark, Changed},
};
use warmd_core::{
    model::id::{DiskKey, VmId},
    sources::{Snapshot, SnapshotDisk, SnapshotRequest, SourceError, SourceErrorKind},
};
use warmd_disks::nbd::{NbdAddress, NbdDisk, NbdOptions, NbdUri};

use crate::{
    VsphereError,
    inventory::Power,
    reader::Reader,
    snapshot::{Taken, VmSnapshotRequest},
};

use super::{VsphereSource, owner_of, reading::ReaderDisk};

/// Reads of a disk at the same time: nbdkit has as many threads for a connection, and more are hardly faster
/// (at 10 ms, in MiB/s: 1: 76, 4: 340, 8: 630, 16: 960, 32: 1,010).
const IN_FLIGHT: usize = 16;
/// A reader's child that died is started again meanwhile.
const RECONNECT: Duration = Duration::from_secs(90);
/// A host that is busy answers late.
const REQUEST: Duration = Duration::from_mins(2);

#[derive(Debug)]
struct VsphereSnapshot {
    source: VsphereSource,
    vm: VmId,
    taken: Taken,
    disks: Vec<SnapshotDisk>,
    anchors: BTreeMap<DiskKey, Option<ChangeMark>>,
    is_final: bool,
    open: tokio::sync::Mutex<BTreeMap<DiskKey, Arc<ReaderDisk>>>,
    readers: Mutex<Vec<Reader>>,
}

impl VsphereSource {
    /// Takes a snapshot.
    pub(super) async fn take(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        let owner = owner_of(request.owner);
        let turn = if request.is_final {
            self.turns.at_once()
        } else {
            let within = Duration::from_secs(self.vsphere.settings().task_seconds);
            self.turns.wait(within, || format!("VM {}: taking a snapshot", request.vm)).await?
        };
        self.clear_readers(&owner).await;
        let disks = request.disks.iter().map(|(key, anchor)| (key.0.clone(), anchor.clone())).collect();
        let order =
            VmSnapshotRequest { owner, vm: self.of(&request.vm).await?, disks, is_final: request.is_final };
        let taken = self.vsphere.take(&order).await?;
        drop(turn);
        for warning in &taken.warnings {
            tracing::warn!(vm = %request.vm, owner = %request.owner, warning, "a snapshot was taken");
        }
        tracing::info!(
            vm = %request.vm,
            snapshot = %taken.of,
            made_in = ?taken.made_in,
            quiesced = taken.quiesced,
            switched_tracking_on = taken.switched_tracking_on,
            "a snapshot was taken"
        );
        let disks = taken.disks.iter().map(|disk| SnapshotDisk {
            key: DiskKey(disk.mark.disk.clone()),
            size: disk.disk.capacity,
            mark: disk.mark.write(),
        });
        Ok(Box::new(VsphereSnapshot {
            source: self.clone(),
            vm: request.vm.clone(),
            disks: disks.collect(),
            anchors: request.disks.iter().cloned().collect(),
            is_final: request.is_final,
            open: tokio::sync::Mutex::default(),
            readers: Mutex::default(),
            taken,
        }))
    }
}

impl VsphereSnapshot {
    async fn connect(&self, key: &DiskKey) -> Result<ReaderDisk, SourceError> {
        let context = || format!("VM {}: opening disk {key}", self.vm);
        let reader = self.source.vsphere.reader(&self.taken, &key.0).await?;
        let mut options = match (reader.socket(), reader.uri()) {
            (Some(socket), _) => NbdOptions::new(NbdAddress::Unix(socket), String::new()),
            (None, Some(uri)) => {
                let uri = uri.parse::<NbdUri>();
                NbdOptions::from(
                    uri.map_err(|error| SourceError::new(SourceErrorKind::Refused, context(), error))?,
                )
            }
            (None, None) => {
                let why = "its reader has no address";
                return Err(SourceError::new(SourceErrorKind::Failed, context(), why));
            }
        };
        if reader.socket().is_some() {
            // Each is another open disk for the host and its memory; one carries more than a network.
            options.connections = 1;
            options.in_flight = IN_FLIGHT;
        }
        options.reconnect_for = RECONNECT;
        options.request_timeout = REQUEST;
        match NbdDisk::open(options).await {
            Ok(disk) => {
                let disk = ReaderDisk::new(disk, reader.health());
                self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
                Ok(disk)
            }
            Err(error) => {
                let complaint = reader.complaint().await;
                reader.close().await;
                Err(match complaint {
                    Some(complaint) => {
                        let why = format!("{complaint}; {}", complaint.remedy());
                        SourceError::from(VsphereError::new(complaint.kind(), context(), why))
                    }
                    None => SourceError::new(SourceErrorKind::Failed, context(), error),
                })
            }
        }
    }
}

#[async_trait]
impl Snapshot for VsphereSnapshot {
    fn disks(&self) -> &[SnapshotDisk] {
        &self.disks
    }

    async fn changed(&self, key: &DiskKey) -> Result<Changed, SourceError> {
        let anchor = self.anchors.get(key).and_then(Option::as_ref);
        Ok(self.source.vsphere.changed(&self.taken, &key.0, anchor).await?)
    }

    async fn open(&self, key: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError> {
        let mut open = self.open.lock().await;
        if let Some(disk) = open.get(key) {
            return Ok(Arc::clone(disk) as Arc<dyn ReadDisk>);
        }
        let disk = Arc::new(self.connect(key).await?);
        open.insert(key.clone(), Arc::clone(&disk));
        Ok(disk as Arc<dyn ReadDisk>)
    }

    fn made_in(&self) -> Option<Duration> {
        self.taken.made_in
    }

    fn ended_early(&self) -> Option<SourceError> {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let why = readers.iter().find_map(Reader::gave_up)?;
        let context = format!("VM {}: reading its snapshot", self.vm);
        let told = format!("{why}; {}", why.remedy());
        Some(SourceError::from(VsphereError::new(why.kind(), context, told)))
    }

    async fn release(self: Box<Self>) -> Result<(), SourceError> {
        let Self { source, vm, taken, is_final, open, readers, .. } = *self;
        drop(open);
        let readers = readers.into_inner().unwrap_or_else(PoisonError::into_inner);
        join_all(readers.into_iter().map(Reader::close)).await;
        // It is removed whatever is found.
        let unchanged = if is_final { source.vsphere.is_unchanged(&taken).await } else { Ok(()) };
        let turn = source.turns.at_once();
        let removed = source.vsphere.release(&taken).await;
        drop(turn);
        if is_final {
            // Before anything else is said: what was read is final only if the VM is known to have been off.
            let context = || format!("VM {vm}: ending the snapshot of its final state");
            let refused = |why| SourceError::new(SourceErrorKind::Refused, context(), why);
            unchanged.map_err(|error| refused(error.to_string()))?;
            let power = source.vsphere.power(&taken.vm).await.map_err(|error| refused(error.to_string()))?;
            if power != Power::Off {
                let why = "it was started while its disks were read at rest: shut it down before going on";
                return Err(refused(why.to_owned()));
            }
        }
        let took = removed?;
        tracing::info!(%vm, ?took, "a snapshot was removed, and its disks consolidated");
        Ok(())
    }
}
