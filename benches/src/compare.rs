//! Whether two images are equal, byte for byte.
//!
//! Rule: bytes are read from the files and compared with each other; no hash, no manifest and none of the
//! engine's code is used. Only ranges that are a hole in both files are not read.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::{fs::SeekFrom, io::Errno};

const STEP: u64 = 1 << 20;
const THREADS: u64 = 2;

/// Returns an error with the first difference, unless the images are equal.
pub fn equal(left: &Path, right: &Path) -> Result<()> {
    let size = |path: &Path| -> Result<u64> {
        Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.len())
    };
    let (size, other) = (size(left)?, size(right)?);
    ensure!(size == other, "{} has {size} bytes, {} {other}", left.display(), right.display());
    let share = (size / THREADS).next_multiple_of(STEP).max(STEP);
    thread::scope(|scope| {
        let parts: Vec<_> = (0..THREADS)
            .map(|part| {
                scope.spawn(move || stretch(left, right, part * share, ((part + 1) * share).min(size)))
            })
            .collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow!("the comparison panicked"))?)
    })
    .with_context(|| format!("{} is not equal to {}", right.display(), left.display()))
}

fn stretch(left: &Path, right: &Path, from: u64, to: u64) -> Result<()> {
    let (left, right) = (File::open(left)?, File::open(right)?);
    let mut buffers = [vec![0; STEP as usize], vec![0; STEP as usize]];
    let mut at = from;
    while at < to {
        let data = next_data(&left, at)?.min(next_data(&right, at)?);
        // In whole steps, to compare also the bytes before the data in its step.
        at = at.max(data / STEP * STEP);
        if at >= to {
            break;
        }
        let length = STEP.min(to - at) as usize;
        let [one, two] = &mut buffers;
        left.read_exact_at(&mut one[..length], at)?;
        right.read_exact_at(&mut two[..length], at)?;
        if one[..length] != two[..length] {
            let first = one.iter().zip(two.iter()).take_while(|(one, two)| one == two).count();
            return Err(anyhow!("they differ at byte {}", at + first as u64));
        }
        at += length as u64;
    }
    Ok(())
}

/// Where data begins at or after `at`; the largest number if there is none.
fn next_data(file: &File, at: u64) -> Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(u64::MAX),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        let size = 5 * STEP + 77;
        for at in [0, STEP - 1, STEP, 3 * STEP + 5, size - 1] {
            for (path, byte) in [(&left, 0), (&right, 1)] {
                let file = File::create(path).unwrap();
                file.set_len(size).unwrap();
                if byte > 0 {
                    file.write_all_at(&[byte], at).unwrap();
                }
            }
            let error = format!("{:#}", equal(&left, &right).unwrap_err());
            assert!(error.contains(&format!("at byte {at}")), "{error}");
            equal(&left, &left).unwrap();
        }
    }

    #[test]
    fn another_size_is_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        File::create(&left).unwrap().set_len(7).unwrap();
        File::create(&right).unwrap().set_len(8).unwrap();
        equal(&left, &right).unwrap_err();
    }
}
