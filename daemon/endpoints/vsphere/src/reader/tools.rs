//! Whether nbdkit, its plugin and VMware's library are there.
//!
//! Rule: they are asked, not guessed: nbdkit loads the plugin and prints what it is.

use std::{path::Path, time::Duration};

use warmd_disks::child::{self, ChildError};

use crate::settings::{ReaderKind, ReaderSettings};

use super::{
    command::plugin,
    why::{Complaint, ReaderError},
};

/// The oldest nbdkit that was tried: Debian 12's.
const OLDEST: (u32, u32) = (1, 32);
const WITHIN: Duration = Duration::from_secs(30);

/// Looks at what will read the disks, and says what it is.
pub async fn check(settings: &ReaderSettings) -> Result<String, ReaderError> {
    if settings.kind == ReaderKind::Outside {
        let uri = settings.uri.as_deref().unwrap_or_default();
        return Ok(format!("the disks are read from {uri}, which others serve"));
    }
    let version = run_tool(settings, &["--version"]).await?;
    let version = version.trim();
    if release(version).is_none_or(|release| release < OLDEST) {
        let (major, minor) = OLDEST;
        let what = format!("{version} is too old: {major}.{minor} or newer is needed");
        return Err(ReaderError::new(Complaint::TooOld, what));
    }
    let mut arguments = vec![plugin(settings).to_owned()];
    if settings.kind == ReaderKind::Vddk {
        let libdir = settings.libdir.as_deref().unwrap_or_else(|| Path::new(""));
        library(libdir).await?;
        arguments.push(format!("libdir={}", libdir.display()));
    }
    arguments.push("--dump-plugin".to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = run_tool(settings, &arguments).await?;
    let value = |key: &str| told.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let library =
        value("vddk_library_version").map(|version| format!(", VDDK {version}")).unwrap_or_default();
    let plugin_version = value("version").unwrap_or("of unknown version");
    Ok(format!(
        "{version} with its plugin {} {plugin_version}{library}",
        value("name").unwrap_or(plugin(settings))
    ))
}

/// VMware's library in the folder that it is unpacked to.
async fn library(libdir: &Path) -> Result<(), ReaderError> {
    let missing = |why: String| ReaderError::new(Complaint::Library, why);
    let dir = libdir.join("lib64");
    let mut entries = tokio::fs::read_dir(&dir).await.map_err(|error| {
        missing(format!("`libdir` is {}, and {}: {error}", libdir.display(), dir.display()))
    })?;
    while let Some(entry) = entries.next_entry().await.map_err(|error| missing(error.to_string()))? {
        if entry.file_name().to_string_lossy().starts_with("libvixDiskLib.so.") {
            return Ok(());
        }
    }
    Err(missing(format!("`libdir` is {}, and its lib64 has no libvixDiskLib.so.*", libdir.display())))
}

async fn run_tool(settings: &ReaderSettings, arguments: &[&str]) -> Result<String, ReaderError> {
    let shown = settings.nbdkit.display();
    let output = child::run(&settings.nbdkit, arguments, None, WITHIN).await.map_err(|error| {
        let complaint = match &error {
            // It is not there, or may not be run.
            ChildError::Missing(_) | ChildError::Io(_) => Complaint::NoProgram,
            ChildError::Timeout(_) | ChildError::TooLong(_) => Complaint::Unknown,
        };
        ReaderError::new(complaint, format!("{shown} {}: {error}", arguments.join(" ")))
    })?;
    if output.success {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ReaderError::find(output.stderr.lines()).unwrap_or_else(|| {
        let said = match output.stderr.trim() {
            "" => "it prints no reason",
            said => said,
        };
        ReaderError::new(Complaint::Unknown, format!("{shown} {} failed: {said}", arguments.join(" ")))
    }))
}

/// The release in `nbdkit 1.32.5`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split_whitespace().nth(1)?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(release("nbdkit 1.32.5 (nbdkit-1.32.5-1)"), Some((1, 32)));
        assert!(release("nbdkit 1.9.0").unwrap() < OLDEST);
        assert_eq!(release("qemu-nbd"), None);
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let gone = ReaderSettings {
            nbdkit: dir.path().join("nbdkit"),
            libdir: Some("/x".into()),
            ..ReaderSettings::default()
        };
        assert_eq!(check(&gone).await.unwrap_err().complaint, Complaint::NoProgram);
        std::fs::create_dir_all(dir.path().join("lib64")).unwrap();
        for libdir in [dir.path().to_owned(), dir.path().join("gone")] {
            let error = library(&libdir).await.unwrap_err();
            assert_eq!(error.complaint, Complaint::Library, "{error}");
            assert!(error.said.contains("libdir"), "{error}");
        }
        std::fs::write(dir.path().join("lib64/libvixDiskLib.so.8"), "").unwrap();
        library(dir.path()).await.unwrap();
    }
}
