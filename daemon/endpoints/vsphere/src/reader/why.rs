//! Why a reader does not read: what nbdkit, its plugin and VMware's library say on their error output.
//!
//! Rule: the texts are of other programs and change with their versions; each is known by a few words of it.
//! A text that is not known stays what it is, and is an error.

use thiserror::Error;

use crate::error::Kind;

/// What kind of complaint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    Login,
    /// The session that it read with has ended.
    Session,
    Thumbprint,
    /// The disk's file, or the snapshot it belongs to, is not there.
    File,
    /// It may not be read: a privilege, or a file that is locked.
    Access,
    /// The host has no memory or no connections left for NFC.
    NfcLimit,
    /// The server or the host cannot be reached, or has no name.
    Network,
    /// VMware's library is not where it should be.
    Library,
    PluginMissing,
    /// nbdkit, its plugin or VMware's library is too old.
    TooOld,
    /// nbdkit itself is not there.
    NoProgram,
    /// None of these.
    Unknown,
}

/// A reader's failure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{said}")]
pub struct ReaderError {
    pub complaint: Complaint,
    /// What was said, in the words of who said it.
    pub said: String,
}

/// Words by which complaints are known, in small letters; the first that fits counts. From the public texts
/// of nbdkit's vddk plugin and of VDDK's error codes.
const KNOWN: [(&str, Complaint); 48] = [
    ("incorrect user name or password", Complaint::Login),
    ("incorrect user name", Complaint::Login),
    ("invalid login", Complaint::Login),
    ("authentication failure", Complaint::Login),
    ("not logged in", Complaint::Session),
    ("not authenticated", Complaint::Session),
    ("session has expired", Complaint::Session),
    ("session is not valid", Complaint::Session),
    ("login failed", Complaint::Login),
    ("thumbprint", Complaint::Thumbprint),
    ("certificate", Complaint::Thumbprint),
    ("ssl exception", Complaint::Thumbprint),
    // Before the words about memory and connections in general.
    ("nfc_no_memory", Complaint::NfcLimit),
    ("nfcfssrvr", Complaint::NfcLimit),
    ("out of memory", Complaint::NfcLimit),
    ("memory allocation failed", Complaint::NfcLimit),
    ("too many open", Complaint::NfcLimit),
    ("maximum number of connections", Complaint::NfcLimit),
    ("vmware-authd socket", Complaint::NfcLimit),
    ("session limit", Complaint::NfcLimit),
    ("server refused connection", Complaint::NfcLimit),
    ("libvixdisklib", Complaint::Library),
    ("could not load", Complaint::Library),
    ("libdir", Complaint::Library),
    ("unknown parameter", Complaint::TooOld),
    ("unrecognized option", Complaint::TooOld),
    ("incompatible", Complaint::TooOld),
    ("too old", Complaint::TooOld),
    ("unsupported version", Complaint::TooOld),
    ("cannot open plugin", Complaint::PluginMissing),
    ("cannot open filter", Complaint::PluginMissing),
    ("plugin is not", Complaint::PluginMissing),
    ("access rights to this file", Complaint::Access),
    ("insufficient permission", Complaint::Access),
    ("permission to perform this operation", Complaint::Access),
    ("failed to lock the file", Complaint::Access),
    ("file is being used", Complaint::Access),
    ("file was not found", Complaint::File),
    ("file not found", Complaint::File),
    ("not a virtual disk", Complaint::File),
    ("managed object", Complaint::File),
    ("snapshot", Complaint::File),
    ("disk chain", Complaint::File),
    ("name or service not known", Complaint::Network),
    ("host address lookup", Complaint::Network),
    ("could not be contacted", Complaint::Network),
    ("cannot connect to", Complaint::Network),
    ("failed to connect", Complaint::Network),
];

impl Complaint {
    /// Whether another child, with a connection of its own, may read where this one did not. What is not
    /// known is tried.
    pub(super) fn is_mended_by_restart(self) -> bool {
        match self {
            Self::Session | Self::NfcLimit | Self::Network | Self::Unknown => true,
            Self::Login
            | Self::Thumbprint
            | Self::File
            | Self::Access
            | Self::Library
            | Self::PluginMissing
            | Self::TooOld
            | Self::NoProgram => false,
        }
    }
}

impl ReaderError {
    pub(super) fn new(complaint: Complaint, said: impl Into<String>) -> Self {
        Self { complaint, said: said.into() }
    }

