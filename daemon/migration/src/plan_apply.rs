//! Applying plans.
//!
//! Rule: a plan with an error changes nothing at all. Existing migrations stay as they are: running passes
//! are not disturbed. The plan is checked while other requests continue, and committed in one transaction if
//! nothing that it was checked against has changed; else it is checked again. A dry run reports the same as
//! applying, from the same findings, and saves nothing.

use std::sync::{Arc, atomic::Ordering};

use warmd_core::{
    clock,
    control::{Applied, ControlError, PlanChangeKind},
    model::{event_kind::EventKind, id::MigrationId, plan::Plan, state::State, view::EventView},
};
use warmd_store::{Created, NewMigration, StoreErrorKind};

use super::{
    manager::{Manager, internal},
    plan_diff,
    rules::{self, CheckedPlan, Subject},
};

/// How often a plan is checked again because of other changes, before those have to wait for it.
const JUDGED: u32 = 3;

impl Manager {
    /// See [`warmd_core::control::Control::preview_plan`].
    pub(super) async fn preview(&self, plan: &Plan) -> Result<Applied, ControlError> {
        let checked = rules::check_plan(self, plan).await?;
        let before = self.before(&plan.name).await?;
        let changes = plan_diff::diff_plans(self, before.as_ref(), plan, &checked.machines);
        let kept = checked.machines.iter().filter_map(|subject| subject.migration).collect();
        Ok(Applied { started: Vec::new(), kept, findings: checked.findings, changes })
    }

    /// The plan as last applied; an unreadable one counts as none, and is replaced.
    async fn before(&self, name: &str) -> Result<Option<Plan>, ControlError> {
        match self.store.plan(name).await {
            Err(error) if error.kind == StoreErrorKind::Corrupt => Ok(None),
            before => before.map_err(internal),
        }
    }

    /// Waits for exclusive access to what plans are checked against; earlier checks are then out of date.
    pub(super) async fn change_alone(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let alone = self.applying.lock().await;
        self.revision.fetch_add(1, Ordering::SeqCst);
        alone
    }

    /// See [`warmd_core::control::Control::apply_plan`].
    pub(super) async fn apply(&self, plan: Plan, by: &str) -> Result<Applied, ControlError> {
        // The check asks the source for each VM, which takes time: no other request, such as a rollback,
        // waits for that.
        for _ in 0..JUDGED {
            let revision = self.revision.load(Ordering::SeqCst);
            let checked = rules::check_plan(self, &plan).await?.good()?;
            let _one_at_a_time = self.applying.lock().await;
            if self.revision.fetch_add(1, Ordering::SeqCst) == revision {
                return self.commit(plan, checked, by).await;
            }
        }
        let _one_at_a_time = self.change_alone().await;
        let checked = rules::check_plan(self, &plan).await?.good()?;
        self.commit(plan, checked, by).await
    }

    /// Applies the plan, if nothing has changed since its check.
    async fn commit(&self, plan: Plan, checked: CheckedPlan, by: &str) -> Result<Applied, ControlError> {
        let before = self.before(&plan.name).await?;
        let mut changes = plan_diff::diff_plans(self, before.as_ref(), &plan, &checked.machines);
        let theirs: Vec<_> =
            self.handles().into_iter().filter(|handle| handle.context.plan().name == plan.name).collect();
        let open = theirs.iter().filter(|handle| !handle.context.state().is_final());
        let mut lines: Vec<_> = open
            .map(|handle| {
                let text = plan_diff::applied_again(&handle.context.plan(), &plan);
                handle.context.journal_entry(by, EventKind::Request, text)
            })
            .collect();
        let mut applied = Applied { findings: checked.findings, ..Applied::default() };
        let (mut vms, mut new) = (Vec::new(), Vec::new());
        for subject in checked.machines {
            if let Some(id) = subject.migration {
                applied.kept.push(id);
                continue;
            }
            vms.push(subject.vm.clone());
            new.push(begun(&plan, subject, by));
        }
        lines.push(EventView {
            at: clock::now(),
            migration: None,
            by: by.to_owned(),
            kind: EventKind::Plan,
            text: format!("plan {}: {} started, {} kept", plan.name, new.len(), applied.kept.len()),
        });
        let made = self.store.apply_plan(&plan, clock::now(), lines, new).await.map_err(internal)?;
        let plan = Arc::new(plan);
        for handle in theirs {
            handle.context.set_plan(Arc::clone(&plan));
        }
        self.set_plan_limits(&plan).await?;
        self.start_readable(&plan).await;
        for (vm, made) in vms.into_iter().zip(made) {
            // A migration whose creation failed, but was saved, exists and has no driver yet.
            let (Created::New(row) | Created::Exists(row)) = made;
            let id = row.id;
            if self.handle(id).is_none() {
                self.spawn_driver(row, Arc::clone(&plan)).await?;
            }
            applied.started.push(id);
            let starts = changes
                .iter_mut()
                .find(|change| change.kind == PlanChangeKind::Start && change.vm.as_ref() == Some(&vm));
            if let Some(change) = starts {
                change.migration = Some(id);
            }
        }
        applied.changes = changes;
        Ok(applied)
    }
}

/// A new migration for a VM that has none.
fn begun(plan: &Plan, subject: Subject, by: &str) -> NewMigration {
    let Subject { name: target_name, machine, .. } = subject;
    let (id, created) = (MigrationId::generate(), clock::now());
    let line = EventView {
        at: created,
        migration: Some(id),
        by: by.to_owned(),
        kind: EventKind::Request,
        text: format!("begun by applying plan {}", plan.name),
    };
    NewMigration {
        id,
        plan: plan.name.clone(),
        source: plan.source.clone(),
        target: plan.target.clone(),
        vm: machine.id.clone(),
        vm_name: machine.name.clone(),
        target_name,
        machine,
        state: State::Defined,
        created,
        warnings: Vec::new(),
        events: vec![line],
    }
}
