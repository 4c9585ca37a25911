//! Verification in all scopes, and the audit of change tracking, over simulated endpoints.

use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use warmd_core::{
    control::Control,
    model::{
        plan::VerifyMode,
        request::RequestOutcome,
        state::State,
        verify::{Amount, VerifyOrder, VerifyScope},
        view::{VerificationView, VerifyResult},
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
/// Two disks, one with a short last block.
const DISKS: [(&str, u64); 2] = [("vda", 60 * BLOCK), ("vdb", 10 * BLOCK + 512)];

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&DISKS);
    for block in 0..60 {
        world.guest_writes("vda", block * BLOCK, &[block as u8 + 1; 4096]);
    }
    world.guest_writes("vdb", 0, &vec![9; 100_000]);
    world
}

/// Without an audit, which might find the fault first, unless a test wants one.
async fn seeded(world: SimulatedWorld, verify: VerifyMode) -> Rig {
    let rig = Rig::start(world).await;
    let mut plan = Rig::plan(verify);
    plan.verify.audit = Some(Amount::Share(0));
    rig.seed(plan).await;
    rig
}

async fn audited(world: SimulatedWorld, verify: VerifyMode) -> Rig {
    let rig = Rig::start(world).await;
    let mut plan = Rig::plan(verify);
    plan.verify.audit = Some("100%".parse().unwrap());
    rig.seed(plan).await;
    rig
}

fn order(mode: VerifyMode, scope: &str) -> VerifyOrder {
    VerifyOrder { mode, scope: scope.parse().unwrap(), ..VerifyOrder::default() }
}

/// Requests a verification and waits for its end.
async fn verify(rig: &Rig, order: VerifyOrder) -> VerificationView {
    let before = rig.view().await.verification.map(|run| run.started);
    let id = rig.view().await.id;
    let answer = rig.manager.verify(id, order, "test").await.unwrap();
    assert_eq!(answer, RequestOutcome::Accepted);
    let view = rig.until("the verification's end", |view| {
        view.verification.as_ref().is_some_and(|run| Some(run.started) != before && run.ended.is_some())
    });
    view.await.verification.unwrap()
}

async fn result(rig: &Rig, order: VerifyOrder) -> VerifyResult {
    let run = verify(rig, order).await;
    run.result.unwrap_or_else(|| panic!("no result: {:?}", run.error))
}

fn checked(result: &VerifyResult) -> u64 {
    result.disks.iter().map(|disk| disk.checked).sum()
}

fn corrupt(rig: &Rig, disk: &str, block: u64) {
    let target = rig.world.with(|truth| truth.target_disks[disk].clone());
    target.corrupt((block * BLOCK) as usize, b"not what was copied");
}

#[tokio::test]
async fn changed_is_what_was_copied_again_since_it_was_verified() {
    let mut rig = seeded(world(), VerifyMode::Readback).await;
    let changed = || order(VerifyMode::Readback, "changed");
    assert_eq!(checked(&result(&rig, changed()).await), 0, "the full pass is no change");

    for block in [3, 40, 59] {
        rig.world.guest_writes("vda", block * BLOCK, &[200; 10]);
        rig.sync().await;
    }
    // A restart, a sample and a failed attempt do not lose this.
    rig.restart().await;
    assert!(result(&rig, order(VerifyMode::Readback, "sample=65536")).await.passed());
    corrupt(&rig, "vda", 10);
    rig.world.faults.set("target-disk.read", InjectedFault::Refused);
    assert!(verify(&rig, changed()).await.error.is_some());
    rig.world.faults.clear();
    let found = result(&rig, changed()).await;
    assert_eq!((checked(&found), found.passed()), (3 * BLOCK, true), "block 10 was not copied again");
    assert_eq!(checked(&result(&rig, changed()).await), 0, "it was proven");

    rig.world.guest_writes("vda", 20 * BLOCK, &[1; 10]);
    rig.sync().await;
    corrupt(&rig, "vda", 20);
    let found = result(&rig, changed()).await;
    assert_eq!((checked(&found), found.disks[0].mismatches.clone()), (BLOCK, vec![(20 * BLOCK, BLOCK)]));
    rig.sync().await;
    let found = result(&rig, changed()).await;
    assert_eq!((checked(&found), found.passed()), (BLOCK, true), "what failed is looked at again: {found:?}");
    let full = result(&rig, order(VerifyMode::Readback, "full")).await;
    assert_eq!(full.disks[0].mismatches, [(10 * BLOCK, BLOCK)], "and a full one reads the rest");
}