    /// The complaint in the lines of an error output; `None` if none of them is one.
    pub(super) fn find<'a>(lines: impl DoubleEndedIterator<Item = &'a str> + Clone) -> Option<Self> {
        let mut errors = lines.filter(|line| is_complaint(line));
        // The first known one is the cause; what follows are its consequences.
        let known =
            errors.clone().find_map(|line| classify(line).map(|complaint| Self::new(complaint, plain(line))));
        known.or_else(|| errors.next_back().map(|line| Self::new(Complaint::Unknown, plain(line))))
    }

    pub fn kind(&self) -> Kind {
        match self.complaint {
            Complaint::Login
            | Complaint::Thumbprint
            | Complaint::Access
            | Complaint::Library
            | Complaint::PluginMissing
            | Complaint::TooOld
            | Complaint::NoProgram => Kind::Refused,
            // Not `NotFound`: a file that a reader does not find says nothing of the VM, and the next pass
            // takes another snapshot.
            Complaint::File | Complaint::Unknown => Kind::Failed,
            Complaint::NfcLimit => Kind::Blocked,
            Complaint::Network | Complaint::Session => Kind::Unreachable,
        }
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self.complaint {
            Complaint::Login => "correct `user` (with its domain) and the password's file",
            Complaint::Session => {
                "see whether sessions of this user are ended on the server; the next pass logs in again"
            }
            Complaint::Thumbprint => "compare the thumbprint on the server with the one in the settings",
            Complaint::File => {
                "see that the disk and its snapshot are still there; the next pass takes another snapshot"
            }
            Complaint::Access => {
                "give the user VirtualMachine.Provisioning.DiskRandomRead and GetVmFiles, Datastore.Browse and \
                 Datastore.FileManagement; see that no other product has the disk open"
            }
            Complaint::NfcLimit => "copy fewer disks of that host at a time (`capacity.disks_per_host`)",
            Complaint::Network => {
                "see that the server's and the hosts' names resolve here, and that ports 443 and 902 are open"
            }
            Complaint::Library => {
                "let `libdir` name the unpacked VDDK, the folder that has lib64/libvixDiskLib.so.*"
            }
            Complaint::PluginMissing => {
                "install nbdkit's vddk plugin (Debian 13: nbdkit-plugin-vddk in contrib; Fedora, RHEL: \
                 nbdkit-vddk-plugin), or let `plugin` name its file"
            }
            Complaint::TooOld => {
                "install newer versions of nbdkit and its vddk plugin, and VDDK 6.5 or newer"
            }
            Complaint::NoProgram => "install nbdkit, or let `nbdkit` name the program",
            Complaint::Unknown => "see nbdkit's and VMware's documents on what it says",
        }
    }
}

/// Whether a line is a complaint, and no talk.
fn is_complaint(line: &str) -> bool {
    let line = line.to_lowercase();
    line.contains("error")
        || line.contains("cannot")
        || line.contains("failed")
        || line.contains("unrecognized option")
}

fn classify(line: &str) -> Option<Complaint> {
    let line = without_file(&line.to_lowercase());
    KNOWN.iter().find(|(words, _)| line.contains(words)).map(|(_, complaint)| *complaint)
}

/// Without the disk's name, which may be any word.
fn without_file(line: &str) -> String {
    let Some(end) = line.rfind(".vmdk") else { return line.to_owned() };
    let start = line[..end].rfind('[').unwrap_or(end);
    format!("{}{}", &line[..start], &line[end + ".vmdk".len()..])
}

/// Without who said it.
fn plain(line: &str) -> &str {
    let line = line.trim();
    line.split_once("error: ").map_or(line, |(_, said)| said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<ReaderError> {
        ReaderError::find(text.lines())
    }

    #[test]
    fn each_kind_of_complaint_is_known() {
        for (line, complaint) in [
            (
                "nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password.",
                Complaint::Login,
            ),
            (
                "nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: The host certificate chain is not complete.",
                Complaint::Thumbprint,
            ),
            ("nbdkit: vddk[1]: error: SSL thumbprint mismatch", Complaint::Thumbprint),
            (
                "nbdkit: vddk[1]: error: VixDiskLib_Read: The session is not authenticated.",
                Complaint::Session,
            ),
            (
                "nbdkit: vddk[3]: error: VixDiskLib_Open: [ds] a/a-000001.vmdk: A file was not found",
                Complaint::File,
            ),
            (
                "nbdkit: vddk[3]: error: VixDiskLib_Open: [ds] certificate/login failed.vmdk: A file was not found",
                Complaint::File,
            ),
            (
                "nbdkit: vddk[1]: error: VixDiskLib_Open: [ds] a/a.vmdk: You do not have access rights to this file",
                Complaint::Access,
            ),
            (
                "nbdkit: vddk[1]: error: [NFC ERROR]NfcFssrvrOpen: Memory allocation failed. Out of memory.",
                Complaint::NfcLimit,
            ),
            (
                "nbdkit: vddk[1]: error: [NFC ERROR]NfcNewAuthdConnectionEx: Failed to connect: Error reading from \
                 vmware-authd socket. Reason: Resource temporarily unavailable",
                Complaint::NfcLimit,
            ),
            (
                "nbdkit: error: /opt/vddk/lib64/libvixDiskLib.so.8: cannot open shared object file: No such file or directory",
                Complaint::Library,
            ),
            (
                "nbdkit: error: cannot open plugin \"vddk\": /usr/lib/nbdkit/plugins/nbdkit-vddk-plugin.so: cannot open \
                 shared object file: No such file or directory",
                Complaint::PluginMissing,
            ),
            ("nbdkit: vddk: error: unknown parameter 'compression'", Complaint::TooOld),
            (
                "nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: Host address lookup for server vc failed: Name or service not known",
                Complaint::Network,
            ),
            ("nbdkit: vddk[1]: error: VixDiskLib_Read: Something of the future", Complaint::Unknown),
        ] {
            let error = found(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(error.complaint, complaint, "{line}");
            assert!(!error.remedy().is_empty() && !error.said.starts_with("nbdkit:"), "{error}");
        }
    }

    #[test]
    fn no_complaint_of_a_reader_says_that_the_vm_is_gone() {
        for (words, complaint) in KNOWN {
            assert_ne!(ReaderError::new(complaint, words).kind(), Kind::NotFound, "{words}");
        }
        assert_ne!(ReaderError::new(Complaint::Unknown, "x").kind(), Kind::NotFound);
    }

    #[test]
    fn chatter_is_no_error_and_causes_precede_consequences() {
        assert_eq!(found("nbdkit: debug: registering plugin\nVixDiskLib: Initialized.\n"), None);
        let error = found(
            "nbdkit: debug: hello\nnbdkit: vddk[1]: error: incorrect user name or password\n\
             nbdkit: vddk[1]: error: retry: cannot open snapshot\n",
        );
        assert_eq!(error.map(|error| error.complaint), Some(Complaint::Login));
    }
}
