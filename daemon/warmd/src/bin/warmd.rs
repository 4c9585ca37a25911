//! `warmd`: the daemon's command line.

use std::{
    io::{IsTerminal, Write as _},
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warmd_core::format;
use warmd_daemon::{app, config::Config};
use warmd_report::manifest_root::{RawImage, RootError};

/// More threads than this read no disk faster.
const MOST_THREADS: NonZero<usize> = NonZero::new(64).expect("it is not zero");

/// The warm-migration replication daemon: it moves running VMs, and proves that nothing was lost.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT; passes that run then commit what they have copied.
    ///
    /// Exit codes: 0 stopped on request, 1 failed, 2 the configuration or the command line is wrong.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = "/etc/warmd/warmd.toml")]
        config: PathBuf,
    },
    /// Read the configuration and the API's TLS files, say what is wrong with them, and change nothing.
    CheckConfig {
        /// The configuration file.
        #[arg(long, default_value = "/etc/warmd/warmd.toml")]
        config: PathBuf,
    },
    /// Look after the state, whether the daemon runs or not; nothing of it is changed.
    State {
        #[command(subcommand)]
        command: StateCommand,
    },
    /// Compute the manifest root of a raw image or a block device, as reports have it of the disk that was
    /// copied there.
    ///
    /// It reads the file and nothing else. daemon/docs/report-format.md says how the root is defined. Exit
    /// codes: 0 done, 1 failed.
    Root {
        /// A raw image or a block device that no program writes to meanwhile.
        file: PathBuf,
        /// Bytes of the disk, where the volume is larger than the disk that was copied to it.
        #[arg(long, value_name = "BYTES")]
        size: Option<u64>,
        /// Threads that read and hash; one for each processor if not given.
        #[arg(long, value_name = "N")]
        threads: Option<NonZero<usize>>,
    },
    /// The daemon's own child, which converts or inspects a guest: it reads its order from standard input.
    #[command(name = warmd_v2v::SUBCOMMAND, hide = true)]
    VirtV2v {
        /// Read the guest, and change nothing.
        #[arg(long)]
        inspect: bool,
    },
}

#[derive(Subcommand, Debug)]
enum StateCommand {
    /// Copy the state as it is at one moment to a new file, also while the daemon works.
    ///
    /// A plain copy (`cp`) of the files of a live state may be torn. Keep `report.key` beside it: it signs
    /// the reports.
    Backup {
        /// The new file; it must not be there.
        file: PathBuf,
        /// The configuration file.
        #[arg(long, default_value = "/etc/warmd/warmd.toml")]
        config: PathBuf,
    },
    /// Read all of the state, and say what is wrong with it. Exit codes: 0 nothing, 1 something.
    Check {
        /// The configuration file.
        #[arg(long, default_value = "/etc/warmd/warmd.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let (path, run) = match Arguments::parse().command {
        Command::Serve { config } => (config, true),
        Command::CheckConfig { config } => (config, false),
        Command::Root { file, size, threads } => return root(&file, size, threads),
        Command::State { command } => return state(command),
        Command::VirtV2v { inspect } => return warmd_v2v::main(inspect),
    };
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("warmd: {error}");
            return ExitCode::from(2);
        }
    };
    if !run {
        return match config.listen.check() {
            Ok(()) => say(&format!("{}: all right", path.display())),
            Err(error) => {
                eprintln!("warmd: {}: [listen.tls]: {error}", path.display());
                ExitCode::from(2)
            }
        };
    }
    config.log.start();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmd: {}", format::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn state(command: StateCommand) -> ExitCode {
    let (StateCommand::Backup { config, .. } | StateCommand::Check { config }) = &command;
    let dir = match Config::load(config) {
        Ok(config) => config.state_dir,
        Err(error) => {
            eprintln!("warmd: {error}");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        StateCommand::Backup { file, .. } => warmd_store::back_up(&dir, &file).map(|()| {
            say(&format!(
                "{}: the state of this moment; keep {} too",
                file.display(),
                dir.join("report.key").display()
            ))
        }),
        StateCommand::Check { .. } => warmd_store::look_over(&dir).map(|found| {
            if found.is_empty() {
                return say(&format!("{}: all right", dir.display()));
            }
            say(&found.join("\n"));
            ExitCode::FAILURE
        }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("warmd: {error}");
        ExitCode::FAILURE
    })
}

/// Prints an answer; one that no reader gets is a failure.
fn say(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmd: cannot print {text:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn root(file: &Path, size: Option<u64>, threads: Option<NonZero<usize>>) -> ExitCode {
    let threads =
        threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZero::<usize>::MIN);
    let computed = RawImage::open(file, size).and_then(|image| {
        if image.looks_like_qcow2() {
            eprintln!("warmd: {} looks like a qcow2 image: a root is of a raw disk", file.display());
        }
        follow(&image, threads.min(MOST_THREADS))
    });
    match computed {
        Ok(root) => say(&format!("{root}  {}", file.display())),
        Err(error) => {
            eprintln!("warmd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Computes the root, and shows how far it is to the user.
fn follow(image: &RawImage, threads: NonZero<usize>) -> Result<String, RootError> {
    let done = AtomicU64::new(0);
    if !std::io::stderr().is_terminal() {
        return image.root(threads, &done);
    }
    let bar = indicatif::ProgressBar::new(image.size());
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    ) {
        bar.set_style(style);
    }
    std::thread::scope(|scope| {
        let (ended, over) = std::sync::mpsc::channel::<()>();
        scope.spawn({
            let (bar, done) = (&bar, &done);
            move || {
                while over.recv_timeout(Duration::from_millis(200))
                    == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    bar.set_position(done.load(Relaxed));
                }
            }
        });
        let root = image.root(threads, &done);
        drop(ended);
        bar.finish_and_clear();
        root
    })
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asked = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("asked to stop");
            asked.cancel();
        });
        app::serve(config, shutdown).await
    });
    // Blocking jobs that hang (a dead NFS mount) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    result
}