#[tokio::test]
async fn a_sample_can_be_drawn_again_and_says_what_it_may_miss() {
    let rig = seeded(world(), VerifyMode::Readback).await;
    for block in (0..60).step_by(2) {
        corrupt(&rig, "vda", block);
    }
    let sample = |seed| VerifyOrder { seed, ..order(VerifyMode::Readback, "sample=10%") };
    let first = result(&rig, sample(None)).await;
    let seed = first.seed.expect("a sample has a seed");
    assert_eq!(checked(&first), (6 + 2) * BLOCK - short(&first));
    assert_eq!(first.scope, VerifyScope::Sample(Amount::Share(100_000)));
    let chances: Vec<_> =
        first.miss_probabilities.iter().map(|miss| (miss.blocks, miss.probability)).collect();
    assert_eq!(chances.iter().map(|(blocks, _)| *blocks).collect::<Vec<_>>(), [1, 10, 100, 1000]);
    assert!((chances[0].1 - 0.9).abs() < 1e-9, "one block of ten is read: {chances:?}");
    assert!((chances[1].1 - 0.9_f64.powi(10)).abs() < 1e-9, "{chances:?}");
    rig.sync().await;
    for block in (0..60).step_by(2) {
        corrupt(&rig, "vda", block);
    }
    let again = result(&rig, sample(Some(seed))).await;
    assert_eq!(again.seed, Some(seed));
    assert_eq!(again.disks, first.disks, "the same seed gives the same sample");
}

/// The bytes that the short last block lacks, if it was drawn.
fn short(result: &VerifyResult) -> u64 {
    if result.disks[1].checked.is_multiple_of(BLOCK) { 0 } else { BLOCK - 512 }
}

#[tokio::test]
async fn requested_compare_copies_and_proves_the_sources_data() {
    let rig = seeded(world(), VerifyMode::Readback).await;
    rig.world.guest_writes("vda", 7 * BLOCK, &[77; 100]);
    let passes = rig.passes().await;
    let found = result(&rig, order(VerifyMode::Compare, "full")).await;
    assert_eq!((found.mode, found.passed(), checked(&found)), (VerifyMode::Compare, true, 70 * BLOCK + 512));
    assert_eq!(rig.passes().await, passes + 1, "it took a snapshot of its own, and copied what had changed");
    rig.until("it is released", |_| !rig.world.with(|truth| truth.snapshot_open)).await;
    rig.world.changes_unreported("vda", 9 * BLOCK, &[78; 100]);
    let found = result(&rig, order(VerifyMode::Compare, "sample=100%")).await;
    assert_eq!(found.disks[0].mismatches, [(9 * BLOCK, BLOCK)], "a change that tracking kept to itself");
    assert!(rig.view().await.disks[0].tracking_fault.is_some(), "found without an audit");
}

#[tokio::test]
async fn a_verification_that_is_cut_off_goes_on_unless_a_pass_ran() {
    let mut rig = seeded(world(), VerifyMode::Readback).await;
    let full = || order(VerifyMode::Readback, "full");
    let reads = |rig: &Rig| rig.world.faults.struck("target-disk.read");
    // Whole disks are finished one after the other: the first one is verified when the second one cannot be
    // read.
    let before = reads(&rig);
    rig.world.with(|truth| truth.target_disks["vdb"].clone()).break_reads(true);
    assert!(verify(&rig, full()).await.result.is_none());
    let first = reads(&rig) - before;
    rig.restart().await;
    rig.world.with(|truth| truth.target_disks["vdb"].clone()).break_reads(false);
    let before = reads(&rig);
    let found = result(&rig, full()).await;
    assert!(found.passed() && checked(&found) == 70 * BLOCK + 512, "{found:?}");
    assert!(reads(&rig) - before < first, "the first disk was read again: {} reads", reads(&rig) - before);

    // A disk that a pass has changed is read from its beginning.
    rig.world.with(|truth| truth.target_disks["vdb"].clone()).break_reads(true);
    assert!(verify(&rig, full()).await.result.is_none());
    rig.world.with(|truth| truth.target_disks["vdb"].clone()).break_reads(false);
    corrupt(&rig, "vda", 1);
    rig.sync().await;
    assert_eq!(result(&rig, full()).await.disks[0].mismatches, [(BLOCK, BLOCK)]);
}

#[tokio::test]
async fn a_mismatch_is_not_forgotten_when_the_verification_is_cut_off() {
    let rig = seeded(world(), VerifyMode::Readback).await;
    corrupt(&rig, "vda", 2);
    let vdb = rig.world.with(|truth| truth.target_disks["vdb"].clone());
    vdb.break_reads(true);
    assert!(verify(&rig, order(VerifyMode::Readback, "full")).await.result.is_none());
    vdb.break_reads(false);
    // Another verification may never read the block: the next pass copies it again anyway.
    rig.sync().await;
    let found = result(&rig, order(VerifyMode::Readback, "full")).await;
    assert!(found.passed(), "{found:?}");
}

