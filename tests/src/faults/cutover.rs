//! Cutovers that fail, hang or are aborted, with a guest that writes: before the point of no return the
//! source is on again and the copied target is kept; after it the cutover only goes forward. Both VMs never
//! run at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warmd_core::model::{
    phase::Phase,
    plan::VerifyMode,
    request::{Request, RequestOutcome},
    state::State,
};

use super::{
    Row,
    kills::TAKEN,
    row,
    stage::{FaultEnd, FaultStage, phase_is_seen},
};
use crate::{Rig, rig::WORK, simulated, wait_until};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("cutover", "each-phase", "in memory: each phase is refused, hangs past its deadline, is undone", false, each_phase),
    row("cutover", "release-fails", "in memory: the source does not delete its marks when the target VM runs: only forward", false, release_fails),
    row("cutover", "vm-not-created", "the target refuses to create the VM: its name is taken", false, not_created),
    row("cutover", "vm-not-started", "the target refuses to start the VM; then its start comes later than the deadline", false, not_started),
    row("cutover", "vm-dies", "the target VM dies within the watch time: only forward", false, dies),
    row("cutover", "aborted", "the operator takes the cutover back, in each of its phases", false, aborted),
];

const PLAN: &str =
    "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"4s\"\ncreate_deadline = \"8s\"";

const IN_ORDER: &str = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"";

/// A cutover that must end undone, with this word in the reason: the same guest continues to write.
fn undone(rig: &Rig, word: &str) -> Result<()> {
    let out = rig.try_verb("cutover", &[])?;
    ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
    as_before(rig, word)
}

fn as_before(rig: &Rig, word: &str) -> Result<()> {
    let view = rig.wait_for("synced")?;
    let failure = view["cutover"]["failure"].as_str().unwrap_or_default();
    ensure!(failure.contains(word), "the reason does not say {word:?}: {failure}");
    rig.assert_one_runs()?;
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == "running", "the source is {state:?}");
    let acked = rig.guest.console.acked()?;
    rig.guest.console.wait_for_acked(acked + 5, Duration::from_mins(3))?;
    for disk in view["disks"].as_array().context("no disks")? {
        let location = disk["location"].as_str().unwrap_or_default();
        ensure!(std::path::Path::new(location).exists(), "the target's disk {location} is gone");
    }
    Ok(())
}

fn not_created(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |_| {})?;
    stage.seed()?;
    let rig = stage.rig()?;
    let xml = stage.dir.join("taken.xml");
    std::fs::write(&xml, TAKEN)?;
    rig.new.virsh(["define", &xml.to_string_lossy()])?;
    // The problem is seen in time: nothing is stopped.
    undone(rig, "was not stopped")?;
    rig.new.virsh(["undefine", "guest"])?;
    take_name_in_the_cutover(stage)?;
    as_before(stage.rig()?, "is here already")?;
    stage.rig()?.new.virsh(["undefine", "guest"])?;
    stage.rig()?.verb("cutover")
}

/// Begins a cutover, and gives the target VM's name to another domain once the source is being stopped.
pub(super) fn take_name_in_the_cutover(stage: &FaultStage<'_>) -> Result<()> {
    let xml = stage.dir.join("taken.xml");
    std::fs::write(&xml, TAKEN)?;
    stage.rig()?.try_verb("cutover", &["--no-wait"])?;
    stage.wait_for_phase("stop-source")?;
    stage.rig()?.new.virsh(["define", &xml.to_string_lossy()]).map(drop)
}

/// A hook of the target's libvirt that executes a file's command when a VM is started.
fn hooked(stage: &mut FaultStage<'_>) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let (hooks, orders) = (stage.dir.join("new/etc/hooks"), stage.dir.join("orders"));
    std::fs::create_dir_all(&hooks)?;
    let hook = hooks.join("qemu");
    std::fs::write(
        &hook,
        format!(
            "#!/bin/bash\n\
             orders=$(cat {orders} 2>/dev/null)\n\
             case \"$orders/$2\" in\n\
             refuse/prepare) echo 'not today' >&2; exit 1 ;;\n\
             hang/prepare) for ((n = 0; n < 20; n++)); do sleep 1; done ;;\n\
             esac\nexit 0\n",
            orders = orders.display()
        ),
    )?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    Ok(orders)
}

