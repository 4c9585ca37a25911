//! Images in QEMU's formats, by `qemu-img`: a child process with a deadline, an empty stdin and bounded
//! output ([`crate::child`]), which ends with the daemon.

mod error;
pub mod image;
pub mod overlay;

use std::time::Duration;

pub use self::error::{ImageError, ImageErrorKind};

/// For a call of `qemu-img`.
const CALL_DEADLINE: Duration = Duration::from_mins(1);
