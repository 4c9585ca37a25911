//! qcow2 images by their own headers, and the bitmaps in images that are not open, which libvirt cannot reach
//! while a domain is off.
//!
//! Rule: without its lock an image is only read, never written to.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde::Deserialize;

use super::{
    CALL_DEADLINE,
    error::{ImageError, ImageErrorKind},
};
use crate::child::{self, ChildError, ChildOutput};

/// An image as its own header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Image {
    pub path: String,
    pub format: String,
    /// Virtual size in bytes.
    pub size: u64,
    /// Of qcow2: `0.10` (keeps no bitmaps) or `1.1`.
    pub compat: Option<String>,
    pub encrypted: bool,
    /// Names of the bitmaps that are stored in it.
    pub bitmaps: Vec<String>,
}

/// The result of removing bitmaps.
#[derive(Debug, Default)]
pub struct Removal {
    pub removed: Vec<String>,
    pub left: Vec<Left>,
}

/// A bitmap that could not be removed.
#[derive(Debug)]
pub struct Left {
    pub image: Qcow2Image,
    pub bitmap: String,
    pub error: ImageError,
}

/// The version in the header of a qcow2 image that keeps no bitmaps.
pub const OLD_VERSION: u32 = 2;

/// The version in an image's header; `None` if it is no qcow2 image. Blocks.
pub fn version(path: &Path) -> io::Result<Option<u32>> {
    let mut header = [0; 8];
    match File::open(path)?.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let [magic @ .., a, b, c, d] = header;
    Ok((magic == *b"QFI\xfb").then(|| u32::from_be_bytes([a, b, c, d])))
}

/// The qcow2 image at `path`, an absolute path, and the images below it, which may be open elsewhere. A
/// missing or unreadable one is an error.
pub async fn chain(path: &str) -> Result<Vec<Qcow2Image>, ImageError> {
    if !path.starts_with('/') {
        let why = "the image's path is not absolute";
        return Err(ImageError::new(ImageErrorKind::Unsupported, format!("qemu-img info {path}"), why));
    }
    let info = qemu_img(&["info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", path]).await?;
    let infos: Vec<Info> = serde_json::from_str(&info)
        .map_err(|error| ImageError::malformed(format!("qemu-img info {path}"), error))?;
    Ok(infos.into_iter().map(Qcow2Image::from).collect())
}

/// Fails with [`ImageErrorKind::Busy`] if a QEMU, here or on another host with the same file system, has the
/// image at `path`, an absolute path, locked for writing.
pub async fn check_unlocked(path: &str, format: &str) -> Result<(), ImageError> {
    // Without `-U` it asks for access that another process's write lock denies.
    qemu_img(&["info", "-f", format, "--output=json", path]).await.map(drop)
}

/// Removes all bitmaps whose name begins with `prefix` and is not in `keep` from the qcow2 image at `path`,
/// an absolute path, and from the images below it. A bitmap that cannot be removed does not stop the others.
pub async fn remove_bitmaps(path: &str, prefix: &str, keep: &[&str]) -> Result<Removal, ImageError> {
    let mut removal = Removal::default();
    for image in chain(path).await? {
        for bitmap in &image.bitmaps {
            if !bitmap.starts_with(prefix) || keep.contains(&bitmap.as_str()) {
                continue;
            }
            match qemu_img(&["bitmap", "--remove", "-f", "qcow2", &image.path, bitmap]).await {
                Ok(_) => removal.removed.push(bitmap.clone()),
                Err(error) => {
                    removal.left.push(Left { image: image.clone(), bitmap: bitmap.clone(), error });
                }
            }
        }
    }
    Ok(removal)
}

/// Runs `qemu-img` with these arguments; answers what it printed.
pub(super) async fn qemu_img(args: &[&str]) -> Result<String, ImageError> {
    let done = child::run("qemu-img", args, None, CALL_DEADLINE).await;
    answer(format!("qemu-img {}", args.join(" ")), done)
}

/// The output of `qemu-img`.
pub(super) fn answer(call: String, done: Result<ChildOutput, ChildError>) -> Result<String, ImageError> {
    let done = match done {
        Ok(done) => done,
        Err(error) => return Err(ImageError::of_child(call, error)),
    };
    if done.success {
        return String::from_utf8(done.stdout).map_err(|error| ImageError::malformed(call, error));
    }
    let kind = if done.stderr.contains("Failed to get") && done.stderr.contains("lock") {
        ImageErrorKind::Busy
    } else if done.stderr.contains("No space left on device") {
        ImageErrorKind::NoSpace
    } else if done.stderr.contains("No such file or directory") {
        ImageErrorKind::NoSuchImage
    } else {
        ImageErrorKind::Failed
    };
    Err(ImageError::new(kind, call, done.stderr.trim()))
}