#[tokio::test]
async fn a_cutover_proves_what_its_plan_asks_for_and_says_no_more() {
    for (scope, said) in [
        ("full", "readback: every byte is right"),
        ("changed", "readback (changed): every byte that was copied again is right"),
        ("sample=10%", "every block of the sample is right"),
    ] {
        let rig = Rig::start(world()).await;
        let mut plan = Rig::plan(VerifyMode::Readback);
        plan.verify.scope = scope.parse().unwrap();
        rig.seed(plan).await;
        rig.world.guest_writes("vda", 3 * BLOCK, &[5; 10]);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Done, "{}", rig.journal().await);
        let outcomes: Vec<_> = view
            .cutover
            .unwrap()
            .phases
            .into_iter()
            .filter_map(|phase| phase.outcome)
            .map(String::from)
            .collect();
        assert!(outcomes.iter().any(|outcome| outcome.contains(said)), "{scope}: {outcomes:?}");
        let found = view.verification.unwrap().result.unwrap();
        assert_eq!((found.scope.to_string().as_str(), found.passed()), (scope, true));
        let whole = checked(&found) == 70 * BLOCK + 512;
        assert_eq!(whole, scope == "full", "{}", checked(&found));
    }
}

#[tokio::test]
async fn readback_is_accepted_until_the_target_vm_starts() {
    let world = world();
    world.with(|truth| truth.source_runs = false);
    let rig = seeded(world, VerifyMode::None).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    let full = || order(VerifyMode::Readback, "full");
    let found = result(&rig, full()).await;
    assert!(found.passed() && checked(&found) == 70 * BLOCK + 512);
    corrupt(&rig, "vda", 5);
    assert_eq!(result(&rig, full()).await.disks[0].mismatched_bytes, BLOCK);
    assert_eq!(rig.view().await.state, State::Done);

    rig.world.with(|truth| truth.target_runs = true);
    let refused = verify(&rig, full()).await.error.unwrap();
    assert!(refused.contains("runs") && refused.contains("--image"), "{refused}");
    let id = rig.view().await.id;
    let answer = rig.manager.verify(id, order(VerifyMode::Compare, "full"), "test").await.unwrap();
    assert!(matches!(answer, RequestOutcome::Refused(why) if why.contains("snapshot")));
}

