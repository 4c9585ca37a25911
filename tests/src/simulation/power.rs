//! Who starts and stops VMs in a simulation, and what must never follow.
//!
//! Rule: operators, high availability and autostart may start a source at any time; if both VMs run then, it
//! is not the daemon's fault. The daemon's own calls are checked: a start that it requests while the other
//! side runs, or may run, is its fault.

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    clock,
    model::{
        id::MigrationId,
        phase::Phase,
        state::{ResumePoint, State},
    },
};

use super::{
    chance::Chance,
    world::{Made, Truth, Vm},
};

/// The longest time between the daemon's last check of the source and its request to start the target VM:
/// calls that failed or hung in between are followed by another check, in the same phase.
const LOOK: TimeDelta = TimeDelta::seconds(3);
/// The same for the last phase, with commits that are retried.
const LAST_LOOK: TimeDelta = TimeDelta::seconds(60);

/// The mark of a VM that is held off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) owner: MigrationId,
    /// The autostart that it turned off.
    pub(super) autostart: bool,
}

/// The causes of a VM's start beside the daemon, and who started it last.
#[derive(Debug, Default)]
pub(super) struct Starters {
    /// The source starts it together with its host.
    pub(super) autostart: bool,
    pub(super) moved: Option<Moved>,
    /// The operators want it to start with its host, on one side or the other.
    pub(super) wanted: bool,
    /// The daemon's state was restored from a copy, and may not know the autostart that was turned off.
    pub(super) put_back: bool,
    /// Since when it runs because others started it, if it does.
    pub(super) strays_since: Option<DateTime<Utc>>,
    /// When the daemon saw last that it was off.
    pub(super) seen_off: Option<DateTime<Utc>>,
    /// When others started it last.
    pub(super) strayed: Option<DateTime<Utc>>,
}

impl Vm {
    /// The daemon powers it on or off.
    pub(super) fn obeys(&mut self, runs: bool) {
        (self.runs, self.starters.strays_since) = (runs, None);
    }
}

impl Truth {
    /// The migrations of a VM, as the durable state has them.
    fn states_of(&self, vm: &str) -> Vec<(MigrationId, State)> {
        let theirs = self.ledgers.iter().filter(|(_, ledger)| ledger.vm == vm).map(|((id, _), _)| *id);
        let mut ids: Vec<_> = theirs.collect();
        ids.dedup();
        ids.into_iter().filter_map(|id| Some((id, self.states.get(&id)?.clone()))).collect()
    }

    /// Whether a cutover of it runs, or is being undone.
    pub(super) fn is_cut_over(&self, vm: &str) -> bool {
        let cuts = |state: &State| matches!(state, State::CuttingOver { .. } | State::Undoing { .. });
        self.states_of(vm).iter().any(|(_, state)| cuts(state))
    }

    /// Whether it may be on the target by now: a start of the source then does not decide on which side it
    /// must run.
    pub(super) fn may_be_moved(&self, vm: &str) -> bool {
        let is_late = |state: &State| match state {
            State::CuttingOver { phase } | State::Undoing { phase, .. } => *phase >= Phase::CreateVm,
            State::Failed { from, .. } => from.past_no_return() || *from == ResumePoint::StaleState,
            State::Done | State::RollingBack => true,
            _ => false,
        };
        // A restored state may not know of the target VM.
        let target_runs = self.targets.values().any(|made| made.runs && made.vm.as_deref() == Some(vm));
        target_runs || self.states_of(vm).iter().any(|(_, state)| is_late(state))
    }

    /// Whether the daemon must report a start of it by others: from the target VM's start on.
    pub(super) fn is_handed_over(&self, vm: &str) -> bool {
        self.states_of(vm).iter().any(|(_, state)| match state {
            State::CuttingOver { phase } => matches!(phase, Phase::BootCheck | Phase::Cleanup),
            State::Failed { from, .. } => from.past_no_return(),
            state => *state == State::Done,
        })
    }

    /// Others start the source: operators, high availability, its host.
    pub(super) fn others_start(&mut self, name: &str, who: &str) {
        let late = self.may_be_moved(name);
        let beside = self.targets.values().any(|made| made.runs && made.vm.as_deref() == Some(name));
        let Some(vm) = self.vms.get_mut(name).filter(|vm| !vm.runs) else { return };
        let now = clock::steady();
        (vm.runs, vm.goes_off) = (true, None);
        (vm.starters.strays_since, vm.starters.strayed) = (Some(now), Some(now));
        if !late {
            vm.wanted = Some(true);
        } else if vm.wanted == Some(false) {
            // No one side is expected in the end any more.
            vm.wanted = None;
        }
        vm.spoil();
        if late {
            self.counts.add("late starts");
        }
        if beside {
            self.counts.add("starts beside the target");
        }
        self.note(format_args!("{who} starts {name}"));
    }

    /// An operator stops a source that others have started.
    pub(super) fn stop_stray(&mut self, name: &str) {
        let strays = |vm: &&mut Vm| vm.runs && vm.starters.strays_since.is_some();
        let Some(vm) = self.vms.get_mut(name).filter(strays) else { return };
        vm.obeys(false);
        self.note(format_args!("a user stops {name}, which was started beside its target VM"));
    }

