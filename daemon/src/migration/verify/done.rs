//! Reading disks back after the cutover, when the target VM may have them.
//!
//! Rule: a disk that somebody uses, or that the VM may have written to, is not read: what it holds says nothing of the
//! copy. A snapshot of it, taken before, may be given instead.

use std::{path::Path, sync::Arc};

use warmd_cbt::{disk::ReadDisk, units::Length};

use super::super::{
    context::{Context, spec},
    failure::WorkError,
};
use crate::{
    model::{state::State, verify::VerifyOrder},
    nbd::{NbdDisk, NbdOptions, NbdUri},
    store::DiskRow,
    targets::{MachineState, volume::ImageFile},
};

const INSTEAD: &str = "give a snapshot of each volume that was taken before with --image DISK=PLACE";

/// The disks to verify: all, or those that images are given for.
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
    if context.live.view().state != State::Done || !order.images.is_empty() {
        return Ok(());
    }
    let started = context.cutover().target_running;
    let why = match (context.target.look(context.id).await?, started) {
        // Its locks tell whether somebody uses a disk.
        (MachineState::NotManaged, _) | (MachineState::Absent | MachineState::Stopped, None) => return Ok(()),
        (MachineState::Running | MachineState::Starting, _) => "the target VM runs".to_owned(),
        (MachineState::Absent | MachineState::Stopped, Some(at)) => {
            format!("the target VM was started on {} UTC", crate::human::moment(at))
        }
        (MachineState::Failed(why), _) => format!("the target VM may have run: {why}"),
    };
    Err(WorkError::operator(format!("{why}, so its disks are not what was copied any more: {INSTEAD}")))
}

/// What is read in the disk's place: the target's disk, or the image that is given for it.
pub(super) async fn open(
    context: &Context,
    order: &VerifyOrder,
    row: &DiskRow,
) -> Result<Arc<dyn ReadDisk>, WorkError> {
    if let Some(place) = order.images.get(&row.key.0) {
        return image(place, row.size).await.map_err(|why| {
            WorkError::operator(format!("the image {place:?} of disk {} cannot be read: {why}", row.key))
        });
    }
    let disk = context.target.open(context.id, &spec(row)).await?;
    Ok(disk)
}

async fn image(place: &str, size: Length) -> Result<Arc<dyn ReadDisk>, String> {
    if place.starts_with("nbd://") || place.starts_with("nbd+unix://") {
        let uri: NbdUri = place.parse().map_err(|error| format!("{error}"))?;
        let disk = NbdDisk::open(NbdOptions::from(uri)).await.map_err(|error| error.to_string())?;
        if disk.len() != size.0 {
            return Err(format!("it has {} bytes, the disk {size}", disk.len()));
        }
        return Ok(Arc::new(disk));
    }
    let path = Path::new(place);
    if !path.is_absolute() {
        return Err("it is neither an absolute path nor an nbd:// or nbd+unix:// URI".to_owned());
    }
    let image = ImageFile::open(path, size).await.map_err(|error| error.to_string())?;
    Ok(Arc::new(image))
}
