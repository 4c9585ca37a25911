//! The operator's settings of a target `disk`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use warmd_core::model::plan::duration;

/// The settings of a target `disk`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTargetSettings {
    /// Where disks without a place of their own are kept: one folder for each migration. It must exist.
    pub directory: PathBuf,
    /// Other directories for disks, by the names that a plan's `[storage]` uses. They must exist.
    #[serde(default)]
    pub storages: BTreeMap<String, PathBuf>,
    /// The creator of the machines; without it they are described in a file.
    #[serde(default)]
    pub provisioner: Option<ProvisionerSettings>,
}

/// The provisioner's connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionerSettings {
    /// `unix:/path/of/socket`, or `http://127.0.0.1:PORT`; plain TCP only on this host.
    pub address: String,
    /// The deadline of each call.
    #[serde(default = "default_deadline", with = "duration")]
    pub deadline: Duration,
}

fn default_deadline() -> Duration {
    Duration::from_mins(1)
}
