//! Plans made so.
//!
//! Rule: a plan with an error changes nothing at all. What is there already is kept as it is: passes that run are not
//! disturbed. A dry run says the same as applying, from the same findings, and stores nothing.

use std::sync::Arc;

use warmd_cbt::mutant::mutant;

use super::{
    changes,
    control::{Applied, ControlError, ControlErrorKind, PlanChangeKind},
    manager::{Manager, internal},
    rules::{self, Subject},
};
use crate::{
    clock,
    model::{id::MigrationId, plan::Plan, state::State, view::EventView},
    store::{Created, NewMigration},
};

impl Manager {
    /// See [`super::control::Control::preview_plan`].
    pub(super) async fn preview(&self, plan: &Plan) -> Result<Applied, ControlError> {
        let judged = rules::judge(self, plan).await?;
        let before = self.store.plan(&plan.name).await.map_err(internal)?;
        let changes = changes::of(self, before.as_ref(), plan, &judged.machines);
        let kept = judged.machines.iter().filter_map(|subject| subject.migration).collect();
        Ok(Applied { started: Vec::new(), kept, findings: judged.findings, changes })
    }

    /// See [`super::control::Control::apply_plan`].
    pub(super) async fn apply(&self, plan: Plan, by: &str) -> Result<Applied, ControlError> {
        let _one_at_a_time = self.applying.lock().await;
        let judged = rules::judge(self, &plan).await?;
        if let Some(errors) = judged.errors() {
            return Err(ControlError::new(ControlErrorKind::Invalid, errors));
        }
        let before = self.store.plan(&plan.name).await.map_err(internal)?;
        let mut changes = changes::of(self, before.as_ref(), &plan, &judged.machines);
        let theirs: Vec<_> =
            self.handles().into_iter().filter(|handle| handle.context.plan().name == plan.name).collect();
        let lines =
            theirs.iter().filter(|handle| !handle.context.live.view().state.is_final()).map(|handle| {
                let text = changes::applied_again(&handle.context.plan(), &plan);
                handle.context.line(by, "request", text)
            });
        self.store.put_plan(&plan, clock::now(), lines.collect()).await.map_err(internal)?;
        let plan = Arc::new(plan);
        for handle in theirs {
            handle.context.set_plan(Arc::clone(&plan));
        }
        self.say_plan(&plan).await?;
        let mut applied = Applied { findings: judged.findings, ..Applied::default() };
        for subject in judged.machines {
            if let Some(id) = subject.migration {
                applied.kept.push(id);
                continue;
            }
            let vm = subject.vm.clone();
            let id = self.begin(&plan, subject, by).await?;
            applied.started.push(id);
            let starts = changes
                .iter_mut()
                .find(|change| change.kind == PlanChangeKind::Start && change.vm.as_ref() == Some(&vm));
            if let Some(change) = starts {
                change.migration = Some(id);
            }
        }
        applied.changes = changes;
        let text =
            format!("plan {}: {} started, {} kept", plan.name, applied.started.len(), applied.kept.len());
        self.journal(by, "plan", text).await?;
        Ok(applied)
    }

    async fn begin(&self, plan: &Arc<Plan>, subject: Subject, by: &str) -> Result<MigrationId, ControlError> {
        let Subject { name: target_name, machine, .. } = subject;
        let (id, created) = (MigrationId::generate(), clock::now());
        let line = EventView {
            at: created,
            migration: Some(id),
            by: by.to_owned(),
            kind: "request".to_owned(),
            text: format!("begun by applying plan {}", plan.name),
        };
        let new = NewMigration {
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
        };
        match self.store.create_migration(new).await.map_err(internal)? {
            Created::Exists(row) if mutant("migration-orphaned") => Ok(row.id),
            // One whose making failed, and was durable all the same, has nobody yet who drives it.
            Created::New(row) | Created::Exists(row) => {
                let id = row.id;
                if self.handle(id).is_none() {
                    self.take_up(row, Arc::clone(plan)).await?;
                }
                Ok(id)
            }
        }
    }
}