fn not_started(stage: &mut FaultStage<'_>) -> Result<()> {
    let orders = hooked(stage)?;
    stage.running(16, |spec| spec.cutover = PLAN)?;
    stage.seed()?;
    std::fs::write(&orders, "refuse")?;
    undone(stage.rig()?, "not today")?;
    // It may have run for a moment: everything is checked again.
    std::fs::write(&orders, "")?;
    stage.sync()?;
    // The start succeeds after its deadline: nothing is undone before the target says that the VM does not
    // run.
    std::fs::write(&orders, "hang")?;
    stage.rig()?.verb("cutover")?;
    stage.wait_for_words(&["start-vm", "deadline"])
}

fn dies(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| {
        spec.cutover = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"1m\"";
    })?;
    stage.seed()?;
    let rig = stage.rig()?;
    rig.try_verb("cutover", &["--no-wait"])?;
    wait_until("the target VM to run", WORK, || {
        Ok(rig.new.virsh(["list", "--state-running", "--name"])?.contains("guest").then_some(()))
    })?;
    stage.wait_for_phase("boot-check")?;
    rig.new.virsh(["destroy", "guest"])?;
    stage.wait_for_failure("look at it on the target")?;
    let rig = stage.rig()?;
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == "shut off", "past the point of no return the source is {state:?}");
    for verb in [&["cutover", "--abort"][..], &["cancel"], &["cutover"]] {
        let out = rig.try_verb(verb.first().context("no verb")?, &[&verb[1..], &["--no-wait"]].concat())?;
        ensure!(out.code != Some(0), "{verb:?} was accepted: {}", out.stdout);
    }
    rig.new.virsh(["start", "guest"])?;
    rig.write_plan(IN_ORDER)?;
    rig.apply()?;
    rig.try_verb("resume", &[])?;
    rig.wait_for("done").map(drop)
}

fn aborted(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| {
        // Its verification takes some seconds: enough time to abort it there.
        spec.cutover = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"\n\
                        [limits]\nrate = \"16MiB/s\"";
    })?;
    stage.seed()?;
    let phases = [Phase::CatchUpDelta, Phase::StopSource, Phase::FinalDelta, Phase::Verify, Phase::CreateVm];
    for (undone, phase) in phases.into_iter().enumerate() {
        let rig = stage.rig()?;
        rig.try_verb("cutover", &["--no-wait"])?;
        let view = stage.wait_for_view(&format!("{phase}"), WORK, |view| {
            phase_is_seen(view, phase.name()) || view["state"] == "done"
        })?;
        ensure!(view["state"] != "done", "it was done before it was aborted");
        let out = rig.try_verb("cutover", &["--abort"])?;
        if out.stderr.contains("only forward") || out.stderr.contains("being started") {
            // Too late: the cutover must finish.
            ensure!(undone >= 3, "only {undone} cutovers were undone");
            return rig.wait_for("done").map(drop);
        }
        as_before(rig, "aborted")?;
    }
    stage.rig()?.verb("cutover")
}

const BLOCK: u64 = 64 * 1024;
const DISKS: [(&str, u64); 2] = [("vda", 40 * BLOCK), ("vdb", 10 * BLOCK + 512)];

/// The fault of each phase. An operator cannot abort `start-vm`.
const STRUCK: [(&str, Phase); 8] = [
    ("source.snapshot", Phase::CatchUpDelta),
    ("source.shut-down", Phase::StopSource),
    ("source.final-snapshot", Phase::FinalDelta),
    ("target-disk.write", Phase::FinalDelta),
    ("target-disk.flush", Phase::FinalDelta),
    ("target-disk.read", Phase::Verify),
    ("target.create", Phase::CreateVm),
    ("target.start", Phase::StartVm),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Refused,
    Hangs,
    TakenBack,
}

