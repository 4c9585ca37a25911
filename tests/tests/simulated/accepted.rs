//! What the VM would lose by the move: accepted by name, else the source is not stopped.

use warmd_core::control::Control;
use warmd_core::model::{
    plan::{Plan, VerifyMode},
    rule::{Objection, Rule},
    state::State,
};
use warmd_tests::simulated::{Rig, SimulatedWorld};

fn plan(accept: &[Rule]) -> Plan {
    Plan { accept: accept.to_vec(), ..Rig::plan(VerifyMode::None) }
}

async fn rig(accept: &[Rule]) -> Rig {
    let rig = Rig::start(SimulatedWorld::new(&[("vda", 1 << 20)])).await;
    rig.seed(plan(accept)).await;
    rig
}

fn object(rig: &Rig, rule: Rule) {
    rig.world.with(|truth| truth.source_objects = vec![Objection::new(rule, "disk vda is encrypted")]);
}

#[tokio::test]
async fn cutover_that_would_lose_hardware_ends_before_the_stop() {
    for rule in [Rule::EncryptionLost, Rule::DiskInOneDefinition] {
        let rig = rig(&[]).await;
        object(&rig, rule);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
        let cutover = view.cutover.unwrap();
        let failure = cutover.failure.unwrap();
        assert!(failure.contains(rule.id()) && failure.contains("not stopped"), "{failure}");
        assert_eq!(cutover.phases.len(), 1, "it went on to {:?}", cutover.phases);
        rig.world.assert_undone();
        rig.world.with(|truth| truth.source_objects.clear());
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    }
}

#[tokio::test]
async fn what_the_plan_accepts_is_told_and_does_not_stand_in_the_way() {
    let rig = Rig::start(SimulatedWorld::new(&[("vda", 1 << 20)])).await;
    object(&rig, Rule::EncryptionLost);
    let refused = rig.manager.apply_plan(plan(&[Rule::TpmState]), "test").await.unwrap_err();
    assert!(refused.message.contains("encryption-lost"), "{}", refused.message);
    rig.seed(plan(&[Rule::EncryptionLost])).await;
    let told = rig.manager.validate_plan(&plan(&[Rule::EncryptionLost])).await.unwrap();
    assert!(told.iter().any(|finding| finding.rule == Rule::EncryptionLost), "{told:?}");
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
}

#[tokio::test]
async fn only_what_can_be_accepted_is() {
    let rig = Rig::start(SimulatedWorld::new(&[("vda", 1 << 20)])).await;
    let refused = rig.manager.apply_plan(plan(&[Rule::NameTaken]), "test").await.unwrap_err();
    assert!(
        refused.message.contains("name-taken") && refused.message.contains("tpm-state"),
        "{}",
        refused.message
    );
}

#[tokio::test]
async fn definitions_that_differ_are_told_in_passes_once() {
    let rig = rig(&[]).await;
    object(&rig, Rule::DefinitionsDiffer);
    rig.sync().await;
    rig.sync().await;
    let journal = rig.journal().await;
    assert_eq!(journal.matches("is not what its definition says").count(), 1, "{journal}");
    rig.world.with(|truth| truth.source_objects.clear());
    rig.sync().await;
    assert!(rig.journal().await.contains("what its definition says again"));
}

#[tokio::test]
async fn the_target_is_made_of_what_the_vm_is_at_the_cutover() {
    let rig = rig(&[]).await;
    rig.world.with(|truth| truth.memory = Some(3 << 30));
    rig.sync().await;
    let journal = rig.journal().await;
    assert!(journal.contains("memory was 256 MiB and is 3072 MiB"), "{journal}");
    rig.world.with(|truth| truth.memory = Some(4 << 30));
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    let made = rig.world.with(|truth| truth.created.clone()).unwrap();
    assert_eq!(made.memory.0, 4 << 30);
}

#[tokio::test]
async fn refusal_of_the_target_is_found_before_the_source_stops() {
    for rule in [Rule::NameTaken, Rule::NameUnusable, Rule::LocationUnusable, Rule::StorageUnknown] {
        let rig = rig(&[]).await;
        rig.world.with(|truth| truth.target_objects = vec![Objection::new(rule, "not there")]);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
        let failure = view.cutover.unwrap().failure.unwrap();
        assert!(failure.contains(rule.id()) && failure.contains("not stopped"), "{failure}");
        rig.world.assert_undone();
    }
}
