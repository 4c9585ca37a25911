//! The actors in a simulation beside the daemon: guests, the operator, and other tools and users.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use warmd_core::{
    clock,
    control::Control,
    model::{
        phase::Phase,
        plan::VerifyMode,
        request::{Request, RequestOutcome},
        scheduled_cutover::{CutoverOrder, CutoverTime},
        state::{ResumePoint, State},
        verify::{Amount, VerifyOrder, VerifyScope},
        view::MigrationView,
    },
};
use warmd_migration::manager::Manager;

use super::{
    afterwards,
    chance::Chance,
    groups,
    life::{End, SimulatedLife},
    scenario::VmScene,
    target,
    world::Truth,
};

/// Virtual time within which all migrations must end after the last fault.
const PATIENCE: Duration = Duration::from_hours(6);
/// What guests write: few values, so that earlier contents come back.
const BYTES: [u8; 4] = [0, 1, 2, 3];

/// Acts until all migrations are done, or the daemon must be shut down.
pub(super) async fn act(stage: &SimulatedLife, manager: &Arc<Manager>) -> End {
    let mut chance = stage.people.lock().unwrap_or_else(PoisonError::into_inner).split();
    let (guests, others) = (chance.split(), chance.split());
    let together = stage.together.lock().unwrap_or_else(PoisonError::into_inner).split();
    let clocks = stage.clocks.lock().unwrap_or_else(PoisonError::into_inner).split();
    tokio::select! {
        biased;
        end = operate(stage, manager, chance, together) => end,
        () = write(stage, guests) => End::Over,
        () = meddle(stage, others) => End::Over,
        () = turn_clock(stage, clocks) => End::Over,
    }
}

async fn write(stage: &SimulatedLife, mut chance: Chance) {
    loop {
        tokio::time::sleep(chance.millis(1, stage.scenario.guest_pause)).await;
        let vm = &stage.scenario.vms[chance.below(stage.scenario.vms.len() as u64) as usize];
        let (disk, size) = &vm.disks[chance.below(vm.disks.len() as u64) as usize];
        let len = chance.magnitude((200 << 10).min(*size));
        let at = chance.below(size - len + 1);
        // Whole blocks too, so that an earlier hash comes back.
        let block = warmd_cbt::units::BLOCK;
        let (at, len) = if chance.happens(500) {
            let at = at / block * block;
            (at, (len.div_ceil(block) * block).min(size - at))
        } else {
            (at, len)
        };
        let byte = chance.one_of(&BYTES);
        let mut truth = stage.world.truth();
        truth.guest_writes(&vm.name, disk, at, len, byte);
        let moved = truth.targets.iter().find(|(_, made)| made.vm.as_ref() == Some(&vm.name) && made.runs);
        if let Some(id) = moved.map(|(id, _)| *id) {
            truth.target_writes(id, disk, at, len, byte);
        }
    }
}

async fn operate(
    stage: &SimulatedLife,
    manager: &Arc<Manager>,
    mut chance: Chance,
    mut together: Chance,
) -> End {
    let ends =
        chance.happens(300).then(|| clock::steady() + super::world::delta(chance.millis(1000, 60_000)));
    let mut asked = 0;
    while clock::steady() < stage.calm_from {
        tokio::time::sleep(chance.millis(50, 8000)).await;
        if ends.is_some_and(|ends| clock::steady() > ends) {
            return End::ShutDown;
        }
        let Some(view) = pick(manager, &mut chance).await else {
            apply(stage, manager).await;
            continue;
        };
        let request = chance.weighted(&[
            (4, Request::Sync),
            (5, Request::cutover()),
            (2, Request::AbortCutover),
            (2, Request::Rollback),
            (2, Request::Pause),
            (5, Request::Resume),
            (2, Request::verify()),
            (1, Request::Cancel),
        ]);
        if request == Request::Cancel && chance.happens(800) {
            continue;
        }
        // Its VM and its disks would be left behind, and both belong to this operator.
        if request == Request::Cancel
            && matches!(view.state, State::Failed { from: ResumePoint::StaleState, .. })
        {
            continue;
        }
        asked += 1;
        let begins = request == Request::cutover();
        if begins && together.happens(150) {
            arrange(stage, manager, &view, &mut together).await;
            continue;
        }
        let of_all = begins || request == Request::AbortCutover;
        if stage.scenario.plan.is_grouped() && of_all && together.happens(700) {
            groups::ask(stage, manager, begins).await;
            continue;
        }
        let order = (request == Request::verify() && chance.happens(700)).then(|| order(&mut chance));
        ask_for(stage, manager, &view, request, order, asked).await;
        if chance.happens(100) {
            apply(stage, manager).await;
        }
    }
    finish(stage, manager, asked).await;
    End::Over
}

