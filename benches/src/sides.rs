//! The command lines of both sides.
//!
//! Rule: every side gets the same facts about the target (a new one is known to be empty) and must flush.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{
    cases::CaseWork,
    fixture::{Fixture, Served},
    side::BenchSide,
};

/// A peer of warmd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// With its defaults.
    Nbdcopy,
    /// With the fastest of [`NBDCOPY_SETTINGS`] for the case.
    NbdcopyBest,
    QemuImg,
    CdiLoop,
    MigratekitLoop,
    /// Baseline: read and write in order.
    Dd,
    /// Baseline: only read.
    Read,
    /// Baseline: only hash, on all cores.
    Hash,
    /// `qemu-img compare`.
    QemuCompare,
}

/// The settings to try for [`Peer::NbdcopyBest`].
pub const NBDCOPY_SETTINGS: [&[&str]; 5] = [
    &["--destination-is-zero"],
    &["--destination-is-zero", "--connections=2", "--requests=32"],
    &["--destination-is-zero", "--connections=8", "--requests=64"],
    &["--destination-is-zero", "--request-size=1048576", "--queue-size=67108864"],
    &["--destination-is-zero", "--connections=8", "--request-size=1048576", "--queue-size=67108864"],
];

impl Peer {
    /// Its name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbdcopy => "nbdcopy",
            Self::NbdcopyBest => "nbdcopy-best",
            Self::QemuImg => "qemu-img",
            Self::CdiLoop => "cdi-loop",
            Self::MigratekitLoop => "migratekit-loop",
            Self::Dd => "dd",
            Self::Read => "ground-read",
            Self::Hash => "ground-hash",
            Self::QemuCompare => "qemu-img-compare",
        }
    }

    /// Settings to choose from: the fastest in the warm-up is measured.
    pub fn settings(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::NbdcopyBest => &NBDCOPY_SETTINGS,
            _ => &[&[]],
        }
    }

    /// One command for each disk, to run at once.
    pub fn commands(
        self,
        programs: &Path,
        setting: &[&str],
        fixture: &Fixture,
        served: &Served,
    ) -> Result<Vec<Vec<String>>> {
        let own = programs.join("bench-peer").display().to_string();
        served
            .pairs
            .iter()
            .map(|(source, target)| {
                let read = if fixture.case.work == CaseWork::Readback { target } else { source };
                let (source, target) = (source.name(), target.name());
                let words: Vec<String> = match self {
                    Self::Nbdcopy | Self::NbdcopyBest => {
                        [&["nbdcopy", "--flush"], setting, &[source.as_str(), target.as_str()]]
                            .concat()
                            .words()
                    }
                    Self::QemuImg => {
                        let convert = ["qemu-img", "convert", "-W", "-m", "16", "-f", "raw", "-O", "raw"];
                        let durable = ["-t", "writeback", "-n", "--target-is-zero"];
                        [&convert[..], &durable, &[source.as_str(), target.as_str()]].concat().words()
                    }
                    Self::QemuCompare => {
                        ["qemu-img", "compare", "-f", "raw", "-F", "raw", source.as_str(), target.as_str()]
                            .words()
                    }
                    Self::CdiLoop => a_loop(&own, "cdi", fixture, &source, &target)?,
                    Self::MigratekitLoop => a_loop(&own, "migratekit", fixture, &source, &target)?,
                    Self::Dd => a_loop(&own, "dd", fixture, &source, &target)?,
                    Self::Read => match read {
                        BenchSide::File(_) => [own.as_str(), "read", read.name().as_str()].words(),
                        BenchSide::Export { .. } => ["nbdcopy", read.name().as_str(), "null:"].words(),
                    },
                    Self::Hash => {
                        let threads = std::thread::available_parallelism()?.to_string();
                        let bytes = fixture.changed_bytes().to_string();
                        [own.as_str(), "hash", bytes.as_str(), threads.as_str()].words()
                    }
                };
                Ok(words)
            })
            .collect()
    }
}

/// warmd's engine, over all disks at once. `more` are options for tuning.
pub fn engine(
    programs: &Path,
    fixture: &Fixture,
    served: &Served,
    state: &Path,
    more: &[String],
) -> Result<Vec<String>> {
    let program = programs.join("bench-engine").display().to_string();
    let mut words = [program.as_str(), "--state", text(state)?].words();
    match fixture.case.work {
        CaseWork::Readback => words.push("readback".to_owned()),
        CaseWork::Compare => words.push("compare".to_owned()),
        _ => words.push("pass".to_owned()),
    }
    if let Some(extents) = &fixture.extents_file {
        words.extend(["--extents", text(extents)?].words());
    }
    words.extend_from_slice(more);
    words.extend(served.pairs.iter().flat_map(|(source, target)| [source.name(), target.name()]));
    Ok(words)
}

fn a_loop(own: &str, name: &str, fixture: &Fixture, source: &str, target: &str) -> Result<Vec<String>> {
    let mut words = [own, name].words();
    if let Some(extents) = &fixture.extents_file {
        words.extend(["--extents", text(extents)?].words());
    }
    words.extend([source, target].words());
    Ok(words)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

trait Words {
    fn words(&self) -> Vec<String>;
}

impl Words for [&str] {
    fn words(&self) -> Vec<String> {
        self.iter().map(|word| (*word).to_owned()).collect()
    }
}
