//! The child's input: what every conversion gets (`daemon/docs/conversion.md`), and virt-v2v's settings.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use warmd_core::model::{conversion::VirtV2v, id::DiskKey, machine::Machine};

#[derive(Debug, Deserialize)]
pub(crate) struct Input {
    pub(crate) disks: Vec<InputDisk>,
    pub(crate) machine: Machine,
    /// The file for the changed machine, or for the inspection's result. Its folder is for this run alone.
    pub(crate) answer: PathBuf,
    #[serde(default)]
    pub(crate) virt_v2v: VirtV2v,
}

impl Input {
    /// The folder for this run alone.
    pub(crate) fn folder(&self) -> io::Result<&Path> {
        self.answer.parent().ok_or_else(|| io::Error::other("the answer has no folder"))
    }
}

/// An overlay over a disk.
#[derive(Debug, Deserialize)]
pub(crate) struct InputDisk {
    pub(crate) key: DiskKey,
    pub(crate) path: PathBuf,
    pub(crate) format: String,
}
