//! libvirt, driven through its own client `virsh`: sources and targets alike talk to it through this module.
//!
//! Rule: one call is one child process with a deadline, an empty or given stdin, and bounded output; the daemon starts
//! without libvirt, and a libvirtd that hangs costs a killed child. Domains are addressed by UUID alone, so no name,
//! however odd, is ever an argument. What libvirt says on stderr is kept as the cause, untouched.

mod calls;
mod checkpoint;
mod child;
mod disk;
mod domain;
mod error;
pub mod image;
mod needs;
pub mod overlay;
mod virsh;
pub mod xml;

pub use calls::{Libvirt, RunState, Standing, XmlForm};
pub use checkpoint::{BackupJob, Checkpoint, CurrentJob};
pub use child::MAX_OUTPUT;
pub use disk::{Disk, DiskSource};
pub use domain::{DomainXml, LoaderFirmware, NetworkInterface};
pub use error::{LibvirtError, LibvirtErrorKind};
pub use needs::{Volume, went_unanswered};
pub use virsh::CALL_DEADLINE;

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// A domain's UUID: the only way in which a domain is named to libvirt.
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
