//! Limits in the control API.
//!
//! Rule: a limit is saved, with its journal line, before it takes effect; one change at a time.

use warmd_cbt::limit::Limit;
use warmd_core::{
    clock,
    control::{Control as _, ControlError, ControlErrorKind},
    model::{
        event_kind::EventKind,
        id::DiskKey,
        limit::{LimitChange, LimitScope, LimitView, SavedLimit, ScopeName, SetBy, in_words},
        plan::Plan,
        view::EventView,
    },
};
use warmd_store::StoreError;

use super::{
    limits::ConfiguredLimit,
    manager::{Manager, internal, unread},
};

/// The author of changes that no user requested.
const DAEMON: &str = "warmd";

impl Manager {
    /// The limits of configured endpoints and unfinished migrations; or of one scope, a migration with its
    /// disks.
    pub(super) async fn limit_views(&self, name: Option<&str>) -> Result<Vec<LimitView>, ControlError> {
        let within = match name {
            Some(name) => Some(self.scope(name).await?),
            None => None,
        };
        let mut views = self.limits.list();
        views.retain(|view| {
            let below = match (&within, &view.scope) {
                (None, _) => true,
                (Some(LimitScope::Migration(id, None)), LimitScope::Migration(of, _)) => id == of,
                (Some(within), scope) => within == scope,
            };
            let open = match &view.scope {
                LimitScope::Migration(id, _) => {
                    self.handle(*id).is_some_and(|handle| !handle.context.state().is_final())
                }
                LimitScope::Global | LimitScope::Source(_) | LimitScope::Target(_) => true,
            };
            below && open
        });
        Ok(views)
    }

    /// Changes a limit at once, and permanently.
    pub(super) async fn change_limit(
        &self,
        name: &str,
        change: LimitChange,
        by: &str,
    ) -> Result<LimitView, ControlError> {
        let scope = self.scope(name).await?;
        let _one_at_a_time = self.changing_limits.lock().await;
        let unknown = || self.no_such_scope(&scope);
        let before = self.limits.get(&scope).ok_or_else(unknown)?;
        let said = self.limits.said(&scope).ok_or_else(unknown)?;
        let (limit, set) = match change {
            LimitChange::Reset => (said, None),
            LimitChange::To { rate, requests } => (
                Limit {
                    rate: rate.unwrap_or(before.limit.rate),
                    requests: requests.unwrap_or(before.limit.requests),
                },
                Some(SetBy { by: by.to_owned(), at: clock::now() }),
            ),
        };
        let saved = set.clone().map(|set| SavedLimit { limit, instead_of: said, set });
        let was = in_words(&before.limit);
        let text = match change {
            LimitChange::Reset => format!("limit of {scope} reset to {} (was {was})", in_words(&limit)),
            LimitChange::To { .. } => format!("limit of {scope} set to {} (was {was})", in_words(&limit)),
        };
        let line = limit_line(&scope, by, text);
        self.store.save_limit(&scope, saved, line).await.map_err(internal)?;
        self.limits.set(&scope, limit, set);
        self.limits.get(&scope).ok_or_else(unknown)
    }

    /// Applies the configured limits, global and of endpoints.
    pub(super) async fn set_configured_limits(&self, global: Limit) -> Result<(), ControlError> {
        let sources =
            self.endpoints.sources.iter().map(|(name, it)| (LimitScope::Source(name.clone()), it.limit));
        let targets =
            self.endpoints.targets.iter().map(|(name, it)| (LimitScope::Target(name.clone()), it.limit));
        let all = std::iter::once((LimitScope::Global, global)).chain(sources).chain(targets);
        let words = all.map(|(scope, said)| ConfiguredLimit { scope, vm_name: String::new(), said });
        self.set_configured(words.collect(), "the configuration").await
    }

    /// Applies a plan's limits to its migrations at once.
    pub(super) async fn set_plan_limits(&self, plan: &Plan) -> Result<(), ControlError> {
        let _one_at_a_time = self.changing_limits.lock().await;
        self.gate.set_plan_quota(plan);
        let mut words = Vec::new();
        for handle in self.handles() {
            let context = &handle.context;
            if context.plan().name == plan.name && !context.state().is_final() {
                let disks = context.machine.disks.iter().map(|disk| &disk.key);
                words.extend(ConfiguredLimit::of_plan(
                    context.id,
                    &context.machine.name,
                    disks,
                    &plan.limits,
                ));
            }
        }
        self.set_configured(words, &format!("plan {}", plan.name)).await
    }

