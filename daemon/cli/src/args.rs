//! The command line.

#[cfg(test)]
mod documented;
mod plan;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use warmd_core::model::{
    limit::{rate, requests},
    verify::VerifyScope,
};

pub(super) use self::plan::{CutoverWhen, PlanCommand};
use super::{access::AccessCommand, contexts::ContextCommand, schedules::ScheduleCommand};

const DETAILS: &str = "\
MIGRATION is the VM's name if exactly one unfinished migration moves that VM. In any case it can be the migration's \
id, or a unique beginning or end of the id (at least four characters).

First steps: `source vms`, `plan new`, `plan apply`, `migration list`, `migration show`, `migration cutover`.

Tables: on a terminal they fit its width, or that of the environment variable COLUMNS. Long values are cut in the \
middle (…), and columns that do not fit are named below the table. --wide shows all. A pipe or a file gets every value \
whole, one row a line, unless COLUMNS is set. Times are UTC. A dash means: none, or not known yet.

JSON (-o json): the messages of the API warmd.v1 with their field names; absent fields are null. Enum values are \
lower-case with dashes (\"cutting-over\"), sizes are numbers of bytes, times RFC 3339, lengths of time seconds with \
an s (\"12.500s\"). Lists are an object with one array: `migration list` is {\"migrations\": [...]}. `migration show` \
is the migration itself. `migration watch` prints one migration a line, at each change. Commands that follow an \
operation (cutover, sync, verify, cancel, rollback) print one object when the operation has ended: {\"answer\", \
\"outcome\", \"reason\", \"migration\"}, where answer is \"accepted\" or \"no-change\", and outcome is \"done\", \
\"failed\" or, with --no-wait, \"begun\". Later versions may add fields, and never rename one.

Exit codes:
    0  done
    1  the operation failed: a cutover was undone, a verification found differences, an endpoint does not answer
    2  the command line is wrong
    3  the daemon cannot be reached
    4  the named object does not exist
    5  refused: the plan has an error, the migration's state does not allow the request, or your role does not
  130  interrupted while following; the operation continues in the daemon";

/// Control warmd, the daemon that moves running VMs to a new platform.
#[derive(Debug, Parser)]
#[command(name = "warmctl", version, after_long_help = DETAILS, after_help = "--help also explains how to name a migration, tables, JSON and exit codes.")]
pub(super) struct Args {
    /// The daemon's socket [default: that of the context in use, or /run/warmd/warmd.sock]
    #[arg(long, env = "WARMD_SOCKET", value_name = "PATH", global = true)]
    pub(super) socket: Option<PathBuf>,
    /// The daemon by its name: see `warmctl context`
    #[arg(long, env = "WARMD_CONTEXT", value_name = "NAME", global = true)]
    pub(super) context: Option<String>,
    /// The form of the output: tables to read, or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORM", global = true)]
    pub(super) output: Format,
    /// Show tables whole: no value cut, no column left out, one row a line
    #[arg(long, global = true)]
    pub(super) wide: bool,
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// The sources, where VMs come from: list them, test them, list their VMs
    #[command(subcommand)]
    Source(SourceCommand),
    /// The targets, where VMs go to: list them, test them
    #[command(subcommand)]
    Target(TargetCommand),
    /// Plans: which VMs move, from which source to which target, when and how
    #[command(subcommand)]
    Plan(PlanCommand),
    /// When the next passes and cutovers of a plan run, and why
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Migrations, one for each VM: show, copy, pause, cut over, verify, report
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// All migrations on one screen, with keys to control them
    Top,
    /// Limits of the transfer rate and of requests in flight; quotas by time of day
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Signed reports: check one, print the public key
    #[command(subcommand)]
    Report(ReportCommand),
    /// Who may do what: roles of client certificates, users and groups
    #[command(subcommand)]
    Access(AccessCommand),
    /// Daemons by name, also on other hosts; which one warmctl talks to
    #[command(subcommand)]
    Context(ContextCommand),
    /// The journal: every decision and request, who made it and why
    Events {
        /// Only lines about this migration: the VM's name, or the migration's id, its beginning or its end
        #[arg(value_name = "MIGRATION")]
        id: Option<String>,
        /// Print the last N lines
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Then print each new line, until Ctrl-C; waits for a daemon that restarts, and misses no line
        #[arg(long, short)]
        follow: bool,
    },
    /// Print a completion script, for example for ~/.local/share/bash-completion/completions/warmctl
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SourceCommand {
    /// List the sources of the daemon's configuration
    List,
    /// Test the connection to one source, or to all
    ///
    /// Also lists what migrations that are finished, lost, or of another warmd left on the source's VMs
    /// (checkpoints, bitmaps), each with the command that removes it.
    Check {
        /// The source's name in the daemon's configuration
        name: Option<String>,
    },
    /// List the VMs of a source: disks, change tracking, and what is an obstacle to a migration
    ///
    /// The list is from the source's last answer; the daemon asks every five minutes. The line below the
    /// table says when that was. TRACKED is the number of disks of which the source can tell what changed.
    Vms {
        /// The source's name in the daemon's configuration
        name: String,
        #[command(flatten)]
        filter: VmFilter,
        /// Ask the source now, and not the daemon's copy of its last answer
        #[arg(long)]
        refresh: bool,
    },
}

/// Which of a source's VMs are listed: those that all that is given holds for.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct VmFilter {
    /// Only VMs whose name matches: * stands for any characters, ? for one
    #[arg(long = "name", value_name = "GLOB")]
    pub(super) glob: Option<String>,
    /// Only VMs in this state
    #[arg(long, value_enum)]
    pub(super) state: Option<Power>,
    /// Only VMs of which all, some or none of the disks can be tracked
    #[arg(long, value_enum)]
    pub(super) tracking: Option<TrackingFilter>,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Power {
    Running,
    Paused,
    Off,
}

/// Of how many of a VM's disks the source can track changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TrackingFilter {
    All,
    Some,
    None,
}

#[derive(Debug, Subcommand)]
pub(super) enum TargetCommand {
    /// List the targets of the daemon's configuration
    List,
    /// Test the connection to one target, or to all, and whether the daemon can write there
    Check {
        /// The target's name in the daemon's configuration
        name: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrationCommand {
    /// List all migrations, oldest first
    ///
    /// PENDING is what the target still lacks of the last snapshot, FORECAST the downtime of a cutover now.
    List {
        /// Only the migrations of this plan
        #[arg(long, value_name = "PLAN")]
        plan: Option<String>,
    },
    /// Show one migration: state, lag, obstacles and what to do, forecast; then disks, pass, cutover
    Show {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        /// Also show what each stage of the last pass did, and how long the pass waited for it
        #[arg(long)]
        stages: bool,
    },
    /// Print progress: of one migration until it is done or cancelled, or of all until Ctrl-C
    Watch {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: Option<String>,
    },
    /// Copy now what changed since the last pass, and follow that pass; also outside copy windows
    Sync {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Pause replication: a running pass ends early and keeps what it copied; no cutover begins
    Pause {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
    },
    /// Resume after a pause or a failure, where the migration stopped
    Resume {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
    },
    /// Stop the source VM, copy the last delta, verify, start the target VM; now, or at a time
    #[command(after_help = CUTOVERS)]
    Cutover {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        #[command(flatten)]
        when: CutoverWhen,
        /// Begin also outside the plan's cutover windows
        #[arg(long, conflicts_with_all = ["abort", "hold", "unhold"])]
        force: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Go back to the source VM after the target VM was started; loses what the target VM wrote
    #[command(after_help = ROLLBACK)]
    Rollback {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        /// Do not ask: accept the loss of what the target VM wrote
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// End the migration before the target VM is started; remove what it left on source and target
    ///
    /// The source VM goes on running. After the target VM was started, `rollback` goes back to the source VM.
    Cancel {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Read the target's disks again and compare them, with the manifest or with the source
    #[command(after_help = PROOFS, after_long_help = format!("{PROOFS}\n\n{PROOF_DETAILS}"))]
    Verify {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        #[command(flatten)]
        what: VerifyWhat,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Print the evidence of a migration: passes, phases, downtime, verification, requests, signature
    Report {
        #[arg(value_name = "MIGRATION", help = MIGRATION)]
        id: String,
        /// The form of the report; the default is Markdown, or JSON with -o json
        #[arg(long, value_enum)]
        format: Option<ReportFormat>,
        /// Write FILE.json (signed) and FILE.md, both of the same moment, and print neither
        #[arg(long, value_name = "FILE", conflicts_with = "format")]
        save: Option<PathBuf>,
    },
}

/// How a migration is named.
const MIGRATION: &str = "The VM's name, or the migration's id, its beginning or its end";

const CUTOVERS: &str = "\
The command follows the cutover to its end; Ctrl-C ends only the command. If a phase fails before the target VM is \
started, warmd undoes the cutover: it powers the source VM on again, if that ran before, and keeps the copied disks.

A cutover begins inside the windows of `schedule.cutover` of its plan. TIME is \"2026-11-28 22:00\" or \"22:00\" in the time \
zone of its schedule, the same with a zone behind it (\"22:00 Europe/Berlin\"), \"+2h\", or RFC 3339. A scheduled cutover \
survives a restart of the daemon. If it cannot begin before its window closes (without windows: within an hour), it \
is missed, and then on hold.

If the plan has a conversion, it works on overlays of the target's disks, before the VM is created from \
them. `migration show` prints its progress, and until the target VM is started --abort undoes the conversion too.";

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Check that a report is unchanged since it was signed; needs no daemon
    ///
    /// Exit code 0 if the report is unchanged and, with --key, was signed by that key; else 1.
    Verify {
        /// The report in JSON, from `migration report --save`; - is standard input
        file: PathBuf,
        /// The key that must have signed it: hexadecimal digits, or a file with these or in PEM
        #[arg(long, value_name = "KEY|FILE")]
        key: Option<String>,
    },
    /// Print the public key that checks this daemon's reports
    ///
    /// Earlier keys, from before a key was lost or replaced, are printed on standard error (with `-o json`,
    /// under `earlier`).
    Key {
        /// Print it in PEM, for OpenSSL
        #[arg(long)]
        pem: bool,
    },
}

const ROLLBACK: &str = "\
warmd stops and removes the target VM; only when that is certain, it starts the source VM, if that ran before the \
cutover. All data that the target VM wrote since its start is lost. The migration is then paused, and keeps the target's \
disks; after `migration resume` they are copied again, completely. Refused if warmd cannot stop the target VM (a target \
`disk` without provisioner, a target that does not answer), and if the source VM or one of its disks is gone. A rollback \
does not need the source's change marks, which the last phase of a cutover deletes.";

const PROOFS: &str = "\
Scopes: full; changed (what was copied again since a full or changed verification passed, else since the full pass); \
sample=1% or sample=10GiB (of each disk, at random places).";

const PROOF_DETAILS: &str = "\
readback reads the target and compares it with the manifest: it proves that the target holds what was copied. compare \
takes a snapshot, copies what changed, reads source and target and compares the two: it proves that what was copied is \
what the source holds, also if the source's change tracking was wrong.

The next pass copies blocks that differ again. An interrupted readback continues where it stopped when the same is \
requested again, unless a pass ran meanwhile; a compare starts again, because it has another snapshot.

After the cutover, readback works until the target VM is started. Later, give --image with snapshots of its volumes from \
before that start: raw images, block devices, or NBD URIs. They are only read. A disk that is in use is refused, and so is \
one that the cutover converted: give an image of it from before the conversion.";

/// What is verified.
#[derive(Debug, ClapArgs)]
pub(super) struct VerifyWhat {
    /// What is compared with the target: the manifest, or the source
    #[arg(long, value_enum, default_value_t = Mode::Readback)]
    pub(super) mode: Mode,
    /// How much of each disk is compared
    #[arg(long, default_value_t = VerifyScope::Full, value_name = "SCOPE")]
    pub(super) scope: VerifyScope,
    /// Draw the same sample as an earlier result: its seed
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Read this image or NBD URI instead of the disk's volume; then only disks with --image are read
    #[arg(long, value_parser = image, value_name = "DISK=LOCATION")]
    pub(super) image: Vec<(String, String)>,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Target against manifest
    Readback,
    /// Target against a new snapshot of the source
    Compare,
}

fn image(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((disk, place)) if !disk.is_empty() && !place.is_empty() => {
            Ok((disk.to_owned(), place.to_owned()))
        }
        _ => Err(format!("{text:?} is not DISK=LOCATION")),
    }
}

const SCOPES: &str = "\
Scopes: global, source/NAME, target/NAME, migration/MIGRATION, migration/MIGRATION/DISK. A read counts for its disk, its \
migration, its source, and globally; a write counts for its target. All these limits hold at the same time, in passes and \
in verifications. Migrations of an endpoint, and disks of a migration, get equal shares.";

const LASTING: &str = "\
A limit takes effect at once, also for what runs, and survives a restart of the daemon. It ends with --reset, or when the \
configuration (for global, source/NAME, target/NAME) or the plan (for migration/...) gets another value than it had when \
the limit was set: the last word counts.";

#[derive(Debug, Subcommand)]
pub(super) enum LimitCommand {
    /// Show all limits, or one, with the present rate and the requests in flight
    #[command(after_help = SCOPES)]
    Show {
        /// Only this scope; a migration with its disks
        scope: Option<String>,
    },
    /// Change a limit at once, also for what runs; an option that is not given stays as it is
    #[command(after_help = SCOPES, after_long_help = format!("{SCOPES}\n\n{LASTING}"))]
    Set {
        /// What the limit is for, such as source/old
        scope: String,
        #[command(flatten)]
        to: LimitTo,
    },
    /// Show quotas by time of day: what they allow now, what is in use, what waits, when they change
    #[command(after_help = QUOTAS)]
    Quotas {
        /// Only this scope
        scope: Option<String>,
    },
}

const QUOTAS: &str = "\
Scopes: global, source/NAME, target/NAME, host/NAME, datastore/NAME and plan/NAME; a host or datastore of one source is \
called SOURCE:NAME. A pass needs room in the quotas of every scope that it touches. Plans that share a quota are served by \
priority, and cutovers go first. Quotas are written in plans (`[[schedule.quotas]]`) and in the daemon's configuration; \
scopes without a quota are not shown.";

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
pub(super) struct LimitTo {
    /// The highest rate, such as 200MiB/s, or none
    #[arg(long, value_parser = rate_or_none, value_name = "RATE")]
    pub(super) rate: Option<OrNone<u64>>,
    /// The highest number of requests in flight, or none
    #[arg(long, value_parser = requests_or_none, value_name = "N")]
    pub(super) requests: Option<OrNone<u32>>,
    /// Go back to the limit of the configuration or the plan
    #[arg(long, conflicts_with_all = ["rate", "requests"])]
    pub(super) reset: bool,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct OrNone<T>(pub(super) Option<T>);

fn rate_or_none(text: &str) -> Result<OrNone<u64>, String> {
    Ok(OrNone(if text == "none" { None } else { Some(rate::parse(text)?.get()) }))
}

fn requests_or_none(text: &str) -> Result<OrNone<u32>, String> {
    if text == "none" {
        return Ok(OrNone(None));
    }
    let number = text.parse().map_err(|_| format!("{text:?} is no number of requests, and not \"none\""))?;
    Ok(OrNone(Some(requests::check(number)?.get())))
}

#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct FollowArgs {
    /// Return when the operation has begun; `migration watch` follows it
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    Json,
    Markdown,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Args::command().debug_assert();
    }
}
