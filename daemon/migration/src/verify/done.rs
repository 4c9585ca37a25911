//! Reading disks back after the cutover, when they may belong to the target VM.
//!
//! Rule: a disk that is in use, or that the VM may have written to, is not read: its content no longer shows
//! the copy. Whether it was used during the reading is checked before there is a result. An earlier snapshot
//! of it may be given instead.

use std::{path::Path, sync::Arc};

use warmd_cbt::disk::ReadDisk;
use warmd_core::{
    format::bytes,
    images::ImageWatch,
    model::{id::DiskKey, state::State, verify::VerifyOrder},
    targets::MachineState,
};
use warmd_store::DiskRow;

use super::super::{
    context::{Context, spec},
    conversion,
    failure::WorkError,
};

const INSTEAD: &str = "give a snapshot of each volume that was taken before with --image DISK=LOCATION";

/// The disks to verify: all, or those with a given image.
pub(super) async fn disks(context: &Context, order: &VerifyOrder) -> Result<Vec<DiskRow>, WorkError> {
    let mut rows = context.store.disks(context.id).await?;
    if order.images.is_empty() {
        return Ok(rows);
    }
    if let Some(strange) = order.images.keys().find(|key| rows.iter().all(|row| row.key.0 != **key)) {
        let known: Vec<_> = rows.iter().map(|row| row.key.0.as_str()).collect();
        return Err(WorkError::operator(format!("it has no disk {strange:?}, but {}", known.join(", "))));
    }
    rows.retain(|row| order.images.contains_key(&row.key.0));
    Ok(rows)
}

/// Refuses a target whose VM runs, or may have written to its disks.
pub(super) async fn check(context: &Context, order: &VerifyOrder) -> Result<(), WorkError> {
    if context.state() != State::Done || !order.images.is_empty() {
        return Ok(());
    }
    if let Some(conversion) = conversion::in_force(context).await? {
        let disks = conversion.disks.iter().filter(|disk| disk.changed > 0);
        let disks: Vec<_> =
            disks.map(|disk| format!("{} of disk {}", bytes(disk.changed), disk.key)).collect();
        if !disks.is_empty() {
            return Err(WorkError::operator(format!(
                "the cutover had the disks converted after it had verified them: {} changed {}, so they are not what was \
                 copied any more, and comparing them with it says nothing; for the copy itself, {INSTEAD}",
                conversion.program(),
                disks.join(", ")
            )));
        }
    }
    let started = context.cutover().target_running;
    let why = match (context.target.look(context.id).await?, started) {
        // Its locks show whether a disk is in use.
        (MachineState::NotManaged, _) | (MachineState::Absent | MachineState::Stopped, None) => return Ok(()),
        (MachineState::Running | MachineState::Starting, _) => "the target VM runs".to_owned(),
        (MachineState::Absent | MachineState::Stopped, Some(at)) => {
            format!("the target VM was started on {} UTC", warmd_core::format::moment(at))
        }
        (MachineState::Failed(why), _) => format!("the target VM may have run: {why}"),
    };
    Err(WorkError::operator(format!("{why}, so its disks are not what was copied any more: {INSTEAD}")))
}

/// A disk, and the detector of its use.
pub(super) type WatchedDisk = (DiskKey, Box<dyn ImageWatch>);

/// The source of the read in place of a disk.
pub(super) struct DiskToRead {
    pub(super) disk: Arc<dyn ReadDisk>,
    /// Detects at the end whether the disk was used meanwhile, if the target VM may use it.
    detector: Option<WatchedDisk>,
}

impl DiskToRead {
    /// The disk, and the detector of its use.
    pub(super) fn into_parts(self) -> (Arc<dyn ReadDisk>, Option<WatchedDisk>) {
        (self.disk, self.detector)
    }
}

/// The target's disk, or the given image of it.
pub(super) async fn open_image(
    context: &Context,
    order: &VerifyOrder,
    row: &DiskRow,
) -> Result<DiskToRead, WorkError> {
    let given = order.images.get(&row.key.0);
    let unreadable = |why: String| {
        WorkError::operator(match given {
            Some(place) => format!("the image {place:?} of disk {} cannot be read: {why}", row.key),
            None => format!("disk {} cannot be read: {why}", row.key),
        })
    };
    let place = Path::new(given.map_or(row.location.as_str(), String::as_str));
    // Until the hand-over no other program uses it.
    let watched = context.state() == State::Done && place.is_absolute();
    let images = &context.engine.images;
    // Before it is opened: so later writes are detected.
    let detector = if watched { Some(images.watch(place).await.map_err(unreadable)?) } else { None };
    let disk = match given {
        Some(place) => images.open(place, row.size).await.map_err(unreadable)?,
        None => context.target.open(context.id, &spec(row)).await? as _,
    };
    Ok(DiskToRead { disk, detector: detector.map(|detector| (row.key.clone(), detector)) })
}

/// Refuses the result if a disk was used while it was read.
pub(super) async fn check_again(
    context: &Context,
    order: &VerifyOrder,
    detectors: &[WatchedDisk],
) -> Result<(), WorkError> {
    check(context, order).await?;
    for (key, detector) in detectors {
        detector.check().await.map_err(|error| {
            WorkError::operator(format!(
                "disk {key} was used while it was read, so that proves nothing: {error}"
            ))
        })?;
    }
    Ok(())
}
