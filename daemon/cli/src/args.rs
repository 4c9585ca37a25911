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
use super::schedules::ScheduleCommand;

const DETAILS: &str = "\
Migrations are named by their id, by the unique beginning or end of one (at least four characters), or by the VM's \
name if exactly one unfinished migration moves it.

JSON (-o json): the messages of the API warmd.v1 with their field names; absent fields are null. Enum values are \
lower-case with dashes (\"cutting-over\"), sizes are numbers of bytes, times RFC 3339, lengths of time seconds with \
an s (\"12.500s\"). Lists are an object with one array: `migration list` is {\"migrations\": [...]}. `migration show` \
is the migration itself. `migration watch` prints one migration a line, at each change. Commands that follow an \
operation (cutover, sync, verify, cancel) print one object when it ended: {\"answer\", \"outcome\", \"reason\", \
\"migration\"}, where answer is \"accepted\" or \"no-change\", and outcome is \"done\", \"failed\" or, with \
--no-wait, \"begun\". Fields are added in later versions, never renamed.

Exit codes:
    0  done
    1  the operation failed: a cutover undone, a verification that found differences, an endpoint that is down
    2  the command line is wrong
    3  the daemon is not reachable
    4  what was named is not there
    5  refused: the plan is wrong, or the state does not allow it
  130  interrupted while following; the operation goes on in the daemon";

/// Watches and steers warmd, which moves running VMs.
#[derive(Debug, Parser)]
#[command(name = "warmctl", version, after_long_help = DETAILS, after_help = "See --help for ids, JSON and exit codes.")]
pub(super) struct Args {
    /// The daemon's socket
    #[arg(
        long,
        env = "WARMD_SOCKET",
        default_value = "/run/warmd/warmd.sock",
        value_name = "PATH",
        global = true
    )]
    pub(super) socket: PathBuf,
    /// Tables for reading, or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORM", global = true)]
    pub(super) output: Format,
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
    /// Where VMs come from
    #[command(subcommand)]
    Source(SourceCommand),
    /// Where VMs go to
    #[command(subcommand)]
    Target(TargetCommand),
    /// Which VMs move, and how
    #[command(subcommand)]
    Plan(PlanCommand),
    /// When passes and cutovers come, and why
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Manage migrations
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// All migrations on one screen, with keys to steer them
    Top,
    /// Rate and concurrency limits
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Check signed reports: who signed a report, and whether it is unchanged
    #[command(subcommand)]
    Report(ReportCommand),
    /// The journal: what was decided, by whom and why
    Events {
        /// Only this migration's
        id: Option<String>,
        /// At most so many lines, the last ones
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Then each new line as it is written, until Ctrl-C; a daemon that is restarted is waited for, and
        /// none is missed
        #[arg(long, short)]
        follow: bool,
    },
    /// Prints a completion script for a shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SourceCommand {
    /// The configured sources
    List,
    /// Test the connection to one source, or to all
    ///
    /// Also lists what finished, lost or another warmd's migrations left on its VMs (checkpoints, bitmaps),
    /// each with the command that removes it.
    Check { name: Option<String> },
    /// The VMs that a source has
    ///
    /// As the source said lately: the daemon asks each of them every five minutes, and when it has not. The
    /// line below the table says from when it is.
    Vms {
        name: String,
        #[command(flatten)]
        filter: VmFilter,
        /// Ask the source now
        #[arg(long)]
        refresh: bool,
    },
}

