//! `warmd`: the daemon's command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warmd_daemon::{app, config::Config};

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
    /// Read the configuration, say what is wrong with it, and change nothing.
    CheckConfig {
        /// The configuration file.
        #[arg(long, default_value = "/etc/warmd/warmd.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let (path, run) = match Arguments::parse().command {
        Command::Serve { config } => (config, true),
        Command::CheckConfig { config } => (config, false),
    };
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("warmd: {error}");
            return ExitCode::from(2);
        }
    };
    if !run {
        println!("{}: all right", path.display());
        return ExitCode::SUCCESS;
    }
    config.log.start();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmd: {error:#}");
            ExitCode::FAILURE
        }
    }
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
