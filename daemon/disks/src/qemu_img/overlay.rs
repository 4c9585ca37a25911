//! qcow2 overlays: images that receive the writes to a raw volume, which is only read until the overlay is
//! committed.
//!
//! Rule: a used overlay is checked before it is committed: it must still be over its own volume,
//! have its size, and be open nowhere.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use warmd_cbt::units::{Extent, Length, Offset};

use super::{
    CALL_DEADLINE,
    error::{ImageError, ImageErrorKind},
    image,
};
use crate::child::{self, ChildError, ChildInput};

/// The most bytes of a map of an overlay that are read.
const MOST_MAP: usize = 64 << 20;

/// The version of `qemu-img`, in its own words.
pub async fn tool() -> Result<String, ImageError> {
    let text = image::qemu_img(&["--version"]).await?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Creates an overlay at `path` over the raw volume `backing` of `size` bytes. `path` must be free, in a
/// folder that only warmd writes to.
pub async fn make(path: &Path, backing: &Path, size: Length) -> Result<(), ImageError> {
    let size = size.to_string();
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(backing)?, text(path)?, &size];
    image::qemu_img(&args).await.map(drop)
}

/// Fails unless the overlay at `path` is still over `backing`, with its size.
pub async fn check(path: &Path, backing: &Path, size: Length) -> Result<(), ImageError> {
    let args = ["info", "-f", "qcow2", "--output=json", text(path)?];
    let json = image::qemu_img(&args).await?;
    let call = || format!("qemu-img info {}", path.display());
    let info: Info = serde_json::from_str(&json).map_err(|error| ImageError::malformed(call(), error))?;
    let wrong = if info.backing.as_deref() != Some(backing) || info.backing_format.as_deref() != Some("raw") {
        format!("it does not lie over {} any more", backing.display())
    } else if info.size != size.0 {
        format!("it has {} bytes now, and had {size}", info.size)
    } else if info.specific.is_some_and(|specific| specific.data.data_file.is_some()) {
        "its data lies in another file".to_owned()
    } else {
        return Ok(());
    };
    Err(ImageError::new(ImageErrorKind::Unsupported, call(), wrong))
}

/// Where the overlay at `path` of `size` bytes has data of its own, in order. All of the disk if the data is
/// in more pieces than can be read.
pub async fn changed(path: &Path, size: Length) -> Result<Vec<Extent>, ImageError> {
    let args = ["map", "-f", "qcow2", "--output=json", text(path)?];
    let call = || format!("qemu-img map {}", path.display());
    let done = child::run_with("qemu-img", &args, ChildInput::Nothing, CALL_DEADLINE, MOST_MAP).await;
    if let Err(ChildError::TooLong(_)) = done {
        return Ok(Extent::whole(size).into_iter().collect());
    }
    let json = image::answer(call(), done)?;
    let runs: Vec<Run> = serde_json::from_str(&json).map_err(|error| ImageError::malformed(call(), error))?;
    let mut changed = Vec::new();
    for run in runs.into_iter().filter(|run| run.depth == 0) {
        let extent = Extent::new(Offset(run.start), Length(run.length)).filter(|extent| extent.within(size));
        let extent = extent.ok_or_else(|| {
            ImageError::malformed(call(), format!("{} bytes at {} are not on it", run.length, run.start))
        })?;
        changed.push(extent);
    }
    Ok(changed)
}

/// Writes the data of the overlay at `path` into its volume. The data is not durable then; the overlay stays
/// as it is. `held` is kept open while the program may write.
pub async fn commit(path: &Path, held: File, deadline: Duration) -> Result<(), ImageError> {
    let args = ["commit", "-q", "-d", "-f", "qcow2", text(path)?];
    let done = child::run_with("qemu-img", &args, ChildInput::Held(held), deadline, child::MAX_OUTPUT).await;
    image::answer(format!("qemu-img {}", args.join(" ")), done).map(drop)
}

