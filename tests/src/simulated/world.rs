//! The truth of both sides: which VM runs, the disks' contents, what is left on the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use warmd_core::{
    model::{machine::Machine, rule::Objection},
    targets::LastWriter,
};
use warmd_endpoint_disk::DiskTarget;

use super::{disk::MemoryDisk, faults::Faults};

/// The granule of the simulated change tracking, in bytes.
pub(super) const TRACKED: u64 = 4096;

/// A world with one VM in it.
#[derive(Clone, Debug)]
pub struct SimulatedWorld {
    state: Arc<Mutex<Truth>>,
    /// Faults of both endpoints.
    pub faults: Faults,
    /// Where the target's disks are if not in memory.
    pub(super) files: Option<Arc<DiskTarget>>,
}

/// The truth. Only the simulated endpoints and the test change it.
#[derive(Debug, Default)]
pub struct Truth {
    /// The source VM executes instructions.
    pub source_runs: bool,
    /// The source starts the VM together with its host.
    pub source_autostart: bool,
    /// Where the VM went, as in the source VM's mark.
    pub held_off: Option<String>,
    /// The earlier autostart, as in that mark.
    pub held_autostart: bool,
    /// The target starts the VM together with its host.
    pub target_autostart: bool,
    /// An operator has started the source beside the target VM: the daemon did not cause that both run.
    pub is_meddled: bool,
    /// How often the target reports that it removed the VM, without doing so.
    pub false_discards: u32,
    /// A refused start happens when the target is asked to remove the VM.
    pub starts_late: bool,
    /// The source VM ignores a request to shut down.
    pub ignores_shutdown: bool,
    /// The target VM exists.
    pub target_exists: bool,
    /// The machine from which the target VM was last created.
    pub created: Option<Machine>,
    /// The target VM executes instructions.
    pub target_runs: bool,
    /// The target VM dies at the first check.
    pub target_dies: bool,
    /// What the target's guest has written to its console.
    pub console: String,
    /// The target's guest agent answers.
    pub agent_answers: bool,
    /// The pass in the target's note.
    pub noted: Option<LastWriter>,
    /// The source's disks by key.
    pub source_disks: BTreeMap<String, Vec<u8>>,
    /// The target's disks by key.
    pub target_disks: BTreeMap<String, MemoryDisk>,
    /// Each mark with the granules of each disk that changed since.
    pub marks: BTreeMap<u64, BTreeSet<(String, u64)>>,
    /// Number of marks made so far.
    pub marks_made: u64,
    /// A snapshot is open.
    pub snapshot_open: bool,
    /// The violations: times when both VMs ran, and others.
    pub violations: Vec<String>,
    /// Changes that come when the source VM is shut down, and are not tracked.
    pub when_off: Vec<(String, u64, Vec<u8>)>,
    /// The source VM's memory in bytes, if it was changed.
    pub memory: Option<u64>,
    /// The datastore of the source's disks.
    pub datastores: BTreeMap<String, String>,
    /// The source's findings against the move of the VM.
    pub source_objects: Vec<Objection>,
    /// The target's findings against the VM.
    pub target_objects: Vec<Objection>,
    /// Calls that made changes, in order.
    pub calls: Vec<String>,
}

impl Truth {
    pub(super) fn write_unreported(&mut self, disk: &str, at: u64, bytes: &[u8]) {
        if let Some(contents) = self.source_disks.get_mut(disk) {
            contents[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl SimulatedWorld {
    /// A running VM with disks of these sizes, in bytes.
    pub fn new(disks: &[(&str, u64)]) -> Self {
        let truth = Truth {
            source_runs: true,
            source_disks: disks
                .iter()
                .map(|(key, size)| ((*key).to_owned(), vec![0; *size as usize]))
                .collect(),
            ..Truth::default()
        };
        Self { state: Arc::new(Mutex::new(truth)), faults: Faults::default(), files: None }
    }

    /// The same, with the target's disks in files of this directory.
    #[must_use]
    pub fn with_files(self, directory: &Path) -> Self {
        self.with_storages(directory, BTreeMap::new())
    }

    /// The same, with other storages beside it.
    #[must_use]
    pub fn with_storages(self, directory: &Path, storages: BTreeMap<String, PathBuf>) -> Self {
        let settings = warmd_endpoint_disk::DiskTargetSettings {
            directory: directory.to_owned(),
            storages,
            provisioner: None,
        };
        Self { files: Some(Arc::new(DiskTarget::new(&settings).expect("an absolute directory"))), ..self }
    }

    /// Reads or changes the truth; then checks that not both VMs run.
    pub fn with<T>(&self, look: impl FnOnce(&mut Truth) -> T) -> T {
        let mut truth = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look(&mut truth);
        if truth.source_runs && truth.target_runs && !truth.is_meddled {
            let calls = truth.calls.join(", ");
            truth.violations.push(format!("both VMs run after: {calls}"));
        }
        seen
    }

    /// The guest writes, if it runs.
    pub fn guest_writes(&self, disk: &str, at: u64, bytes: &[u8]) {
        self.with(|truth| {
            if !truth.source_runs {
                return;
            }
            let Some(contents) = truth.source_disks.get_mut(disk) else { return };
            contents[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            for changed in truth.marks.values_mut() {
                for granule in at / TRACKED..(at + bytes.len() as u64).div_ceil(TRACKED) {
                    changed.insert((disk.to_owned(), granule));
                }
            }
        });
    }

    /// The disk changes, and change tracking does not report it.
    pub fn changes_unreported(&self, disk: &str, at: u64, bytes: &[u8]) {
        self.with(|truth| truth.write_unreported(disk, at, bytes));
    }

    /// The same, when the guest has been shut down.
    pub fn changes_when_off(&self, disk: &str, at: u64, bytes: &[u8]) {
        self.with(|truth| truth.when_off.push((disk.to_owned(), at, bytes.to_vec())));
    }

    /// Checks the world after a migration that is done.
    pub fn assert_moved(&self) {
        self.with(|truth| {
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
            assert!(!truth.source_runs && truth.target_exists && truth.target_runs, "{truth:?}");
            assert!(
                truth.marks.is_empty() && !truth.snapshot_open,
                "left on the source: {:?}",
                truth.marks.keys()
            );
            for (key, contents) in &truth.source_disks {
                assert!(truth.target_disks[key].durable() == *contents, "disk {key} differs");
            }
        });
    }

    /// Checks the world after a cutover that was undone.
    pub fn assert_undone(&self) {
        self.with(|truth| {
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
            assert!(
                truth.source_runs && !truth.target_exists && !truth.target_runs,
                "calls: {:?}",
                truth.calls
            );
            assert!(!truth.snapshot_open, "a snapshot was left open");
            assert!(!truth.target_disks.is_empty(), "the copied target was not kept");
        });
    }
}
