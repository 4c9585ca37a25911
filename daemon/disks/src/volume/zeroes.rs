//! Making a range read as zeroes: by a hole where the volume supports it, by zeroes written over the whole
//! range where not, and the check that the hole reads as it should.
//!
//! Rule: for any answer of the kernel to the hole, afterwards the whole range reads zero or the call fails.
//! The kernel may refuse at any time, also after earlier successes.

use std::io;

use rustix::fs::SeekFrom;
use warmd_cbt::{
    buffer::ALIGNMENT,
    units::{Extent, Length, Offset},
};

use super::{
    body::{SCRATCH, Volume, scratch},
    identity::VolumeKind,
};

/// The distance of the samples of a device's hole, [`SCRATCH`] bytes each.
const SAMPLES: u64 = 16 << 20;

/// Makes `extent` read as zeroes.
pub(super) fn make_zero(volume: &Volume, extent: Extent) -> io::Result<()> {
    let Some(inner) = aligned_inside(extent).filter(|_| volume.punches()) else {
        return write_zeroes(volume, extent);
    };
    match volume.punch(inner) {
        Ok(()) if reads_zero(volume, inner)? => {
            for edge in around(extent, inner).into_iter().flatten() {
                write_zeroes(volume, edge)?;
            }
            return Ok(());
        }
        Ok(()) => {
            tracing::warn!(volume = %volume.path().display(), extent = %inner,
                "a hole was accepted but does not read as zeroes; zeroes are written from now on");
            volume.punch_no_more();
        }
        Err(error) => {
            tracing::info!(volume = %volume.path().display(), extent = %inner, %error,
                "a hole was refused; zeroes are written from now on");
            volume.punch_no_more();
        }
    }
    write_zeroes(volume, extent)
}

fn write_zeroes(volume: &Volume, extent: Extent) -> io::Result<()> {
    let zeroes = scratch();
    for piece in extent.split(SCRATCH as u64) {
        volume.write_all(&zeroes[..piece.len().0 as usize], piece.start())?;
    }
    Ok(())
}

/// Whether the extent reads zero: a file's holes do, other parts of a file are read; a device, which can
/// only be read, is read whole if short, else at both ends and at every [`SAMPLES`] bytes. The rest is
/// checked when the disk is read back.
fn reads_zero(volume: &Volume, extent: Extent) -> io::Result<bool> {
    match volume.kind() {
        VolumeKind::File => {
            let mut from = extent.start();
            while let Some(data) = next_data(volume, from, extent.end())? {
                if !all_zero(volume, data)? {
                    return Ok(false);
                }
                from = data.end();
            }
            Ok(true)
        }
        VolumeKind::BlockDevice => {
            let last = Extent::between(
                Offset(extent.end().0.saturating_sub(SCRATCH as u64).max(extent.start().0)),
                extent.end(),
            );
            for piece in extent.split(SAMPLES) {
                let len = Length(piece.len().0.min(SCRATCH as u64));
                let sample =
                    if extent.len().0 <= SAMPLES { Some(piece) } else { Extent::new(piece.start(), len) };
                if !sample.map_or(Ok(true), |sample| all_zero(volume, sample))? {
                    return Ok(false);
                }
            }
            last.map_or(Ok(true), |last| all_zero(volume, last))
        }
    }
}

/// The first run of allocated bytes of a file from `from` on, cut at `end`.
pub(super) fn next_data(volume: &Volume, from: Offset, end: Offset) -> io::Result<Option<Extent>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(volume.file(), SeekFrom::Data(from.0)) {
        Ok(start) => Offset(start),
        // Nothing but holes up to the end of the file.
        Err(error) if error == rustix::io::Errno::NXIO => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let hole = Offset(rustix::fs::seek(volume.file(), SeekFrom::Hole(start.0))?).min(end);
    Ok(Extent::between(start.max(from), hole))
}

fn all_zero(volume: &Volume, extent: Extent) -> io::Result<bool> {
    let mut buffer = scratch();
    for piece in extent.split(SCRATCH as u64) {
        let read = &mut buffer[..piece.len().0 as usize];
        volume.read_all(read, piece.start())?;
        if read.iter().fold(0, |sum, byte| sum | byte) != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The largest run inside `extent` whose ends are multiples of [`ALIGNMENT`].
fn aligned_inside(extent: Extent) -> Option<Extent> {
    let granule = ALIGNMENT as u64;
    let start = extent.start().0.next_multiple_of(granule);
    let end = extent.end().0 / granule * granule;
    Extent::between(Offset(start), Offset(end))
}

/// The parts of `extent` before and after `inner`.
fn around(extent: Extent, inner: Extent) -> [Option<Extent>; 2] {
    [Extent::between(extent.start(), inner.start()), Extent::between(inner.end(), extent.end())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_and_edges_are_the_whole() {
        let extent = |start, len| Extent::new(Offset(start), Length(len)).unwrap();
        for (whole, inner, before, after) in [
            (extent(0, 4096), Some(extent(0, 4096)), None, None),
            (extent(1, 8192), Some(extent(4096, 4096)), Some(extent(1, 4095)), Some(extent(8192, 1))),
            (extent(4095, 2), None, None, None),
            (extent(4096, 4095), None, None, None),
        ] {
            assert_eq!(aligned_inside(whole), inner, "{whole}");
            if let Some(inner) = inner {
                assert_eq!(around(whole, inner), [before, after], "{whole}");
            }
        }
    }
}
