//! Failures of a call to libvirt, classified by its error numbers.
//!
//! Rule: one table, in which the number, the part of libvirt that raised it and an errno decide. libvirt's
//! words are in the language of its daemon, and are kept for messages alone. QEMU's words inside them are
//! always the same (QEMU has no translations); three of those are known, because libvirt has no number for
//! them. A failure that is not recognised is [`LibvirtErrorKind::Failed`], with the whole text.

use super::ffi::CallFailure;

/// The kind of failure, to act on.
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
    /// The domain's state does not allow it: off where it must run, running where it must be off, no job to
    /// abort.
    WrongState,
    /// The domain runs already.
    AlreadyActive,
    /// Another domain has this name or UUID.
    Exists,
    /// Another job uses the domain or the disk.
    Busy,
    /// There is no such checkpoint.
    NoSuchCheckpoint,
    /// A checkpoint of this name is there already.
    CheckpointExists,
    /// The bitmap behind a checkpoint is missing or was not stored in good order.
    CheckpointInconsistent,
    /// A bitmap to remove does not exist.
    NoSuchBitmap,
    /// A bitmap of this name is in the image already.
    BitmapExists,
    /// No backup job, or no job at all, runs.
    NoJob,
    /// The domain has no such metadata element.
    NoSuchMetadata,
    /// No room on the hypervisor's file system.
    NoSpace,
    /// This libvirt or QEMU does not support it, or not with this domain.
    Unsupported,
    /// The answer was too long, or is no valid answer of libvirt.
    Malformed,
    /// Any other failure.
    Failed,
}

/// A failed call: its kind, which call, and its message.
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

    /// An impossible answer.
    pub fn malformed(
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(LibvirtErrorKind::Malformed, call, cause)
    }

    /// A call of libvirt's C interface that failed.
    pub(super) fn of(call: impl Into<String>, failure: CallFailure) -> Self {
        match failure {
            CallFailure::Missing(why) => Self::new(LibvirtErrorKind::MissingTool, call, why),
            CallFailure::Malformed(why) => Self::malformed(call, why),
            CallFailure::Said { code, domain, errno, words } => {
                Self::new(classify(code, domain, errno, &words), call, words)
            }
        }
    }

    /// Whether the cause contains this name as a separate word: names are the same in every language.
    pub fn names(&self, name: &str) -> bool {
        let text = self.cause.to_string();
        let is_part =
            |side: Option<char>| side.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
        !name.is_empty()
            && text.match_indices(name).any(|(at, _)| {
                let (before, after) = (&text[..at], &text[at + name.len()..]);
                !is_part(before.chars().next_back()) && !is_part(after.chars().next())
            })
    }
}

/// `VIR_FROM_RPC`: raised by the connection, not by the daemon behind it.
const RPC: i32 = 7;
/// `VIR_FROM_QEMU`.
const QEMU: i32 = 10;
const INTERNAL_ERROR: i32 = 1;
const SYSTEM_ERROR: i32 = 38;
const ENOSPC: i32 = 28;

/// Numbers (`virErrorNumber`), the part that raised it where that matters (`virErrorDomain`), and the kind.
/// The first that fits decides.
const NUMBERS: [(i32, Option<i32>, LibvirtErrorKind); 29] = {
    use LibvirtErrorKind as K;
    [
        (INTERNAL_ERROR, Some(RPC), K::Unreachable),
        (SYSTEM_ERROR, Some(RPC), K::Unreachable),
        // VIR_ERR_NO_SUPPORT, _UNKNOWN_HOST, _NO_CONNECT, _INVALID_CONN
        (3, None, K::Unsupported),
        (4, None, K::Unreachable),
        (5, None, K::Unreachable),
        (6, None, K::Unreachable),
        // VIR_ERR_DOM_EXIST, _OPERATION_DENIED, _RPC, _GNUTLS_ERROR
        (28, None, K::Exists),
        (29, None, K::Denied),
        (39, None, K::Unreachable),
        (40, None, K::Unreachable),
        // VIR_ERR_NO_DOMAIN, _AUTH_FAILED, _OPERATION_INVALID, _CONFIG_UNSUPPORTED
        (42, None, K::NoSuchDomain),
        (45, None, K::Denied),
        (55, None, K::WrongState),
        (67, None, K::Unsupported),
        // VIR_ERR_OPERATION_TIMEOUT (the domain's lock), _ARGUMENT_UNSUPPORTED, _AUTH_CANCELLED
        (68, None, K::Busy),
        (74, None, K::Unsupported),
        (79, None, K::Denied),
        // VIR_ERR_NO_DOMAIN_METADATA, _BLOCK_COPY_ACTIVE, _OPERATION_UNSUPPORTED, _SSH, _RESOURCE_BUSY
        (80, None, K::NoSuchMetadata),
        (83, None, K::Busy),
        (84, None, K::Unsupported),
        (85, None, K::Unreachable),
        (87, None, K::Busy),
        // VIR_ERR_ACCESS_DENIED, _AUTH_UNAVAILABLE, _LIBSSH
        (88, None, K::Denied),
        (94, None, K::Denied),
        (98, None, K::Unreachable),
        // VIR_ERR_NO_DOMAIN_CHECKPOINT, _NO_DOMAIN_BACKUP, _CHECKPOINT_INCONSISTENT
        (103, None, K::NoSuchCheckpoint),
        (104, None, K::NoJob),
        (109, None, K::CheckpointInconsistent),
        // Raised by the connection itself, with any number.
        (9, Some(RPC), K::Unreachable),
    ]
};

