//! Which migration owns a volume on the target.
//!
//! Rule: a location is known by what it is, not by its name.

use std::path::PathBuf;

use super::id::{DiskKey, MigrationId};

/// A location that a migration's disk has, by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationClaim {
    /// The same for all names of the location, and for no other location.
    pub identity: String,
    pub owner: MigrationId,
    pub disk: DiskKey,
    /// As the plan has it: a path or an NBD URI.
    pub location: String,
    /// The claim beside the disks, if there is one.
    pub link: Option<PathBuf>,
    /// The owner's name, for people; only in answers.
    pub vm: String,
    /// Whether the migration is done or cancelled; only in answers.
    pub finished: bool,
}
