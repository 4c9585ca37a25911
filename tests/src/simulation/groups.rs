//! VMs that cut over together in a simulation: requests for all of them, and what must never happen.
//!
//! Rule: a target VM of a group starts after all that must be there before it, by the durable state, not by
//! what a task remembers.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use warmd_core::{
    clock,
    control::Control,
    model::{
        id::MigrationId,
        phase::Phase,
        scheduled_cutover::{CutoverOrder, CutoverTime},
        state::{ResumePoint, State},
    },
};
use warmd_migration::manager::Manager;

use super::{chance::Chance, durable::Durable, life::SimulatedLife, world::Truth};

/// The running group in the durable state.
#[derive(Debug, Default)]
pub(super) struct GroupSeen {
    id: i64,
    all_or_nothing: bool,
    seats: Vec<Seat>,
    /// The members that passed the barrier in this life of the daemon.
    through: BTreeSet<MigrationId>,
    /// The members that passed their boot checks.
    came_up: BTreeSet<MigrationId>,
}

/// A VM of the group.
#[derive(Debug)]
struct Seat {
    owner: MigrationId,
    tier: i64,
    /// The start of its target VM was requested in this group.
    start_requested: bool,
}

/// How VMs of a plan move together: the keys of its `[cutover]`, and the tiers after it. `None` if each moves
/// alone.
pub(super) fn keys(vms: &[String], chance: &mut Chance) -> Option<(String, String)> {
    if vms.len() < 2 || chance.happens(500) {
        return None;
    }
    let all = chance.happens(400);
    let barrier = chance.one_of(&[20, 90, 1200]);
    let tiers = if all && chance.happens(500) { 0 } else { chance.between(1, 2) };
    let first = chance.between(1, vms.len() as u64 - 1) as usize;
    let tier = |vms: &[String]| format!("[[cutover.tiers]]\nvms = [{}]\n", vms.join(", "));
    let tiers = match tiers {
        0 => String::new(),
        1 => tier(vms),
        _ => tier(&vms[..first]) + &tier(&vms[first..]),
    };
    Some((format!("all_or_nothing = {all}\nbarrier = \"{barrier}s\"\n"), tiers))
}

/// Requests the cutovers of all VMs of the plan, or aborts them.
pub(super) async fn ask(stage: &SimulatedLife, manager: &Arc<Manager>, begins: bool) {
    let by = format!("planner {}", clock::steady().timestamp_micros());
    let order = begins.then(|| CutoverOrder { when: CutoverTime::Now, ..CutoverOrder::default() });
    let answer = manager.cut_over_plan(&stage.scenario.plan.name, order, &by).await;
    let mut truth = stage.world.truth();
    let what = if begins { "the cutover" } else { "no cutover" };
    match answer {
        Ok(answer) => {
            let durable = stage.durable.lock().unwrap_or_else(PoisonError::into_inner);
            let told = durable.journal.iter().any(|(_, line)| line.by == by && line.kind == "request");
            if begins && !answer.already && !told {
                truth.violated("the journal does not tell of a group's cutover".to_owned());
            }
            if begins && !answer.already {
                truth.counts.add("groups");
            }
            truth.note(format_args!("{what} of the plan is asked for; no change: {}", answer.already));
        }
        Err(error) => truth.note(format_args!("{what} of the plan is refused: {error}")),
    }
}

impl Durable {
    /// Reads which group runs, where VMs move together.
    pub(super) fn look_at_groups(&mut self, truth: &mut Truth) -> rusqlite::Result<()> {
        let Some(before) = truth.group.take() else { return Ok(()) };
        let mut select = self.db.prepare_cached(
            "SELECT groups.id, all_or_nothing, m.id, tier, m.attempt > g.attempt AND start_requested_at IS NOT NULL
             FROM groups JOIN group_members g ON g.group_id = groups.id JOIN migrations m ON m.id = g.migration
             WHERE ended IS NULL",
        )?;
        let mut rows = select.query([])?;
        let mut now = GroupSeen::default();
        while let Some(row) = rows.next()? {
            (now.id, now.all_or_nothing) = (row.get(0)?, row.get(1)?);
            let owner: String = row.get(2)?;
            let owner = owner.parse().expect("the daemon's own id");
            now.seats.push(Seat { owner, tier: row.get(3)?, start_requested: row.get(4)? });
        }
        if now.id == before.id {
            (now.through, now.came_up) = (before.through, before.came_up);
        }
        truth.group = Some(now);
        Ok(())
    }
}

impl Truth {
    /// With a new daemon all members come to the barrier again.
    pub(super) fn close_barrier(&mut self) {
        if let Some(group) = &mut self.group {
            group.through.clear();
        }
    }

    /// A migration is durably in this state.
    pub(super) fn stands(&mut self, owner: MigrationId, now: &State) {
        let Some(group) = &mut self.group else { return };
        match now {
            State::CuttingOver { phase: Phase::StartVm } => drop(group.through.insert(owner)),
            State::CuttingOver { phase: Phase::Cleanup } | State::Done => drop(group.came_up.insert(owner)),
            _ => {}
        }
    }

    /// A target VM is started: no VM is missing at its barrier.
    pub(super) fn check_barrier(&mut self, owner: MigrationId) {
        let Some(group) = &self.group else { return };
        let Some(own) = group.seats.iter().find(|seat| seat.owner == owner && seat.start_requested) else {
            return;
        };
        let others = || group.seats.iter().filter(|seat| seat.owner != owner);
        let together = || others().filter(|seat| group.all_or_nothing || seat.tier == own.tier);
        let is_there = |seat: &Seat| {
            matches!(
                self.states.get(&seat.owner),
                Some(
                    State::CuttingOver {
                        phase: Phase::CreateVm | Phase::StartVm | Phase::BootCheck | Phase::Cleanup
                    } | State::Done
                        | State::Failed { from: ResumePoint::BootCheck | ResumePoint::Cleanup, .. }
                )
            )
        };
        // Once a member has passed the barrier there is no undo.
        // One that was off needs no start to pass the barrier.
        let is_committed = together().any(|seat| {
            let id = &seat.owner;
            seat.start_requested || group.through.contains(id) || group.came_up.contains(id)
        });
        let absent = together().find(|seat| !is_committed && !is_there(seat));
        let early = others().find(|seat| seat.tier < own.tier && !group.came_up.contains(&seat.owner));
        if let Some(seat) = absent.or(early) {
            let state = self.states.get(&seat.owner).map(ToString::to_string).unwrap_or_default();
            let (own, other) = (self.name(owner), self.name(seat.owner));
            self.violated(format!("{own} is started on the target, and {other} of its group is {state}"));
        }
    }
}
