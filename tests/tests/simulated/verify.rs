//! Verifications in special cases: results of both modes, false change reports, requests that wait, a
//! target VM that starts.

use warmd_core::{
    control::Control,
    model::{
        plan::VerifyMode,
        request::{Request, RequestOutcome},
        state::State,
        verify::{Amount, VerifyOrder, VerifyScope},
        view::{VerificationView, VerifyResult},
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
/// Three disks, one with a short last block.
const DISKS: [(&str, u64); 3] = [("vda", 60 * BLOCK), ("vdb", 10 * BLOCK + 512), ("vdc", 40 * BLOCK)];

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&DISKS);
    for (disk, size) in DISKS {
        for block in 0..size / BLOCK {
            world.guest_writes(disk, block * BLOCK, &[block as u8 + 1; 4096]);
        }
    }
    world
}

async fn seeded(verify: VerifyMode, audit: Amount) -> Rig {
    let rig = Rig::start(world()).await;
    let mut plan = Rig::plan(verify);
    plan.verify.audit = Some(audit);
    rig.seed(plan).await;
    rig
}

const UNAUDITED: Amount = Amount::Share(0);

fn order(mode: VerifyMode, scope: &str) -> VerifyOrder {
    VerifyOrder { mode, scope: scope.parse().unwrap(), ..VerifyOrder::default() }
}

async fn ask(rig: &Rig, order: VerifyOrder) -> RequestOutcome {
    rig.manager.verify(rig.view().await.id, order, "test").await.unwrap()
}

/// Waits for the end of the verification with the request `id`.
async fn ended(rig: &Rig, id: &str) -> VerificationView {
    let view = rig.until("the verification's end", |view| {
        view.verification.as_ref().is_some_and(|run| run.id == id && run.ended.is_some())
    });
    view.await.verification.unwrap()
}

async fn result(rig: &Rig, order: VerifyOrder) -> VerifyResult {
    let id = format!("{order}, after {:?}", rig.view().await.verification.map(|run| run.id));
    assert_eq!(ask(rig, VerifyOrder { id: id.clone(), ..order }).await, RequestOutcome::Accepted);
    let run = ended(rig, &id).await;
    run.result.unwrap_or_else(|| panic!("no result: {:?}", run.error))
}

fn checked(result: &VerifyResult) -> u64 {
    result.disks.iter().map(|disk| disk.checked).sum()
}

#[tokio::test]
async fn what_a_readback_settled_is_still_to_be_compared() {
    let mut rig = seeded(VerifyMode::None, UNAUDITED).await;
    let changed = |mode| order(mode, "changed");
    for block in [3, 40] {
        rig.world.guest_writes("vda", block * BLOCK, &[200; 10]);
        rig.sync().await;
    }
    assert_eq!(checked(&result(&rig, changed(VerifyMode::Readback)).await), 2 * BLOCK);
    assert_eq!(checked(&result(&rig, order(VerifyMode::Readback, "full")).await), 110 * BLOCK + 512);
    assert_eq!(checked(&result(&rig, changed(VerifyMode::Readback)).await), 0);
    // No comparison with the source has seen the source's changes. The same after a restart.
    rig.restart().await;
    rig.world.guest_writes("vda", 7 * BLOCK, &[201; 10]);
    assert_eq!(checked(&result(&rig, changed(VerifyMode::Compare)).await), 3 * BLOCK);
    assert_eq!(checked(&result(&rig, changed(VerifyMode::Compare)).await), 0);
    assert_eq!(checked(&result(&rig, changed(VerifyMode::Readback)).await), 0, "a comparison settles both");
}

#[tokio::test]
async fn a_lie_that_a_comparison_finds_is_never_forgotten() {
    let mut rig = seeded(VerifyMode::None, UNAUDITED).await;
    rig.world.changes_unreported("vdb", 4 * BLOCK, b"nobody was told");
    let found = result(&rig, order(VerifyMode::Compare, "full")).await;
    assert_eq!(found.disks[1].mismatches, [(4 * BLOCK, BLOCK)]);
    let view = rig.view().await;
    let fault = view.disks[1].tracking_fault.clone().expect("its change tracking lied");
    assert!(fault.contains(&(4 * BLOCK).to_string()), "{fault}");
    assert!(view.disks[0].tracking_fault.is_none() && view.disks[2].tracking_fault.is_none());
    assert!(rig.journal().await.contains("CHANGE TRACKING OF DISK vdb CANNOT BE TRUSTED"));
    let scraped = rig.metrics.render(&(rig.manager.present())().await).unwrap();
    let unreported =
        format!("warmd_unreported_bytes_total{{plan=\"plan\",vm=\"guest\",disk=\"vdb\"}} {BLOCK}");
    assert!(scraped.contains(&unreported), "{scraped}");

    // As after an audit: from now on the whole disk is compared, and a cutover verifies it though its plan
    // requires nothing.
    rig.restart().await;
    rig.world.changes_unreported("vdb", 5 * BLOCK, b"nor of this");
    rig.sync().await;
    assert_eq!(rig.view().await.pass.unwrap().disks[1].figures.read, 10 * BLOCK + 512);
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    let found = view.verification.unwrap().result.unwrap();
    assert_eq!((found.mode, found.scope, found.passed()), (VerifyMode::Compare, VerifyScope::Full, true));
    rig.world.assert_moved();
    let report = rig.manager.report(view.id).await.unwrap();
    assert_eq!(report.disks[1].audit.clone().unwrap().tracking_fault, Some(fault));
    assert!(report.disks.iter().all(|disk| disk.verified_by.as_deref() == Some("compare full")));
}

