//! Migrations that the state holds and that cannot be read.
//!
//! Rule: they are shown, with the reason; nothing of them is run or deleted, and every request on them is refused.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{
    control::{ControlError, ControlErrorKind},
    manager::Manager,
};
use crate::{
    model::{
        id::{MigrationId, VmId},
        plan::Plan,
    },
    store::Unreadable,
};

impl Manager {
    /// All that are not known to be over.
    pub(super) fn all_unreadable(&self) -> Vec<Unreadable> {
        self.unread().values().cloned().collect()
    }

    pub(super) fn unreadable(&self, id: MigrationId) -> Option<Unreadable> {
        self.unread().get(&id).cloned()
    }

    /// The one that moves this VM of that source.
    pub(super) fn unreadable_of(&self, source: &str, vm: &VmId) -> Option<Unreadable> {
        self.all_unreadable().into_iter().find(|each| each.source == source && each.vm == *vm)
    }

    /// A refusal, if the migration cannot be read.
    pub(super) fn check_readable(&self, id: MigrationId) -> Result<(), ControlError> {
        match self.unreadable(id) {
            None => Ok(()),
            Some(it) => Err(ControlError::new(ControlErrorKind::Refused, it.reason())),
        }
    }

    /// Keeps that it cannot be read, and tells it.
    pub(super) async fn know_unreadable(&self, it: Unreadable) {
        let text = format!("migration {} of VM {} of plan {}: {}", it.id, it.vm_name, it.plan, it.reason());
        self.unread().insert(it.id, it);
        self.tell(None, "warning", text).await;
    }

    /// A plan whose row was garbage has been applied anew: what it kept from being read is taken up.
    pub(super) async fn take_up_readable(&self, plan: &Arc<Plan>) {
        for it in self.all_unreadable().into_iter().filter(|each| each.plan == plan.name) {
            let Ok(row) = self.row(it.id).await else { continue };
            if self.take_up(row, Arc::clone(plan)).await.is_ok() {
                self.unread().remove(&it.id);
            }
        }
    }

    fn unread(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Unreadable>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
