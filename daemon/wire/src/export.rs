//! The disks that a mover serves to others, and who may read each.
//!
//! Rule: an export is one snapshot's disk, for one mover, by one secret. Its removal ends its connections.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use warmd_cbt::disk::ReadDisk;

use super::message::Hello;

/// A disk, and who may read it.
#[derive(Clone)]
pub struct MoverExport {
    /// Its name on the wire.
    pub id: String,
    /// What the order gave to the reader: fresh random bytes for each snapshot.
    pub secret: [u8; 32],
    /// The mover that the order named.
    pub reader: String,
    pub disk: Arc<dyn ReadDisk>,
}

impl fmt::Debug for MoverExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoverExport")
            .field("id", &self.id)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

/// An export, and what ends its connections when it is dropped.
type Served = (MoverExport, watch::Sender<()>);

/// The exports of a mover. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Exports(Arc<Mutex<HashMap<String, Served>>>);

impl Exports {
    /// Adds an export; one with the same id is replaced, and its connections end.
    pub fn add(&self, export: MoverExport) {
        let mut exports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exports.insert(export.id.clone(), (export, watch::Sender::new(())));
    }

    /// Removes an export, and ends its connections; whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id).is_some()
    }

    /// The disk that this peer asks for, and what ends with the export.
    ///
    /// # Errors
    /// The reason for the refusal. Only the log gets it: the peer must not learn which exports there are.
    pub(super) fn find(
        &self,
        hello: &Hello,
        peer: &str,
    ) -> Result<(Arc<dyn ReadDisk>, watch::Receiver<()>), &'static str> {
        let exports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (export, end) = exports.get(&hello.export).ok_or("there is no such export")?;
        if export.reader != peer {
            return Err("the export is for another mover");
        }
        // Hashes are compared in constant time.
        if blake3::hash(&export.secret) != blake3::hash(&hello.secret) {
            return Err("the secret is wrong");
        }
        Ok((Arc::clone(&export.disk), end.subscribe()))
    }
}
