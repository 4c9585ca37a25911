//! Boot checks over simulated endpoints: what must be seen of the target VM before the source is cleaned up.

use std::time::Duration;

use tokio::net::TcpListener;
use warmd_core::{
    control::Control,
    model::{
        boot::BootCheck,
        phase::Phase,
        plan::{Plan, VerifyMode, VmOverride},
        request::{Request, RequestOutcome},
        state::{ResumePoint, State},
    },
};
use warmd_tests::simulated::{Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
const SOON: Duration = Duration::from_secs(30);

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", 8 * BLOCK)]);
    world.guest_writes("vda", 3, &vec![7; 100_000]);
    world
}

fn plan(boot_check: BootCheck) -> Plan {
    let mut plan = Rig::plan(VerifyMode::Readback);
    plan.cutover.boot_check = boot_check;
    plan
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn a_guest_that_shows_all_signs_is_handed_over() {
    let (_listening, address) = listener().await;
    let check = BootCheck {
        tcp: Some(address.clone()),
        serial: Some("login:".to_owned()),
        guest_agent: true,
        deadline: SOON,
    };
    let rig = Rig::start(world()).await;
    rig.world.with(|truth| truth.agent_answers = true);
    rig.seed(plan(check)).await;
    rig.ask(Request::cutover()).await;
    rig.until("boot-check", |view| view.state == State::CuttingOver { phase: Phase::BootCheck }).await;
    // The boot takes long: until its end nothing is removed from the source.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(rig.view().await.state, State::CuttingOver { phase: Phase::BootCheck });
    assert!(!rig.world.with(|truth| truth.marks.is_empty()), "the marks are gone");
    rig.world.with(|truth| truth.console.push_str("web login: "));
    let view = rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
    let phases = view.cutover.unwrap().phases;
    let watch = phases.iter().find(|phase| phase.phase == Phase::BootCheck).unwrap();
    let outcome = watch.outcome.clone().unwrap().to_string();
    for seen in [&format!("{address} takes connections"), "console says \"login:\"", "guest agent answers"] {
        assert!(outcome.contains(seen), "{outcome}");
    }
}

#[tokio::test]
async fn failed_boot_check_stops_the_hand_over_and_starts_nothing() {
    let (listening, address) = listener().await;
    drop(listening);
    let none = || BootCheck { deadline: Duration::from_millis(600), ..BootCheck::default() };
    for (check, missing) in [
        (BootCheck { tcp: Some(address.clone()), ..none() }, "takes connections (Connection refused"),
        (BootCheck { serial: Some("login:".to_owned()), ..none() }, "console says \"login:\""),
        (BootCheck { guest_agent: true, ..none() }, "guest agent answers"),
    ] {
        let mut rig = Rig::start(world()).await;
        rig.seed(plan(check)).await;
        let view = rig.cutover().await;
        let State::Failed { reason, resumable: true, from: ResumePoint::BootCheck } = &view.state else {
            panic!("{missing}: {}\n{}", view.state, rig.journal().await);
        };
        assert!(reason.contains("the boot check failed: not seen") && reason.contains(missing), "{reason}");
        rig.restart().await;
        rig.world.with(|truth| {
            assert!(truth.target_runs && !truth.source_runs, "{:?}", truth.calls);
            assert!(!truth.marks.is_empty(), "the source's marks were given up");
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
        });
        assert!(matches!(rig.request(Request::cutover()).await, RequestOutcome::Refused(_)));
        let _listening = TcpListener::bind(&address).await.unwrap();
        rig.world.with(|truth| {
            truth.console.push_str("web login: ");
            truth.agent_answers = true;
        });
        rig.ask(Request::Resume).await;
        rig.until("done", |view| view.state == State::Done).await;
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn vm_may_have_its_own_boot_check_and_one_left_off_has_none() {
    let wanted = BootCheck { serial: Some("ready".to_owned()), deadline: SOON, ..BootCheck::default() };
    let rig = Rig::start(world()).await;
    let mut plan = plan(BootCheck { serial: Some("never".to_owned()), ..BootCheck::default() });
    let over = VmOverride { boot_check: Some(wanted), ..VmOverride::default() };
    plan.vm.insert(plan.vms[0].clone(), over);
    rig.world.with(|truth| truth.console.push_str("ready"));
    rig.seed(plan.clone()).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();

    let rig = Rig::start(world()).await;
    rig.world.with(|truth| truth.source_runs = false);
    plan.vm.clear();
    rig.seed(plan).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    assert!(!rig.world.with(|truth| truth.target_runs));
}

#[tokio::test]
async fn a_check_that_cannot_be_made_is_refused() {
    let rig = Rig::start(world()).await;
    for (check, wanted) in [
        (BootCheck { tcp: Some("web".to_owned()), ..BootCheck::default() }, "write HOST:PORT"),
        (BootCheck { serial: Some(String::new()), ..BootCheck::default() }, "1 to 256 bytes"),
        (BootCheck { deadline: Duration::ZERO, ..BootCheck::default() }, "boot_check.deadline` is 0"),
    ] {
        let error = rig.manager.apply_plan(plan(check), "test").await.unwrap_err();
        assert!(error.message.contains(wanted), "{error}");
    }
    let mut two = plan(BootCheck { tcp: Some("web:22".to_owned()), ..BootCheck::default() });
    two.vms.push("other".to_owned());
    let error = rig.manager.apply_plan(two, "test").await.unwrap_err();
    assert!(error.message.contains("one address for all VMs"), "{error}");
}
