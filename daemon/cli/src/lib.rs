//! `warmctl`: a client of the control API for operators and scripts.
//!
//! Rule: it knows the daemon by `warmd.v1` alone. It decides nothing and hides nothing: refusals are shown as
//! they came, and the exit code gives the outcome of the request.
//!
//! Knows the contract and the nouns of `core`; not SQLite, not libvirt, not the daemon.
#![forbid(unsafe_code)]

mod access;
mod address;
mod args;
mod client;
mod command;
mod contexts;
mod endpoints;
mod events;
mod failure;
mod follow;
mod groups;
mod labels;
mod limits;
mod migration_stream;
mod migrations;
mod new_plan;
mod out;
mod plans;
mod quotas;
mod reports;
mod schedules;
mod screen;
mod show;
mod table;
mod tls;
mod top;
mod vms;
mod width;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use self::{args::Args, contexts::ChosenDaemon, out::Out};

/// Reads the command line, runs the command, and returns the outcome.
pub fn main() -> ExitCode {
    let parsed = Args::command()
        .try_get_matches()
        .and_then(|matches| Ok((Args::from_arg_matches(&matches)?, ChosenDaemon::of(&matches))));
    let (args, chosen) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let usage = error.use_stderr();
            // The reader may be gone (`| head`): nothing is left to do about it.
            error.print().ok();
            return if usage { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out::complain(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let out = Out::new(args.output, args.wide);
    match runtime.block_on(command::run(args.command, chosen, &out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                out::complain(&failure.message);
            }
            failure.exit.code()
        }
    }
}
