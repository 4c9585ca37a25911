//! Faults, each a row: what fails where, a function that causes it in a real migration, and the final checks
//! that all rows share (`end.rs`). `tests/faults` runs them and prints the table.
//!
//! Rule: a row that cannot show that its fault happened has failed.
//!
//! To add a fault: one line in the `ROWS` of its module.

mod cutover;
mod daemon;
mod domain;
mod end;
mod hold_off;
mod kills;
mod network;
mod proxy;
mod shim;
mod source;
mod sqlite;
mod stage;
mod target;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::{SeedableRng as _, rngs::StdRng};

pub use end::LostRecords;
pub use stage::{FaultEnd, FaultStage};

use crate::TestDir;

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The part of the table.
    pub place: &'static str,
    pub name: &'static str,
    /// What happens, as text.
    pub fault: &'static str,
    /// Whether it is in the short form.
    pub short: bool,
    pub run: fn(&mut FaultStage<'_>) -> Result<()>,
}

const fn row(
    place: &'static str,
    name: &'static str,
    fault: &'static str,
    short: bool,
    run: fn(&mut FaultStage<'_>) -> Result<()>,
) -> Row {
    Row { place, name, fault, short, run }
}

/// All rows, in the table's order.
pub fn rows() -> Vec<Row> {
    [
        daemon::ROWS,
        kills::ROWS,
        sqlite::ROWS,
        source::ROWS,
        domain::ROWS,
        target::ROWS,
        network::ROWS,
        cutover::ROWS,
        hold_off::ROWS,
    ]
    .concat()
}

/// The result of one run of a row.
#[derive(Debug)]
pub struct FaultOutcome {
    pub took: Duration,
    pub result: Result<()>,
}

impl FaultOutcome {
    /// Whether bytes or records were lost, or two VMs ran.
    pub fn lost(&self) -> bool {
        self.result.as_ref().is_err_and(|error| error.downcast_ref::<LostRecords>().is_some())
    }
}

/// Runs a row once with random numbers from `seed`; after a failure its files are kept and named.
pub fn run(row: &Row, seed: u64, short: bool) -> FaultOutcome {
    let begun = Instant::now();
    let result = TestDir::new().and_then(|dir| {
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut stage = FaultStage::new(&dir, StdRng::seed_from_u64(seed), short);
            (row.run)(&mut stage)?;
            end::check(&mut stage)
        }));
        let result = attempt.unwrap_or_else(|panic| Err(anyhow!("it panicked: {}", words(&*panic))));
        if result.is_err() {
            eprintln!("---- {} kept for a look: {}", row.name, dir.keep().display());
        }
        result
    });
    FaultOutcome { took: begun.elapsed(), result }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let mut names: Vec<_> = rows().iter().map(|row| row.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
