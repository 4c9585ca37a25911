//! The loops of peers that cannot run here, reimplemented in a few lines of blocking code.
//!
//! Rule: nothing here is slower than the original must be: no logging, no progress, no copy in between, one
//! process.

use anyhow::Result;
use warmd_cbt::units::Extent;

use crate::side::{BenchSide, Side};

/// From this length on CDI asks for block status.
const CDI_STATUS_FROM: u64 = 1 << 20;
/// The longest stretch that CDI asks the status of.
const CDI_STATUS: u64 = 2 << 30;
/// CDI's reads.
const CDI_READ: u64 = 2 << 20;
/// migratekit's reads.
const MIGRATEKIT_READ: u64 = 64 << 20;
/// `dd bs=1M`.
const DD: u64 = 1 << 20;

/// CDI's VDDK reader: one connection, one request in flight. For extents of 1 MiB and more the status of one
/// extent a round trip; reads of 2 MiB; written by the same thread. It ends with an fsync.
pub fn cdi(source: &BenchSide, target: &BenchSide, extents: Option<&[Extent]>) -> Result<()> {
    let (mut from, mut to) = (Side::open(source)?, Side::open(target)?);
    let mut buffer = vec![0; CDI_READ as usize];
    for (start, length) in stretches(&from, extents)? {
        let (mut at, end) = (start, start + length);
        while at < end {
            let (run, zero) = if length < CDI_STATUS_FROM {
                (length, false)
            } else {
                from.status(at, CDI_STATUS.min(end - at))?
            };
            if zero {
                to.zero(at, run)?;
            } else {
                copy(&mut from, &mut to, at, run, &mut buffer)?;
            }
            at += run;
        }
    }
    to.flush()
}

/// migratekit's delta: one thread, the changed areas in reads of up to 64 MiB, no block status. It ends with
/// an fsync.
pub fn migratekit(source: &BenchSide, target: &BenchSide, extents: Option<&[Extent]>) -> Result<()> {
    let (mut from, mut to) = (Side::open(source)?, Side::open(target)?);
    let stretches = stretches(&from, extents)?;
    let longest = stretches.iter().map(|(_, length)| *length).max().unwrap_or_default();
    let mut buffer = vec![0; MIGRATEKIT_READ.min(longest) as usize];
    for (at, length) in stretches {
        copy(&mut from, &mut to, at, length, &mut buffer)?;
    }
    to.flush()
}

/// The baseline of a copy: the data, or the extents, read and written in order by one thread, then an fsync.
pub fn dd(source: &BenchSide, target: &BenchSide, extents: Option<&[Extent]>) -> Result<()> {
    let (mut from, mut to) = (Side::open(source)?, Side::open(target)?);
    let mut buffer = vec![0; DD as usize];
    each_data(&mut from, extents, |from, at, length| copy(from, &mut to, at, length, &mut buffer))?;
    to.flush()
}

/// The baseline of reading: the data, in order, by one thread.
pub fn read(source: &BenchSide) -> Result<()> {
    let mut from = Side::open(source)?;
    let mut buffer = vec![0; DD as usize];
    each_data(&mut from, None, |from, at, length| {
        steps(at, length, DD).try_for_each(|(at, length)| from.read(at, &mut buffer[..length as usize]))
    })
}

fn each_data(
    from: &mut Side,
    extents: Option<&[Extent]>,
    mut work: impl FnMut(&mut Side, u64, u64) -> Result<()>,
) -> Result<()> {
    for (start, length) in stretches(from, extents)? {
        let (mut at, end) = (start, start + length);
        while at < end {
            let (run, zero) = from.status(at, CDI_STATUS.min(end - at))?;
            if !zero {
                work(from, at, run)?;
            }
            at += run;
        }
    }
    Ok(())
}

/// Start and length of what is to be copied: the extents, or all of the disk.
fn stretches(disk: &Side, extents: Option<&[Extent]>) -> Result<Vec<(u64, u64)>> {
    Ok(match extents {
        Some(extents) => extents.iter().map(|extent| (extent.start().0, extent.len().0)).collect(),
        None => vec![(0, disk.size()?)],
    })
}

fn copy(from: &mut Side, to: &mut Side, at: u64, length: u64, buffer: &mut [u8]) -> Result<()> {
    for (at, length) in steps(at, length, buffer.len() as u64) {
        let buffer = &mut buffer[..length as usize];
        from.read(at, buffer)?;
        to.write(at, buffer)?;
    }
    Ok(())
}

fn steps(at: u64, length: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = at + length;
    (at..end).step_by(step.max(1) as usize).map(move |at| (at, step.min(end - at)))
}