fn each_phase(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.ends = FaultEnd::Elsewhere;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for (call, phase) in STRUCK {
        for blow in [Blow::Refused, Blow::Hangs, Blow::TakenBack] {
            if blow == Blow::TakenBack && phase == Phase::StartVm {
                continue;
            }
            // A shutdown call gets a minute more than the guest: too long for the short form.
            if blow == Blow::Hangs && stage.short && (phase == Phase::StopSource || call.contains("disk.")) {
                continue;
            }
            runtime.block_on(one_phase(call, phase, blow));
        }
    }
    Ok(())
}

fn release_fails(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.ends = FaultEnd::Elsewhere;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(past_no_return());
    Ok(())
}

async fn past_no_return() {
    let world = simulated::SimulatedWorld::new(&DISKS);
    world.guest_writes("vda", 3 * BLOCK, &vec![3; 90_000]);
    let rig = simulated::Rig::start(world).await;
    let mut plan = simulated::Rig::plan(VerifyMode::Readback);
    plan.cutover.min_uptime = Duration::from_mins(10);
    rig.seed(plan.clone()).await;
    rig.ask(Request::cutover()).await;
    rig.until("boot-check", |view| view.state == State::CuttingOver { phase: Phase::BootCheck }).await;
    let (call, before) = ("source.release-marks", rig.world.faults.struck("source.release-marks"));
    rig.world.faults.set(call, simulated::InjectedFault::Refused);
    // The boot check reads the plan each time it checks the VM.
    plan.cutover.min_uptime = Duration::from_millis(50);
    rig.manager_applies(plan).await;
    rig.until("a failure", |view| matches!(view.state, State::Failed { resumable: true, .. })).await;
    assert!(rig.world.faults.struck(call) > before, "the fault was never seen");
    for request in [Request::AbortCutover, Request::Cancel, Request::cutover()] {
        assert!(
            matches!(rig.request(request.clone()).await, RequestOutcome::Refused(_)),
            "{request:?} was granted"
        );
    }
    rig.world.with(|truth| assert!(truth.target_runs && !truth.source_runs, "{:?}", truth.calls));
    rig.world.faults.clear();
    rig.ask(Request::Resume).await;
    rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
}

async fn one_phase(call: &str, phase: Phase, blow: Blow) {
    let world = simulated::SimulatedWorld::new(&DISKS);
    world.guest_writes("vda", 3 * BLOCK, &vec![3; 90_000]);
    world.guest_writes("vdb", 100, &vec![4; 20_000]);
    let rig = simulated::Rig::start(world).await;
    rig.seed(simulated::Rig::plan(VerifyMode::Readback)).await;
    rig.world.guest_writes("vda", 9 * BLOCK, &vec![5; 30_000]);
    let fault = if blow == Blow::Refused {
        simulated::InjectedFault::Refused
    } else {
        simulated::InjectedFault::Hang
    };
    let before = rig.world.faults.struck(call);
    rig.world.faults.set(call, fault);
    rig.ask(Request::cutover()).await;
    if blow == Blow::TakenBack {
        // A write or a flush fails already in the catch-up delta.
        let there = |state: &State| match state {
            State::CuttingOver { phase: now } => *now == phase || call.contains("disk."),
            _ => false,
        };
        rig.until(call, |view| there(&view.state) && rig.world.faults.struck(call) > before).await;
        assert_eq!(rig.request(Request::AbortCutover).await, RequestOutcome::Accepted, "{call}");
        rig.world.faults.clear();
    }
    let view = rig.until("undone", |view| view.state == State::Synced).await;
    assert!(view.cutover.is_some_and(|cutover| cutover.failure.is_some()), "{call} {blow:?}: no reason");
    assert!(rig.world.faults.struck(call) > before, "{call} {blow:?}: the fault was never seen");
    rig.world.assert_undone();
    rig.world.faults.clear();
    rig.world.guest_writes("vda", 20 * BLOCK, &vec![6; 30_000]);
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{call} {blow:?}:\n{}", rig.journal().await);
    rig.world.assert_moved();
}