    /// The source's host reboots and starts the VMs with autostart.
    pub(super) fn reboot_source(&mut self, name: &str) {
        self.counts.add("reboots");
        let Some(vm) = self.vms.get(name) else { return };
        let starters = &vm.starters;
        if vm.runs || vm.goes_off.is_some() || !starters.autostart {
            return;
        }
        let knows = !starters.put_back;
        let held = self.states_of(name).into_iter().find(|(_, state)| match state {
            State::CuttingOver { phase } => *phase > Phase::StopSource,
            State::Failed { from, .. } => from.past_no_return(),
            state => *state == State::Done,
        });
        self.others_start(name, "its host");
        if let Some((_, state)) = held.filter(|_| knows) {
            self.violated(format!("{name} is {state}, and its source's host starts it: it is not held off"));
        }
    }

    /// An operator changes its autostart; not while a cutover moves the autostart between the sides.
    pub(super) fn change_autostart(&mut self, name: &str) {
        if self.is_cut_over(name) || self.may_be_moved(name) {
            return;
        }
        let Some(vm) = self.vms.get_mut(name).filter(|vm| vm.starters.moved.is_none()) else { return };
        let on = !vm.starters.autostart;
        (vm.starters.autostart, vm.starters.wanted) = (on, on);
        self.note(format_args!("a user sets the autostart of {name}: {on}"));
    }

    /// The daemon has powered the source on: no target VM of it may run, exist after a start, or have a
    /// pending start.
    pub(super) fn check_power_on(&mut self, name: &str) {
        let was_asked = |made: &Made| made.runs || made.ran || made.starts.is_some();
        let stands = |made: &&Made| made.vm.as_deref() == Some(name) && made.exists && was_asked(made);
        let Some(made) = self.targets.values().find(stands) else { return };
        let how = if made.runs { "runs" } else { "was asked to start, and is not gone" };
        self.violated(format!("both run: {name} is powered on on the source, and on the target it {how}"));
    }

    /// The daemon asks for the start of the target VM: the source was seen off immediately before, and
    /// nothing else starts it.
    pub(super) fn check_start(&mut self, owner: MigrationId) {
        let now = clock::steady();
        let Some(made) = self.targets.get_mut(&owner).filter(|made| made.exists && !made.runs) else {
            return;
        };
        let Some(vm) = made.vm.as_ref().and_then(|vm| self.vms.get(vm)) else { return };
        made.seen_off = vm.starters.seen_off;
        let has_looked = |at: DateTime<Utc>| {
            let in_phase = vm.phase_since.is_some_and(|since| at >= since) && now - at <= LOOK;
            in_phase && vm.starters.strays_since.is_some_and(|since| since >= at)
        };
        let mut wrong = Vec::new();
        if vm.runs && !vm.starters.seen_off.is_some_and(has_looked) {
            wrong.push(format!("both run: {} is started on the target, and its source runs", vm.name));
        }
        if vm.starters.autostart {
            wrong.push(format!(
                "{} is started on the target, and its source starts with its host: it is not held off",
                vm.name
            ));
        }
        for what in wrong {
            self.violated(what);
        }
    }

    /// Whether others started the source after the daemon's last check before the hand-over to the target VM.
    pub(super) fn strayed_into(&self, owner: MigrationId) -> bool {
        let Some(made) = self.targets.get(&owner) else { return false };
        let vm = made.vm.as_ref().and_then(|vm| self.vms.get(vm));
        let strayed = vm.and_then(|vm| vm.starters.strayed);
        strayed.zip(made.seen_off).is_some_and(|(strayed, seen_off)| strayed >= seen_off)
    }

    /// A cutover begins: the present autostart is what the operators want, whatever the state recorded
    /// before.
    pub(super) fn begins_to_move(&mut self, owner: MigrationId, vm: &str) {
        let Some(vm) = self.vms.get_mut(vm).filter(|vm| vm.starters.put_back) else { return };
        let starters = &mut vm.starters;
        let taken = starters.moved.is_some_and(|moved| moved.owner == owner && moved.autostart);
        (starters.put_back, starters.wanted) = (false, starters.autostart || taken);
    }

    /// The VM is back on the source, or was never away: its autostart is as before, on the source and on the
    /// target.
    pub(super) fn check_back(&mut self, owner: MigrationId, vm: &str, now: &State) {
        let Some(found) = self.vms.get(vm) else { return };
        let starters = &found.starters;
        let mut wrong = Vec::new();
        if !starters.put_back && (starters.autostart != starters.wanted || starters.moved.is_some()) {
            wrong.push(format!("{vm} is {now}, and what starts it on the source is {starters:?}"));
        }
        if self.targets.get(&owner).is_some_and(|made| made.exists && !made.forgotten) {
            wrong.push(format!("{vm} is {now}, and its target VM is there"));
        }
        for what in wrong {
            self.violated(what);
        }
    }

    /// The VM is on the target, and so is its autostart.
    pub(super) fn check_moved(&mut self, owner: MigrationId, vm: &str) {
        let (Some(found), Some(made)) = (self.vms.get(vm), self.targets.get(&owner)) else { return };
        let starters = &found.starters;
        let mut wrong = Vec::new();
        if found.runs && starters.strays_since.is_none_or(|since| clock::steady() - since > LAST_LOOK) {
            wrong.push(format!("{vm} is done, and its source runs"));
        }
        let is_held = !starters.autostart && starters.moved.is_some_and(|moved| moved.owner == owner);
        if !starters.put_back && (!is_held || made.autostart != starters.wanted) {
            let on = made.autostart;
            wrong.push(format!(
                "{vm} is done, its target's autostart is {on}, and on the source {starters:?}"
            ));
        }
        for what in wrong {
            self.violated(what);
        }
    }
}

/// The source at the start of a scenario.
pub(super) fn starters(chance: &mut Chance) -> Starters {
    let autostart = chance.happens(500);
    Starters { autostart, wanted: autostart, ..Starters::default() }
}