/// QEMU's words in an internal error of libvirt's QEMU driver.
const QEMU_WORDS: [(&str, LibvirtErrorKind); 3] = [
    ("Bitmap already exists", LibvirtErrorKind::BitmapExists),
    ("Cannot store dirty bitmaps", LibvirtErrorKind::Unsupported),
    ("No space left on device", LibvirtErrorKind::NoSpace),
];

fn classify(code: i32, domain: i32, errno: i32, words: &str) -> LibvirtErrorKind {
    if code == SYSTEM_ERROR && errno == ENOSPC {
        return LibvirtErrorKind::NoSpace;
    }
    if code == INTERNAL_ERROR
        && domain == QEMU
        && let Some((_, kind)) = QEMU_WORDS.iter().find(|(phrase, _)| words.contains(phrase))
    {
        return *kind;
    }
    NUMBERS
        .iter()
        .find(|(number, from, _)| *number == code && from.is_none_or(|from| from == domain))
        .map_or(LibvirtErrorKind::Failed, |(_, _, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_numbers_in_any_language() {
        use LibvirtErrorKind as K;
        let cases = [
            (38, 7, 2, "Socket-Verbindung zu '/x' fehlgeschlagen: No such file or directory", K::Unreachable),
            (38, 7, 5, "End of file while reading data: Input/output error", K::Unreachable),
            (1, 7, 0, "client socket is closed", K::Unreachable),
            (42, 10, 0, "Domain nicht gefunden", K::NoSuchDomain),
            (55, 10, 0, "Angeforderte Operation ist nicht gültig", K::WrongState),
            (68, 10, 0, "cannot acquire state change lock", K::Busy),
            (38, 18, 28, "cannot write", K::NoSpace),
            (38, 18, 2, "cannot open", K::Failed),
            (
                1,
                10,
                0,
                "unable to execute QEMU command 'transaction': Bitmap already exists: a",
                K::BitmapExists,
            ),
            (1, 10, 0, "interner Fehler: … Cannot store dirty bitmaps in qcow2 v2 files", K::Unsupported),
            // The same words from another part, where a name could contain them.
            (9, 20, 0, "domain 'Bitmap already exists' already exists", K::Failed),
            (103, 10, 0, "", K::NoSuchCheckpoint),
            (104, 10, 0, "", K::NoJob),
            (109, 10, 0, "", K::CheckpointInconsistent),
            (80, 20, 0, "", K::NoSuchMetadata),
            (84, 10, 0, "", K::Unsupported),
            (88, 55, 0, "", K::Denied),
        ];
        for (code, domain, errno, words, kind) in cases {
            let error =
                LibvirtError::of("x", CallFailure::Said { code, domain, errno, words: words.to_owned() });
            assert_eq!(error.kind, kind, "{code} {domain} {words}");
            assert!(error.to_string().contains(words));
        }
    }

    #[test]
    fn a_number_that_is_not_known_is_a_failure() {
        for code in (0..2000).chain([-1, i32::MAX]) {
            let known = NUMBERS.iter().any(|(number, from, _)| *number == code && from.is_none());
            assert!(known || classify(code, 0, 0, "") == LibvirtErrorKind::Failed, "{code}");
        }
        // None occurs twice.
        for (at, (number, from, _)) in NUMBERS.iter().enumerate() {
            assert!(NUMBERS[..at].iter().all(|(other, before, _)| (other, before) != (number, from)));
        }
    }

    #[test]
    fn names_are_found_as_whole_words() {
        let error = |words: &str| LibvirtError::new(LibvirtErrorKind::CheckpointInconsistent, "x", words);
        let english = error("checkpoint inconsistent: missing or broken bitmap 'warmd-vda-1' for disk 'vdb'");
        assert!(english.names("vdb") && !english.names("vda") && !english.names("vd") && !english.names(""));
        assert!(error("Bitmap »a« für Platte »vdb« fehlt").names("vdb"));
    }
}
