//! Runs of a disk that need not be read to be known as zero.

use crate::{
    disk::{Allocation, DiskError, ErrorKind, ReadDisk},
    units::{BLOCK, Extent, Offset},
};

/// The first run of whole blocks in `rest` that is a hole, or that is not known to be one.
pub(super) async fn hole_run(disk: &dyn ReadDisk, rest: Extent) -> Result<Allocation, DiskError> {
    let data = |extent| Allocation { extent, zero: false };
    let answer = match disk.allocation(rest).await {
        Ok(answer) => answer,
        Err(error) if error.kind == ErrorKind::Refused => return Ok(data(rest)),
        Err(error) => return Err(error),
    };
    let mut end = rest.start();
    let mut zero = None;
    for part in answer {
        if part.extent.start() != end || zero.is_some_and(|zero| zero != part.zero) {
            break;
        }
        zero = Some(part.zero);
        end = part.extent.end().min(rest.end());
    }
    let run = Extent::between(rest.start(), end);
    // A hole gives up its broken last block, data takes it in; what is shorter than a block is data.
    let whole = if zero == Some(true) { end.0 / BLOCK * BLOCK } else { end.0.div_ceil(BLOCK) * BLOCK };
    let end = if end == rest.end() { end } else { Offset(whole).min(rest.end()) };
    match (run, Extent::between(rest.start(), end)) {
        (None, _) => Ok(data(rest)),
        (_, Some(extent)) => Ok(Allocation { extent, zero: zero == Some(true) }),
        (_, None) => {
            let block = Offset(rest.start().0 + BLOCK).min(rest.end());
            Ok(data(Extent::between(rest.start(), block).unwrap_or(rest)))
        }
    }
}
