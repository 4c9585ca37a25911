//! The one task that drives a group: it reads the members' statuses, decides, saves the decision, and acts.
//!
//! Rule: it knows of the members what the store holds, and which came to the barrier since the daemon's
//! start. That a group is halted is saved before it is announced; that the barrier is open is not: after a
//! crash no member passes because of a decision that was only in memory.

use std::{sync::Arc, time::Duration};

use warmd_core::{
    clock,
    control::Control as _,
    model::{
        coordination::{GroupDecision, GroupVm, MemberStatus, decide},
        event_kind::EventKind,
        group::{Group, GroupMember, GroupView},
        phase::Phase,
        request::RequestOutcome,
        scheduled_cutover::{CutoverOrder, CutoverTime},
        state::{ResumePoint, State},
        view::EventView,
    },
};
use warmd_store::{MemberFacts, StoreError};

use super::{GroupChannel, Running};
use crate::{manager::Manager, retry::Retry};

/// The interval at which the members are checked without a notification.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Drives the group to its end, or until the daemon shuts down.
pub(super) async fn coordinate_group(manager: Arc<Manager>, running: Arc<Running>) {
    let mut board = running.board.listen();
    let mut is_told = running.group.halted.is_some();
    loop {
        match step(&manager, &running, &mut is_told).await {
            Ok(true) => {
                manager.groups.remove(running.group.id);
                return;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(plan = running.group.plan, %error, "the group stands still until its state is saved");
                Retry::forever().pause().await;
            }
        }
        tokio::select! {
            biased;
            () = manager.shutdown.cancelled() => return,
            () = board.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Checks once, and acts; returns whether the group is finished.
async fn step(manager: &Manager, running: &Running, is_told: &mut bool) -> Result<bool, StoreError> {
    let group = &running.group;
    let board = running.board.look(GroupChannel::clone);
    if let (Some(why), false) = (&board.halted, *is_told) {
        // An abort is announced on the board only.
        note_broken(manager, group, why).await?;
        *is_told = true;
    }
    let facts = manager.store.member_facts(group.id).await?;
    let statuses = statuses(&group.members, &facts, &board);
    let GroupDecision { begin, open, halted, is_finished } =
        decide(group.all_or_nothing, board.halted.is_some(), &seats(&group.members, &statuses));
    if let Some(why) = halted {
        note_broken(manager, group, &why).await?;
        *is_told = true;
        running.board.change(|board| {
            board.halted.get_or_insert(why);
        });
        return Ok(false);
    }
    let opened: Vec<_> = open.iter().map(|at| group.members[*at].migration).collect();
    if !opened.is_empty() {
        let told = line(group, EventKind::State, &format!("the barrier opens for {}", group.names(&open)));
        manager.store.append_events(vec![told]).await?;
        running.board.change(|board| {
            // A member that left meanwhile does not pass, and neither do those that start with it.
            let is_whole = opened.iter().all(|id| board.arrived.contains(id));
            if board.halted.is_none() && is_whole {
                board.open.extend(opened);
            }
        });
    }
    for at in begin {
        let member = &group.members[at];
        match begun(manager, group, member).await {
            Some(RequestOutcome::Accepted) | None => {}
            Some(RequestOutcome::Refused(why)) => running.mark_failed(member.migration, &why),
            Some(RequestOutcome::NoChange) => {
                running.mark_failed(member.migration, "it is being cut over alone");
            }
        }
    }
    if is_finished {
        let view = GroupView { group: group.clone(), statuses };
        manager
            .store
            .end_group(group.id, clock::now(), line(group, EventKind::State, &view.describe()))
            .await?;
    }
    Ok(is_finished)
}

async fn note_broken(manager: &Manager, group: &Group, why: &str) -> Result<(), StoreError> {
    let told = line(group, EventKind::Warning, &format!("group halted: {why}"));
    manager.store.break_group(group.id, why, told).await
}

/// Asks the member's driver to begin; `None` if the daemon is shutting down.
async fn begun(manager: &Manager, group: &Group, member: &GroupMember) -> Option<RequestOutcome> {
    let order = CutoverOrder { when: CutoverTime::Now, force: group.forced, in_group: true };
    let by = format!("{} (with the VMs of plan {})", group.by, group.plan);
    let asked = manager.cut_over(member.migration, order, &by);
    match manager.shutdown.run_until_cancelled(asked).await? {
        Ok(outcome) => Some(outcome),
        Err(_) if manager.shutdown.is_cancelled() => None,
        Err(error) => Some(RequestOutcome::Refused(error.to_string())),
    }
}

fn seats(members: &[GroupMember], statuses: &[MemberStatus]) -> Vec<GroupVm> {
    let each = members.iter().zip(statuses);
    each.map(|(member, status)| GroupVm { vm: member.vm.clone(), tier: member.tier, status: status.clone() })
        .collect()
}

/// The statuses of the members.
pub(super) fn statuses(
    members: &[GroupMember],
    facts: &[MemberFacts],
    board: &GroupChannel,
) -> Vec<MemberStatus> {
    let each = members.iter().zip(facts);
    each.map(|(member, facts)| {
        let id = member.migration;
        let passed = (board.arrived.contains(&id), board.open.contains(&id));
        status(member.attempt, facts, passed, board.failed.get(&id))
    })
    .collect()
}

/// The status of a member with `before` cutovers before its group, which has come to the barrier or passed it
/// since the daemon's start. Why it did not begin, or was undone, is included if `known`.
fn status(
    before: u32,
    facts: &MemberFacts,
    (has_arrived, is_open): (bool, bool),
    known: Option<&String>,
) -> MemberStatus {
    let stays = |why: &str| MemberStatus::Failed(why.to_owned());
    // A state from before a restart may name the start phase although no start was requested: it goes back.
    let is_gone = is_open || facts.start_requested;
    match &facts.state {
        State::Done => MemberStatus::Passed,
        _ if facts.attempt == before => {
            known.map_or(MemberStatus::Waiting, |why| MemberStatus::Failed(why.clone()))
        }
        State::CuttingOver { phase: Phase::Cleanup } => MemberStatus::Passed,
        State::CuttingOver { phase: Phase::BootCheck } => MemberStatus::Starting,
        State::CuttingOver { phase: Phase::CreateVm | Phase::StartVm } if is_gone => MemberStatus::Starting,
        State::CuttingOver { .. } if facts.start_requested => MemberStatus::Starting,
        State::CuttingOver { phase: Phase::CreateVm } if has_arrived => MemberStatus::Arrived,
        State::CuttingOver { .. } => MemberStatus::Moving,
        State::Undoing { reason, .. } => MemberStatus::Undoing(reason.clone()),
        State::Failed { from: ResumePoint::Cleanup, .. } => MemberStatus::Passed,
        State::Failed { reason, from: ResumePoint::BootCheck | ResumePoint::StaleState, .. } => {
            MemberStatus::Stuck(reason.clone())
        }
        State::Failed { reason, .. } => MemberStatus::Failed(reason.clone()),
        State::RollingBack => stays("it goes back to the source"),
        State::Cancelling | State::Cancelled => stays("it was cancelled"),
        State::Defined
        | State::Preparing
        | State::Seeding
        | State::Synced
        | State::Syncing
        | State::Paused { .. } => stays(known.map_or("its cutover was undone", String::as_str)),
    }
}

/// A line of the daemon's journal about the group.
fn line(group: &Group, kind: EventKind, text: &str) -> EventView {
    let text = format!("the cutover of plan {}: {text}", group.plan);
    EventView { at: clock::now(), migration: None, by: "warmd".to_owned(), kind, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: State, attempt: u32, start_requested: bool) -> MemberFacts {
        MemberFacts { state, attempt, start_requested }
    }

    #[test]
    fn how_a_member_stands() {
        let over = |phase| State::CuttingOver { phase };
        let failed = |from| State::Failed { reason: "x".to_owned(), resumable: true, from };
        let why = || "x".to_owned();
        let undoing = State::Undoing { phase: Phase::Verify, reason: why() };
        let (no, here, open) = ((false, false), (true, false), (true, true));
        for (facts, board, expected) in [
            (facts(State::Synced, 2, false), no, MemberStatus::Waiting),
            (facts(State::Paused { from: ResumePoint::Synced }, 2, false), no, MemberStatus::Waiting),
            (facts(over(Phase::CatchUpDelta), 3, false), no, MemberStatus::Moving),
            (facts(over(Phase::CreateVm), 3, false), no, MemberStatus::Moving),
            (facts(over(Phase::CreateVm), 3, false), here, MemberStatus::Arrived),
            (facts(over(Phase::CreateVm), 3, false), open, MemberStatus::Starting),
            (facts(over(Phase::StartVm), 3, false), open, MemberStatus::Starting),
            // From before a restart: it passed the barrier, and its start was not requested.
            (facts(over(Phase::StartVm), 3, false), no, MemberStatus::Moving),
            (facts(over(Phase::StartVm), 3, true), no, MemberStatus::Starting),
            (facts(over(Phase::BootCheck), 3, true), no, MemberStatus::Starting),
            (facts(over(Phase::Cleanup), 3, true), no, MemberStatus::Passed),
            (facts(State::Done, 3, true), no, MemberStatus::Passed),
            (facts(undoing, 3, false), no, MemberStatus::Undoing(why())),
            (facts(failed(ResumePoint::BootCheck), 3, true), no, MemberStatus::Stuck(why())),
            (facts(failed(ResumePoint::Synced), 3, false), no, MemberStatus::Failed(why())),
        ] {
            let shown = format!("{facts:?} {board:?}");
            assert_eq!(status(2, &facts, board, None), expected, "{shown}");
        }
        let undone = status(2, &facts(State::Synced, 3, false), no, None);
        assert!(matches!(undone, MemberStatus::Failed(_)), "{undone}");
        let refused = status(2, &facts(State::Synced, 2, false), no, Some(&why()));
        assert_eq!(refused, MemberStatus::Failed(why()));
    }
}
