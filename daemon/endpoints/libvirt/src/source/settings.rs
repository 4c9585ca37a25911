//! The operator's settings of a source `libvirt`.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use warmd_core::sources::{SourceError, SourceErrorKind};

/// A Unix socket's path holds at most 107 bytes; below `runtime_dir` come a migration's id and the socket's
/// name.
const MAX_RUNTIME_DIR: usize = 107 - "/00000000-0000-0000-0000-000000000000/q/000000000000".len();

/// The settings of a source `libvirt`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LibvirtSourceSettings {
    /// libvirt's connection URI. The hypervisor must be this host: its disks are read through a Unix socket.
    pub uri: String,
    /// The directory of the sockets through which QEMU serves its disks, each in a directory that only QEMU's
    /// user and warmd can enter. Where AppArmor or SELinux confines QEMU, it must be allowed to create
    /// sockets here.
    pub runtime_dir: PathBuf,
    /// Where QEMU keeps, during a pass, the old contents of blocks that the guest overwrites: at most the
    /// disks' sizes, in practice the guest's writes during the pass. Not in memory: a guest may write a lot.
    pub scratch_dir: PathBuf,
    /// MiB that must stay free in `scratch_dir` at the least; more where it is filled fast. A snapshot is not
    /// begun with less, and is ended before less is left: a full file system there would fail the guest's own
    /// writes.
    pub scratch_reserve_mib: u64,
    /// NBD connections to each disk.
    pub connections: usize,
}

impl Default for LibvirtSourceSettings {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            runtime_dir: "/run/warmd-qemu".into(),
            scratch_dir: "/var/lib/warmd-scratch".into(),
            scratch_reserve_mib: 1024,
            connections: 2,
        }
    }
}

impl LibvirtSourceSettings {
    /// Checks them without a query.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let refused = |what: String| Err(SourceError::new(SourceErrorKind::Refused, "settings", what));
        if let Some(host) = remote_host(&self.uri) {
            return refused(format!(
                "`uri` names the host {host:?}: warmd reads disks through a Unix socket, so run it on that host"
            ));
        }
        if self.uri.is_empty() || self.uri.starts_with('-') || self.uri.contains(char::is_control) {
            return refused(format!("`uri` is {:?}: no libvirt URI", self.uri));
        }
        for (name, dir) in [("runtime_dir", &self.runtime_dir), ("scratch_dir", &self.scratch_dir)] {
            if !is_plain(dir) {
                let shown = dir.display();
                return refused(format!("`{name}` is {shown}: use an absolute path in UTF-8 without `..`"));
            }
        }
        let length = self.runtime_dir.as_os_str().len();
        if length > MAX_RUNTIME_DIR {
            return refused(format!(
                "`runtime_dir` has {length} bytes, at most {MAX_RUNTIME_DIR} fit into a socket's path"
            ));
        }
        if self.connections == 0 || self.connections > 64 {
            return refused(format!("`connections` is {}: use 1 to 64", self.connections));
        }
        Ok(())
    }
}

/// The host in `DRIVER://[USER@]HOST[:PORT]/…`, if there is one.
fn remote_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    (!host.is_empty()).then_some(host)
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.to_str().is_some_and(|text| !text.contains(char::is_control))
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(toml: &str) -> String {
        let settings: LibvirtSourceSettings = toml::from_str(toml).unwrap();
        settings.check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        for (toml, word) in [
            ("uri = 'qemu+ssh://root@far/system'", "far"),
            ("uri = 'qemu://far/system'", "far"),
            ("uri = '--help'", "uri"),
            ("uri = ''", "uri"),
            ("runtime_dir = 'run'", "runtime_dir"),
            ("scratch_dir = '/a/../b'", "scratch_dir"),
            ("connections = 0", "connections"),
        ] {
            assert!(judged(toml).contains(word), "{toml}: {}", judged(toml));
        }
        assert!(judged(&format!("runtime_dir = '/{}'", "x".repeat(100))).contains("socket"));
        assert!(toml::from_str::<LibvirtSourceSettings>("url = 'x'").is_err());
    }

    #[test]
    fn the_defaults_and_local_uris_pass() {
        for toml in ["", "uri = 'qemu:///session'", "uri = 'qemu+unix:///system?socket=/x/y'"] {
            assert_eq!(judged(toml), "", "{toml}");
        }
    }
}
