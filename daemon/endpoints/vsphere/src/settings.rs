//! What an operator may say of a vCenter or an ESXi.

use std::path::{Path, PathBuf};

use serde::Deserialize;
pub use warmd_core::model::plan::snapshots::Quiesce;
use warmd_core::model::plan::snapshots::SnapshotPolicy;

use crate::{
    client::{Account, Server, Trust},
    error::{Result, VsphereError},
    limits,
};

/// The settings of one server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `https://vcenter.example`, of a vCenter or an ESXi.
    pub url: String,
    /// With its domain: `warmd@vsphere.local`.
    pub user: String,
    /// A file whose first line is the password.
    pub password_file: PathBuf,
    /// The server's certificate by its SHA-1 or SHA-256 thumbprint. This or `ca_file`.
    #[serde(default)]
    pub thumbprint: Option<String>,
    /// A PEM file with the authorities that sign the server's certificate.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether changed-block tracking may be switched on where it is off. It costs the VM one short stun.
    #[serde(default)]
    pub enable_change_tracking: bool,
    /// Whether snapshots of a running VM ask the guest to bring its file systems to rest.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// How long a snapshot may take to be made, in seconds.
    #[serde(default = "default_snapshot_seconds")]
    pub snapshot_seconds: u64,
    /// How long the consolidation after a snapshot's removal is waited for, in seconds.
    #[serde(default = "default_consolidation_seconds")]
    pub consolidation_seconds: u64,
    /// How long another's task on the VM is waited for, in seconds.
    #[serde(default = "default_task_seconds")]
    pub task_seconds: u64,
    #[serde(default)]
    pub reader: ReaderSettings,
    #[serde(default)]
    pub capacity: Capacity,
    /// ESXi hosts that are read directly, so that the data does not pass vCenter.
    #[serde(default)]
    pub hosts: Vec<EsxiHost>,
}

const fn default_snapshot_seconds() -> u64 {
    600
}

const fn default_consolidation_seconds() -> u64 {
    6 * 3600
}

const fn default_task_seconds() -> u64 {
    600
}

/// How the disks' contents are read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReaderSettings {
    pub kind: ReaderKind,
    /// The nbdkit program.
    pub nbdkit: PathBuf,
    /// The plugin's name, or the path of its file; by default the kind's own.
    pub plugin: Option<String>,
    /// Where VMware's VDDK is unpacked (the folder that has `lib64`).
    pub libdir: Option<PathBuf>,
    /// In the order in which they are tried.
    pub transports: String,
    /// Of the data from the ESXi host: `none`, `zlib`, `fastlz` or `skipz`.
    pub compression: String,
    /// Where the sockets are, each in a folder of its own.
    pub runtime_dir: PathBuf,
    /// An NBD server that already serves the disks of snapshots, where `kind = "outside"`: `{disk}` in it
    /// becomes the disk's UUID, and `{snapshot}` the snapshot's id.
    pub uri: Option<String>,
}

/// Who reads the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReaderKind {
    /// nbdkit's plugin for VMware's VDDK.
    #[default]
    Vddk,
    /// nbdkit's plugin that speaks to port 902 without VDDK.
    Nfc,
    /// A server that was started by others.
    Outside,
}

impl Default for ReaderSettings {
    fn default() -> Self {
        Self {
            kind: ReaderKind::Vddk,
            nbdkit: "nbdkit".into(),
            plugin: None,
            libdir: None,
            transports: "file:nbdssl:nbd".to_owned(),
            compression: "fastlz".to_owned(),
            runtime_dir: "/run/warmd/vsphere".into(),
            uri: None,
        }
    }
}

/// How much is asked of a server and its hosts at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    pub disks_per_host: usize,
    pub vms_per_host: usize,
    pub disks_per_vcenter: usize,
    pub snapshots_at_once: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            disks_per_host: limits::DISKS_PER_HOST,
            vms_per_host: limits::VMS_PER_HOST,
            disks_per_vcenter: limits::DISKS_PER_VCENTER,
            snapshots_at_once: limits::SNAPSHOTS_AT_ONCE,
        }
    }
}

