//! Groups that begin automatically: at the requested time, or as soon as their plan's window admits all
//! members.
//!
//! Rule: a group begins when all of its VMs that are not moved yet would begin, and not before.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use warmd_core::{control::ControlError, model::id::MigrationId};

use super::{ReadyMember, Running, coordinator};
use crate::manager::{Manager, internal};

/// The interval at which ready members are checked again: an obstacle may be gone.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl Manager {
    /// Loads the running groups of an earlier daemon, before their members' drivers ask.
    pub(crate) async fn know_groups(&self) -> Result<(), ControlError> {
        for group in self.store.running_groups().await.map_err(internal)? {
            self.groups.add(group);
        }
        Ok(())
    }

    /// Drives these, and begins others, until the daemon shuts down.
    pub(crate) fn keep_groups(self: &Arc<Self>) {
        let running: Vec<_> = self.groups.lock().running.values().cloned().collect();
        for running in running {
            self.coordinate(running);
        }
        let manager = Arc::clone(self);
        self.supervise("the keeper of the groups", async move { manager.begin_groups().await });
    }

    /// Drives a running group.
    pub(super) fn coordinate(self: &Arc<Self>, running: Arc<Running>) {
        let manager = Arc::clone(self);
        self.owners.spawn(async move {
            let work = || coordinator::coordinate_group(Arc::clone(&manager), Arc::clone(&running));
            manager.once_again(running.group.id, &running.group.plan, work).await;
        });
    }

    async fn begin_groups(self: Arc<Self>) {
        loop {
            for plan in self.groups.plans_ready() {
                let ready = self.groups.ready_of(&plan);
                if let Err(error) = self.begin_if_whole(&plan, &ready).await {
                    tracing::error!(plan, %error, "the group's cutover does not begin");
                }
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.groups.became_ready.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Begins the plan's group if all members are `ready`.
    async fn begin_if_whole(
        &self,
        plan: &str,
        ready: &BTreeMap<MigrationId, ReadyMember>,
    ) -> Result<(), ControlError> {
        let Some(plan) = self.store.plan(plan).await.map_err(internal)? else { return Ok(()) };
        let members = self.members_of(&plan);
        let theirs: Vec<_> = members.iter().filter_map(|member| ready.get(&member.migration)).collect();
        let Some(first) = theirs.first() else { return Ok(()) };
        if theirs.len() < members.len() || self.groups.of_plan(&plan.name).is_some() {
            return Ok(());
        }
        let force = theirs.iter().all(|ready| ready.force);
        self.begin_group(&plan, force, &first.by).await.map(drop)
    }
}
