//! Readers: a command that gives an NBD socket for one disk of one snapshot.
//!
//! Rule: the daemon's NBD client reads; here is only who serves. One child for each disk, started again when
//! it dies or does not read any more, ended when the reader is dropped. The error output of the child is
//! the only source of reasons: its last lines are kept and classified, and unknown text is shown unchanged.
//!
//! ```text
//! vddk     nbdkit --filter=retry-request --filter=cacheextents vddk  server=VC vm=… file=…  (VMware)
//! nfc      the same with another plugin, without VMware's library
//! outside  an NBD server that others run
//! ```

mod child;
mod command;
mod direct;
mod health;
mod place;
mod said;
mod tools;
mod why;

use std::path::PathBuf;

pub use child::Serving;
pub use command::{Access, Order};
pub use health::Health;
pub use place::{clear, remains};
pub use tools::check;
pub use why::{Complaint, ReaderError};

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    settings::ReaderKind,
    snapshot::Taken,
};

/// Where a disk can be read.
#[derive(Debug)]
pub enum Reader {
    /// A child of ours, with its socket.
    Child(Serving),
    /// An address that others serve, as an NBD URI.
    Outside(String),
}

impl Reader {
    /// The socket of a child.
    pub fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Child(serving) => Some(serving.socket()),
            Self::Outside(_) => None,
        }
    }

    /// The address that others serve.
    pub fn uri(&self) -> Option<&str> {
        match self {
            Self::Child(_) => None,
            Self::Outside(uri) => Some(uri),
        }
    }

    /// Why reading fails, if the child has said so. Asked after a failure: the child says it a moment before
    /// or after.
    pub async fn complaint(&self) -> Option<ReaderError> {
        match self {
            Self::Child(serving) => serving.complaint().await,
            Self::Outside(_) => None,
        }
    }

    /// Whether the child reads.
    pub fn health(&self) -> Option<Health> {
        match self {
            Self::Child(serving) => Some(serving.health()),
            Self::Outside(_) => None,
        }
    }

    /// Why nothing can be read any more: the child was replaced too often, or no other one would read.
    pub fn gave_up(&self) -> Option<ReaderError> {
        self.health().and_then(|health| health.gave_up())
    }

    /// Ends the child in order, so that the host frees what it held for it.
    pub async fn close(self) {
        match self {
            Self::Child(serving) => serving.close().await,
            Self::Outside(_) => {}
        }
    }
}

impl Vsphere {
    /// A reader of the disk with this backing UUID, as it was at the snapshot's moment.
    pub async fn reader(&self, taken: &Taken, uuid: &str) -> Result<Reader> {
        let context = || format!("VM {}: opening disk {uuid}", taken.vm.id);
        let settings = &self.settings.reader;
        if settings.kind == ReaderKind::Outside {
            let uri = settings.uri.as_deref().unwrap_or_default();
            return Ok(Reader::Outside(outside(uri, &taken.of.id, uuid)));
        }
        let disk = taken
            .disk(uuid)
            .ok_or_else(|| VsphereError::new(Kind::NotFound, context(), "it is not in this snapshot"))?;
        let access = self.access(taken).await.during(context)?;
        let order = Order { access, file: disk.disk.backing.file.clone() };
        let serving = Serving::start(settings, &order, &taken.owner).await;
        serving.map(Reader::Child).map_err(|error| VsphereError::new(error.kind(), context(), error))
    }
}

/// The address of a disk of a snapshot.
fn outside(pattern: &str, snapshot: &str, disk: &str) -> String {
    pattern.replace("{snapshot}", snapshot).replace("{disk}", disk)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_outside_address_names_the_snapshot_and_the_disk() {
        let of = |pattern| super::outside(pattern, "snapshot-70", "6000c29a");
        assert_eq!(of("nbd://h/{snapshot}/{disk}"), "nbd://h/snapshot-70/6000c29a");
        assert_eq!(
            of("nbd+unix:///{disk}?socket=/s/{snapshot}"),
            "nbd+unix:///6000c29a?socket=/s/snapshot-70"
        );
    }
}
