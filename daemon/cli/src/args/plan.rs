//! The command line of plans.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::FollowArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Makes the plan so: a migration starts for every VM that has none
    ///
    /// What is under way is not disturbed: schedule, limits, windows, hooks and the cutover policy of a plan
    /// that is applied again count from then on, VMs that are added start, and VMs that are not named any
    /// more go on until they are cancelled. Source, target, and a VM's name and disks' places cannot change
    /// while its migration is under way.
    Apply {
        #[command(flatten)]
        plan: PlanFile,
        /// Only say what would be done, changed and refused
        #[arg(long)]
        dry_run: bool,
    },
    /// Prints a plan file with comments for VMs of a source, to be edited and applied
    New {
        /// Where the VMs come from
        #[arg(long, value_name = "NAME")]
        source: String,
        /// Where they go to; may be left out if there is one target
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// The VMs as in a plan's `vms`: names, ids, patterns such as 'web-*', and '!web-test' to leave out
        #[arg(long, value_name = "VM", required = true, num_args = 1..)]
        vms: Vec<String>,
        /// The plan's name
        #[arg(long, default_value = "new-plan")]
        name: String,
    },
    /// All plans
    List,
    /// One plan, as TOML, and in comments how its last cutover of VMs together goes
    Show { name: String },
    /// Moves all VMs of a plan that are on their way: together where it says so, else each alone
    #[command(after_help = GROUPS)]
    Cutover {
        name: String,
        #[command(flatten)]
        when: CutoverWhen,
        /// Also outside the plan's cutover windows, and regardless of the forecast
        #[arg(long, conflicts_with_all = ["abort", "hold", "unhold"])]
        force: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Judges a plan by the pre-flight rules, and changes nothing
    #[command(after_help = RULES)]
    Validate(PlanFile),
    /// Forgets a plan whose migrations are all finished or cancelled
    Delete { name: String },
}

const RULES: &str = "\
Each finding names its rule by an id that does not change (tracking-unavailable, name-taken), what was found, and what to do. Errors \
keep the plan from being applied, warnings do not. daemon/docs/preflight.md has all rules.";

const GROUPS: &str = "\
VMs move together where the plan has [[cutover.tiers]] or `all_or_nothing`: none of a tier is started on the target before \
all of it are copied and verified, and a tier begins when the boot checks of the one before it have passed. If one fails, \
those that are not started yet are undone, and their sources run again. With --abort too. What was moved already \
stays; asked again, the rest moves. This follows to the end, as long as they move together.";

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanFile {
    /// The plan's TOML file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// When a cutover begins, if not now.
#[derive(Debug, ClapArgs)]
#[group(multiple = false)]
pub(crate) struct CutoverWhen {
    /// Abort a cutover that has not passed the point of no return, or that waits
    #[arg(long)]
    pub(crate) abort: bool,
    /// Begin at this time; a delta is copied just before
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<String>,
    /// Stay synced, and begin none until another word, also where the plan would
    #[arg(long)]
    pub(crate) hold: bool,
    /// Hold no longer: as the plan says
    #[arg(long)]
    pub(crate) unhold: bool,
}
