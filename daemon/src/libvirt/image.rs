//! Bitmaps inside of qcow2 images that nobody has open: what libvirt cannot reach while a domain is off.

use serde::Deserialize;

use super::{
    child,
    error::{LibvirtError, LibvirtErrorKind},
    virsh::{CALL_DEADLINE, of_child},
};

/// Removes all bitmaps whose name begins with `prefix` and is not in `keep` from the qcow2 image at `path`, an
/// absolute path; answers which. An image that is open elsewhere is [`LibvirtErrorKind::Busy`].
pub async fn remove_bitmaps(path: &str, prefix: &str, keep: &[&str]) -> Result<Vec<String>, LibvirtError> {
    if !path.starts_with('/') {
        let why = "the image's path is not absolute";
        return Err(LibvirtError::new(LibvirtErrorKind::Unsupported, format!("qemu-img info {path}"), why));
    }
    let info = qemu_img(&["info", "-f", "qcow2", "--output=json", path]).await?;
    let info: Info = serde_json::from_str(&info)
        .map_err(|error| LibvirtError::malformed(format!("qemu-img info {path}"), error))?;
    let bitmaps = info.format_specific.map(|specific| specific.data.bitmaps).unwrap_or_default();
    let mut removed = Vec::new();
    for Bitmap { name } in bitmaps {
        if name.starts_with(prefix) && !keep.contains(&name.as_str()) {
            qemu_img(&["bitmap", "--remove", "-f", "qcow2", path, &name]).await?;
            removed.push(name);
        }
    }
    Ok(removed)
}

async fn qemu_img(args: &[&str]) -> Result<String, LibvirtError> {
    let call = format!("qemu-img {}", args.join(" "));
    let done = match child::run("qemu-img", args, None, CALL_DEADLINE).await {
        Ok(done) => done,
        Err(error) => return Err(of_child(call, error)),
    };
    answer(call, done)
}

/// What a `qemu-img` that ended has answered.
pub(super) fn answer(call: String, done: child::Finished) -> Result<String, LibvirtError> {
    if done.success {
        return String::from_utf8(done.stdout).map_err(|error| LibvirtError::malformed(call, error));
    }
    let kind = if done.stderr.contains("Failed to get") && done.stderr.contains("lock") {
        LibvirtErrorKind::Busy
    } else if done.stderr.contains("No space left on device") {
        LibvirtErrorKind::NoSpace
    } else if done.stderr.contains("No such file or directory") {
        LibvirtErrorKind::NoSuchImage
    } else {
        LibvirtErrorKind::Failed
    };
    Err(LibvirtError::new(kind, call, done.stderr.trim()))
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "format-specific")]
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
}

#[derive(Deserialize)]
struct Bitmap {
    name: String,
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
        assert_eq!(removed, ["warmd-a-1"]);
        assert!(remove_bitmaps(path, "warmd-a-", &["warmd-a-2"]).await.unwrap().is_empty());
        assert_eq!(remove_bitmaps(path, "", &[]).await.unwrap(), ["warmd-a-2", "warmd-b-1", "other"]);
    }

    #[tokio::test]
    async fn an_image_that_is_not_there_or_not_qcow2_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let path = path.to_str().unwrap();
        let error = remove_bitmaps(path, "x", &[]).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::NoSuchImage, "{error}");
        std::fs::write(path, "no qcow2").unwrap();
        assert_eq!(remove_bitmaps(path, "x", &[]).await.unwrap_err().kind, LibvirtErrorKind::Failed);
        assert_eq!(remove_bitmaps("--help", "x", &[]).await.unwrap_err().kind, LibvirtErrorKind::Unsupported);
    }
}
