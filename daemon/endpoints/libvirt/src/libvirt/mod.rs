//! libvirt, through its C interface: sources and targets both use this module.
//!
//! Rule: the library (`libvirt.so.0`) is loaded when it is first needed, so the daemon starts without
//! libvirt. One call is one thread with a deadline, counted per lane ([`link`]); error numbers decide, never
//! sentences ([`error`]). Domains are addressed by UUID alone. libvirt's message is kept unchanged as the
//! cause.

mod calls;
mod checkpoint;
mod disk;
mod domain;
mod domain_status;
mod doubt;
mod error;
mod events;
mod ffi;
mod link;
mod metadata;
mod needs;
pub mod xml;

pub use calls::{LibvirtClient, Network, XmlForm};
pub use checkpoint::{BackupJob, Checkpoint, CurrentJob};
pub use disk::{BytesAt, Disk, DiskSource, bytes_at};
pub(crate) use domain::memory;
pub use domain::{DomainXml, LoaderFirmware, NetworkInterface};
pub use domain_status::{DomainStatus, Reason, RunState};
pub use error::{LibvirtError, LibvirtErrorKind};
pub use events::DomainChange;
pub use link::{CALL_DEADLINE, Lane};
pub use needs::{PoolVolume, went_unanswered};

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The most bytes that an answer may have.
pub const MAX_OUTPUT: usize = 4 << 20;

/// A domain's UUID: the only name of a domain in calls to libvirt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub Uuid);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for DomainId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}
