//! The command line of plans.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::FollowArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Apply a plan file: start a migration for every VM of the plan that has none
    ///
    /// A plan can be applied again at any time. Running work is not disturbed: a changed schedule, limit,
    /// window, hook or cutover policy applies from then on; added VMs start; VMs that are no longer named
    /// continue until they are cancelled. Source, target, a VM's name and the locations of its disks cannot
    /// change while its migration is under way.
    Apply {
        #[command(flatten)]
        plan: PlanFile,
        /// Change nothing; print what would be started, changed and refused
        #[arg(long)]
        dry_run: bool,
    },
    /// Print a plan file with comments for VMs of a source, to be edited and applied
    New {
        /// The source that the VMs come from
        #[arg(long, value_name = "NAME")]
        source: String,
        /// The target that the VMs go to; not needed if there is only one
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// The VMs as in a plan's `vms`: names, ids, patterns such as 'web-*', and '!web-test' to leave out
        #[arg(long, value_name = "VM", required = true, num_args = 1..)]
        vms: Vec<String>,
        /// The plan's name
        #[arg(long, default_value = "new-plan")]
        name: String,
    },
    /// List all plans
    List,
    /// Print one plan as TOML that can be applied; in comments, its group's last cutover
    Show {
        /// The plan's name
        name: String,
    },
    /// Cut over all VMs of a plan: as a group if the plan says so, else each VM on its own
    #[command(after_help = GROUPS)]
    Cutover {
        /// The plan's name
        name: String,
        #[command(flatten)]
        when: CutoverWhen,
        /// Begin also outside the plan's cutover windows, and whatever the forecast says
        #[arg(long, conflicts_with_all = ["abort", "hold", "unhold"])]
        force: bool,
        #[command(flatten)]
        wait: FollowArgs,
    },
    /// Check a plan file against the pre-flight rules; changes nothing
    #[command(after_help = RULES)]
    Validate(PlanFile),
    /// Delete a plan whose migrations are all done or cancelled
    Delete {
        /// The plan's name
        name: String,
    },
}

const RULES: &str = "\
Each finding has the id of its rule, which never changes (tracking-unavailable, name-taken), what was found, and what to \
do. A plan with an error cannot be applied; one with warnings can. daemon/docs/preflight.md has all rules.";

const GROUPS: &str = "\
The VMs are a group if the plan has [[cutover.tiers]] or `all_or_nothing`. No VM of a tier is started on the target before \
all VMs of the tier are copied and verified; the next tier begins when the boot checks of the tier before have passed. \
After a failure, or --abort, warmd undoes the VMs that are not started yet, and their source VMs run again. VMs that run on \
the target stay there; the same command again moves the rest. The command follows a group to its end; VMs on their own \
are not followed: see `migration list`.";

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
    /// Abort a cutover before the start of the target VM, or drop one that is scheduled
    #[arg(long)]
    pub(crate) abort: bool,
    /// Begin at this time; warmd copies a delta just before
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<String>,
    /// Put the cutover on hold: none begins until --unhold or a request, also not an automatic one
    #[arg(long)]
    pub(crate) hold: bool,
    /// End the hold: the plan applies again
    #[arg(long)]
    pub(crate) unhold: bool,
}