/// No more faults: all migrations must end.
async fn finish(stage: &SimulatedLife, manager: &Arc<Manager>, mut asked: u32) {
    {
        let mut truth = stage.world.truth();
        (truth.faults, truth.store_faults, truth.meddling) = (0, 0, false);
        (truth.dies_at, truth.dies_in) = (None, None);
        truth.note(format_args!("==== nothing goes wrong any more"));
    }
    let until = clock::steady() + super::world::delta(PATIENCE);
    loop {
        let views = manager.migrations(None).await.unwrap_or_default();
        if !stage.world.truth().violations.is_empty() {
            break;
        }
        let (mut open, mut together) = (0, false);
        for scene in &stage.scenario.vms {
            let last = views.iter().rfind(|view| view.vm_name == scene.name);
            let Some(view) = last else {
                open += 1;
                apply(stage, manager).await;
                continue;
            };
            if view.state.is_final() {
                // A migration that was cancelled halfway is moved in the end.
                if view.state == State::Cancelled && !scene.give_up {
                    open += 1;
                    apply(stage, manager).await;
                }
                continue;
            }
            open += 1;
            if let Some(request) = wanted(stage, scene, view) {
                if request == Request::cutover() && stage.scenario.plan.is_grouped() {
                    together = true;
                    continue;
                }
                asked += 1;
                ask(stage, manager, view, request, asked).await;
            }
        }
        if together {
            groups::ask(stage, manager, true).await;
        }
        if open == 0 {
            afterwards::look_back(stage, &views).await;
            break;
        }
        if clock::steady() > until {
            let states: Vec<_> =
                views.iter().map(|view| format!("{} {}", view.vm_name, view.state)).collect();
            stage.world.truth().violated(format!("not done in {PATIENCE:?}: {}", states.join(", ")));
            break;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

/// The request that brings a migration to its end.
fn wanted(stage: &SimulatedLife, scene: &VmScene, view: &MigrationView) -> Option<Request> {
    if matches!(&view.state, State::Failed { from, .. } if from.past_no_return()) {
        let mut truth = stage.world.truth();
        // As the failure says: both VMs must not run at once.
        truth.stop_stray(&scene.name);
        if truth.vms.get(&scene.name).is_some_and(|vm| vm.runs) {
            // No other started it: warmd did, in a rollback that a state from before does not know of. The
            // failure offers it.
            return Some(Request::Rollback);
        }
    }
    match &view.state {
        State::Failed { from: ResumePoint::BootCheck, .. } => {
            // As the failure says: the operator starts the VM there, or rolls back if there is no VM to
            // start.
            let started = target::start(&mut stage.world.truth(), view.id);
            Some(if started.is_ok() { Request::Resume } else { Request::Rollback })
        }
        // The operator knows that the state was restored, and chooses the source.
        State::Failed { from: ResumePoint::StaleState, .. } => Some(Request::Rollback),
        State::Paused { .. } | State::Failed { .. } if !scene.give_up => Some(Request::Resume),
        State::Paused { .. }
        | State::Failed {
            from: ResumePoint::Preparing | ResumePoint::Seeding | ResumePoint::Synced, ..
        } => Some(Request::Cancel),
        State::Failed { .. } => Some(Request::Resume),
        State::Synced => {
            // The operator stops a VM that ignores a request to shut down.
            if let Some(vm) = stage.world.truth().vms.get_mut(&scene.name) {
                vm.heeds_shutdown = true;
            }
            Some(if scene.give_up { Request::Cancel } else { Request::cutover() })
        }
        _ => None,
    }
}

async fn pick(manager: &Arc<Manager>, chance: &mut Chance) -> Option<MigrationView> {
    let views = manager.migrations(None).await.unwrap_or_default();
    let at = chance.below(views.len() as u64) as usize;
    views.into_iter().nth(at)
}

async fn apply(stage: &SimulatedLife, manager: &Arc<Manager>) {
    let by = format!("planner {}", clock::steady().timestamp_micros());
    let applied = manager.apply_plan(stage.scenario.plan.clone(), &by).await;
    let mut truth = stage.world.truth();
    match applied {
        Ok(applied) => {
            let (started, kept) = (applied.started.len(), applied.kept.len());
            let durable = stage.durable.lock().unwrap_or_else(PoisonError::into_inner);
            if !durable.journal.iter().any(|(_, line)| line.by == by && line.kind == "plan") {
                truth.violated("the journal does not tell of an applied plan".to_owned());
            }
            truth.note(format_args!("plan applied: {started} started, {kept} kept"));
        }
        Err(error) => truth.note(format_args!("plan not applied: {error}")),
    }
}

/// Schedules a cutover, or puts it on hold; in a group sometimes for a single VM.
async fn arrange(stage: &SimulatedLife, manager: &Arc<Manager>, view: &MigrationView, chance: &mut Chance) {
    let later = CutoverTime::At(clock::now() + super::world::delta(chance.millis(0, 20_000)));
    let when = chance.one_of(&[later, CutoverTime::Hold, CutoverTime::Unhold, CutoverTime::Now]);
    let order = CutoverOrder { when, force: chance.happens(300), ..CutoverOrder::default() };
    let by = format!("operator {}", clock::steady().timestamp_micros());
    let answer = manager.cut_over(view.id, order, &by).await;
    let mut truth = stage.world.truth();
    let name = truth.name(view.id);
    truth.counts.add("arranged cutovers");
    truth.note(format_args!("{order:?} of {name}: {:?}", answer.ok()));
}

async fn ask(
    stage: &SimulatedLife,
    manager: &Arc<Manager>,
    view: &MigrationView,
    request: Request,
    asked: u32,
) {
    ask_for(stage, manager, view, request, None, asked).await;
}

/// A verification of some of the disks, in either mode.
fn order(chance: &mut Chance) -> VerifyOrder {
    let mode = chance.one_of(&[VerifyMode::Readback, VerifyMode::Compare]);
    let scope = match chance.below(3) {
        0 => VerifyScope::Full,
        1 => VerifyScope::Changed,
        _ => VerifyScope::Sample(Amount::Share(chance.magnitude(1_000_000) as u32)),
    };
    // Without a seed the daemon draws one, which does not depend on the simulation's seed.
    let seed = match scope {
        VerifyScope::Sample(Amount::Share(share)) => Some(u64::from(share)),
        _ => None,
    };
    VerifyOrder { mode, scope, seed, ..VerifyOrder::default() }
}

async fn ask_for(
    stage: &SimulatedLife,
    manager: &Arc<Manager>,
    view: &MigrationView,
    request: Request,
    order: Option<VerifyOrder>,
    asked: u32,
) {
    let by = format!("operator {} of {asked}", clock::steady().timestamp_micros());
    let before = stage.world.truth().counts.of("store faults");
    let answer = match order {
        Some(order) => manager.verify(view.id, order, &by).await,
        None => manager.request(view.id, request.clone(), &by).await,
    };
    let Ok(outcome) = answer else { return };
    let mut truth = stage.world.truth();
    let name = truth.name(view.id);
    truth.note(format_args!("{} of {name}: {outcome:?}", request.name()));
    let durable = stage.durable.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<_> = durable.journal.iter().map(|(_, line)| line).filter(|line| line.by == by).collect();
    let asked = lines.iter().any(|line| line.kind == "request");
    let moved = lines.iter().any(|line| line.kind == "state");
    // A request that was refused because the journal could not be written changed nothing.
    let excused = before != truth.counts.of("store faults") && outcome != RequestOutcome::Accepted;
    if !asked && !excused {
        truth.violated(format!("the journal does not tell of {} ({outcome:?})", request.name()));
    }
    // A scheduled cutover has no state of its own.
    let is_step = match request {
        Request::Verify(_) => false,
        Request::AbortCutover => matches!(view.state, State::CuttingOver { .. }),
        _ => true,
    };
    if outcome == RequestOutcome::Accepted && is_step && !moved {
        truth.violated(format!("{} was accepted, and nothing of it is durable", request.name()));
    }
}

/// Other tools and users change what they should not, until faults end.
async fn meddle(stage: &SimulatedLife, mut chance: Chance) {
    loop {
        tokio::time::sleep(chance.millis(700, 11_000)).await;
        if !stage.scenario.meddling || clock::steady() >= stage.calm_from {
            break;
        }
        let name = stage.scenario.vms[chance.below(stage.scenario.vms.len() as u64) as usize].name.clone();
        match chance.below(7) {
            0 => lose_marks(stage, &name),
            1 | 2 => change_power(stage, &name),
            3 => cut_target(stage, &mut chance),
            4 => stage.world.truth().reboot_source(&name),
            5 => stage.world.truth().change_autostart(&name),
            _ => write_to_target(stage, &mut chance),
        }
    }
    std::future::pending::<()>().await;
}

/// In some lives the wall clock is set, forward or back, by seconds or by days. It is right again in the next
/// life.
async fn turn_clock(stage: &SimulatedLife, mut chance: Chance) {
    while chance.happens(300) {
        tokio::time::sleep(chance.millis(500, 15_000)).await;
        if clock::steady() >= stage.calm_from {
            break;
        }
        let span = super::world::delta(Duration::from_secs(chance.magnitude(2 * 86_400)));
        let span = if chance.happens(500) { span } else { -span };
        clock::turn(span);
        let mut truth = stage.world.truth();
        truth.counts.add("clocks set");
        truth.note(format_args!("the clock on the wall is set by {span}"));
    }
    std::future::pending::<()>().await;
}

fn lose_marks(stage: &SimulatedLife, name: &str) {
    let mut truth = stage.world.truth();
    let Some(vm) = truth.vms.get_mut(name) else { return };
    vm.marks.clear();
    truth.counts.add("marks lost");
    truth.note(format_args!("{name} loses its marks"));
}

/// A user powers a VM off or on, but not one that a cutover is about to stop, nor one that is moved, unless
/// it was started behind its back.
fn change_power(stage: &SimulatedLife, name: &str) {
    let mut truth = stage.world.truth();
    let truth = &mut *truth;
    let (cuts, late) = (truth.is_cut_over(name), truth.may_be_moved(name));
    let handed_over = truth.is_handed_over(name);
    let Some(vm) = truth.vms.get_mut(name) else { return };
    if !vm.runs || handed_over || !(cuts || late) {
        truth.counts.add("power changes");
    }
    if !vm.runs {
        truth.others_start(name, "operator");
    } else if handed_over {
        truth.stop_stray(name);
    } else if !cuts && !late {
        (vm.wanted, vm.goes_off) = (Some(false), None);
        vm.obeys(false);
        truth.note(format_args!("a user stops {name}"));
    }
}

/// While no daemon runs, a user starts a VM that a cutover has stopped, lets it write, and stops it again.
pub(super) fn run_unwatched(truth: &mut Truth, chance: &mut Chance) {
    let stopped = truth.ledgers.iter().find_map(|((id, _), ledger)| {
        // From the target's start on the daemon could not prevent that both run.
        let ran = truth.targets.get(id).is_some_and(|made| made.ran);
        let early = match truth.states.get(id) {
            Some(State::CuttingOver { phase }) => *phase <= Phase::StartVm && !ran,
            _ => false,
        };
        let vm = truth.vms.get(&ledger.vm).filter(|vm| early && !vm.runs && vm.goes_off.is_none())?;
        Some((vm.name.clone(), vm.disks.iter().map(|(key, pages)| (key.clone(), pages.size())).next()?))
    });
    let Some((name, (disk, size))) = stopped else { return };
    let runs = |truth: &mut Truth, runs| truth.vms.get_mut(&name).map(|vm| vm.runs = runs);
    runs(truth, true);
    if let Some(vm) = truth.vms.get_mut(&name) {
        vm.starters.strayed = Some(clock::steady());
    }
    truth.guest_writes(&name, &disk, 0, size.min(70_000), chance.one_of(&BYTES));
    runs(truth, false);
    truth.counts.add("runs that nobody saw");
}

/// While no daemon runs, a user starts a source, or its host reboots.
pub(super) fn start_unwatched(truth: &mut Truth, chance: &mut Chance) {
    let count = truth.vms.len() as u64;
    let Some(name) = truth.vms.keys().nth(chance.below(count) as usize).cloned() else { return };
    if chance.happens(500) {
        truth.reboot_source(&name);
    } else {
        truth.others_start(&name, "operator");
    }
}

/// The target's host loses power, and all unflushed data; it is up again at once.
fn cut_target(stage: &SimulatedLife, chance: &mut Chance) {
    let mut truth = stage.world.truth();
    let count = truth.targets.len() as u64;
    let Some(made) = truth.targets.values_mut().nth(chance.below(count) as usize).filter(|made| !made.runs)
    else {
        return;
    };
    for disk in made.disks.values_mut() {
        disk.cut(chance);
    }
    truth.counts.add("target power cuts");
    truth.note(format_args!("the target loses what was not flushed"));
}

/// Another process writes to a target's disk; a verification must find it.
fn write_to_target(stage: &SimulatedLife, chance: &mut Chance) {
    let mut truth = stage.world.truth();
    let count = truth.targets.len() as u64;
    let Some(id) = truth.targets.keys().nth(chance.below(count) as usize).copied() else { return };
    // After the verification no step reads the target again.
    let early = matches!(truth.states.get(&id), Some(State::Synced | State::Syncing | State::Paused { .. }));
    if stage.scenario.plan.verify.mode == VerifyMode::None || !early {
        return;
    }
    let Some(made) = truth.targets.get_mut(&id) else { return };
    let disks = made.disks.len() as u64;
    let Some(disk) = made.disks.values_mut().nth(chance.below(disks) as usize) else { return };
    let (block, byte) = (chance.below(disk.seen.blocks() as u64), chance.one_of(&BYTES));
    let at = block * warmd_cbt::units::BLOCK;
    disk.seen.fill(at, 100, byte);
    disk.durable.fill(at, 100, byte);
    disk.tainted.insert(block as usize);
    truth.counts.add("writes to targets");
    truth.note(format_args!("another program writes to block {block} of a target's disk"));
}