/// An ESXi host that is read directly.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EsxiHost {
    /// As vCenter calls it.
    pub name: String,
    /// Where it is reached, if not by that name: `HOST` or `HOST:PORT`.
    #[serde(default)]
    pub address: Option<String>,
    pub user: String,
    pub password_file: PathBuf,
    pub thumbprint: String,
}

/// A Unix socket's path holds at most 107 bytes; below `runtime_dir` come a folder's and the socket's names.
const MAX_RUNTIME_DIR: usize = 107 - "/00000000-0000-0000-0000-000000000000-0000/nbd".len();

impl Settings {
    /// Who asks whom, and who is trusted.
    pub fn account(&self) -> Result<Account> {
        let trust = match (&self.thumbprint, &self.ca_file) {
            (Some(thumbprint), None) => {
                Trust::Thumbprint(thumbprint.parse().map_err(|error| setting("thumbprint", error))?)
            }
            (None, Some(file)) => Trust::CaFile(file.clone()),
            (Some(_), Some(_)) => return Err(setting("thumbprint", "`ca_file` is set too: use one of them")),
            (None, None) => {
                let why = "neither it nor `ca_file` is set: vCenter's thumbprint is shown by `openssl s_client -connect \
                           SERVER:443 </dev/null | openssl x509 -noout -fingerprint -sha256`";
                return Err(setting("thumbprint", why));
            }
        };
        let server = server(&self.url).map_err(|why| setting("url", why))?;
        if self.user.trim().is_empty() || self.user.contains(char::is_control) {
            return Err(setting("user", "it is empty, or no name"));
        }
        Ok(Account { server, user: self.user.clone(), password_file: self.password_file.clone(), trust })
    }

    /// The same with a plan's policy for snapshots.
    pub(crate) fn with_policy(&self, policy: SnapshotPolicy) -> Self {
        let SnapshotPolicy { enable_change_tracking, quiesce } = policy;
        Self {
            enable_change_tracking: enable_change_tracking.unwrap_or(self.enable_change_tracking),
            quiesce: quiesce.unwrap_or(self.quiesce),
            ..self.clone()
        }
    }

    /// Judges the rest without asking anything.
    pub fn check(&self) -> Result<()> {
        if !self.password_file.is_absolute() {
            return Err(setting("password_file", "use an absolute path"));
        }
        for (name, seconds) in [
            ("snapshot_seconds", self.snapshot_seconds),
            ("consolidation_seconds", self.consolidation_seconds),
            ("task_seconds", self.task_seconds),
        ] {
            if seconds == 0 || seconds > 7 * 24 * 3600 {
                return Err(setting(name, format!("it is {seconds}: use 1 second to 7 days")));
            }
        }
        let Capacity { disks_per_host, vms_per_host, disks_per_vcenter, snapshots_at_once } = self.capacity;
        let bound = limits::DISKS_PER_HOST_MOST;
        if disks_per_host == 0 || vms_per_host == 0 || disks_per_vcenter == 0 || snapshots_at_once == 0 {
            return Err(setting("capacity", "one of them is 0, so that nothing could ever be copied"));
        }
        if disks_per_host > bound || disks_per_vcenter > bound {
            return Err(setting(
                "capacity",
                format!("a host and a vCenter have connections for {bound} disks"),
            ));
        }
        for host in &self.hosts {
            host.thumbprint
                .parse::<crate::client::Thumbprint>()
                .map_err(|error| setting(&format!("hosts, {}, thumbprint", host.name), error))?;
            host.server()?;
            if !host.password_file.is_absolute() {
                return Err(setting(&format!("hosts, {}, password_file", host.name), "use an absolute path"));
            }
        }
        self.reader.check()
    }

    /// The host that is read directly, if this one is.
    pub fn direct_host(&self, name: &str) -> Option<&EsxiHost> {
        self.hosts.iter().find(|host| host.name.eq_ignore_ascii_case(name))
    }
}