/// Which of a source's VMs are listed: those that all that is given holds for.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct VmFilter {
    /// Only names that match: * stands for any characters, ? for one
    #[arg(long = "name", value_name = "GLOB")]
    pub(super) glob: Option<String>,
    /// Only VMs in this state
    #[arg(long, value_enum)]
    pub(super) state: Option<Power>,
    /// Only VMs of whose disks so many can be tracked
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
    /// The configured targets
    List,
    /// Test the connection to one target, or to all
    Check { name: Option<String> },
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrationCommand {
    /// All migrations, oldest first
    List {
        /// Only this plan's
        #[arg(long)]
        plan: Option<String>,
    },
    /// Everything about one migration
    Show { id: String },
    /// Live progress, of one migration to its end or of all
    Watch { id: Option<String> },
    /// Copies a delta now, and follows it
    Sync {
        id: String,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Pause replication
    Pause { id: String },
    /// Resume after a pause or a failure
    Resume { id: String },
    /// Moves the VM now, and follows to the end; or later
    #[command(after_help = CUTOVERS)]
    Cutover {
        id: String,
        #[command(flatten)]
        when: CutoverWhen,
        /// Also outside the plan's cutover windows
        #[arg(long, conflicts_with_all = ["abort", "hold", "unhold"])]
        force: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Goes back to the source after the target VM was started, and loses what that wrote
    #[command(after_help = ROLLBACK)]
    Rollback {
        id: String,
        /// Lose what the VM wrote on the target, without being asked
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Cancel the migration and remove what it left on source and target
    Cancel {
        id: String,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Reads the target again, compares it with the manifest or the source, and follows that
    #[command(after_help = PROOFS, after_long_help = format!("{PROOFS}\n\n{PROOF_DETAILS}"))]
    Verify {
        id: String,
        #[command(flatten)]
        what: VerifyWhat,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Migration report
    Report {
        id: String,
        /// Markdown if not given, or JSON with -o json
        #[arg(long, value_enum)]
        format: Option<ReportFormat>,
        /// Writes both forms of one moment to FILE.json (signed) and FILE.md instead of printing one
        #[arg(long, value_name = "FILE", conflicts_with = "format")]
        save: Option<PathBuf>,
    },
}

const CUTOVERS: &str = "\
A cutover begins inside the windows of `schedule.cutover` of its plan. TIME is \"2026-11-28 22:00\" or \"22:00\" in the time \
zone of its schedule, the same with a zone behind it (\"22:00 Europe/Berlin\"), \"+2h\", or RFC 3339. What is asked \
for holds over a restart of the daemon. One that could not begin until its window closed (or for an hour, without \
windows) is missed, and then on hold.

Where the plan names a conversion, its command works on overlays of the target's disks, before the VM is created from \
them; `migration show` tells how far it is, and until the target VM is started --abort undoes that too.";

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Check a report's signature; needs no daemon
    ///
    /// Exit code 0 if the report is as it was signed, and by the key that was given if one was; else 1.
    Verify {
        /// The report's JSON form; - is standard input
        file: PathBuf,
        /// Who must have signed it: the key in hexadecimal, or a file that holds it so or in PEM
        #[arg(long, value_name = "KEY|FILE")]
        key: Option<String>,
    },
    /// The public key with which this daemon's reports are checked
    ///
    /// Keys that signed reports before, because one was lost or replaced, are named on standard error (with
    /// `-o json`, under `earlier`).
    Key {
        /// In PEM, as OpenSSL reads it
        #[arg(long)]
        pem: bool,
    },
}

const ROLLBACK: &str = "\
The target VM is stopped and removed for sure, then the source VM is started if it ran before the cutover. Whatever was \
written on the target since it was started there is lost. The target's disks are kept as they are while the migration is \
paused, which it is then; when it is resumed all of them is copied again. Refused where warmd cannot stop the target VM \
(a target `disk` without provisioner, a target that does not answer), and when the source VM or a disk of it is gone. What \
a cutover's last phase gives up (the source's change marks) is not needed for it.";

const PROOFS: &str = "\
Scopes: full, changed (what was copied again since a full or changed verification passed, else since the full pass), \
sample=1% or sample=10GiB (of each disk, drawn by chance from everywhere).";

const PROOF_DETAILS: &str = "\
readback reads the target and compares it with the manifest: it shows that the target holds what was copied. compare \
takes a snapshot, copies what changed, reads source and target and compares the two: it shows that what was copied is \
what the source holds, whatever its change tracking said.

What differs is copied again by the next pass. A verification that was cut off goes on where it was when the same is asked \
for again, unless a pass ran meanwhile; a compare begins anew, as its snapshot is another.

After the cutover, readback works until the target VM is started. Later, give snapshots of its volumes that were taken \
before that: raw images, block devices, or NBD URIs. They are only read. A disk that is in use is refused, and so is one \
that the cutover had converted: give an image of it from before the conversion.";

/// What is verified.
#[derive(Debug, ClapArgs)]
pub(super) struct VerifyWhat {
    /// What is compared with what
    #[arg(long, value_enum, default_value_t = Mode::Readback)]
    pub(super) mode: Mode,
    /// How much of each disk
    #[arg(long, default_value_t = VerifyScope::Full, value_name = "SCOPE")]
    pub(super) scope: VerifyScope,
    /// Draws the sample of an earlier result again
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Reads this image or nbd:// URI in place of the disk's volume, and only such disks
    #[arg(long, value_parser = image, value_name = "DISK=LOCATION")]
    pub(super) image: Vec<(String, String)>,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// The target with the manifest
    Readback,
    /// A new snapshot of the source with the target
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
Scopes: global, source/NAME, target/NAME, migration/ID, migration/ID/DISK. What is read counts at its disk, migration \
and endpoint and globally; what is written counts at its target. All of them hold at the same time, in passes and \
verifications, and waiting requests are served fairly: migrations of an endpoint alike, and disks of a migration.";

const LASTING: &str = "\
A limit that was set takes effect at once and holds, also over a restart of the daemon, until it is reset, or until the \
configuration (for global, source/NAME, target/NAME) or the plan (for migration/...) says something else than it said \
when the limit was set: the last word counts.";

#[derive(Debug, Subcommand)]
pub(super) enum LimitCommand {
    /// All limits, or one, with what goes through them now
    #[command(after_help = SCOPES)]
    Show {
        /// Only this one; a migration with its disks
        scope: Option<String>,
    },
    /// Changes a limit, at once and also for what runs; what is not given stays
    #[command(after_help = SCOPES, after_long_help = format!("{SCOPES}\n\n{LASTING}"))]
    Set {
        scope: String,
        #[command(flatten)]
        to: LimitTo,
    },
    /// Time-of-day quotas: what they allow now, what of it is in use, what waits, and when they change
    #[command(after_help = QUOTAS)]
    Quotas {
        /// Only this one
        scope: Option<String>,
    },
}

const QUOTAS: &str = "\
Scopes: global, source/NAME, target/NAME, host/NAME, datastore/NAME and plan/NAME; a host or datastore of one source is \
called SOURCE:NAME. A pass keeps to the quotas of every scope that it touches; plans that share one get by their \
priorities, and cutovers go first. Quotas are written in plans (`[[schedule.quotas]]`) and in the daemon's \
configuration; scopes without any are not shown.";

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
pub(super) struct LimitTo {
    /// Bytes a second, such as 200MiB/s, or none
    #[arg(long, value_parser = rate_or_none, value_name = "RATE")]
    pub(super) rate: Option<OrNone<u64>>,
    /// Requests in flight, or none
    #[arg(long, value_parser = requests_or_none, value_name = "N")]
    pub(super) requests: Option<OrNone<u32>>,
    /// Back to what the configuration or the plan says
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
    Ok(OrNone(Some(requests::judge(number)?.get())))
}

#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct FollowArgs {
    /// Return when it has begun
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
