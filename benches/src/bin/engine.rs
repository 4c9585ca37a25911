//! `bench-engine`: warmd's engine as a separate process, measured beside its peers.
//!
//! Disk locations are files or NBD URIs. Prints one line of JSON: what it did.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use warmd_benches::{
    delta,
    engine::{self, Knobs},
    huge,
};

#[derive(Parser)]
struct Arguments {
    /// The state directory.
    #[arg(long)]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a state with a new disk for each size in bytes.
    Init {
        /// The targets are known to read as zeroes.
        #[arg(long)]
        reads_zero: bool,
        sizes: Vec<u64>,
    },
    /// Copy: all of each disk (comparing with what the manifest says is there), or a delta.
    Pass {
        /// The changed extents: a line `OFFSET LENGTH` for each.
        #[arg(long)]
        extents: Option<PathBuf>,
        #[command(flatten)]
        pairs: Pairs,
    },
    /// Take all of every disk as copied.
    Settle,
    /// Advance the ledger of one huge disk by many evenly scattered blocks, and drain some of them.
    Huge {
        #[arg(long)]
        blocks: u64,
        /// Approximate number of bytes to drain.
        #[arg(long)]
        stop_after: u64,
        #[command(flatten)]
        pairs: Pairs,
    },
    /// Read each target and compare it with its manifest.
    Readback(Pairs),
    /// Read both sides and compare them.
    Compare(Pairs),
}

#[derive(Args)]
struct Pairs {
    #[command(flatten)]
    knobs: KnobArguments,
    /// SOURCE TARGET, for each disk in the state's order.
    #[arg(required = true)]
    places: Vec<String>,
}

impl Pairs {
    fn pairs(&self) -> Result<Vec<(String, String)>> {
        let (pairs, rest) = self.places.as_chunks::<2>();
        ensure!(rest.is_empty(), "a source without a target: {rest:?}");
        Ok(pairs.iter().map(|[source, target]| (source.clone(), target.clone())).collect())
    }
}

/// For tuning; each one that is absent is the engine's default.
#[derive(Args)]
struct KnobArguments {
    #[arg(long)]
    buffers: Option<usize>,
    /// Bytes in one piece of work.
    #[arg(long)]
    chunk: Option<usize>,
    #[arg(long)]
    reads_in_flight: Option<usize>,
    #[arg(long)]
    writes_in_flight: Option<usize>,
    #[arg(long)]
    batch_bytes: Option<u64>,
    /// NBD connections to each source.
    #[arg(long)]
    connections: Option<usize>,
    /// Read file sources past the page cache.
    #[arg(long)]
    direct_source: bool,
    /// Print what each stage of each pass did, as JSON on standard error.
    #[arg(long)]
    telemetry: bool,
}

impl KnobArguments {
    fn knobs(&self) -> Knobs {
        let mut knobs = Knobs::default();
        let transfer = &mut knobs.transfer;
        transfer.buffers = self.buffers.unwrap_or(transfer.buffers);
        transfer.chunk = self.chunk.unwrap_or(transfer.chunk);
        transfer.reads_in_flight = self.reads_in_flight.unwrap_or(transfer.reads_in_flight);
        transfer.writes_in_flight = self.writes_in_flight.unwrap_or(transfer.writes_in_flight);
        transfer.batch_bytes = self.batch_bytes.unwrap_or(transfer.batch_bytes);
        knobs.connections = self.connections;
        knobs.direct_source = self.direct_source;
        knobs.telemetry = self.telemetry;
        knobs
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { state, command } = Arguments::parse();
    let done = match command {
        Command::Init { reads_zero, sizes } => return engine::init(&state, &sizes, reads_zero).await,
        Command::Pass { extents, pairs } => {
            let changed = extents.map(|file| delta::load(&file)).transpose()?;
            engine::pass(&state, &pairs.pairs()?, changed, pairs.knobs.knobs()).await?
        }
        Command::Settle => return engine::settle(&state).await,
        Command::Huge { blocks, stop_after, pairs } => {
            let changed = delta::blocks(huge::SIZE, blocks);
            let (done, advance_s) =
                engine::huge(&state, &pairs.pairs()?, changed, stop_after, pairs.knobs.knobs()).await?;
            println!("{}", serde_json::to_string(&huge::Said { done, advance_s })?);
            return Ok(());
        }
        Command::Readback(pairs) => {
            engine::verify(&state, &pairs.pairs()?, false, pairs.knobs.knobs()).await?
        }
        Command::Compare(pairs) => engine::verify(&state, &pairs.pairs()?, true, pairs.knobs.knobs()).await?,
    };
    println!("{}", serde_json::to_string(&done)?);
    Ok(())
}
