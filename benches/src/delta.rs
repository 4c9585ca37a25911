//! Deltas: which extents of a disk changed, and to what.
//!
//! Rule: shape, share and disk size alone determine a delta; all sides get the same file of extents.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use warmd_cbt::units::{Extent, Length, Offset};

/// How the changes are distributed on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 64 KiB each, aligned, scattered evenly.
    Blocks,
    /// 4 KiB each, aligned, scattered evenly.
    Pages,
    /// 4 MiB each.
    Runs,
    /// Like [`Shape::Blocks`]; every second one is zero afterwards, in turn as a hole and as written zeroes.
    HalfZero,
}

/// The new content of an extent of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    Data,
    Zeroes,
    Hole,
}

const RUN: u64 = 4 << 20;
const BLOCK: u64 = 64 << 10;
const PAGE: u64 = 4 << 10;

impl Shape {
    /// Its part of the cases' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks => "64k",
            Self::Pages => "4k",
            Self::Runs => "runs",
            Self::HalfZero => "zero",
        }
    }

    /// Bytes in one extent, on a disk of `size` bytes of which `percent` change.
    fn length(self, size: u64, percent: u64) -> u64 {
        match self {
            Self::Blocks | Self::HalfZero => BLOCK,
            Self::Pages => PAGE,
            // A small disk must have some extents, too.
            Self::Runs => RUN.min(size * percent / 400 / BLOCK * BLOCK).max(BLOCK),
        }
    }

    /// Number of extents of a delta of this share.
    pub fn count(self, size: u64, percent: u64) -> u64 {
        let stride = self.length(size, percent) * 100 / percent;
        size / stride
    }

    /// The changed extents, in order, none adjacent to another.
    pub fn extents(self, size: u64, percent: u64) -> Vec<Extent> {
        let length = self.length(size, percent);
        let stride = length * 100 / percent;
        let grain = length.min(BLOCK);
        let mut random = crate::image::Random::new(size ^ percent ^ length);
        (0..size / stride)
            .filter_map(|slot| {
                let room = (stride - length) / grain;
                let start = slot * stride + random.next() % room.max(1) * grain;
                Extent::new(Offset(start / grain * grain), Length(length))
            })
            .collect()
    }

    /// The new content of the extent with this number.
    pub fn becomes(self, number: usize) -> Becomes {
        match (self, number % 4) {
            (Self::HalfZero, 1) => Becomes::Hole,
            (Self::HalfZero, 3) => Becomes::Zeroes,
            _ => Becomes::Data,
        }
    }
}

/// This many blocks, evenly scattered over a disk of `size` bytes.
pub fn blocks(size: u64, count: u64) -> impl Iterator<Item = Extent> {
    let stride = size / BLOCK / count.max(1) * BLOCK;
    (0..count).filter_map(move |number| Extent::new(Offset(number * stride), Length(BLOCK)))
}

/// Writes the file of extents.
pub fn save(file: &Path, extents: &[Extent]) -> Result<()> {
    let mut text = String::new();
    for extent in extents {
        writeln!(text, "{} {}", extent.start(), extent.len())?;
    }
    fs::write(file, text).with_context(|| file.display().to_string())
}

/// Reads the file of extents.
pub fn load(file: &Path) -> Result<Vec<Extent>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    text.lines()
        .map(|line| {
            let parsed = line
                .split_once(' ')
                .and_then(|(start, len)| Extent::new(Offset(start.parse().ok()?), Length(len.parse().ok()?)));
            parsed.with_context(|| format!("no extent: {line:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_have_their_share_and_lie_apart() {
        for shape in [Shape::Blocks, Shape::Pages, Shape::Runs, Shape::HalfZero] {
            for (size, percent) in [(64 << 20, 1), (64 << 20, 10), (4 << 30, 1), (4 << 30, 10)] {
                let extents = shape.extents(size, percent);
                assert_eq!(extents.len() as u64, shape.count(size, percent));
                let bytes: u64 = extents.iter().map(|extent| extent.len().0).sum();
                let share = bytes as f64 * 100.0 / size as f64;
                assert!((share / percent as f64 - 1.0).abs() < 0.2, "{shape:?} {size} {percent}: {share}");
                assert!(extents.windows(2).all(|two| two[0].end() < two[1].start()), "{shape:?} touches");
                assert!(extents.iter().all(|extent| extent.within(Length(size))));
            }
        }
    }

    #[test]
    fn a_file_of_extents_is_read_as_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let extents = Shape::Pages.extents(16 << 20, 10);
        save(file.path(), &extents).unwrap();
        assert_eq!(load(file.path()).unwrap(), extents);
        fs::write(file.path(), "7\n").unwrap();
        load(file.path()).unwrap_err();
    }
}
