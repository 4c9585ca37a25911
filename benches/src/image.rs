//! Disk images in which offset and generation determine every byte, so that an image can be made again at any
//! time.
//!
//! Rule: data is never all zero and does not compress; where data begins and ends is a multiple of 64 KiB.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use rustix::fs::FallocateFlags;
use warmd_cbt::units::Extent;

use crate::delta::{Becomes, Shape};

const GRAIN: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// Bytes written at once.
const STEP: u64 = 1 << 20;

/// The content of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Runs of data and holes in turn, 2 MiB in the mean.
    Half,
    Data,
    Holes,
}

impl Fill {
    /// Its part of the cases' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Half => "half",
            Self::Data => "data",
            Self::Holes => "holes",
        }
    }

    /// The runs of data of an image of `size` bytes, in order.
    pub fn runs(self, size: u64) -> Vec<Range<u64>> {
        let whole = 0..size;
        match self {
            Self::Holes => Vec::new(),
            Self::Data => std::iter::once(whole).collect(),
            Self::Half => {
                let mut random = Random::new(size);
                let mut length = || GRAIN * (1 + random.next() % 63);
                let (mut runs, mut at) = (Vec::new(), 0);
                while at < size {
                    let end = (at + length()).min(size);
                    runs.push(at..end);
                    at = end + length();
                }
                runs
            }
        }
    }
}

/// Xorshift64: cheap, and good enough for what benchmarks copy.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        // Similar seeds must not begin alike, and zero would stay zero.
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self(if mixed == 0 { 1 } else { mixed ^ mixed >> 31 | 1 })
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Fills `buffer` with the data of this seed at `at`, which is the start of a page.
fn data(buffer: &mut [u8], at: u64, seed: u64) {
    for (number, page) in buffer.chunks_mut(PAGE as usize).enumerate() {
        let mut random = Random::new((at / PAGE + number as u64) << 8 | seed);
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }
}

fn write(file: &File, range: Range<u64>, seed: u64) -> io::Result<()> {
    let mut buffer = vec![0; STEP.min(range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        let step = STEP.min(range.end - at) as usize;
        data(&mut buffer[..step], at, seed);
        file.write_all_at(&buffer[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.start, range.end - range.start)?)
}

fn range(extent: &Extent) -> Range<u64> {
    extent.start().0..extent.end().0
}

/// Makes a new empty image.
pub fn blank(path: &Path, size: u64) -> Result<()> {
    let made = File::create(path).and_then(|file| file.set_len(size));
    made.with_context(|| path.display().to_string())
}

/// The image of disk number `n`; no two disks are alike.
#[derive(Clone, Copy, Debug)]
pub struct BenchImage {
    pub number: u64,
    pub size: u64,
    pub fill: Fill,
}

impl BenchImage {
    /// Creates it, of the first generation, durably.
    pub fn make(self, path: &Path) -> Result<()> {
        blank(path, self.size)?;
        change(path, |file| {
            self.fill.runs(self.size).into_iter().try_for_each(|run| write(file, run, self.seed(0)))
        })
    }

    /// Brings the changed extents to the second generation.
    pub fn apply(self, path: &Path, shape: Shape, extents: &[Extent]) -> Result<()> {
        change(path, |file| {
            extents.iter().enumerate().try_for_each(|(number, extent)| match shape.becomes(number) {
                Becomes::Data => write(file, range(extent), self.seed(1)),
                Becomes::Hole => punch(file, range(extent)),
                Becomes::Zeroes => file.write_all_at(&vec![0; extent.len().0 as usize], extent.start().0),
            })
        })
    }

    /// Brings the extents back to the first generation.
    pub fn restore(self, path: &Path, extents: &[Extent]) -> Result<()> {
        let runs = self.fill.runs(self.size);
        change(path, |file| {
            for extent in extents {
                let extent = range(extent);
                punch(file, extent.clone())?;
                let from = runs.partition_point(|run| run.end <= extent.start);
                for run in runs[from..].iter().take_while(|run| run.start < extent.end) {
                    write(file, run.start.max(extent.start)..run.end.min(extent.end), self.seed(0))?;
                }
            }
            Ok(())
        })
    }

    fn seed(self, generation: u64) -> u64 {
        self.number << 1 | generation
    }
}

fn change(path: &Path, work: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path);
    let changed = file.and_then(|file| work(&file).and_then(|()| file.sync_all()));
    changed.with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::equal;

    const SIZE: u64 = 32 << 20;

    #[test]
    fn half_is_half_and_in_order() {
        let runs = Fill::Half.runs(4 << 30);
        let bytes: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let share = bytes as f64 / (4_u64 << 30) as f64;
        assert!((0.45..0.55).contains(&share), "{share}");
        assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
        assert!(runs.iter().all(|run| run.start.is_multiple_of(GRAIN) && run.start < run.end));
    }

    #[test]
    fn a_restored_image_is_the_first_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let image = BenchImage { number: 3, size: SIZE, fill: Fill::Half };
        for shape in [Shape::Blocks, Shape::Pages, Shape::Runs, Shape::HalfZero] {
            let extents = shape.extents(SIZE, 10);
            image.make(&first).unwrap();
            image.make(&second).unwrap();
            equal(&first, &second).unwrap();
            image.apply(&second, shape, &extents).unwrap();
            equal(&first, &second).unwrap_err();
            image.restore(&second, &extents).unwrap();
            equal(&first, &second).unwrap();
        }
    }
}