/// A path as `qemu-img` takes it: absolute, so that it is neither an option nor a protocol.
fn text(path: &Path) -> Result<&str, ImageError> {
    let name = OsStr::to_str(path.as_os_str()).filter(|_| path.is_absolute());
    name.ok_or_else(|| {
        let why = "the image's path is not absolute, or no text";
        ImageError::new(ImageErrorKind::Unsupported, format!("qemu-img … {}", path.display()), why)
    })
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    size: u64,
    #[serde(rename = "full-backing-filename")]
    backing: Option<PathBuf>,
    #[serde(rename = "backing-filename-format")]
    backing_format: Option<String>,
    #[serde(rename = "format-specific")]
    specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "data-file")]
    data_file: Option<String>,
}

#[derive(Deserialize)]
struct Run {
    start: u64,
    length: u64,
    /// 0 is the overlay itself.
    depth: u32,
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SIZE: Length = Length(1 << 20);
    const SOON: Duration = Duration::from_secs(30);

    fn io(overlay: &Path, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2"]);
        for each in commands {
            command.args(["-c", each]);
        }
        let done = command.arg(overlay).output().expect("qemu-io is not installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }

    #[tokio::test]
    async fn writes_stay_in_the_overlay_until_they_are_committed() {
        assert!(tool().await.unwrap().contains("qemu-img"));
        let dir = tempfile::tempdir().unwrap();
        let (volume, overlay) = (dir.path().join("a,b:c.raw"), dir.path().join("--o:1.qcow2"));
        std::fs::write(&volume, vec![7; SIZE.0 as usize]).unwrap();
        make(&overlay, &volume, SIZE).await.unwrap();
        assert_eq!(changed(&overlay, SIZE).await.unwrap(), []);
        // Data, zeroes, and what was discarded.
        io(&overlay, &["write -P 9 70000 100", "write -z 262144 65536", "discard 524288 65536"]);
        let runs: Vec<_> = changed(&overlay, SIZE).await.unwrap();
        let runs: Vec<_> = runs.iter().map(|run| (run.start().0, run.len().0)).collect();
        assert_eq!(runs, [(65_536, 65_536), (262_144, 65_536), (524_288, 65_536)]);
        assert!(std::fs::read(&volume).unwrap().iter().all(|byte| *byte == 7));

        check(&overlay, &volume, SIZE).await.unwrap();
        commit(&overlay, File::open(&volume).unwrap(), SOON).await.unwrap();
        let bytes = std::fs::read(&volume).unwrap();
        assert!(bytes[70_000..70_100].iter().all(|byte| *byte == 9));
        assert!(bytes[262_144..327_680].iter().all(|byte| *byte == 0));
        assert!(bytes[524_288..589_824].iter().all(|byte| *byte == 0));
        assert_eq!(bytes.iter().filter(|byte| **byte != 7).count(), 100 + 2 * 65_536);
    }

    #[tokio::test]
    async fn an_overlay_that_was_tampered_with_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let [volume, other, overlay] = ["v", "w", "o"].map(|name| dir.path().join(name));
        for path in [&volume, &other] {
            std::fs::write(path, vec![7; SIZE.0 as usize]).unwrap();
        }
        let tool = |args: &[&str]| {
            let done = Command::new("qemu-img").args(args).arg(&overlay).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        make(&overlay, &volume, SIZE).await.unwrap();
        tool(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", other.to_str().unwrap()]);
        let error = check(&overlay, &volume, SIZE).await.unwrap_err();
        assert!(error.to_string().contains("does not lie over"), "{error}");
        tool(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", volume.to_str().unwrap()]);
        check(&overlay, &volume, SIZE).await.unwrap();
        // The size comes after the image.
        let mut grow = Command::new("qemu-img");
        assert!(
            grow.args(["resize", "-q", "-f", "qcow2"]).arg(&overlay).arg("2M").status().unwrap().success()
        );
        let error = check(&overlay, &volume, SIZE).await.unwrap_err();
        assert!(error.to_string().contains("bytes now"), "{error}");
        std::fs::write(&overlay, "nothing").unwrap();
        assert!(check(&overlay, &volume, SIZE).await.is_err());
        std::fs::remove_file(&overlay).unwrap();
        assert_eq!(check(&overlay, &volume, SIZE).await.unwrap_err().kind, ImageErrorKind::NoSuchImage);
    }
}
