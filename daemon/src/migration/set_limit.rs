//! Limits as the control API sees and changes them.
//!
//! Rule: what is set is saved, with its line in the journal, before it holds; one change at a time.

use warmd_cbt::limit::Limit;

use super::{
    control::{ControlError, ControlErrorKind},
    manager::{Manager, internal},
};
use crate::{
    clock,
    model::{
        id::DiskKey,
        limit::{LimitChange, LimitView, SavedLimit, Scope, ScopeName, SetBy, in_words},
        plan::Plan,
        view::EventView,
    },
};

/// Who changes limits when it is nobody in particular.
const DAEMON: &str = "warmd";

impl Manager {
    /// The limits of what is configured and of what is not finished; or of one scope, a migration with its disks.
    pub(super) fn limit_views(&self, name: Option<&str>) -> Result<Vec<LimitView>, ControlError> {
        let within = name.map(|name| self.scope(name)).transpose()?;
        let mut views = self.limits.list();
        views.retain(|view| {
            let below = match (&within, &view.scope) {
                (None, _) => true,
                (Some(Scope::Migration(id, None)), Scope::Migration(of, _)) => id == of,
                (Some(within), scope) => within == scope,
            };
            let open = match &view.scope {
                Scope::Migration(id, _) => {
                    self.handle(*id).is_ok_and(|handle| !handle.context.live.view().state.is_final())
                }
                Scope::Global | Scope::Source(_) | Scope::Target(_) => true,
            };
            below && open
        });
        Ok(views)
    }

    /// Changes a limit at once, and for good.
    pub(super) async fn change_limit(
        &self,
        name: &str,
        change: LimitChange,
        by: &str,
    ) -> Result<LimitView, ControlError> {
        let scope = self.scope(name)?;
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

    /// What the configuration says of the endpoints and of all.
    pub(super) async fn say_configured(&self, global: Limit) -> Result<(), ControlError> {
        let endpoints =
            self.endpoints.sources.iter().map(|(name, it)| (Scope::Source(name.clone()), it.limit));
        let targets = self.endpoints.targets.iter().map(|(name, it)| (Scope::Target(name.clone()), it.limit));
        let all = std::iter::once((Scope::Global, global)).chain(endpoints).chain(targets);
        let outdated = all.filter(|(scope, said)| self.limits.say(scope.clone(), "", *said).is_some());
        self.forget_outdated(outdated.map(|(scope, _)| scope).collect(), "the configuration").await
    }

    /// What a plan says of the migrations that it moves, at once.
    pub(super) async fn say_plan(&self, plan: &Plan) -> Result<(), ControlError> {
        let _one_at_a_time = self.changing_limits.lock().await;
        let mut outdated = Vec::new();
        for handle in self.handles() {
            let context = &handle.context;
            if context.plan().name == plan.name {
                let disks = context.machine.disks.iter().map(|disk| &disk.key);
                outdated.extend(self.limits.say_plan(context.id, &context.machine.name, disks, &plan.limits));
            }
        }
        self.forget_outdated(outdated, &format!("plan {}", plan.name)).await
    }

    /// Forgets what was set where `who` has had a newer word.
    pub(super) async fn forget_outdated(&self, scopes: Vec<Scope>, who: &str) -> Result<(), ControlError> {
        for scope in scopes {
            let now = self.limits.get(&scope).map_or(Limit::default(), |view| view.limit);
            let text = format!(
                "limit of {scope} is {} now: {who} says so, which is newer than what was set",
                in_words(&now)
            );
            let line = limit_line(&scope, DAEMON, text);
            self.store.save_limit(&scope, None, line).await.map_err(internal)?;
        }
        Ok(())
    }

    fn scope(&self, name: &str) -> Result<Scope, ControlError> {
        let scope = match ScopeName::parse(name) {
            Some(ScopeName::Global) => Scope::Global,
            Some(ScopeName::Source(name)) => Scope::Source(self.source(name).map(|_| name.to_owned())?),
            Some(ScopeName::Target(name)) => Scope::Target(self.target(name).map(|_| name.to_owned())?),
            Some(ScopeName::Migration(key, disk)) => {
                let view = self.find_migration(key)?;
                if view.state.is_final() {
                    let told =
                        format!("migration {} is {}: it has nothing left to limit", view.id, view.state);
                    return Err(ControlError::new(ControlErrorKind::Refused, told));
                }
                Scope::Migration(view.id, disk.map(|disk| DiskKey(disk.to_owned())))
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

    fn no_such_scope(&self, scope: &Scope) -> ControlError {
        let told = match scope {
            Scope::Migration(id, Some(disk)) => {
                let disks: Vec<_> = self
                    .limits
                    .list()
                    .into_iter()
                    .filter_map(|view| match view.scope {
                        Scope::Migration(other, Some(disk)) if other == *id => Some(disk.0),
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

fn limit_line(scope: &Scope, by: &str, text: String) -> EventView {
    let migration = match scope {
        Scope::Migration(id, _) => Some(*id),
        Scope::Global | Scope::Source(_) | Scope::Target(_) => None,
    };
    EventView { at: clock::now(), migration, by: by.to_owned(), kind: "limit".to_owned(), text }
}
