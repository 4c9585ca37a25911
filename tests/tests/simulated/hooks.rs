//! Hooks of cutovers, real programs over simulated endpoints: when they run, their input, and what follows
//! when they fail, hang, or are cut off with the daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use warmd_core::{
    control::Control,
    model::{
        hook::{Hook, HookSide, OnFailure},
        phase::Phase,
        plan::{Plan, VerifyMode},
        request::Request,
        rule::Severity,
        state::State,
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", 8 * BLOCK)]);
    world.guest_writes("vda", 3, &vec![7; 100_000]);
    world
}

fn hook(phase: Phase, when: HookSide, script: &str) -> Hook {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let timeout = Duration::from_secs(20);
    Hook { phase, when, command, grpc: None, timeout, retries: 0, on_failure: OnFailure::Abort }
}

fn plan(hooks: Vec<Hook>) -> Plan {
    Plan { hooks, ..Rig::plan(VerifyMode::Readback) }
}

/// A file of the test, and the script that appends a hook's input to it.
fn told(dir: &TempDir) -> (PathBuf, String) {
    let file = dir.path().join("told");
    (file.clone(), format!("cat >> {0}; echo >> {0}", file.display()))
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last line may be incomplete.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn they_are_run_at_their_moments_and_told_the_facts() {
    let dir = TempDir::new().unwrap();
    let (file, script) = told(&dir);
    let mut hooks: Vec<_> = Phase::ALL.map(|phase| hook(phase, HookSide::After, &script)).into();
    hooks.extend(Phase::ALL.map(|phase| hook(phase, HookSide::Before, &script)));
    let rig = Rig::start(world()).await;
    rig.seed(plan(hooks)).await;
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
    let facts = lines(&file);
    let moments: Vec<_> = facts
        .iter()
        .map(|facts| {
            let text = |key: &str| facts["hook"][key].as_str().unwrap().to_owned();
            format!("{} {}", text("when"), text("phase"))
        })
        .collect();
    let wanted: Vec<_> =
        Phase::ALL.iter().flat_map(|phase| [format!("before {phase}"), format!("after {phase}")]).collect();
    assert_eq!(moments, wanted);
    for (moment, facts) in moments.iter().zip(&facts) {
        assert_eq!(facts["version"], 1);
        assert_eq!(facts["migration"], view.id.to_string());
        assert_eq!((&facts["plan"], &facts["vm"]["name"]), (&"plan".into(), &"guest".into()));
        assert_eq!((&facts["hook"]["attempt"], &facts["hook"]["again"]), (&1.into(), &false.into()));
        assert_eq!(
            (&facts["disks"][0]["key"], &facts["disks"][0]["size"]),
            (&"vda".into(), &(8 * BLOCK).into())
        );
        let at = |moment: &str| wanted.iter().position(|each| each == moment).unwrap();
        let (now, cutover) = (at(moment), &facts["cutover"]);
        assert_eq!(cutover["source_stopped"].is_null(), now < at("after stop-source"), "{moment}: {facts}");
        assert_eq!(cutover["target_running"].is_null(), now < at("after start-vm"), "{moment}: {facts}");
        assert_eq!(cutover["downtime"].is_null(), now < at("after start-vm"), "{moment}: {facts}");
    }
    let report = rig.manager.report(view.id).await.unwrap();
    assert_eq!(report.hooks.len(), wanted.len());
    assert!(report.hooks.iter().all(|hook| hook.outcome.as_deref() == Some("done")), "{:?}", report.hooks);
}

#[tokio::test]
async fn one_that_fails_before_the_target_runs_undoes_the_cutover() {
    let before = Phase::ALL.into_iter().filter(|phase| !phase.past_no_return());
    let moments = before.flat_map(|phase| [(phase, HookSide::Before), (phase, HookSide::After)]);
    for (phase, when) in moments.filter(|moment| *moment != (Phase::StartVm, HookSide::After)) {
        let mut rig = Rig::start(world()).await;
        rig.seed(plan(vec![hook(phase, when, "echo the pool is not drained; exit 7")])).await;
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{when} {phase}:\n{}", rig.journal().await);
        rig.world.assert_undone();
        let failure = view.cutover.clone().unwrap().failure.unwrap();
        let wanted = format!("hook {when} {phase} failed: /bin/sh: it ended with exit status: 7");
        assert!(failure.contains(&wanted), "{failure}");
        let cutover = view.cutover.unwrap();
        let last = cutover.phases.last().unwrap();
        assert!(
            last.phase == phase && last.outcome.as_ref().unwrap().to_string().contains("hook"),
            "{last:?}"
        );
        let journal = rig.journal().await;
        assert!(journal.contains("says:\nthe pool is not drained"), "{journal}");
        rig.restart().await;
        let failure = rig.view().await.cutover.unwrap().failure.unwrap();
        assert!(failure.contains(&wanted), "after a restart: {failure}");
        rig.manager_applies(plan(Vec::new())).await;
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn hook_failing_after_target_start_is_reported_without_undo() {
    for (phase, when) in [
        (Phase::StartVm, HookSide::After),
        (Phase::BootCheck, HookSide::Before),
        (Phase::BootCheck, HookSide::After),
        (Phase::Cleanup, HookSide::After),
    ] {
        let rig = Rig::start(world()).await;
        rig.seed(plan(vec![hook(phase, when, "exit 1")])).await;
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Done, "{when} {phase}:\n{}", rig.journal().await);
        rig.world.assert_moved();
        let warned = view.warnings.iter().any(|warning| {
            warning.contains(&format!("hook {when} {phase} failed")) && warning.contains("nothing is undone")
        });
        assert!(warned, "{:?}", view.warnings);
    }
}

/// Not even if its result cannot be recorded.
#[tokio::test]
async fn when_the_target_runs_a_hook_is_run_where_nothing_leads_back() {
    let dir = TempDir::new().unwrap();
    let (file, script) = told(&dir);
    let release = dir.path().join("release");
    let waits = format!("{script}; while ! test -e {}; do sleep 0.05; done", release.display());
    let rig = Rig::start(world()).await;
    rig.seed(plan(vec![hook(Phase::StartVm, HookSide::After, &waits)])).await;
    rig.ask(Request::cutover()).await;
    let view = rig.until("the hook", |_| lines(&file).len() == 1).await;
    assert_eq!(view.state, State::CuttingOver { phase: Phase::BootCheck });
    fs::write(&release, "").unwrap();
    rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
}

#[tokio::test]
async fn warning_hook_and_retried_hook_delay_nothing() {
    let dir = TempDir::new().unwrap();
    let mark = dir.path().join("tried");
    let flaky = format!("test -e {0} || {{ touch {0}; exit 1; }}", mark.display());
    let mut hooks = vec![
        hook(Phase::Verify, HookSide::Before, "exit 9"),
        hook(Phase::CreateVm, HookSide::Before, &flaky),
    ];
    hooks[0].on_failure = OnFailure::Warn;
    hooks[1].retries = 1;
    let rig = Rig::start(world()).await;
    rig.seed(plan(hooks)).await;
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
    assert!(view.warnings.iter().any(|warning| warning.contains("exit status: 9")), "{:?}", view.warnings);
    let outcomes = rig.manager.report(view.id).await.unwrap().hooks;
    let outcomes: Vec<_> = outcomes.into_iter().map(|hook| hook.outcome.unwrap()).collect();
    assert_eq!(outcomes, ["failed: it ended with exit status: 9", "done"]);
}

#[tokio::test]
async fn one_that_hangs_is_killed_at_its_deadline_or_by_an_abort() {
    let mut slow = hook(Phase::StopSource, HookSide::Before, "sleep 1000");
    slow.timeout = Duration::from_millis(300);
    let rig = Rig::start(world()).await;
    rig.seed(plan(vec![slow])).await;
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
    assert!(view.cutover.unwrap().failure.unwrap().contains("did not end within 300ms"));
    rig.world.assert_undone();

    let dir = TempDir::new().unwrap();
    let begun = dir.path().join("begun");
    let endless = format!("touch {}; sleep 1000", begun.display());
    let mut slow = hook(Phase::CreateVm, HookSide::After, &endless);
    slow.timeout = Duration::from_hours(1);
    rig.manager_applies(plan(vec![slow])).await;
    rig.ask(Request::cutover()).await;
    rig.until("the hook", |_| begun.exists()).await;
    rig.ask(Request::AbortCutover).await;
    let view = rig.until("undone", |view| view.state == State::Synced).await;
    assert!(view.cutover.unwrap().failure.unwrap().contains("aborted"));
    rig.world.assert_undone();
}

#[tokio::test]
async fn hooks_after_a_restart_repeat_only_the_interrupted_one() {
    let dir = TempDir::new().unwrap();
    let (file, script) = told(&dir);
    let release = dir.path().join("release");
    let waits = format!("{script}; while ! test -e {}; do sleep 0.05; done", release.display());
    let rig_plan = plan(vec![
        hook(Phase::StopSource, HookSide::Before, &script),
        hook(Phase::StopSource, HookSide::After, &waits),
    ]);
    let mut rig = Rig::start(world()).await;
    rig.seed(rig_plan).await;
    rig.ask(Request::cutover()).await;
    rig.until("the second hook", |_| lines(&file).len() == 2).await;
    rig.restart_after(|_| fs::write(&release, "").unwrap()).await;
    rig.world.faults.set("target.create", InjectedFault::Refused);
    rig.until("undone", |view| view.state == State::Synced).await;
    let facts = lines(&file);
    let seen: Vec<_> = facts.iter().map(|facts| (&facts["hook"]["when"], &facts["hook"]["again"])).collect();
    let (before, after) = (Value::from("before"), Value::from("after"));
    let wanted = [(&before, &false.into()), (&after, &false.into()), (&after, &Value::from(true))];
    assert_eq!(seen, wanted, "{}", rig.journal().await);
    let journal = rig.journal().await;
    assert!(
        journal.contains("after stop-source: /bin/sh ran when the daemon ended, and is run again"),
        "{journal}"
    );
    rig.world.faults.clear();
    assert_eq!(rig.cutover().await.state, State::Done);
    assert_eq!(lines(&file).len(), 5, "both in the next cutover");
    assert_eq!(lines(&file)[4]["cutover"]["attempt"], 2);
}

#[tokio::test]
async fn reordered_hooks_run_once_each_and_none_is_skipped() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("ran");
    let ran = || fs::read_to_string(&file).unwrap_or_default();
    let says =
        |word: &str| hook(Phase::CreateVm, HookSide::Before, &format!("echo {word} >> {}", file.display()));
    let mut rig = Rig::start(world()).await;
    rig.seed(plan(vec![says("a"), says("b"), says("a")])).await;
    rig.world.faults.set("target.create", InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig.until("all hooks", |_| ran() == "a\nb\na\n").await;
    rig.manager_applies(plan(vec![says("c"), says("b"), says("a"), says("a")])).await;
    rig.restart_after(|world| world.faults.clear()).await;
    rig.until("the end", |view| view.state == State::Done).await;
    assert_eq!(ran(), "a\nb\na\nc\n", "{}", rig.journal().await);
}

#[tokio::test]
async fn a_plan_whose_programs_cannot_be_run_is_refused() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let rig = Rig::start(world()).await;
    for (program, wanted) in [
        ("/nowhere/hook", "cannot be found on the daemon's host"),
        ("/tmp", "is no file"),
        (plain.to_str().unwrap(), "make it executable"),
        ("true", "begin it with the absolute path"),
    ] {
        let mut hook = hook(Phase::Verify, HookSide::Before, "");
        hook.command = vec![program.to_owned()];
        let wrong = plan(vec![hook]);
        let findings = rig.manager.validate_plan(&wrong).await.unwrap();
        let found = findings
            .iter()
            .any(|finding| finding.rule.severity() == Severity::Error && finding.message.contains(wanted));
        assert!(found, "{program}: {findings:?}");
        assert!(rig.manager.apply_plan(wrong, "test").await.is_err(), "{program}");
    }
}
