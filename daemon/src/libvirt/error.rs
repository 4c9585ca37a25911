//! What went wrong in a call to libvirt, told from what `virsh` printed.
//!
//! Rule: the texts are those of the C locale, matched outside of quotes, so that a domain or file of a strange name is
//! not taken for an error's kind. What is not recognised is [`LibvirtErrorKind::Failed`], with the whole text.

/// What kind of failure it was, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibvirtErrorKind {
    /// A program that does the work is not installed.
    MissingTool,
    /// libvirtd cannot be reached, or the connection broke.
    Unreachable,
    /// No answer within the deadline; the call may or may not have had its effect.
    Timeout,
    /// Not permitted.
    Denied,
    /// There is no such domain (any more).
    NoSuchDomain,
    /// The domain is off, and the call needs it to run.
    NotRunning,
    /// The domain runs already.
    AlreadyActive,
    /// Another domain has this name or UUID.
    Exists,
    /// Another job holds the domain or the disk.
    Busy,
    /// There is no such checkpoint.
    NoSuchCheckpoint,
    /// A checkpoint of this name is there already.
    CheckpointExists,
    /// The bitmap behind a checkpoint is missing or was not stored in good order.
    CheckpointInconsistent,
    /// A bitmap that was to be removed is not there.
    NoSuchBitmap,
    /// A bitmap of this name is in the image already.
    BitmapExists,
    /// No backup job, or no job at all, runs.
    NoJob,
    /// The domain has no such metadata element.
    NoSuchMetadata,
    /// A disk's image is not there.
    NoSuchImage,
    /// No room on the hypervisor's file system.
    NoSpace,
    /// This libvirt or QEMU cannot do it, or not with this domain.
    Unsupported,
    /// The answer was too long, or is not what libvirt says.
    Malformed,
    /// Anything else.
    Failed,
}

/// A failed call: its kind, which call, and what was said on stderr.
#[derive(Debug, thiserror::Error)]
#[error("`{call}`: {cause}")]
pub struct LibvirtError {
    pub kind: LibvirtErrorKind,
    pub call: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl LibvirtError {
    /// An error of `kind` with its cause.
    pub fn new(
        kind: LibvirtErrorKind,
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, call: call.into(), cause: cause.into() }
    }

    /// An answer that cannot be.
    pub fn malformed(
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(LibvirtErrorKind::Malformed, call, cause)
    }

    /// What `virsh` printed on stderr when it failed.
    pub(super) fn of_stderr(call: impl Into<String>, stderr: &str) -> Self {
        let text = stderr.trim();
        let text = if text.is_empty() { "failed without a word" } else { text };
        Self::new(classify(text), call, text)
    }

    /// The disk that a [`LibvirtErrorKind::CheckpointInconsistent`] is about, if libvirt named it.
    pub fn disk(&self) -> Option<String> {
        let text = self.cause.to_string();
        let (_, rest) = text.rsplit_once("for disk '")?;
        rest.split_once('\'').map(|(disk, _)| disk.to_owned())
    }

    /// Whether the same call may succeed later without anybody's doing.
    pub fn may_pass(&self) -> bool {
        use LibvirtErrorKind as K;
        match self.kind {
            K::Unreachable | K::Timeout | K::Busy | K::NoSpace | K::Failed => true,
            K::MissingTool
            | K::Denied
            | K::NoSuchDomain
            | K::NotRunning
            | K::AlreadyActive
            | K::Exists
            | K::NoSuchCheckpoint
            | K::CheckpointExists
            | K::CheckpointInconsistent
            | K::NoSuchBitmap
            | K::BitmapExists
            | K::NoJob
            | K::NoSuchMetadata
            | K::NoSuchImage
            | K::Unsupported
            | K::Malformed => false,
        }
    }
}

