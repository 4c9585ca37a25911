//! Failures of a call of `qemu-img`.

use crate::child::ChildError;

/// The kind of failure, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// `qemu-img` is not installed.
    MissingTool,
    /// No answer within the deadline; the call may or may not have had its effect.
    Timeout,
    /// A QEMU has the image locked.
    Busy,
    /// The image does not exist.
    NoSuchImage,
    /// No room on its file system.
    NoSpace,
    /// The operation is not possible, or not with this image.
    Unsupported,
    /// The answer was too long, or is no valid `qemu-img` output.
    Malformed,
    /// Any other failure.
    Failed,
}

/// A failed call: its kind, which call, and its stderr.
#[derive(Debug, thiserror::Error)]
#[error("`{call}`: {cause}")]
pub struct ImageError {
    pub kind: ImageErrorKind,
    pub call: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl ImageError {
    /// An error of `kind` with its cause.
    pub fn new(
        kind: ImageErrorKind,
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, call: call.into(), cause: cause.into() }
    }

    /// A call that did not end on its own, or did not begin.
    pub(super) fn of_child(call: String, error: ChildError) -> Self {
        let kind = match &error {
            ChildError::Missing(_) => ImageErrorKind::MissingTool,
            ChildError::Timeout(_) => ImageErrorKind::Timeout,
            ChildError::TooLong(_) => ImageErrorKind::Malformed,
            ChildError::Io(_) => ImageErrorKind::Failed,
        };
        Self::new(kind, call, error)
    }

    /// An impossible answer.
    pub fn malformed(
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(ImageErrorKind::Malformed, call, cause)
    }
}