impl EsxiHost {
    /// Where it is reached.
    pub(crate) fn server(&self) -> Result<Server> {
        let address = self.address.as_ref().unwrap_or(&self.name);
        server(&format!("https://{address}")).map_err(|why| setting(&format!("hosts, {}", self.name), why))
    }
}

impl ReaderSettings {
    fn check(&self) -> Result<()> {
        match self.kind {
            ReaderKind::Outside => {
                let uri = self.uri.as_deref().unwrap_or_default();
                let is_nbd = uri.starts_with("nbd://") || uri.starts_with("nbd+unix://");
                if !is_nbd || !uri.contains("{disk}") {
                    let why = format!(
                        "it is {uri:?}: use nbd://HOST/{{snapshot}}/{{disk}} or nbd+unix:///{{snapshot}}/{{disk}}?socket=PATH"
                    );
                    return Err(setting("reader.uri", why));
                }
                if !uri.contains("{snapshot}") {
                    let why = format!(
                        "it is {uri:?}, without {{snapshot}}: such a server reads the running disk, which changes while it \
                         is copied; put {{snapshot}} into it, as in nbd://HOST/{{snapshot}}/{{disk}}"
                    );
                    return Err(setting("reader.uri", why));
                }
                return Ok(());
            }
            ReaderKind::Vddk if self.libdir.is_none() => {
                let why = "it is not set: download VMware's VDDK (Virtual Disk Development Kit), unpack it, and name the \
                           folder vmware-vix-disklib-distrib";
                return Err(setting("reader.libdir", why));
            }
            ReaderKind::Vddk | ReaderKind::Nfc => {}
        }
        if self.uri.is_some() {
            return Err(setting("reader.uri", "it is for `kind = \"outside\"` alone"));
        }
        plain_words("reader.transports", &self.transports, |c| c.is_ascii_alphanumeric() || c == ':')?;
        plain_words("reader.compression", &self.compression, |c| c.is_ascii_alphanumeric())?;
        if !is_plain(&self.runtime_dir) || self.runtime_dir.as_os_str().len() > MAX_RUNTIME_DIR {
            let why = format!("use an absolute path of at most {MAX_RUNTIME_DIR} bytes");
            return Err(setting("reader.runtime_dir", why));
        }
        Ok(())
    }
}

fn plain_words(name: &str, text: &str, may: impl Fn(char) -> bool) -> Result<()> {
    if text.is_empty() || !text.chars().all(may) {
        return Err(setting(name, format!("it is {text:?}")));
    }
    Ok(())
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.to_str().is_some_and(|text| !text.contains(char::is_control))
        && !path.components().any(|part| part == std::path::Component::ParentDir)
}

fn setting(name: &str, why: impl std::fmt::Display) -> VsphereError {
    VsphereError::refused(format!("settings: `{name}`"), format!("{why}"))
}