#[derive(Deserialize)]
struct Info {
    filename: String,
    format: String,
    #[serde(rename = "virtual-size")]
    size: u64,
    #[serde(default)]
    encrypted: bool,
    #[serde(rename = "format-specific")]
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
struct Data {
    compat: Option<String>,
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
    encrypt: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Bitmap {
    name: String,
}

impl From<Info> for Qcow2Image {
    fn from(info: Info) -> Self {
        // For other formats it has other members, which are ignored here.
        let data = info.format_specific.and_then(|specific| specific.data).unwrap_or_default();
        Self {
            path: info.filename,
            format: info.format,
            size: info.size,
            compat: data.compat,
            encrypted: info.encrypted || data.encrypt.is_some(),
            bitmaps: data.bitmaps.into_iter().map(|bitmap| bitmap.name).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_named_bitmaps_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,b:c.qcow2");
        let path = path.to_str().unwrap();
        qemu_img(&["create", "-f", "qcow2", path, "1M"]).await.unwrap();
        for name in ["warmd-a-1", "warmd-a-2", "warmd-b-1", "other"] {
            qemu_img(&["bitmap", "--add", "-f", "qcow2", path, name]).await.unwrap();
        }
        let removed = remove_bitmaps(path, "warmd-a-", &["warmd-a-2"]).await.unwrap();
        assert_eq!(removed.removed, ["warmd-a-1"]);
        assert!(remove_bitmaps(path, "warmd-a-", &["warmd-a-2"]).await.unwrap().removed.is_empty());
        let all = remove_bitmaps(path, "", &[]).await.unwrap();
        assert_eq!(all.removed, ["warmd-a-2", "warmd-b-1", "other"]);
    }

    #[tokio::test]
    async fn an_image_that_a_qemu_writes_to_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let path = path.to_str().unwrap();
        qemu_img(&["create", "-f", "qcow2", path, "1M"]).await.unwrap();
        check_unlocked(path, "qcow2").await.unwrap();
        let open = || {
            std::process::Command::new("qemu-io")
                .args(["-f", "qcow2", path])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut writer = open();
        let begun = std::time::Instant::now();
        let locked = loop {
            match check_unlocked(path, "qcow2").await {
                Ok(()) if begun.elapsed().as_secs() < 20 => tokio::task::yield_now().await,
                answer => break answer,
            }
            // It fails where its lock meets the lock of the check.
            if writer.try_wait().unwrap().is_some() {
                writer = open();
            }
        };
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert_eq!(locked.unwrap_err().kind, ImageErrorKind::Busy);
        check_unlocked(path, "qcow2").await.unwrap();
    }

    #[tokio::test]
    async fn bitmaps_below_an_overlay_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let [below, path] = ["below.qcow2", "top.qcow2"].map(|name| dir.path().join(name));
        let (below, path) = (below.to_str().unwrap(), path.to_str().unwrap());
        qemu_img(&["create", "-f", "qcow2", below, "1M"]).await.unwrap();
        qemu_img(&["bitmap", "--add", "-f", "qcow2", below, "warmd-a-1"]).await.unwrap();
        qemu_img(&["create", "-f", "qcow2", "-F", "qcow2", "-b", below, path]).await.unwrap();
        qemu_img(&["bitmap", "--add", "-f", "qcow2", path, "warmd-a-2"]).await.unwrap();
        let removal = remove_bitmaps(path, "warmd-a-", &[]).await.unwrap();
        assert_eq!(removal.removed, ["warmd-a-2", "warmd-a-1"]);
        assert!(chain(path).await.unwrap().iter().all(|image| image.bitmaps.is_empty()));
        std::fs::remove_file(below).unwrap();
        assert_eq!(chain(path).await.unwrap_err().kind, ImageErrorKind::NoSuchImage);
    }

    #[tokio::test]
    async fn the_version_is_read_from_the_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for (compat, number) in [("0.10", OLD_VERSION), ("1.1", 3)] {
            let options = format!("compat={compat}");
            let text = path.to_str().unwrap();
            qemu_img(&["create", "-f", "qcow2", "-o", &options, text, "1M"]).await.unwrap();
            assert_eq!(version(&path).unwrap(), Some(number));
            assert_eq!(chain(text).await.unwrap()[0].compat.as_deref(), Some(compat));
        }
        for other in ["", "QFI", "no qcow2"] {
            std::fs::write(&path, other).unwrap();
            assert_eq!(version(&path).unwrap(), None, "{other}");
        }
        assert!(version(&dir.path().join("gone")).is_err());
    }

    #[tokio::test]
    async fn a_bitmap_that_wants_a_key_stays_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locked.qcow2");
        let path = path.to_str().unwrap();
        let key = "secret,id=k,data=abc";
        let luks = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10";
        qemu_img(&["create", "-f", "qcow2", "--object", key, "-o", luks, path, "1M"]).await.unwrap();
        let opened = format!("driver=qcow2,encrypt.key-secret=k,file.filename={path}");
        let add = ["bitmap", "--add", "--object", key, "--image-opts", &opened, "warmd-a-1"];
        qemu_img(&add).await.unwrap();
        let removal = remove_bitmaps(path, "warmd-a-", &[]).await.unwrap();
        let [left] = removal.left.as_slice() else { panic!("{removal:?}") };
        assert!(left.image.encrypted && left.bitmap == "warmd-a-1", "{left:?}");
    }

    #[tokio::test]
    async fn an_image_that_is_not_there_or_not_qcow2_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let path = path.to_str().unwrap();
        let error = remove_bitmaps(path, "x", &[]).await.unwrap_err();
        assert_eq!(error.kind, ImageErrorKind::NoSuchImage, "{error}");
        std::fs::write(path, "no qcow2").unwrap();
        assert_eq!(remove_bitmaps(path, "x", &[]).await.unwrap_err().kind, ImageErrorKind::Failed);
        assert_eq!(remove_bitmaps("--help", "x", &[]).await.unwrap_err().kind, ImageErrorKind::Unsupported);
    }
}
