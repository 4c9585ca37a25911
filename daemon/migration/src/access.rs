//! The grants in force: kept in the state, and in memory for every request.
//!
//! Rule: a grant counts once the state has it. One that is revoked does not count from the request on, unless
//! the state keeps it.

use std::sync::{Arc, PoisonError, RwLock};

use warmd_core::{
    clock,
    control::{ControlError, ControlErrorKind},
    model::{
        access::{Grant, Role, Subject},
        event_kind::EventKind,
        view::EventView,
    },
};
use warmd_store::SavedGrants;

use super::manager::{Manager, internal};

/// The most patterns of one grant, and the most grants.
const MOST_PATTERNS: usize = 100;
const MOST_GRANTS: usize = 10_000;
/// The longest pattern, in bytes.
const LONGEST: usize = 256;

/// The grants, as a value that readers share.
#[derive(Debug, Default)]
pub(super) struct Grants {
    held: RwLock<Arc<Vec<Grant>>>,
    changing: tokio::sync::Mutex<()>,
}

impl Grants {
    pub(super) fn get(&self) -> Arc<Vec<Grant>> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, grants: Vec<Grant>) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(grants);
    }
}

impl Manager {
    /// Applies the grants of the state. One that cannot be read allows nothing, and is reported.
    pub(super) async fn know_grants(&self) -> Result<(), ControlError> {
        let SavedGrants { grants, unreadable } = self.store.grants().await.map_err(internal)?;
        self.grants.set(grants);
        for (name, error) in unreadable {
            let text = format!(
                "the role of {name} cannot be read, and allows nothing: grant it again, or revoke it ({error})"
            );
            self.tell(None, EventKind::Warning, text).await;
        }
        Ok(())
    }

    pub(super) async fn give_role(
        &self,
        subject: Subject,
        role: Role,
        plans: Vec<String>,
        by: &str,
    ) -> Result<Grant, ControlError> {
        let invalid = |why: String| ControlError::new(ControlErrorKind::Invalid, why);
        if role == Role::Admin && !plans.is_empty() {
            return Err(invalid(
                "an admin's programs run as the daemon, so the role is for all plans: omit `--plans`, or \
                 grant `planner` and `operator`"
                    .to_owned(),
            ));
        }
        if plans.len() > MOST_PATTERNS {
            return Err(invalid(format!("a role is for at most {MOST_PATTERNS} patterns of plans")));
        }
        if let Some(bad) = plans
            .iter()
            .find(|plan| plan.is_empty() || plan.len() > LONGEST || plan.contains(char::is_control))
        {
            return Err(invalid(format!(
                "`{}` is no pattern of plan names: write a name with `*` and `?`",
                bad.escape_debug()
            )));
        }
        let _one_at_a_time = self.grants.changing.lock().await;
        let mut grants = self.grants.get().to_vec();
        grants.retain(|grant| grant.subject != subject);
        if grants.len() >= MOST_GRANTS {
            return Err(invalid(format!("there are {MOST_GRANTS} roles already: revoke some")));
        }
        let only = if plans.is_empty() { String::new() } else { format!(", for plans {}", plans.join(", ")) };
        let text = format!("{subject} has the role {role}{only}");
        let grant = Grant { subject, role, plans, by: by.to_owned(), at: clock::now() };
        self.store.save_grant(grant.clone(), access_line(by, text)).await.map_err(internal)?;
        grants.push(grant.clone());
        grants.sort_by(|one, other| one.subject.cmp(&other.subject));
        self.grants.set(grants);
        Ok(grant)
    }

    pub(super) async fn take_role(&self, subject: &Subject, by: &str) -> Result<bool, ControlError> {
        let _one_at_a_time = self.grants.changing.lock().await;
        let before = self.grants.get();
        let mut left = before.to_vec();
        left.retain(|grant| grant.subject != *subject);
        // First here: a caller who hangs up in the middle has taken the role away.
        self.grants.set(left);
        // An unreadable grant is deleted too.
        let text = format!("{subject} has no role any more");
        let deleted = self.store.delete_grant(subject, access_line(by, text)).await;
        deleted.map_err(|error| {
            self.grants.set(before.to_vec());
            internal(error)
        })
    }
}

fn access_line(by: &str, text: String) -> EventView {
    EventView { at: clock::now(), migration: None, by: by.to_owned(), kind: EventKind::Access, text }
}
