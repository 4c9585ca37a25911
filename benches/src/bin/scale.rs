//! `bench-scale`: hundreds of VMs in a plan. `benches/scale` builds everything and calls it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;
use warmd_benches::{
    bars::Bar,
    scale::{self, Figures, Size, serve},
};
use warmd_tests::interrupt;

/// 500 VMs in a plan and 2,000 disks in the daemon, over simulated endpoints: the cost of scheduling, how
/// fast the API answers, and how fast the daemon is ready after a restart.
///
/// Exit codes: 0 all bars are met, 1 some are not, or an error occurred.
#[derive(Parser)]
#[command(name = "benches/scale", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Few VMs and a few seconds, and no bars: only a test that everything works.
    #[arg(long)]
    quick: bool,
    /// Write the figures and the bars to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The daemon that is measured.
    #[command(hide = true)]
    Serve { dir: PathBuf, vms: usize, disks: usize },
}

#[derive(Serialize)]
struct Told<'a> {
    figures: &'a Figures,
    bars: Vec<ToldBar<'a>>,
}

#[derive(Serialize)]
struct ToldBar<'a> {
    what: &'a str,
    value: f64,
    met: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("benches/scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all bars are met.
fn run(arguments: Arguments) -> Result<bool> {
    if let Some(Command::Serve { dir, vms, disks }) = arguments.command {
        return serve::serve(&dir, Size { vms, disks, ..Size::FULL }).map(|()| true);
    }
    interrupt::catch()?;
    let own = std::env::current_exe()?;
    let programs = own.parent().context("no directory of our own")?.to_owned();
    let size = if arguments.quick { Size::QUICK } else { Size::FULL };
    let (figures, mut bars) = scale::run(size, &programs)?;
    if arguments.quick {
        bars.clear();
    }
    for bar in &bars {
        println!("  {bar}");
    }
    if let Some(file) = arguments.json {
        let told = |bar| -> ToldBar<'_> {
            let bar: &Bar = bar;
            ToldBar { what: &bar.what, value: bar.value, met: bar.met() }
        };
        let told = Told { figures: &figures, bars: bars.iter().map(told).collect() };
        let text = serde_json::to_string_pretty(&told)?;
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    let met = bars.iter().filter(|bar| bar.met()).count();
    if !bars.is_empty() {
        println!("{met} of {} bars met", bars.len());
    }
    Ok(met == bars.len())
}
