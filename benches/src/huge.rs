//! The case `ledger-64tib`: what a ledger of 64 TiB with ten million scattered extents costs.
//!
//! Rule: there is no peer; the figures are compared with their bars. What the pass drained before its stop is
//! a prefix of the extents in the disk's order, and every block of it is compared.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use warmd_cbt::units::BLOCK;

use crate::{
    bars::{Bar, BarLimit},
    children::ProcessGroup,
    client::BenchClient,
    delta,
    engine::Done,
    fixture::DEADLINE,
    pairs::{Bench, Pair},
    report::{BenchTotals, Row},
    servers::Server,
    side::BenchSide,
};

/// The case's name.
pub const NAME: &str = "ledger-64tib";
/// Bytes on the disk.
pub const SIZE: u64 = 64 << 40;
/// Blocks that changed, and bytes after which the pass is stopped.
const FULL: (u64, u64) = (10_000_000, 4 << 30);
const QUICK: (u64, u64) = (100_000, 16 << 20);

/// The output of `bench-engine huge`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Said {
    pub done: Done,
    pub advance_s: f64,
}

/// Runs it, once.
pub fn run(bench: &Bench) -> Result<(Vec<Row>, Vec<Bar>)> {
    let (blocks, stop_after) = if bench.quick { QUICK } else { FULL };
    let dir = tempfile::Builder::new().prefix("warmd-bench-").tempdir_in(&bench.below)?;
    let state = dir.path().join("state");
    let engine = bench.programs.join("bench-engine");
    for words in [&["init", &SIZE.to_string()][..], &["settle"]] {
        let mut command = Command::new(&engine);
        ProcessGroup::spawn(command.arg("--state").arg(&state).args(words))?.output(DEADLINE)?;
    }
    let server = |name: &str, words: [String; 2]| {
        let server = Server::nbdkit(dir.path().join(format!("{name}.sock")), words)?;
        let place = BenchSide::Export { socket: server.socket().to_owned(), name: String::new() };
        anyhow::Ok((server, place.name()))
    };
    let (source, from) = server("source", ["pattern".to_owned(), SIZE.to_string()])?;
    let (target, to) = server("target", ["memory".to_owned(), SIZE.to_string()])?;
    let words = [
        engine.display().to_string(),
        "--state".to_owned(),
        state.display().to_string(),
        "huge".to_owned(),
        format!("--blocks={blocks}"),
        format!("--stop-after={stop_after}"),
        from,
        to,
    ];
    let (measured, said) = bench.at_once(&[(words.to_vec(), Vec::new())])?;
    let said: Said = serde_json::from_str(&said).with_context(|| format!("bench-engine said {said:?}"))?;
    compare(&source, &target, blocks, said.done.figures.drained / BLOCK)?;

    let pair = Pair { warmd: measured, done: said.done, peer: measured };
    let moved = BenchTotals { changed: said.done.figures.drained, touched: said.done.figures.drained };
    let note =
        format!("{blocks} extents: advance {:.2} s, then {:.2} s of pass", said.advance_s, said.done.pass_s);
    let row = Row::new(NAME, "itself", moved, note, &[pair]);
    let bars = vec![
        Bar::new(NAME, "advance in seconds", said.advance_s, BarLimit::AtMost(2.0)),
        Bar::new(NAME, "peak RSS in MiB", measured.rss_mib, BarLimit::AtMost(400.0)),
        Bar::new(NAME, "commits' share of the pass", row.commit_share, BarLimit::AtMost(0.03)),
    ];
    Ok((vec![row], bars))
}

fn compare(source: &Server, target: &Server, blocks: u64, drained: u64) -> Result<()> {
    ensure!(drained > 0, "nothing was drained");
    let (mut left, mut right) =
        (BenchClient::open(source.socket(), "")?, BenchClient::open(target.socket(), "")?);
    let mut buffers = [vec![0; BLOCK as usize], vec![0; BLOCK as usize]];
    for extent in delta::blocks(SIZE, blocks).take(drained as usize) {
        let [one, two] = &mut buffers;
        left.read(extent.start().0, one)?;
        right.read(extent.start().0, two)?;
        ensure!(one == two, "the target differs in {extent}");
    }
    Ok(())
}