    /// Applies limits that `who` configured; where they are newer than a limit set at run time, that is
    /// deleted first.
    pub(super) async fn set_configured(
        &self,
        words: Vec<ConfiguredLimit>,
        who: &str,
    ) -> Result<(), ControlError> {
        for word in words {
            if self.limits.outdates(&word) {
                let (scope, now) = (&word.scope, in_words(&word.said));
                let text =
                    format!("limit of {scope} is {now} now: {who} says so, which is newer than what was set");
                let line = limit_line(scope, DAEMON, text);
                self.store.save_limit(scope, None, line).await.map_err(unread)?;
            }
            self.limits.set_configured(word);
        }
        Ok(())
    }

    /// Reports limits that were set and cannot be read: those of configuration and plans hold instead. The
    /// operator must not learn that from the load.
    pub(super) async fn tell_unreadable(&self, unreadable: &[(String, StoreError)]) {
        for (name, error) in unreadable {
            let text = format!(
                "the limit that was set of {name} cannot be read, and does not hold: what the configuration or the \
                 plan says does. Set it again, or reset it ({error})"
            );
            tracing::error!(scope = name, %error, "a limit that was set does not hold");
            self.try_journal(None, EventKind::Warning, text).await;
        }
    }

    async fn scope(&self, name: &str) -> Result<LimitScope, ControlError> {
        let scope = match ScopeName::parse(name) {
            Some(ScopeName::Global) => LimitScope::Global,
            Some(ScopeName::Source(name)) => LimitScope::Source(self.source(name).map(|_| name.to_owned())?),
            Some(ScopeName::Target(name)) => LimitScope::Target(self.target(name).map(|_| name.to_owned())?),
            Some(ScopeName::Migration(key, disk)) => {
                let view = self.migration(key).await?;
                if view.state.is_final() {
                    let told =
                        format!("migration {} is {}: it has nothing left to limit", view.id, view.state);
                    return Err(ControlError::new(ControlErrorKind::Refused, told));
                }
                LimitScope::Migration(view.id, disk.map(|disk| DiskKey(disk.to_owned())))
            }
            None => {
                let told = format!(
                    "{name:?} is no scope of a limit: use global, source/NAME, target/NAME, migration/ID or \
                     migration/ID/DISK"
                );
                return Err(ControlError::new(ControlErrorKind::Invalid, told));
            }
        };
        match self.limits.get(&scope) {
            Some(_) => Ok(scope),
            None => Err(self.no_such_scope(&scope)),
        }
    }

    fn no_such_scope(&self, scope: &LimitScope) -> ControlError {
        let told = match scope {
            LimitScope::Migration(id, Some(disk)) => {
                let disks: Vec<_> = self
                    .limits
                    .list()
                    .into_iter()
                    .filter_map(|view| match view.scope {
                        LimitScope::Migration(other, Some(disk)) if other == *id => Some(disk.0),
                        _ => None,
                    })
                    .collect();
                format!("migration {id} has no disk {disk}; it has {}", disks.join(", "))
            }
            _ => format!("there is no limit of {scope}: see `limit show`"),
        };
        ControlError::new(ControlErrorKind::NotFound, told)
    }
}

fn limit_line(scope: &LimitScope, by: &str, text: String) -> EventView {
    let migration = match scope {
        LimitScope::Migration(id, _) => Some(*id),
        LimitScope::Global | LimitScope::Source(_) | LimitScope::Target(_) => None,
    };
    EventView { at: clock::now(), migration, by: by.to_owned(), kind: EventKind::Limit, text }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{context::Engine, manager::Endpoints};
    use warmd_store::Store;

    /// At the start a migration waits for this, and is resumed later; a permanent failure is never retried.
    #[tokio::test]
    async fn a_limit_that_cannot_be_forgotten_for_now_fails_for_now() {
        let dir = tempfile::tempdir().unwrap();
        let (store, shutdown) = (Store::open(dir.path()).unwrap(), CancellationToken::new());
        let manager =
            Manager::start(store.clone(), Endpoints::default(), Engine::for_tests(), shutdown.clone());
        let manager = manager.await.unwrap();
        let set = LimitChange::To { rate: Some(NonZeroU64::new(1 << 30)), requests: None };
        manager.change_limit("global", set, "test").await.unwrap();
        store.close().await.unwrap();
        let said = Limit { rate: NonZeroU64::new(1 << 20), requests: None };
        let word = ConfiguredLimit { scope: LimitScope::Global, vm_name: String::new(), said };
        let error = manager.set_configured(vec![word], "a test").await.unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Unavailable, "{error}");
        shutdown.cancel();
    }
}
