//! `bench-forecast`: the accuracy of the downtime forecast. `benches/forecast` builds everything and calls
//! it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use serde::Serialize;
use warmd_benches::downtime::{self, Run};
use warmd_tests::interrupt;

/// Of ten forecasts, this many must be right.
const RIGHT: f64 = 0.9;

/// Real guests with workloads of many rates are cut over: does the downtime lie in the interval that was
/// forecast?
///
/// Exit codes: 0 in nine of ten runs it does, 1 it does not, or an error occurred.
#[derive(Parser)]
#[command(name = "benches/forecast")]
struct Arguments {
    /// Number of guests, moved one after the other.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Seed of the workloads; random and printed if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the runs to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Told<'a> {
    seed: u64,
    runs: &'a [Run],
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("benches/forecast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    interrupt::catch()?;
    let seed = arguments.seed.unwrap_or_else(|| rand::random_range(0..100_000));
    println!("seed {seed}");
    let runs = downtime::run(arguments.runs, seed)?;
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&Told { seed, runs: &runs })?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    let inside = runs.iter().filter(|run| run.is_inside).count();
    let mut errors: Vec<_> = runs.iter().map(|run| run.error.abs()).collect();
    errors.sort_by(f64::total_cmp);
    let (median, most) = (errors.get(errors.len() / 2), errors.last());
    println!(
        "{inside} of {} inside; the expected downtime was off by {:.0} % in the median, {:.0} % at most",
        runs.len(),
        median.copied().unwrap_or_default(),
        most.copied().unwrap_or_default()
    );
    Ok(inside as f64 >= (runs.len() as f64 * RIGHT).floor())
}
