//! The barrier, from the view of a group member.
//!
//! Rule: a member at the barrier has its source off, and keeps checking that. It waits no longer than its
//! plan says.

use std::time::Duration;

use tokio::time::Instant;
use warmd_cbt::stop::StopSignal;
use warmd_core::model::{group::GroupMember, id::MigrationId};

use super::{GroupChannel, Groups};
use crate::{
    context::Context,
    cutover::fence,
    failure::{Remedy, WorkError},
};

/// The interval of the source checks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits, copied and verified, for all VMs that start together, if the migration is in a group.
pub(crate) async fn pass(context: &Context, stop: &StopSignal) -> Result<(), WorkError> {
    let Some((running, member)) = context.groups.of(context.id) else { return Ok(()) };
    let (id, since) = (context.id, Instant::now());
    let patience = context.plan().cutover.barrier;
    let mut board = running.board.listen();
    running.board.change(|board| board.arrived.insert(id));
    let show = |told| {
        context.live.update(|view| {
            if let Some(cutover) = &mut view.cutover {
                cutover.progress = told;
            }
        });
    };
    show(Some(format!("waits at the barrier for the others of plan {}", running.group.plan)));
    let mut looking = std::pin::pin!(started(context));
    let waiting = async {
        loop {
            match board.look(|board| status(board, id)) {
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => return Err(WorkError::halted(why)),
                None => {}
            }
            tokio::select! {
                biased;
                () = stop.stopped() => return Err(WorkError::passing("it was stopped at the barrier")),
                () = board.changed() => {}
                found = &mut looking => return Err(found),
            }
        }
    };
    let result = match tokio::time::timeout(patience, waiting).await {
        Ok(result) => result,
        Err(_) => Err(WorkError::operator(format!(
            "it waited for {} at the barrier, which is what the plan's `cutover.barrier` grants: {}",
            humantime::format_duration(patience),
            running.board.look(|board| missing(board, &running.group.members, member.tier))
        ))),
    };
    show(None);
    if result.is_err() {
        // Unless it was opened at this moment: then the start decides the outcome.
        let is_open = running.board.change(|board| {
            board.arrived.remove(&id);
            board.open.contains(&id)
        });
        if !is_open {
            return result;
        }
    }
    let waited = since.elapsed();
    if let Err(error) =
        context.remember(|cutover| cutover.barrier_wait = Duration::from_micros(micros(waited))).await
    {
        // Only forecasts use it, and other members may run on the target already.
        tracing::warn!(migration = %id, %error, "how long it waited at the barrier is not stored");
    }
    Ok(())
}

/// Returns when the source was started. An unreachable source is no reason to undo a whole group: the check
/// is repeated before the start.
async fn started(context: &Context) -> WorkError {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match fence(context).await {
            Ok(()) => {}
            Err(error) if !matches!(error.remedy, Remedy::Retry | Remedy::Wait) => return error,
            Err(error) => {
                tracing::warn!(migration = %context.id, %error, "the source is not seen from the barrier");
            }
        }
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the member may continue, or why not; `None` if undecided.
fn status(board: &GroupChannel, id: MigrationId) -> Option<Result<(), String>> {
    if board.open.contains(&id) {
        return Some(Ok(()));
    }
    board.halted.clone().map(Err)
}

/// The members that are not at the barrier, in words.
fn missing(board: &GroupChannel, members: &[GroupMember], tier: usize) -> String {
    let absent: Vec<_> = members
        .iter()
        .filter(|member| {
            !board.arrived.contains(&member.migration) && !board.open.contains(&member.migration)
        })
        .map(|member| member.vm.as_str())
        .collect();
    if absent.is_empty() {
        return format!("the tiers before tier {} have not come up", tier + 1);
    }
    format!("not there are {}", absent.join(", "))
}

impl Groups {
    /// Returns the reason when the migration's group is halted, unless the barrier was opened for the
    /// migration.
    pub(crate) async fn halted(&self, id: MigrationId) -> String {
        let Some((running, _)) = self.of(id) else { return std::future::pending().await };
        let mut board = running.board.listen();
        loop {
            if let Some(Err(why)) = board.look(|board| status(board, id)) {
                return why;
            }
            board.changed().await;
        }
    }
}
