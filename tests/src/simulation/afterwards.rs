//! Starts of sources by operators and high availability after all is done, and their reports.
//!
//! Rule: no faults any more. A source that runs beside its target VM is reported within a bounded time, and
//! so is that it is off again.

use std::{sync::PoisonError, time::Duration};

use warmd_core::model::{id::MigrationId, state::State, view::MigrationView};

use super::life::SimulatedLife;

/// The bound for that report.
const TOLD: Duration = Duration::from_mins(5);

/// Starts some of the sources of migrations that are done, waits until that is reported, and stops them
/// again. A source left running before must be reported too.
pub(super) async fn look_back(stage: &SimulatedLife, views: &[MigrationView]) {
    let mut chance = stage.holding.lock().unwrap_or_else(PoisonError::into_inner).split();
    let done = stage.scenario.vms.iter().filter_map(|scene| {
        let last = views.iter().rfind(|view| view.vm_name == scene.name)?;
        (last.state == State::Done).then(|| (last.id, scene.name.clone()))
    });
    let done: Vec<_> = done.collect();
    if chance.happens(300) {
        for (_, name) in &done {
            if chance.happens(700) {
                stage.world.truth().others_start(name, "operator");
            }
        }
    }
    let runs = |name: &String| stage.world.truth().vms.get(name).is_some_and(|vm| vm.runs);
    let running: Vec<_> = done.iter().map(|(_, name)| name).filter(|name| runs(name)).collect();
    until_told(stage, &done).await;
    for name in &running {
        let mut truth = stage.world.truth();
        truth.stop_stray(name);
        truth.counts.add("sources started after all");
    }
    until_told(stage, &done).await;
}

/// Waits until the durable state records for all these whether their sources run.
async fn until_told(stage: &SimulatedLife, of: &[(MigrationId, String)]) {
    let begun = tokio::time::Instant::now();
    for (id, name) in of {
        loop {
            {
                let mut truth = stage.world.truth();
                let runs = truth.vms.get(name).is_some_and(|vm| vm.runs);
                if truth.told.contains(id) == runs {
                    break;
                }
                if begun.elapsed() > TOLD {
                    truth.violated(format!("{name} is done, its source runs: {runs}, and nothing tells"));
                    return;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
