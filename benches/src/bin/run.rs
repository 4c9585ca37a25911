//! `bench-run`: warmd and its peers side by side. `benches/run` builds everything and calls it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use warmd_benches::{cases, pairs::Bench, report};
use warmd_tests::interrupt;

/// warmd's engine and its peers in turn, on the same images over the same servers. A ratio above 1: warmd is faster.
#[derive(Parser)]
#[command(name = "benches/run")]
struct Arguments {
    /// Small disks, one pair, no warm-up: only whether every case runs and ends equal.
    #[arg(long)]
    quick: bool,
    /// Write the results there as a JSON array: one object for each case and peer.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the cases' names and end.
    #[arg(long)]
    list: bool,
    /// Pairs that count, for each peer.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Only these peers; may be given more than once.
    #[arg(long = "peer", value_name = "PEER")]
    peers: Vec<String>,
    /// Where the images are made: 16 GiB must be free.
    #[arg(long, value_name = "DIR", env = "WARMD_BENCH_DIR")]
    dir: Option<PathBuf>,
    /// The images are made in memory.
    #[arg(long, conflicts_with = "dir")]
    tmpfs: bool,
    /// Words for the engine, for tuning: see `bench-engine pass --help`.
    #[arg(
        long,
        value_name = "WORDS",
        env = "WARMD_BENCH_ENGINE",
        default_value = "",
        allow_hyphen_values = true
    )]
    engine: String,
    /// Cases, or parts of their names; all if none is given.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let is_name = |word: &str| cases::all().iter().any(|case| case.name == word);
    let fits = |word: &String, name: &str| if is_name(word) { name == word } else { name.contains(word) };
    let wanted =
        |name: &str| arguments.cases.is_empty() || arguments.cases.iter().any(|word| fits(word, name));
    let cases: Vec<_> = cases::all().into_iter().filter(|case| wanted(&case.name)).collect();
    ensure!(!cases.is_empty(), "no case is called {:?}: see --list", arguments.cases);
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    interrupt::catch()?;
    let own = std::env::current_exe()?;
    let bench = Bench {
        below: match &arguments.dir {
            Some(dir) => dir.clone(),
            None if arguments.tmpfs => "/dev/shm".into(),
            None => std::env::temp_dir(),
        },
        programs: own.parent().context("no directory of our own")?.to_owned(),
        pairs: if arguments.quick { 1 } else { arguments.pairs.max(1) },
        warm_up: !arguments.quick,
        engine_words: arguments.engine.split_whitespace().map(str::to_owned).collect(),
        peers: arguments.peers.clone(),
    };
    let mut rows = Vec::new();
    for case in cases {
        let case = if arguments.quick { case.quick() } else { case };
        let new = bench.run(&case).with_context(|| case.name.clone())?;
        println!("{}", report::table(&new));
        rows.extend(new);
        if let Some(file) = &arguments.json {
            std::fs::write(file, serde_json::to_string_pretty(&rows)?)
                .with_context(|| file.display().to_string())?;
        }
    }
    Ok(())
}