/// The first of these that a message holds is its kind; the special stand before the general.
const PHRASES: [(&str, LibvirtErrorKind); 36] = {
    use LibvirtErrorKind as K;
    [
        ("authentication failed", K::Denied),
        ("authentication unavailable", K::Denied),
        ("access denied", K::Denied),
        ("operation forbidden", K::Denied),
        ("failed to connect to the hypervisor", K::Unreachable),
        ("no connection driver available", K::Unreachable),
        ("end of file while reading data", K::Unreachable),
        ("client socket is closed", K::Unreachable),
        ("cannot recv data", K::Unreachable),
        ("cannot write data", K::Unreachable),
        ("missing or broken bitmap", K::CheckpointInconsistent),
        ("checkpoint inconsistent", K::CheckpointInconsistent),
        ("not found in backing chain", K::NoSuchBitmap),
        ("bitmap already exists", K::BitmapExists),
        ("no domain checkpoint with matching name", K::NoSuchCheckpoint),
        ("domain checkpoint not found", K::NoSuchCheckpoint),
        ("for incremental backup of disk", K::NoSuchCheckpoint),
        ("domain moment", K::CheckpointExists),
        ("no domain backup job present", K::NoJob),
        ("no job is active", K::NoJob),
        ("no current backup job", K::NoJob),
        ("metadata not found", K::NoSuchMetadata),
        ("cannot acquire state change lock", K::Busy),
        ("another backup job is already running", K::Busy),
        ("has active block job", K::Busy),
        ("already in active block job", K::Busy),
        ("no space left on device", K::NoSpace),
        ("failed to get domain", K::NoSuchDomain),
        ("domain not found", K::NoSuchDomain),
        ("no domain with matching", K::NoSuchDomain),
        ("domain is not running", K::NotRunning),
        ("already active", K::AlreadyActive),
        ("already exists with uuid", K::Exists),
        ("operation not supported", K::Unsupported),
        ("unsupported configuration", K::Unsupported),
        ("cannot store dirty bitmaps", K::Unsupported),
    ]
};

fn classify(text: &str) -> LibvirtErrorKind {
    let bare = without_quoted(text).to_lowercase();
    PHRASES
        .iter()
        .find(|(phrase, _)| bare.contains(phrase))
        .map_or(LibvirtErrorKind::Failed, |(_, kind)| *kind)
}

/// The text without what stands between single quotes; the apostrophe in `can't` is none.
fn without_quoted(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut quoted = false;
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let after = rest.peek().copied().unwrap_or(' ');
        if character == '\'' && !(before.is_alphanumeric() && after.is_alphanumeric()) {
            quoted = !quoted;
        } else if !quoted {
            bare.push(character);
        }
        before = character;
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_from_what_virsh_says() {
        use LibvirtErrorKind as K;
        // As printed by virsh 9.0 in the C locale.
        let cases = [
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x': No such file or directory",
                K::Unreachable,
            ),
            ("error: failed to get domain '11111111-2222-3333-4444-555555555556'", K::NoSuchDomain),
            (
                "error: checkpoint inconsistent: missing or broken bitmap 'warmd-a-1' for disk 'vda'",
                K::CheckpointInconsistent,
            ),
            (
                "error: Failed to delete checkpoint a\nerror: internal error: bitmap 'a' not found in backing chain of 'vda'",
                K::NoSuchBitmap,
            ),
            (
                "error: internal error: unable to execute QEMU command 'transaction': Bitmap already exists: a",
                K::BitmapExists,
            ),
            ("error: operation failed: domain moment warmd-aaaa-2 already exists", K::CheckpointExists),
            (
                "error: Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainBackupBegin)",
                K::Busy,
            ),
            ("error: Domain backup job id not found: no domain backup job present", K::NoJob),
            ("error: Domain is already active", K::AlreadyActive),
            (
                "error: operation failed: domain 'x' already exists with uuid 11111111-2222-3333-4444-555555555555",
                K::Exists,
            ),
            (
                "error: Failed to destroy domain 'x'\nerror: Requested operation is not valid: domain is not running",
                K::NotRunning,
            ),
            (
                "error: Operation not supported: cannot perform disk backup for inactive domain",
                K::Unsupported,
            ),
            (
                "error: Domain checkpoint not found: no domain checkpoint with matching name 'x'",
                K::NoSuchCheckpoint,
            ),
            (
                "error: internal error: unable to execute QEMU command 'transaction': Can't make bitmap 'a' persistent in 'libvirt-2-format': Cannot store dirty bitmaps in qcow2 v2 files",
                K::Unsupported,
            ),
            ("error: metadata not found: Requested metadata element is not present", K::NoSuchMetadata),
            ("error: something new", K::Failed),
            ("", K::Failed),
        ];
        for (text, kind) in cases {
            assert_eq!(LibvirtError::of_stderr("x", text).kind, kind, "{text}");
        }
    }

    #[test]
    fn a_name_is_not_taken_for_an_error() {
        let text = "error: Failed to start domain 'failed to connect to the hypervisor'\nerror: Domain is already active";
        assert_eq!(LibvirtError::of_stderr("start", text).kind, LibvirtErrorKind::AlreadyActive);
    }

    #[test]
    fn an_inconsistent_checkpoint_names_its_disk() {
        let text = "error: checkpoint inconsistent: missing or broken bitmap 'warmd-a-1' for disk 'vdb'";
        assert_eq!(LibvirtError::of_stderr("backup-begin", text).disk().as_deref(), Some("vdb"));
        assert_eq!(LibvirtError::of_stderr("backup-begin", "error: no disk").disk(), None);
    }
}
