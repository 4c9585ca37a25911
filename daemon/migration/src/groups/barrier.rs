//! The barrier, as a member of a group meets it.
//!
//! Rule: who waits here has its source off, and keeps looking that it is. It waits no longer than its plan says.

use std::time::Duration;

use tokio::time::Instant;
use warmd_cbt::{mutant::mutant, stop::StopSignal};
use warmd_core::model::{group::GroupMember, id::MigrationId};

use super::{Board, Groups};
use crate::{
    context::Context,
    cutover::fence,
    failure::{Remedy, WorkError},
};

/// How often the source is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits, copied and verified, until all that are to be started together are as far, if the migration is in a group.
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
                Some(Err(why)) => return Err(WorkError::operator(why)),
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
        // Unless it was opened at this very moment: then the start says what becomes of it.
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
        // Only forecasts ask for it, and others may run on the target already.
        tracing::warn!(migration = %id, %error, "how long it waited at the barrier is not stored");
    }
    Ok(())
}

/// Comes back when the source was started. That it cannot be asked is no reason to take a whole group back: it is asked
/// again before the start.
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

/// Whether it may go on, or why it may not; `None` if that is open.
fn status(board: &Board, id: MigrationId) -> Option<Result<(), String>> {
    if board.open.contains(&id) {
        return Some(Ok(()));
    }
    board.halted.clone().filter(|_| !mutant("group-forgets-failure")).map(Err)
}

/// Who is not at the barrier, in words.
fn missing(board: &Board, members: &[GroupMember], tier: usize) -> String {
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
    /// Comes back with the reason when the group of the migration goes no further, unless the barrier was opened for it.
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
