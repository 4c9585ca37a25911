//! The bars of the cases, and whether they are met.
//!
//! Rule: a bar is compared with the medians that are printed beside it, never with a single run. Without the
//! figures of a peer there is no bar.

use std::fmt;

use crate::{
    cases::{Case, CaseWork, Over},
    delta::Shape,
    report::Row,
    sides::Peer,
};

/// A figure and its limit.
#[derive(Clone, Debug)]
pub struct Bar {
    pub case: String,
    pub what: String,
    pub value: f64,
    pub limit: BarLimit,
}

/// On which side of the number the figure must be.
#[derive(Clone, Copy, Debug)]
pub enum BarLimit {
    AtLeast(f64),
    AtMost(f64),
}

/// MiB that warmd's process may use.
pub const MEMORY: f64 = 200.0;

impl Bar {
    pub fn new(case: &str, what: impl Into<String>, value: f64, limit: BarLimit) -> Self {
        Self { case: case.to_owned(), what: what.into(), value, limit }
    }

    /// Whether the bar is met.
    pub fn met(&self) -> bool {
        match self.limit {
            BarLimit::AtLeast(least) => self.value >= least,
            BarLimit::AtMost(most) => self.value <= most,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self.limit {
            BarLimit::AtLeast(least) => ('≥', least),
            BarLimit::AtMost(most) => ('≤', most),
        };
        let result = if self.met() { "met" } else { "NOT MET" };
        write!(f, "{}: {:.3}, must be {sign} {limit}: {result}", self.what, self.value)
    }
}

/// The bars of a case; `blake3` is one core's rate in bytes a second.
pub fn of(case: &Case, rows: &[Row], blake3: f64) -> Vec<Bar> {
    let row = |peer: Peer| rows.iter().find(|row| row.peer == peer.name());
    let bar = |what: &str, value, limit| Bar::new(&case.name, what, value, limit);
    let mut bars = Vec::new();
    let copiers = [Peer::Nbdcopy, Peer::NbdcopyBest, Peer::QemuImg];
    match case.work {
        CaseWork::Full => {
            // The lowest ratio, not the lowest time: it was measured next to warmd's own time.
            let best = copiers.into_iter().filter_map(row).min_by(|a, b| a.ratio.total_cmp(&b.ratio));
            if let Some(best) = best {
                let what = format!("speed against the best copier ({})", best.peer);
                bars.push(bar(&what, best.ratio, BarLimit::AtLeast(1.0)));
            }
            if let Some(nbdcopy) = row(Peer::Nbdcopy) {
                let hashing = nbdcopy.bytes_changed as f64 / blake3;
                let share = nbdcopy.cpu_s / (nbdcopy.peer_cpu_s + hashing);
                bars.push(bar(
                    "CPU against nbdcopy and the BLAKE3 of the same bytes",
                    share,
                    BarLimit::AtMost(1.2),
                ));
            }
            if case.brake.read_delay_ms >= 10
                && matches!(case.over, Over::Nbd | Over::Vddk)
                && let Some(cdi) = row(Peer::CdiLoop)
            {
                bars.push(bar("speed against cdi-loop", cdi.ratio, BarLimit::AtLeast(8.0)));
            }
        }
        CaseWork::Delta { shape, percent } => {
            let least = if case.brake.read_delay_ms > 0 {
                (shape == Shape::Blocks && percent == 1).then_some(10.0)
            } else {
                (case.over == Over::Vddk).then_some(1.0)
            };
            let peers = [Peer::CdiLoop, Peer::MigratekitLoop].into_iter().filter_map(row);
            for (one, least) in peers.filter_map(|one| Some((one, least?))) {
                bars.push(bar(&format!("speed against {}", one.peer), one.ratio, BarLimit::AtLeast(least)));
            }
            if let Some(any) = rows.first() {
                let read = any.bytes_read as f64;
                let (what, of, most) = match shape {
                    Shape::Pages => {
                        ("bytes read, of the blocks that the changes touch", any.bytes_touched, 1.0)
                    }
                    _ => ("bytes read, of the changed bytes", any.bytes_changed, 1.25),
                };
                bars.push(bar(what, read / of as f64, BarLimit::AtMost(most)));
            }
        }
        CaseWork::Unchanged => {
            let slower = [Peer::Read, Peer::Hash].into_iter().filter_map(row);
            if let Some(ground) = slower.max_by(|a, b| a.ratio.total_cmp(&b.ratio)) {
                let what = format!("speed against the slower ground ({})", ground.peer);
                bars.push(bar(&what, ground.ratio, BarLimit::AtLeast(0.9)));
            }
        }
        CaseWork::Readback | CaseWork::Compare => {}
    }
    if let Some(most) = rows.iter().map(|row| row.rss_mib).max_by(f64::total_cmp) {
        bars.push(bar("peak RSS in MiB", most, BarLimit::AtMost(MEMORY)));
    }
    bars
}
