//! The printed and written results of the runs.
//!
//! Rule: medians over the pairs; a ratio is the peer's time over warmd's in the same pair, so above 1 warmd
//! is faster.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use crate::pairs::Pair;

/// The bytes that had to be moved.
#[derive(Clone, Copy, Debug)]
pub struct BenchTotals {
    /// The delta, or all data.
    pub changed: u64,
    /// The manifest's blocks that the delta touches.
    pub touched: u64,
}

/// A case against one peer.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub peer: String,
    pub ratio: f64,
    pub warmd_s: f64,
    pub peer_s: f64,
    /// The pass's part of warmd's time, without the process's start and end.
    pub pass_s: f64,
    /// Figure of warmd's process, like `rss_mib`, `bytes_read` and `in_flight`.
    pub cpu_s: f64,
    pub rss_mib: f64,
    pub bytes_read: u64,
    /// What must be moved: the delta, or all data.
    pub bytes_changed: u64,
    pub peer_cpu_s: f64,
    pub peer_rss_mib: f64,
    /// Rate of the bytes to move, from the medians.
    pub mb_s: f64,
    pub peer_mb_s: f64,
    /// Requests to the source: the mean during the pass, and the maximum.
    pub in_flight: f64,
    pub in_flight_peak: u64,
    /// Share of the pass's time spent waiting for the store's commits.
    pub commit_share: f64,
    /// Bytes of the manifest's blocks that a delta touches.
    pub bytes_touched: u64,
    pub pairs: usize,
    /// The lowest and the highest ratio of a pair.
    pub ratio_min: f64,
    pub ratio_max: f64,
    /// The peer's options, where there was a choice; or another note.
    pub note: String,
}

impl Row {
    /// The result of at least one pair.
    pub fn new(case: &str, peer: &str, moved: BenchTotals, note: String, pairs: &[Pair]) -> Self {
        let of = |value: &dyn Fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
        let ratio = |pair: &Pair| pair.peer.wall_s() / pair.warmd.wall_s();
        let (warmd_s, peer_s) = (of(&|pair| pair.warmd.wall_s()), of(&|pair| pair.peer.wall_s()));
        let rate = |seconds: f64| moved.changed as f64 / seconds / 1e6;
        Self {
            case: case.to_owned(),
            peer: peer.to_owned(),
            ratio: of(&ratio),
            warmd_s,
            peer_s,
            pass_s: of(&|pair| pair.done.pass_s),
            cpu_s: of(&|pair| pair.warmd.cpu_s),
            rss_mib: pairs.iter().map(|pair| pair.warmd.rss_mib).fold(0.0, f64::max),
            bytes_read: of(&|pair| pair.done.figures.read as f64) as u64,
            bytes_changed: moved.changed,
            peer_cpu_s: of(&|pair| pair.peer.cpu_s),
            peer_rss_mib: of(&|pair| pair.peer.rss_mib),
            mb_s: rate(warmd_s),
            peer_mb_s: rate(peer_s),
            in_flight: of(&|pair| pair.done.in_flight_mean),
            in_flight_peak: pairs.iter().map(|pair| pair.done.in_flight_peak).max().unwrap_or_default(),
            commit_share: of(&|pair| pair.done.commit_s / pair.done.pass_s.max(1e-9)),
            bytes_touched: moved.touched,
            pairs: pairs.len(),
            ratio_min: pairs.iter().map(ratio).fold(f64::INFINITY, f64::min),
            ratio_max: pairs.iter().map(ratio).fold(0.0, f64::max),
            note,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// The rows of a case as text.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header([
        "peer",
        "ratio",
        "(of pairs)",
        "warmd s",
        "(pass)",
        "peer s",
        "MB/s",
        "peer",
        "CPU s",
        "peer",
        "RSS MiB",
        "peer",
        "in flight",
        "commits",
        "note",
    ]);
    for row in rows {
        table.add_row([
            row.peer.clone(),
            format!("{:.2}", row.ratio),
            format!("{:.2}–{:.2}", row.ratio_min, row.ratio_max),
            format!("{:.3}", row.warmd_s),
            format!("{:.3}", row.pass_s),
            format!("{:.3}", row.peer_s),
            format!("{:.0}", row.mb_s),
            format!("{:.0}", row.peer_mb_s),
            format!("{:.2}", row.cpu_s),
            format!("{:.2}", row.peer_cpu_s),
            format!("{:.0}", row.rss_mib),
            format!("{:.0}", row.peer_rss_mib),
            format!("{:.0}/{}", row.in_flight, row.in_flight_peak),
            format!("{:.1} %", row.commit_share * 100.0),
            row.note.clone(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(13) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