/// The server in `https://HOST[:PORT][/sdk]`.
fn server(url: &str) -> std::result::Result<Server, String> {
    let rest =
        url.strip_prefix("https://").ok_or_else(|| format!("it is {url:?}: it begins with https://"))?;
    let rest = rest.trim_end_matches('/').trim_end_matches("/sdk").trim_end_matches('/');
    let wrong = || format!("it is {url:?}: write https://HOST or https://HOST:PORT");
    if rest.contains('@') {
        return Err(format!(
            "it is {url:?}: the user belongs into `user`, the password into `password_file`"
        ));
    }
    let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        (host, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("x") }))
    } else {
        match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        }
    };
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(may) {
        return Err(wrong());
    }
    let port = match port {
        None => 443,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
    };
    Ok(Server { host: host.to_owned(), port })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const GOOD: &str = "url = 'https://vc.example'\nuser = 'warmd@vsphere.local'\npassword_file = '/etc/warmd/vc'\n\
                        thumbprint = 'AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD'\n";

    fn judged(toml: &str) -> String {
        match toml::from_str::<Settings>(toml) {
            Ok(settings) => match settings.account().map(drop).and_then(|()| settings.check()) {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn good_settings_pass() {
        let libdir = format!("{GOOD}reader = {{ libdir = '/opt/vddk' }}\n");
        assert_eq!(judged(&libdir), "");
        assert_eq!(judged(&format!("{GOOD}reader = {{ kind = 'nfc' }}\n")), "");
        assert_eq!(
            judged(&format!(
                "{GOOD}reader = {{ kind = 'outside', uri = 'nbd://h/{{snapshot}}/{{disk}}' }}\n"
            )),
            ""
        );
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let libdir = "reader = { libdir = '/opt/vddk' }\n";
        for (change, word) in [
            (GOOD.replace("https://", "http://"), "url"),
            (GOOD.replace("vc.example", "root:x@vc.example"), "password_file"),
            (GOOD.replace("vc.example", "vc.example:0"), "url"),
            (GOOD.replace("vc.example", "[::1"), "url"),
            (GOOD.replace("AA:BB", "AA"), "thumbprint"),
            (format!("{GOOD}ca_file = '/x'\n"), "one of them"),
            (GOOD.lines().take(3).collect::<Vec<_>>().join("\n") + "\n", "fingerprint"),
            (GOOD.replace("/etc/warmd/vc", "vc"), "password_file"),
            (format!("{GOOD}snapshot_seconds = 0\n"), "snapshot_seconds"),
            (format!("{GOOD}password = 'x'\n"), "password"),
            (format!("{GOOD}capacity = {{ disks_per_host = 0 }}\n"), "capacity"),
            (format!("{GOOD}capacity = {{ disks_per_host = 60 }}\n"), "50"),
        ] {
            let told = judged(&format!("{change}{libdir}"));
            assert!(told.contains(word), "{word}: {told}");
        }
        for (reader, word) in [
            ("{ }", "libdir"),
            ("{ libdir = '/x', transports = 'nbd file=/etc/shadow' }", "transports"),
            ("{ libdir = '/x', runtime_dir = 'run' }", "runtime_dir"),
            ("{ libdir = '/x', runtime_dir = '/a/../b' }", "runtime_dir"),
            ("{ kind = 'outside', uri = 'http://x' }", "uri"),
            ("{ kind = 'outside', uri = 'nbd://h/{snapshot}' }", "{disk}"),
            ("{ kind = 'outside', uri = 'nbd://h/{disk}' }", "running disk"),
            ("{ kind = 'outside', uri = 'nbd+unix:///{disk}?socket=/s' }", "running disk"),
            ("{ kind = 'floppy' }", "floppy"),
        ] {
            let told = judged(&format!("{GOOD}reader = {reader}\n"));
            assert!(told.contains(word), "{reader}: {told}");
        }
    }

    #[test]
    fn hosts_are_judged_too() {
        let host = |more: &str| {
            judged(&format!(
                "{GOOD}reader = {{ kind = 'nfc' }}\n[[hosts]]\nname = 'esx1'\nuser = 'root'\n{more}\n"
            ))
        };
        let thumbprint = format!("thumbprint = '{}'", "AA".repeat(32));
        let file = "password_file = '/etc/warmd/esx1'";
        assert_eq!(host(&format!("{thumbprint}\n{file}\naddress = '10.0.0.7:8443'")), "");
        assert!(host(&format!("{thumbprint}\n{file}\naddress = 'a b'")).contains("esx1"));
        assert!(host(&format!("{thumbprint}\npassword_file = 'x'")).contains("absolute"));
        assert!(host(&format!("thumbprint = 'AA'\n{file}")).contains("thumbprint"));
    }

    #[test]
    fn urls_name_a_server() {
        let of = |url: &str| server(url).map(|server| server.to_string());
        assert_eq!(of("https://vc.example/sdk").as_deref(), Ok("vc.example"));
        assert_eq!(of("https://127.0.0.1:8989/").as_deref(), Ok("127.0.0.1:8989"));
        assert_eq!(of("https://[fd00::1]").as_deref(), Ok("[fd00::1]"));
        assert_eq!(of("https://[fd00::1]:8443/sdk").as_deref(), Ok("[fd00::1]:8443"));
        assert!(of("https://").is_err() && of("https://a b").is_err() && of("https://[::1]x").is_err());
    }
}
