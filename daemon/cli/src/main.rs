//! `warmctl`: the operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    warmd_cli::main()
}
