//! `bench-run`: warmd and its peers side by side. `benches/run` builds everything and calls it.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use warmd_benches::{
    bars::{self, Bar},
    cases::{self, Case},
    children::ProcessGroup,
    daemon, fixture, huge,
    pairs::Bench,
    report::{self, Row},
    vsphere_list,
};
use warmd_tests::interrupt;

/// warmd's engine and its peers in turn, on the same images over the same servers. A ratio above 1: warmd is
/// faster.
#[derive(Parser)]
#[command(name = "benches/run")]
struct Arguments {
    /// Small disks, one pair, no warm-up: only whether every case runs and ends equal.
    #[arg(long)]
    quick: bool,
    /// Write the results to this file as a JSON array: one object for each case and peer.
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
    /// Directory for the images: 16 GiB must be free.
    #[arg(long, value_name = "DIR", env = "WARMD_BENCH_DIR")]
    dir: Option<PathBuf>,
    /// Create the images in memory.
    #[arg(long, conflicts_with = "dir")]
    tmpfs: bool,
    /// Options for the engine, for tuning: see `bench-engine pass --help`.
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

/// The cases that a name can select.
enum Job {
    Case(Box<Case>),
    Huge,
    Daemon,
    VsphereList,
}

impl Job {
    fn all() -> Vec<Self> {
        let cases = cases::all().into_iter().map(|case| Self::Case(Box::new(case)));
        cases.chain([Self::Huge, Self::Daemon, Self::VsphereList]).collect()
    }

    fn name(&self) -> &str {
        match self {
            Self::Case(case) => &case.name,
            Self::Huge => huge::NAME,
            Self::Daemon => daemon::NAME,
            Self::VsphereList => vsphere_list::NAME_OF_CASE,
        }
    }

    /// Whether the case has any of the wanted peers.
    fn has_peers(&self, bench: &Bench) -> bool {
        match self {
            Self::Case(case) => case.peers.iter().any(|peer| bench.wants(*peer)),
            Self::Huge | Self::Daemon | Self::VsphereList => true,
        }
    }

    fn run(&self, bench: &Bench, blake3: f64) -> Result<(Vec<Row>, Vec<Bar>)> {
        match self {
            Self::Huge => huge::run(bench),
            Self::Daemon => daemon::run(bench),
            Self::VsphereList => vsphere_list::run(bench),
            Self::Case(case) => {
                let case = if bench.quick { case.as_ref().clone().quick() } else { case.as_ref().clone() };
                let rows = bench.run(&case)?;
                let bars = bars::of(&case, &rows, blake3);
                Ok((rows, bars))
            }
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let all = Job::all();
    let is_name = |word: &str| all.iter().any(|job| job.name() == word);
    let fits = |word: &String, name: &str| if is_name(word) { name == word } else { name.contains(word) };
    let wanted =
        |name: &str| arguments.cases.is_empty() || arguments.cases.iter().any(|word| fits(word, name));
    let jobs: Vec<_> = all.iter().filter(|job| wanted(job.name())).collect();
    ensure!(!jobs.is_empty(), "no case is called {:?}: see --list", arguments.cases);
    if arguments.list {
        for job in jobs {
            println!("{}", job.name());
        }
        return Ok(());
    }
    interrupt::catch()?;
    let bench = bench(arguments)?;
    let blake3 = grounds(&bench)?;
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for job in jobs {
        if !job.has_peers(&bench) {
            continue;
        }
        println!("\n{}", job.name());
        let (new, judged) = job.run(&bench, blake3).with_context(|| job.name().to_owned())?;
        println!("{}", report::table(&new));
        if !bench.quick {
            for bar in &judged {
                println!("  {bar}");
            }
            bars.extend(judged);
        }
        rows.extend(new);
        if let Some(file) = &arguments.json {
            let text = serde_json::to_string_pretty(&rows)?;
            std::fs::write(file, text).with_context(|| file.display().to_string())?;
        }
    }
    summary(&bars);
    Ok(())
}

fn bench(arguments: &Arguments) -> Result<Bench> {
    let own = std::env::current_exe()?;
    let place = match &arguments.dir {
        Some(dir) => dir.clone(),
        None if arguments.tmpfs => "/dev/shm".into(),
        None => std::env::temp_dir(),
    };
    Ok(Bench {
        below: place.canonicalize().with_context(|| place.display().to_string())?,
        programs: own.parent().context("no directory of our own")?.to_owned(),
        pairs: if arguments.quick { 1 } else { arguments.pairs.max(1) },
        quick: arguments.quick,
        engine_words: arguments.engine.split_whitespace().map(str::to_owned).collect(),
        peers: arguments.peers.clone(),
    })
}

/// Prints the machine's rates; returns one core's rate of BLAKE3, in bytes a second.
fn grounds(bench: &Bench) -> Result<f64> {
    let mut rates = Command::new(bench.programs.join("bench-peer"));
    let said = ProcessGroup::spawn(rates.arg("rates"))?.output(fixture::DEADLINE)?;
    let (memcpy, blake3) = said.trim().split_once(' ').context("no rates")?;
    let (memcpy, blake3): (f64, f64) = (memcpy.parse()?, blake3.parse()?);
    println!(
        "{} cores; memcpy {:.1} GB/s, BLAKE3 {:.1} GB/s on one of them; images in {}, page cache warm",
        std::thread::available_parallelism()?,
        memcpy / 1e9,
        blake3 / 1e9,
        bench.below.display()
    );
    Ok(blake3)
}

fn summary(bars: &[Bar]) {
    let missed: Vec<_> = bars.iter().filter(|bar| !bar.met()).collect();
    if !bars.is_empty() {
        println!("\n{} of {} bars met", bars.len() - missed.len(), bars.len());
    }
    for bar in missed {
        println!("  {}: {bar}", bar.case);
    }
}
