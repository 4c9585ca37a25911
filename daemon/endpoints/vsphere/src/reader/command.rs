//! The command line of a child.
//!
//! Rule: no secret is in it: the password goes by its file. Every value of others is one argument with its
//! name before it, so that none is taken for an option.

use std::{ffi::OsString, path::Path};

use tokio::process::Command;
use warmd_disks::spawner;

use crate::{
    client::{Server, Thumbprint},
    settings::{ReaderKind, ReaderSettings},
};

/// How the plugin reaches a disk's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// A vCenter, or the ESXi host itself.
    pub server: Server,
    pub user: String,
    pub password_file: std::path::PathBuf,
    pub thumbprint: Thumbprint,
    /// The VM's id on that server.
    pub vm: String,
    /// The snapshot's id on that server.
    pub snapshot: String,
}

/// A disk to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub access: Access,
    /// `[datastore] folder/name.vmdk`, by the snapshot's own settings.
    pub file: String,
}

/// The plugin's name or file.
pub(super) fn plugin(settings: &ReaderSettings) -> &str {
    match (&settings.plugin, settings.kind) {
        (Some(plugin), _) => plugin,
        (None, ReaderKind::Nfc) => "nfc",
        (None, ReaderKind::Vddk | ReaderKind::Outside) => "vddk",
    }
}

/// The command that serves the disk at `socket`, and writes `pid` when it does.
pub(super) fn command(settings: &ReaderSettings, order: &Order, socket: &Path, pid: &Path) -> Command {
    let Order { access, file } = order;
    let mut command = spawner::command(&settings.nbdkit);
    command.args(["--foreground", "--exit-with-parent", "--readonly", "--unix"]).arg(socket);
    command.arg("--pidfile").arg(pid);
    // Not the filter `retry`: it opens the disk again, and for that allows only one request at a time. Here a
    // child whose reads fail is replaced.
    command.args(["--filter=retry-request", "--filter=cacheextents"]).arg(plugin(settings));
    // A login that fails must not be repeated: the user would be locked out.
    command.args(["retry-request-retries=2", "retry-request-delay=1", "retry-request-open=false"]);
    if let Some(libdir) = settings.libdir.as_ref().filter(|_| settings.kind == ReaderKind::Vddk) {
        command.arg(named("libdir=", libdir));
    }
    command
        .arg(format!("server={}", access.server.host))
        .arg(format!("user={}", access.user))
        // `+FILE`: the value is the file's first line.
        .arg(named("password=+", &access.password_file))
        .arg(format!("thumbprint={}", access.thumbprint))
        .arg(format!("vm=moref={}", access.vm))
        // Left out, it reads the running disk, and quiesced Windows VMs fail with "Error 13".
        .arg(format!("snapshot={}", access.snapshot));
    if access.server.port != 443 {
        command.arg(format!("port={}", access.server.port));
    }
    command
        .arg(format!("transports={}", settings.transports))
        .arg(format!("compression={}", settings.compression))
        .arg(format!("file={file}"));
    command
}

/// An argument whose value is a path, which need not be UTF-8.
fn named(name: &str, value: impl AsRef<Path>) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(value.as_ref());
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(settings: &ReaderSettings, port: u16) -> Vec<String> {
        let access = Access {
            server: Server { host: "vc.example".to_owned(), port },
            user: "warmd@vsphere.local".to_owned(),
            password_file: "/etc/warmd/vc password".into(),
            thumbprint: "AA".repeat(20).parse().unwrap(),
            vm: "vm-57".to_owned(),
            snapshot: "snapshot-70".to_owned(),
        };
        let order = Order { access, file: "[DS 1] web1/web1.vmdk".to_owned() };
        let command = command(settings, &order, Path::new("/run/x/nbd"), Path::new("/run/x/pid"));
        let command = command.as_std();
        assert_eq!(command.get_program(), settings.nbdkit.as_os_str());
        command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_command_names_all_that_decides_and_no_secret() {
        let settings = ReaderSettings { libdir: Some("/opt/vddk".into()), ..ReaderSettings::default() };
        let arguments = arguments(&settings, 443);
        for wanted in [
            "--readonly",
            "--exit-with-parent",
            "--filter=retry-request",
            "retry-request-open=false",
            "vddk",
            "libdir=/opt/vddk",
            "server=vc.example",
            "password=+/etc/warmd/vc password",
            "vm=moref=vm-57",
            "snapshot=snapshot-70",
            "transports=file:nbdssl:nbd",
            "file=[DS 1] web1/web1.vmdk",
        ] {
            assert!(arguments.iter().any(|argument| argument == wanted), "{wanted}: {arguments:?}");
        }
        assert!(!arguments.iter().any(|argument| argument.starts_with("port=")));
        // It serializes all requests.
        assert!(!arguments.iter().any(|argument| argument == "--filter=retry"));
    }

    #[test]
    fn the_other_plugin_gets_no_library_and_another_port_is_named() {
        let settings = ReaderSettings {
            kind: ReaderKind::Nfc,
            libdir: Some("/opt/vddk".into()),
            ..ReaderSettings::default()
        };
        let arguments = arguments(&settings, 8989);
        assert!(arguments.iter().any(|argument| argument == "nfc"));
        assert!(arguments.iter().any(|argument| argument == "port=8989"));
        assert!(!arguments.iter().any(|argument| argument.starts_with("libdir")));
    }
}
