//! A disk at an NBD server that others run: found and opened, never made.
//!
//! Rule: an export that cannot say that bytes are durable holds no disk of ours.

use warmd_cbt::{disk::ErrorKind, units::Length};

use crate::{
    nbd::{ExportFlags, NbdDisk, NbdError, NbdOptions, NbdUri},
    targets::{TargetError, TargetErrorKind},
};

/// Looks at an export to which nothing of ours was written yet; it must be `size` bytes long.
pub(super) async fn look(uri: &str, size: Length, doing: &str) -> Result<(), TargetError> {
    open_as(uri, size, false, doing).await?.close().await;
    Ok(())
}

/// Opens the export for writing, where an earlier daemon may have written; it must be `size` bytes long.
pub(super) async fn open(uri: &str, size: Length, doing: &str) -> Result<NbdDisk, TargetError> {
    open_as(uri, size, true, doing).await
}

async fn open_as(uri: &str, size: Length, unknown_past: bool, doing: &str) -> Result<NbdDisk, TargetError> {
    let parsed: NbdUri =
        uri.parse().map_err(|error| TargetError::new(TargetErrorKind::Refused, doing, error))?;
    let disk = NbdDisk::open(NbdOptions { unknown_past, ..NbdOptions::from(parsed).writable() })
        .await
        .map_err(|error| TargetError::new(kind(&error), format!("{doing} at {uri}"), error))?;
    let (is, flushes) = (disk.len(), disk.export().flags.has(ExportFlags::FLUSH));
    let wrong = if is != size.0 {
        let why = format!(
            "the export has {is} bytes, the disk {size}: it is never resized; make it {size} bytes long"
        );
        Some((TargetErrorKind::Conflict, why))
    } else if !flushes {
        let why = "the server does not offer FLUSH, so nothing written there is known to be durable: configure it to";
        Some((TargetErrorKind::Refused, why.to_owned()))
    } else {
        None
    };
    let Some((kind, why)) = wrong else { return Ok(disk) };
    disk.close().await;
    Err(TargetError::new(kind, format!("{doing} at {uri}"), why))
}

fn kind(error: &NbdError) -> TargetErrorKind {
    match error.kind() {
        ErrorKind::Connection => TargetErrorKind::Unreachable,
        ErrorKind::Timeout => TargetErrorKind::Timeout,
        ErrorKind::NoSpace => TargetErrorKind::NoSpace,
        ErrorKind::Refused => TargetErrorKind::Refused,
        ErrorKind::Media | ErrorKind::Protocol => TargetErrorKind::Failed,
    }
}
