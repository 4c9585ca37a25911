//! Which migration owns a volume on the target.
//!
//! Rule: a location is identified by what it is, not by its name.

use std::path::PathBuf;

use super::id::{DiskKey, MigrationId};

/// The location of a migration's disk, by its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationClaim {
    /// The same for all names of the location, and for no other location.
    pub identity: String,
    pub owner: MigrationId,
    pub disk: DiskKey,
    /// As in the plan: a path or an NBD URI.
    pub location: String,
    /// The claim beside the disks, if there is one.
    pub link: Option<PathBuf>,
    /// The name of the owner's VM, for messages; only in answers.
    pub vm: String,
    /// Whether the migration is finished; only in answers.
    pub finished: bool,
}
