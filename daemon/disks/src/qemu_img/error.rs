//! Failures of a call of `qemu-img`.

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

    /// An impossible answer.
    pub fn malformed(
        call: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(ImageErrorKind::Malformed, call, cause)
    }
}
