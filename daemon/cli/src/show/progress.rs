//! How far the running pass is.
//!
//! Rule: what is not known yet, or is nothing, has no percentage, no rate and no end.

use warmd_core::format;
use warmd_proto::v1::{Disk, Migration};

use super::{super::labels, disk_pass};

/// The progress of a pass on one disk, or on all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// Bytes to copy or compare; `None` before they are known.
    total: Option<u64>,
    drained: u64,
    rate: f64,
    /// Seconds.
    left: Option<f64>,
}

impl Progress {
    /// On one disk. What the pass itself reported counts where the live figures are not there yet.
    pub(super) fn of(migration: &Migration, disk: &Disk) -> Self {
        let pass = disk_pass(migration, disk);
        let (total, drained) = match (disk.pass_total_bytes, pass) {
            (0, None) => (None, 0),
            (0, Some(pass)) => (Some(pass.pending_bytes), pass.drained_bytes.min(pass.pending_bytes)),
            (total, _) => (Some(total), disk.pass_drained_bytes.min(total)),
        };
        let left = labels::seconds(disk.eta.as_ref());
        Self { total, drained, rate: disk.rate_bytes_per_second, left }
    }

    /// On all disks together; the last one to end decides when it ends.
    pub(super) fn of_all(migration: &Migration) -> Self {
        let mut all = migration.disks.iter().map(|disk| Self::of(migration, disk));
        let Some(first) = all.next() else { return Self::default() };
        all.fold(first, |sum, next| Self {
            total: sum.total.zip(next.total).map(|(sum, next)| sum.saturating_add(next)),
            drained: sum.drained.saturating_add(next.drained),
            rate: sum.rate + next.rate,
            left: match (sum.is_complete(), next.is_complete()) {
                (_, true) => sum.left,
                (true, false) => next.left,
                (false, false) => sum.left.zip(next.left).map(|(sum, next)| sum.max(next)),
            },
        })
    }

    /// How much of it is done; `None` if that is not known, or there is nothing to do.
    pub(super) fn percent(&self) -> Option<u64> {
        format::percent(self.drained, self.total?)
    }

    /// Bytes per second; `None` before anything was measured.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.drained > 0 || self.rate > 0.0).then_some(self.rate)
    }

    fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.drained >= total)
    }

    /// `50 % of 1.17 GiB, 118 MiB/s, 5.1 s left`.
    pub(super) fn words(&self) -> String {
        let (total, percent) = match (self.total, self.percent()) {
            (Some(total), Some(percent)) => (total, percent),
            (Some(_), None) => return "nothing to copy".to_owned(),
            (None, _) => return "how much there is to copy is not known yet".to_owned(),
        };
        let mut words = format!("{percent:>3} % of {}", format::bytes(total));
        if self.is_complete() {
            return words;
        }
        if let Some(rate) = self.rate() {
            words = format!("{words}, {}", format::rate(rate));
        }
        match self.left {
            Some(left) => format!("{words}, {} left", format::span(left)),
            None => words,
        }
    }
}

#[cfg(test)]
mod tests {
    use warmd_proto::v1::{DiskPass, Pass};

    use super::*;

    fn disk(key: &str, total: u64, drained: u64) -> Disk {
        let (pass_total_bytes, pass_drained_bytes) = (total, drained);
        Disk { key: key.to_owned(), pass_total_bytes, pass_drained_bytes, ..Disk::default() }
    }

    fn words(disks: Vec<Disk>, passes: Vec<DiskPass>) -> (Vec<String>, String) {
        let pass = Some(Pass { disks: passes, ..Pass::default() });
        let migration = Migration { disks, pass, ..Migration::default() };
        let each = migration.disks.iter().map(|disk| Progress::of(&migration, disk).words()).collect();
        (each, Progress::of_all(&migration).words())
    }

    #[test]
    fn nothing_and_unknown_have_no_percentage() {
        let pass = |key: &str, pending| DiskPass {
            key: key.to_owned(),
            pending_bytes: pending,
            ..DiskPass::default()
        };
        let unknown = "how much there is to copy is not known yet";
        assert_eq!(words(vec![], vec![]).1, unknown);
        assert_eq!(words(vec![disk("a", 0, 0)], vec![]).1, unknown);
        assert_eq!(words(vec![disk("a", 0, 0)], vec![pass("a", 0)]).1, "nothing to copy");
        let (each, all) = words(vec![disk("a", 0, 0), disk("b", 0, 0)], vec![pass("a", 0), pass("b", 4096)]);
        assert_eq!(each, ["nothing to copy", "  0 % of 4.00 KiB"]);
        assert_eq!(all, "  0 % of 4.00 KiB", "no rate before anything was measured");
        let (_, all) = words(vec![disk("a", 8192, 4096), disk("b", 0, 0)], vec![pass("a", 8192)]);
        assert_eq!(all, unknown, "the other disk's part is not known");
    }

    #[test]
    fn the_slowest_disk_decides_when_all_end() {
        let slow = Disk {
            rate_bytes_per_second: 1024.0,
            eta: Some(prost_types::Duration { seconds: 4, nanos: 0 }),
            ..disk("a", 8192, 4096)
        };
        let done = Disk { eta: Some(prost_types::Duration::default()), ..disk("b", 8192, 8192) };
        let (each, all) = words(vec![done, slow], vec![]);
        assert_eq!(each[0], "100 % of 8.00 KiB");
        assert_eq!(all, " 75 % of 16.0 KiB, 1.00 KiB/s, 4.0 s left");
    }
}