#[tokio::test]
async fn images_stand_for_disks_whose_vm_was_started() {
    let rig = seeded(world(), VerifyMode::Readback).await;
    assert_eq!(rig.cutover().await.state, State::Done);
    let refused = verify(&rig, order(VerifyMode::Readback, "full")).await.error.unwrap();
    assert!(refused.contains("runs"), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vda.snapshot");
    let mut bytes = rig.world.with(|truth| truth.target_disks["vda"].durable());
    std::fs::write(&path, &bytes).unwrap();
    let with = |disk: &str| VerifyOrder {
        images: BTreeMap::from([(disk.to_owned(), path.display().to_string())]),
        ..VerifyOrder::default()
    };
    let found = result(&rig, with("vda")).await;
    assert_eq!((found.passed(), found.disks.len(), checked(&found)), (true, 1, 60 * BLOCK));
    assert_eq!(found.disks[0].image.as_deref(), path.to_str());
    bytes[(30 * BLOCK) as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(result(&rig, with("vda")).await.disks[0].mismatches, [(30 * BLOCK, BLOCK)]);
    let strange = verify(&rig, with("vdz")).await.error.unwrap();
    assert!(strange.contains("vdz") && strange.contains("vda, vdb"), "{strange}");
    let small = verify(&rig, with("vdb")).await.error.unwrap();
    assert!(small.contains("bytes"), "another size: {small}");

    // As QEMU locks the disks of a VM that runs.
    let mut held = held_by_qemu(&path);
    let used = verify(&rig, with("vda")).await.error.unwrap();
    assert!(used.contains("in use"), "{used}");
    held.kill().unwrap();
    held.wait().unwrap();
    assert!(verify(&rig, with("vda")).await.result.is_some());
}

#[tokio::test]
async fn source_with_unreported_changes_is_found_and_distrusted() {
    let mut rig = audited(world(), VerifyMode::None).await;
    rig.sync().await;
    let view = rig.view().await;
    let audit = view.pass.unwrap().disks[0].audit.clone().expect("a delta is audited");
    assert_eq!((audit.checked, audit.mismatched_bytes, audit.error), (60 * BLOCK, 0, None));
    assert_eq!(view.disks[0].tracking_fault, None);

    rig.world.changes_unreported("vda", 33 * BLOCK + 5, b"nobody was told");
    rig.world.guest_writes("vda", 12 * BLOCK, &[1; 10]);
    rig.sync().await;
    let view = rig.view().await;
    let pass = view.pass.clone().unwrap();
    let audit = pass.disks[0].audit.clone().unwrap();
    assert_eq!((audit.mismatched_bytes, audit.mismatches), (BLOCK, vec![(33 * BLOCK, BLOCK)]));
    let fault = view.disks[0].tracking_fault.clone().expect("it is shown");
    assert!(fault.contains(&(33 * BLOCK).to_string()), "{fault}");
    assert_eq!(view.disks[1].tracking_fault, None, "of the other disk nothing is known");
    assert!(rig.journal().await.contains("CANNOT BE TRUSTED"));
    let source = rig.world.with(|truth| truth.source_disks["vda"].clone());
    let target = rig.world.with(|truth| truth.target_disks["vda"].durable());
    assert!(source == target, "the pass that found it out copies it");
    let scraped = rig.metrics.render(&(rig.manager.present())().await).unwrap();
    assert!(scraped.contains("warmd_tracking_fault{plan=\"plan\",vm=\"guest\",disk=\"vda\"} 1"), "{scraped}");
    assert!(
        scraped.contains(&format!(
            "warmd_unreported_bytes_total{{plan=\"plan\",vm=\"guest\",disk=\"vda\"}} {BLOCK}"
        )),
        "{scraped}"
    );

    // Also after a restart: every pass compares all of this disk, and it is not audited any more.
    rig.restart().await;
    assert_eq!(rig.view().await.disks[0].tracking_fault.as_ref(), Some(&fault));
    rig.world.changes_unreported("vda", 50 * BLOCK, b"nor of this");
    rig.sync().await;
    let pass = rig.view().await.pass.unwrap();
    assert_eq!((pass.disks[0].figures.read, pass.disks[0].audit.is_some()), (60 * BLOCK, false));
    assert!(pass.disks[0].unknown.as_ref().is_some_and(|why| why.contains("cannot be trusted")));
    assert!(pass.disks[1].figures.read < 10 * BLOCK && pass.disks[1].audit.is_some());

    // A cutover needs a full compare, though the plan requires none.
    rig.world.changes_unreported("vda", 51 * BLOCK, b"nor of that");
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    let found = view.verification.unwrap().result.unwrap();
    assert_eq!((found.mode, found.scope, found.passed()), (VerifyMode::Compare, VerifyScope::Full, true));
    rig.world.assert_moved();
    let report = rig.manager.report(view.id).await.unwrap();
    let audit = report.disks[0].audit.clone().unwrap();
    assert_eq!((audit.mismatched_bytes, audit.tracking_fault), (BLOCK, Some(fault)));
    assert_eq!(report.disks[1].audit.clone().unwrap().tracking_fault, None);
}

#[tokio::test]
async fn unreported_change_in_the_final_delta_is_copied_before_start() {
    let rig = audited(world(), VerifyMode::None).await;
    rig.world.changes_when_off("vda", 20 * BLOCK, b"after the guest had stopped");
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    assert_eq!(view.verification.unwrap().result.unwrap().mode, VerifyMode::Compare);
    assert!(view.disks[0].tracking_fault.is_some());
    rig.world.assert_moved();
}

#[tokio::test]
async fn without_an_audit_a_lie_is_not_seen_and_that_is_said() {
    let rig = seeded(world(), VerifyMode::None).await;
    rig.world.changes_unreported("vda", 33 * BLOCK, b"nobody was told");
    rig.sync().await;
    let view = rig.view().await;
    assert_eq!(
        (view.pass.unwrap().disks[0].audit.clone(), view.disks[0].tracking_fault.clone()),
        (None, None)
    );
    assert!(view.warnings.iter().any(|warning| warning.contains("not audited")), "{:?}", view.warnings);
}

#[tokio::test]
async fn a_small_audit_walks_over_the_whole_disk() {
    let mut rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.verify.audit = Some("10%".parse().unwrap());
    rig.seed(plan).await;
    rig.world.changes_unreported("vda", 59 * BLOCK, b"at the disk's end");
    for pass in 1..=10 {
        if pass == 5 {
            rig.restart().await;
        }
        assert_eq!(rig.audit().await[0], (6 * BLOCK, pass == 10), "pass {pass}");
    }
}

#[tokio::test]
async fn an_audit_that_cannot_read_blames_nobody() {
    let rig = audited(world(), VerifyMode::None).await;
    rig.world.faults.set("source-disk.read", InjectedFault::Passing(1));
    rig.sync().await;
    let view = rig.view().await;
    assert!(view.pass.unwrap().disks.iter().any(|disk| disk.audit.as_ref().unwrap().error.is_some()));
    assert!(view.disks.iter().all(|disk| disk.tracking_fault.is_none()));
}

/// A program that has opened the image as QEMU does, until it is killed.
fn held_by_qemu(path: &Path) -> Child {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("qemu-io is there (package qemu-utils)");
    // It prompts when it has opened, and locked, the image.
    let mut prompt = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    child
}
