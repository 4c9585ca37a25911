//! The cases: work, transport and peers.
//!
//! Rule: names never change; results are compared by name.

use crate::{delta::Shape, image::Fill, servers::Brake, sides::Peer};

/// What the two sides do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaseWork {
    /// All of the disk, to a new target that is known to be empty.
    Full,
    /// What changed, onto the copy of the state before.
    Delta { shape: Shape, percent: u64 },
    /// The source does not report what changed, and nothing did.
    Unchanged,
    /// The target is read and compared with the manifest.
    Readback,
    /// Both sides are read and compared.
    Compare,
}

/// How the disks are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Local files on both sides.
    Files,
    /// NBD exports on both sides.
    Nbd,
    /// An NBD export as the source, a local file as the target: what the daemon does with a libvirt host.
    NbdToFile,
    /// A snapshot behind nbdkit's vddk plugin as the source, a local file as the target: what the daemon does
    /// with a vCenter.
    Vddk,
}

/// One line of the benchmark, for each of its peers.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub work: CaseWork,
    pub over: Over,
    pub fill: Fill,
    /// Bytes in each disk.
    pub size: u64,
    pub disks: u64,
    /// Latency on the source.
    pub brake: Brake,
    pub peers: Vec<Peer>,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const LATENCIES: [u64; 3] = [0, 1, 10];
/// Bytes a second of the case with a limit.
const RATE: u64 = 200_000_000;
/// Round trips one after the other that the slowest peer of a delta may need, times the latency: seconds a
/// run.
const PATIENCE: u64 = 20;
/// Bytes in all disks of a case in a quick run.
const QUICK: u64 = 64 * MIB;

impl Case {
    /// A full copy of one disk of 4 GiB, half data.
    fn full(over: Over, fill: Fill) -> Self {
        use Peer::{CdiLoop, Dd, Nbdcopy, NbdcopyBest, QemuImg};
        let over_name = match over {
            Over::Files => "file",
            Over::Nbd => "nbd",
            Over::NbdToFile => "nbd-file",
            Over::Vddk => "vddk",
        };
        Self {
            name: format!("full-{over_name}-{}", fill.name()),
            work: CaseWork::Full,
            over,
            fill,
            size: 4 * GIB,
            disks: 1,
            brake: Brake::default(),
            peers: vec![Nbdcopy, NbdcopyBest, QemuImg, CdiLoop, Dd],
        }
    }

    fn delayed(mut self, milliseconds: u64) -> Self {
        if milliseconds > 0 {
            self.name = format!("{}-{milliseconds}ms", self.name);
            self.brake.read_delay_ms = milliseconds;
        }
        self
    }

    fn delta(shape: Shape, percent: u64, latency: u64) -> Self {
        let mut size = 4 * GIB;
        while shape.count(size, percent) * latency > PATIENCE * 1000 {
            size /= 2;
        }
        let mut case = Self::full(Over::Nbd, Fill::Half);
        case.name = format!("delta-{}-{percent}pct", shape.name());
        case.work = CaseWork::Delta { shape, percent };
        case.size = size;
        case.peers = vec![Peer::CdiLoop, Peer::MigratekitLoop];
        case.delayed(latency)
    }

    fn many(disks: u64, size: u64) -> Self {
        let mut case = Self::full(Over::Nbd, Fill::Half);
        case.name = format!("disks-{disks}");
        (case.disks, case.size, case.peers) = (disks, size, vec![Peer::Nbdcopy, Peer::NbdcopyBest]);
        case
    }

    /// A VM of a vCenter, disks of 1 GiB.
    fn vsphere(name: &str, work: CaseWork, disks: u64, latency: u64) -> Self {
        let mut case = Self::full(Over::Vddk, Fill::Half);
        case.peers = match work {
            CaseWork::Delta { .. } => vec![Peer::CdiLoop, Peer::MigratekitLoop],
            _ if disks > 1 => vec![Peer::Nbdcopy],
            _ => vec![Peer::Nbdcopy, Peer::QemuImg, Peer::CdiLoop],
        };
        (case.name, case.work, case.disks) = (format!("vsphere-{name}"), work, disks);
        case.size = GIB / disks;
        case.delayed(latency)
    }

    fn other(name: &str, work: CaseWork, over: Over, peers: Vec<Peer>) -> Self {
        let mut case = Self::full(over, Fill::Half);
        let over_name = if over == Over::Files { "file" } else { "nbd" };
        (case.name, case.work, case.peers) = (format!("{name}-{over_name}"), work, peers);
        case
    }

    /// The same with small disks.
    #[must_use]
    pub fn quick(mut self) -> Self {
        self.size = self.size.min(QUICK / self.disks).max(MIB);
        if let CaseWork::Delta { shape, percent } = self.work {
            // Round trips, not bytes, take the time.
            while shape.count(self.size, percent) * self.brake.read_delay_ms > 500 {
                self.size /= 2;
            }
        }
        self
    }
}

/// All cases, in the order in which they are run.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for over in [Over::Files, Over::Nbd] {
        for fill in [Fill::Half, Fill::Data, Fill::Holes] {
            cases.push(Case::full(over, fill));
        }
    }
    for latency in &LATENCIES[1..] {
        for fill in [Fill::Half, Fill::Data, Fill::Holes] {
            cases.push(Case::full(Over::Nbd, fill).delayed(*latency));
        }
    }
    for latency in [0, 10] {
        cases.push(Case::full(Over::NbdToFile, Fill::Half).delayed(latency));
    }
    let mut limited = Case::full(Over::Nbd, Fill::Half);
    limited.name.push_str("-rate");
    (limited.size, limited.brake.rate) = (GIB, RATE);
    cases.push(limited);
    for shape in [Shape::Blocks, Shape::Pages, Shape::Runs, Shape::HalfZero] {
        for percent in [1, 10] {
            cases.extend(LATENCIES.map(|latency| Case::delta(shape, percent, latency)));
        }
    }
    cases.push(Case::many(8, 512 * MIB));
    cases.push(Case::many(64, 64 * MIB));
    for over in [Over::Files, Over::Nbd] {
        let grounds = || vec![Peer::Read, Peer::Hash];
        cases.push(Case::other("unchanged", CaseWork::Unchanged, over, grounds()));
        cases.push(Case::other("readback", CaseWork::Readback, over, grounds()));
        cases.push(Case::other("compare", CaseWork::Compare, over, vec![Peer::QemuCompare]));
    }
    for latency in [0, 10] {
        cases.push(Case::vsphere("full", CaseWork::Full, 1, latency));
        let delta = CaseWork::Delta { shape: Shape::Blocks, percent: 1 };
        cases.push(Case::vsphere("delta-1pct", delta, 1, latency));
    }
    cases.push(Case::vsphere("disks-8", CaseWork::Full, 8, 0));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = all().into_iter().map(|case| case.name).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn every_delta_has_extents_also_in_a_quick_run() {
        for case in all() {
            if let CaseWork::Delta { shape, percent } = case.work {
                assert!(shape.count(case.size, percent) > 0, "{}", case.name);
                let quick = case.quick();
                assert!(shape.count(quick.size, percent) > 3, "{} with {} bytes", quick.name, quick.size);
            }
        }
    }
}
