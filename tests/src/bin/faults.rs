//! Runs the rows of the fault table and prints it. See `tests/faults`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use warmd_tests::{
    faults::{Row, rows, run},
    interrupt,
};

#[derive(Debug)]
struct Arguments {
    rounds: u32,
    seed: u64,
    list: bool,
    short: bool,
    rows: Vec<String>,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| faults(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn arguments() -> Result<Arguments> {
    let mut parsed =
        Arguments { rounds: 1, seed: rand::random(), list: false, short: false, rows: Vec::new() };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut number = || given.next().with_context(|| format!("{argument} needs a number"));
        match argument.as_str() {
            // No row would survive.
            "--rounds" => parsed.rounds = number()?.parse::<std::num::NonZeroU32>()?.get(),
            "--seed" => parsed.seed = number()?.parse()?,
            "--list" => parsed.list = true,
            "--short" => parsed.short = true,
            _ if argument.starts_with('-') => bail!("{argument} is no option of mine"),
            _ => parsed.rows.push(argument),
        }
    }
    Ok(parsed)
}

/// Whether all rows survived.
fn faults(arguments: &Arguments) -> Result<bool> {
    let all = rows();
    if let Some(unknown) = arguments.rows.iter().find(|name| !all.iter().any(|row| row.name == **name)) {
        bail!("there is no row {unknown:?}: see --list");
    }
    let wanted = |row: &&Row| {
        if arguments.rows.is_empty() {
            row.short || !arguments.short
        } else {
            arguments.rows.iter().any(|name| name == row.name)
        }
    };
    let rows: Vec<&Row> = all.iter().filter(wanted).collect();
    if arguments.list {
        for row in rows {
            let short = if row.short { "short" } else { "" };
            println!("{:<9} {:<26} {short:<6} {}", row.place, row.name, row.fault);
        }
        return Ok(true);
    }
    interrupt::catch()?;
    println!("seed {}", arguments.seed);
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut table = Vec::new();
    let (mut survived_all, mut all_runs, mut all_lost) = (true, 0, 0);
    for row in rows {
        let (mut survived, mut lost, mut seconds) = (0, 0, 0.0);
        for round in 0..arguments.rounds {
            let outcome = run(row, arguments.seed.wrapping_add(u64::from(round)), arguments.short);
            seconds += outcome.took.as_secs_f64();
            lost += u32::from(outcome.lost());
            match &outcome.result {
                Ok(()) => survived += 1,
                Err(error) => println!("FAILED {} in round {}: {error:#}", row.name, round + 1),
            }
            interrupt::check()?;
        }
        survived_all &= survived == arguments.rounds;
        all_runs += arguments.rounds;
        all_lost += lost;
        let (place, name, runs, fault) = (row.place, row.name, arguments.rounds, row.fault);
        let line =
            format!("{place:<9} {name:<width$} {runs:>5} {survived:>9} {lost:>5} {seconds:>8.1}  {fault}");
        println!("{line}");
        table.push(line);
    }
    println!(
        "\n{:<9} {:<width$} {:>5} {:>9} {:>5} {:>8}  WHAT HAPPENS",
        "WHERE", "FAULT", "RUNS", "SURVIVED", "LOST", "SECONDS"
    );
    for line in table {
        println!("{line}");
    }
    println!("{all_runs} runs, {all_lost} lost; replay with --seed {}", arguments.seed);
    Ok(survived_all)
}
