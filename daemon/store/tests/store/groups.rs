//! Cutovers of VMs together: one of a plan at a time, reported once, and forgotten with their plan.

use std::time::Duration;

use warmd_core::model::{
    cutover_record::CutoverRecord, event_kind::EventKind, group::GroupMember, phase::Phase, plan::Plan,
    state::State, view::EventView,
};
use warmd_store::{MemberFacts, MigrationUpdate, NewGroup};

use super::{Fixture, at, new_migration};

fn line(text: &str) -> EventView {
    EventView {
        at: at(9),
        migration: None,
        by: "warmd".to_owned(),
        kind: EventKind::State,
        text: text.to_owned(),
    }
}

async fn members(fixture: &Fixture) -> Vec<GroupMember> {
    let mut members = Vec::new();
    for (tier, vm) in [(1, "web"), (0, "db")] {
        let new = new_migration(vm);
        members.push(GroupMember { migration: new.id, vm: vm.to_owned(), tier, attempt: 3 });
        fixture.store.create_migration(new).await.unwrap();
    }
    members
}

fn group(members: Vec<GroupMember>) -> NewGroup {
    NewGroup {
        plan: "plan".to_owned(),
        by: "operator".to_owned(),
        forced: true,
        all_or_nothing: true,
        begun: at(1),
        members,
    }
}

async fn told(fixture: &Fixture) -> Vec<String> {
    let lines = fixture.store.events(None, None, 100).await.unwrap().lines;
    lines.into_iter().filter(|line| line.migration.is_none()).map(|line| line.text).collect()
}

#[tokio::test]
async fn one_of_a_plan_runs_at_a_time_and_each_step_is_told_once() {
    let fixture = Fixture::new();
    let new = group(members(&fixture).await);
    let (begun, is_new) = fixture.store.begin_group(new.clone(), line("begun")).await.unwrap();
    let vms: Vec<_> =
        begun.members.iter().map(|member| (member.vm.as_str(), member.tier, member.attempt)).collect();
    assert_eq!((is_new, vms), (true, vec![("db", 0, 3), ("web", 1, 3)]));
    assert_eq!((begun.begun, begun.forced, begun.all_or_nothing), (at(1), true, true));
    assert_eq!(fixture.store.begin_group(new.clone(), line("again")).await.unwrap(), (begun.clone(), false));

    for why in ["first", "second"] {
        fixture.store.break_group(begun.id, why, line(why)).await.unwrap();
    }
    let fixture = fixture.reopen().await;
    let running = fixture.store.running_groups().await.unwrap();
    assert_eq!(running.iter().map(|group| group.halted.as_deref()).collect::<Vec<_>>(), [Some("first")]);
    for second in [5, 6] {
        fixture.store.end_group(begun.id, at(second), line("ended")).await.unwrap();
    }
    assert!(fixture.store.running_groups().await.unwrap().is_empty());
    assert_eq!(fixture.store.last_group("plan").await.unwrap().unwrap().ended, Some(at(5)));
    assert_eq!(told(&fixture).await, ["begun", "first", "ended"]);

    let (next, is_new) = fixture.store.begin_group(new, line("next")).await.unwrap();
    assert!(is_new && next.id > begun.id && next.halted.is_none());
    assert_eq!(fixture.store.last_group("plan").await.unwrap(), Some(next));
    let plan = Plan::stub("plan", "s", "t", "db");
    fixture.store.put_plan(&plan, at(0), Vec::new()).await.unwrap();
    fixture.store.delete_plan("plan").await.unwrap();
    assert_eq!(fixture.store.last_group("plan").await.unwrap(), None);
}

#[tokio::test]
async fn how_members_stand_is_what_their_migrations_say() {
    let fixture = Fixture::new();
    let members = members(&fixture).await;
    let (web, db) = (members[0].migration, members[1].migration);
    let (begun, _) = fixture.store.begin_group(group(members), line("begun")).await.unwrap();
    let state = State::CuttingOver { phase: Phase::StartVm };
    fixture.store.save_state(web, MigrationUpdate::to(state.clone(), at(2))).await.unwrap();
    let barrier_wait = Duration::from_micros(1_500_001);
    let cutover = CutoverRecord {
        attempt: 4,
        start_requested_at: Some(at(3)),
        barrier_wait,
        ..CutoverRecord::default()
    };
    fixture.store.save_cutover(web, cutover.clone()).await.unwrap();
    let facts = fixture.store.member_facts(begun.id).await.unwrap();
    assert_eq!(facts[1], MemberFacts { state, attempt: 4, start_requested: true });
    assert_eq!((facts[0].attempt, facts[0].start_requested), (0, false));
    assert_eq!(fixture.store.migration(web).await.unwrap().unwrap().cutover, cutover);
    assert_eq!(fixture.store.migration(db).await.unwrap().unwrap().cutover.barrier_wait, Duration::ZERO);
}