#[tokio::test]
async fn difference_of_the_target_alone_is_no_tracking_fault() {
    let rig = seeded(VerifyMode::None, UNAUDITED).await;
    rig.world.with(|truth| truth.target_disks["vda"].clone()).corrupt((9 * BLOCK) as usize, b"bad");
    let found = result(&rig, order(VerifyMode::Compare, "full")).await;
    assert_eq!(found.disks[0].mismatches, [(9 * BLOCK, BLOCK)]);
    assert!(rig.view().await.disks.iter().all(|disk| disk.tracking_fault.is_none()));
}

#[tokio::test]
async fn unreported_change_found_by_verify_undoes_the_cutover_once() {
    let rig = seeded(VerifyMode::Compare, UNAUDITED).await;
    rig.world.changes_when_off("vda", 20 * BLOCK, b"after the guest had stopped");
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
    assert!(view.disks[0].tracking_fault.is_some(), "{}", rig.journal().await);
    rig.world.assert_undone();
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

#[tokio::test]
async fn audits_walk_each_of_several_disks_separately() {
    let mut rig = seeded(VerifyMode::None, "10%".parse().unwrap()).await;
    rig.world.changes_unreported("vdb", 10 * BLOCK, b"its last block");
    rig.world.changes_unreported("vdc", 39 * BLOCK, b"its last block");
    for pass in 1..=10 {
        if pass == 4 {
            rig.restart().await;
        }
        let (checked, faults): (Vec<_>, Vec<_>) = rig.audit().await.into_iter().unzip();
        assert_eq!((checked[0], checked[2]), (6 * BLOCK, 4 * BLOCK), "pass {pass}");
        // Two blocks a pass are a tenth of the second one, rounded up.
        assert_eq!(faults, [false, pass >= 6, pass == 10], "pass {pass}");
    }
}

#[tokio::test]
async fn an_audit_steps_over_what_it_cannot_read() {
    let rig = seeded(VerifyMode::None, "10%".parse().unwrap()).await;
    rig.world.changes_unreported("vda", 30 * BLOCK, b"behind it");
    // No block changed that a pass would have to read.
    rig.world.faults.set("source-disk.read", InjectedFault::Refused);
    for _ in 0..5 {
        rig.sync().await;
        let audit = rig.view().await.pass.unwrap().disks[0].audit.clone().unwrap();
        assert!(audit.error.is_some() && audit.checked == 0, "{audit:?}");
    }
    rig.world.faults.clear();
    assert!(rig.view().await.disks.iter().all(|disk| disk.tracking_fault.is_none()));
    rig.sync().await;
    assert!(rig.view().await.disks[0].tracking_fault.is_some(), "it stood still meanwhile");
}

/// A running verification that cannot end, and another one that waits for it.
async fn one_runs_and_one_waits(rig: &Rig) {
    rig.world.faults.set("target-disk.read", InjectedFault::Hang);
    let named = |id: &str| VerifyOrder { id: id.to_owned(), ..order(VerifyMode::Readback, "full") };
    assert_eq!(ask(rig, named("first")).await, RequestOutcome::Accepted);
    let runs = |view: &warmd_core::model::view::MigrationView| {
        view.verification.as_ref().is_some_and(|run| run.id == "first" && run.total > 0)
    };
    rig.until("the first one runs", runs).await;
    assert_eq!(ask(rig, named("second")).await, RequestOutcome::Accepted);
    assert!(
        matches!(ask(rig, named("third")).await, RequestOutcome::Refused(why) if why.contains("waits already"))
    );
}

#[tokio::test]
async fn a_cutover_ends_a_verification_and_drops_the_one_that_waits() {
    let rig = seeded(VerifyMode::Readback, UNAUDITED).await;
    one_runs_and_one_waits(&rig).await;
    rig.ask(Request::cutover()).await;
    rig.world.faults.clear();
    let view = rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
    // The last result is the cutover's own: neither of the others ended after it.
    let run = view.verification.unwrap();
    assert_eq!((run.id.as_str(), run.result.is_some_and(|found| found.passed())), ("", true));
    let journal = rig.journal().await;
    assert!(journal.contains("no result: it was stopped before its end"), "{journal}");
    assert!(journal.contains("readback that waited is dropped"), "{journal}");
    assert_eq!(journal.matches("readback passed").count(), 1, "{journal}");
}

#[tokio::test]
async fn a_cancel_ends_a_verification_and_drops_the_one_that_waits() {
    let rig = seeded(VerifyMode::Readback, UNAUDITED).await;
    one_runs_and_one_waits(&rig).await;
    rig.ask(Request::Cancel).await;
    rig.world.faults.clear();
    rig.until("cancelled", |view| view.state == State::Cancelled).await;
    let journal = rig.journal().await;
    assert!(journal.contains("readback that waited is dropped") && !journal.contains("passed"), "{journal}");
    assert!(rig.world.with(|truth| truth.target_disks.is_empty() && truth.source_runs));
}

#[tokio::test]
async fn one_that_waits_has_its_turn_when_the_first_one_has_ended() {
    let rig = seeded(VerifyMode::Readback, UNAUDITED).await;
    one_runs_and_one_waits(&rig).await;
    rig.world.faults.clear();
    assert!(ended(&rig, "second").await.result.unwrap().passed());
}

#[tokio::test]
async fn target_vm_started_during_a_readback_voids_its_result() {
    let world = world();
    world.with(|truth| truth.source_runs = false);
    let rig = Rig::start(world).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.verify.audit = Some(UNAUDITED);
    rig.seed(plan).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.faults.set("target-disk.read", InjectedFault::Hang);
    let named = VerifyOrder { id: "asked".to_owned(), ..order(VerifyMode::Readback, "full") };
    assert_eq!(ask(&rig, named).await, RequestOutcome::Accepted);
    rig.until("it reads", |view| view.verification.as_ref().is_some_and(|run| run.total > 0)).await;
    rig.world.with(|truth| truth.target_runs = true);
    rig.world.faults.clear();
    let run = ended(&rig, "asked").await;
    assert!(run.result.is_none() && run.error.as_ref().is_some_and(|why| why.contains("runs")), "{run:?}");
}

#[tokio::test]
async fn sample_resumes_with_its_seed_only_if_nothing_was_copied() {
    let rig = seeded(VerifyMode::None, UNAUDITED).await;
    let vdc = rig.world.with(|truth| truth.target_disks["vdc"].clone());
    let cut_off = async || {
        vdc.break_reads(true);
        let id = format!("{:?}", std::time::Instant::now());
        let named = VerifyOrder { id: id.clone(), ..order(VerifyMode::Readback, "sample=50%") };
        assert_eq!(ask(&rig, named).await, RequestOutcome::Accepted);
        let run = ended(&rig, &id).await;
        vdc.break_reads(false);
        assert!(run.result.is_none(), "{run:?}");
        run.seed.expect("a sample has a seed")
    };
    let first = cut_off().await;
    assert_eq!(cut_off().await, first, "it goes on");
    rig.sync().await;
    let found = result(&rig, order(VerifyMode::Readback, "sample=50%")).await;
    assert_ne!(found.seed, Some(first), "of another state of the disks another sample is drawn");
}

#[tokio::test]
async fn what_is_asked_for_stands_whole_in_the_journal_and_in_reports() {
    let rig = seeded(VerifyMode::None, UNAUDITED).await;
    let sample = VerifyOrder { seed: Some(7), ..order(VerifyMode::Readback, "sample=10%") };
    result(&rig, sample).await;
    let mut plan = Rig::plan(VerifyMode::Compare);
    plan.verify.audit = Some(UNAUDITED);
    rig.manager_applies(plan.clone()).await;
    rig.manager_applies(plan).await;
    let report = rig.manager.report(rig.view().await.id).await.unwrap();
    let asked: Vec<_> = report.requests.iter().map(|line| line.text.as_str()).collect();
    assert!(asked.contains(&"verify accepted: readback, sample=10%, seed 7"), "{asked:?}");
    let again = asked.iter().find(|line| line.starts_with("plan plan applied again: verify")).unwrap();
    assert!(again.contains("none") && again.contains("compare"), "{again}");
    assert_eq!(asked.last(), Some(&"plan plan applied again, unchanged"));
}
