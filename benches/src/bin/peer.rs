//! `bench-peer`: the peers' loops and the grounds, each as a separate process; and the parent that measures a
//! process.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use warmd_benches::{delta, grounds, loops, measure, side::BenchSide};

#[derive(Parser)]
enum Command {
    /// Run a command, sync files, and print the measures as the last line.
    Measure {
        #[arg(long)]
        sync: Vec<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(flatten)]
    Loop(Loop),
    /// Read a source's data in order.
    Read { source: String },
    /// Hash this many bytes with this many threads.
    Hash { bytes: u64, threads: u64 },
    /// Print the rates of memcpy and BLAKE3, in bytes a second.
    Rates,
}

#[derive(Subcommand)]
enum Loop {
    /// Copy as CDI's VDDK reader does.
    Cdi(Copy),
    /// Copy a delta as migratekit does.
    Migratekit(Copy),
    /// Copy as `dd` does, data only.
    Dd(Copy),
}

#[derive(Args)]
struct Copy {
    /// The changed extents: a line `OFFSET LENGTH` for each.
    #[arg(long)]
    extents: Option<PathBuf>,
    source: String,
    target: String,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Measure { sync, command } => {
            println!("{}", serde_json::to_string(&measure::run(&command, &sync)?)?);
        }
        Command::Loop(Loop::Cdi(copy)) => copy.run(loops::cdi)?,
        Command::Loop(Loop::Migratekit(copy)) => copy.run(loops::migratekit)?,
        Command::Loop(Loop::Dd(copy)) => copy.run(loops::dd)?,
        Command::Read { source } => loops::read(&BenchSide::parse(&source))?,
        Command::Hash { bytes, threads } => grounds::hash(bytes, threads),
        Command::Rates => println!("{} {}", grounds::memcpy(), grounds::blake3_rate()),
    }
    Ok(())
}

impl Copy {
    fn run(
        &self,
        work: fn(&BenchSide, &BenchSide, Option<&[warmd_cbt::units::Extent]>) -> Result<()>,
    ) -> Result<()> {
        let extents = self.extents.as_deref().map(delta::load).transpose()?;
        work(&BenchSide::parse(&self.source), &BenchSide::parse(&self.target), extents.as_deref())
    }
}
