//! The daemon's rows of plans, migrations, passes and cutovers.

use std::num::{NonZeroU32, NonZeroU64};

use rusqlite::Connection;
use warmd_cbt::{
    limit::Limit,
    mark::ChangeMark,
    store::{LedgerCommit, LedgerStore, PassFigures, StoreErrorKind},
    transfer::LatencyBaseline,
    units::Length,
};
use warmd_core::{
    control::JournalPage,
    model::{
        cutover_record::CutoverRecord,
        event_kind::EventKind,
        id::{DiskKey, MigrationId},
        limit::{LimitScope, SavedLimit, SetBy},
        outcome::{PassFailure, PhaseOutcome},
        phase::Phase,
        plan::{Plan, VerifyMode},
        scheduled_cutover::ScheduledCutover,
        state::{ResumePoint, State},
        verify::{MissProbability, VerifyScope},
        view::{DiskVerifyResult, EventView, PassKind, SnapshotCost, VerifyResult},
    },
    sources::HoldOff,
};
use warmd_store::{Created, DiskFacts, MigrationUpdate, NewDiskPass, Store};

use super::{Fixture, at, disk, event, machine, migration, new_disk, new_migration};

fn plan(name: &str) -> Plan {
    toml::from_str(&format!(
        r#"
        name = "{name}"
        source = "lab"
        target = "new"
        vms = ["web", "db"]
        networks = {{ default = "prod" }}
        schedule = {{ interval = "1h 30m" }}
        vm.web = {{ name = "web2", disks = {{ vda = "/dev/x" }} }}
        "#
    ))
    .unwrap()
}

/// What the last lines of the journal say, of one migration or of all.
async fn texts(store: &Store, id: Option<MigrationId>) -> Vec<String> {
    let lines = store.events(id, None, 10).await.unwrap().lines;
    lines.into_iter().map(|line| line.text).collect()
}

#[tokio::test]
async fn plans_are_kept_replaced_and_forgotten() {
    let fixture = Fixture::new();
    fixture.store.put_plan(&plan("b"), at(0), Vec::new()).await.unwrap();
    fixture.store.put_plan(&plan("a"), at(0), Vec::new()).await.unwrap();
    let mut changed = plan("b");
    changed.vms.push("mail".to_owned());
    fixture.store.put_plan(&changed, at(1), Vec::new()).await.unwrap();

    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.plans().await.unwrap(), [plan("a"), changed.clone()]);
    assert_eq!(fixture.store.plan("b").await.unwrap(), Some(changed));
    assert_eq!(fixture.store.plan("c").await.unwrap(), None);
    assert!(fixture.store.delete_plan("b").await.unwrap());
    assert!(!fixture.store.delete_plan("b").await.unwrap());
    assert_eq!(fixture.store.plans().await.unwrap(), [plan("a")]);
}

#[tokio::test]
async fn limits_that_were_set_are_kept_with_who_set_them() {
    let fixture = Fixture::new();
    let disk = LimitScope::Migration(MigrationId::generate(), Some(DiskKey("a/b".to_owned())));
    let scopes = [
        LimitScope::Global,
        LimitScope::Source("old".to_owned()),
        LimitScope::Target("new".to_owned()),
        disk,
    ];
    let saved = |rate, requests, by: &str| SavedLimit {
        limit: Limit { rate: NonZeroU64::new(rate), requests: NonZeroU32::new(requests) },
        instead_of: Limit { rate: NonZeroU64::new(rate / 2), requests: None },
        set: SetBy { by: by.to_owned(), at: at(3) },
    };
    for scope in &scopes {
        fixture.store.save_limit(scope, Some(saved(70_000, 8, "a")), event(None, "set")).await.unwrap();
    }
    fixture.store.save_limit(&scopes[1], Some(saved(0, 0, "b")), event(None, "again")).await.unwrap();
    fixture.store.save_limit(&scopes[2], None, event(None, "reset")).await.unwrap();

    let fixture = fixture.reopen().await;
    let saved_limits = fixture.store.limits().await.unwrap();
    assert!(saved_limits.unreadable.is_empty(), "{:?}", saved_limits.unreadable);
    let mut kept = saved_limits.limits;
    kept.sort_by_key(|(scope, _)| scope.clone());
    let wanted = [
        (scopes[0].clone(), saved(70_000, 8, "a")),
        (scopes[1].clone(), saved(0, 0, "b")),
        (scopes[3].clone(), saved(70_000, 8, "a")),
    ];
    assert_eq!(kept, wanted);
    let lines = texts(&fixture.store, None).await;
    assert_eq!(lines, ["set", "set", "set", "set", "again", "reset"]);
}

#[tokio::test]
async fn a_limit_that_cannot_be_read_takes_no_other_along() {
    let fixture = Fixture::new();
    let limit = Limit { rate: NonZeroU64::new(70_000), requests: None };
    let set = SetBy { by: "a".to_owned(), at: at(3) };
    for name in ["a", "b", "c", "d", "e"] {
        let saved = SavedLimit { limit, instead_of: Limit::default(), set: set.clone() };
        let scope = LimitScope::Source(name.to_owned());
        fixture.store.save_limit(&scope, Some(saved), event(None, "set")).await.unwrap();
    }
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch(
        "UPDATE limits SET rate = -1 WHERE scope = 'source/a'; UPDATE limits SET rate = 0 WHERE scope = 'source/b';
         UPDATE limits SET scope = 'nothing' WHERE scope = 'source/c';
         UPDATE limits SET at = 9223372036854775807 WHERE scope = 'source/d';",
    )
    .unwrap();
    let saved = fixture.store.limits().await.unwrap();
    assert_eq!(saved.limits.len(), 1, "a limit of nothing must not be taken for no limit: {saved:?}");
    assert_eq!((&saved.limits[0].0, saved.limits[0].1.limit), (&LimitScope::Source("e".to_owned()), limit));
    let names: Vec<_> = saved.unreadable.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["nothing", "source/a", "source/b", "source/d"]);
    for (name, error) in &saved.unreadable {
        assert_eq!(error.kind, StoreErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("table limits, row {name}")), "{error}");
    }
}

#[tokio::test]
async fn limits_of_a_migration_go_with_its_end() {
    for end in [State::Done, State::Cancelled] {
        let fixture = Fixture::new();
        let (over, other) =
            (migration(&fixture.store, "over").await, migration(&fixture.store, "other").await);
        let of =
            |id, disk: Option<&str>| LimitScope::Migration(id, disk.map(|disk| DiskKey(disk.to_owned())));
        let kept = [LimitScope::Global, of(other, None), of(other, Some("vda"))];
        for scope in kept.iter().chain(&[of(over, None), of(over, Some("vda")), of(over, Some("v%_/b"))]) {
            let saved = SavedLimit {
                limit: Limit { rate: NonZeroU64::new(70_000), requests: None },
                instead_of: Limit::default(),
                set: SetBy { by: "a".to_owned(), at: at(3) },
            };
            fixture.store.save_limit(scope, Some(saved), event(None, "set")).await.unwrap();
        }
        fixture.store.save_state(over, MigrationUpdate::to(State::Synced, at(4))).await.unwrap();
        assert_eq!(fixture.store.limits().await.unwrap().limits.len(), 6);
        fixture.store.save_state(over, MigrationUpdate::to(end, at(5))).await.unwrap();
        let saved = fixture.store.limits().await.unwrap().limits;
        let mut left: Vec<_> = saved.into_iter().map(|(scope, _)| scope).collect();
        left.sort();
        let mut wanted = kept.to_vec();
        wanted.sort();
        assert_eq!(left, wanted);
    }
}

#[tokio::test]
async fn what_reads_took_is_known_after_a_restart() {
    let fixture = Fixture::new();
    let (_, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    let (_, other) = disk(&fixture.store, "db", 1 << 30, false).await;
    assert_eq!(fixture.store.baseline(vda).await.unwrap().known().count(), 0);
    let time = |nanos| std::time::Duration::from_nanos(nanos);
    for known in [vec![(0, time(5_000_000)), (3, time(7))], vec![(3, time(9))]] {
        fixture.store.save_baseline(vda, &LatencyBaseline::of(known)).await.unwrap();
    }
    let fixture = fixture.reopen().await;
    let known: Vec<_> = fixture.store.baseline(vda).await.unwrap().known().collect();
    assert_eq!(known, [(0, time(5_000_000)), (3, time(9))]);
    assert_eq!(fixture.store.baseline(other).await.unwrap().known().count(), 0);
    let unknown = warmd_cbt::store::DiskId(99);
    let kept = LatencyBaseline::of([(0, time(1))]);
    assert_eq!(fixture.store.save_baseline(unknown, &kept).await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn a_migration_comes_back_as_it_was_saved() {
    let fixture = Fixture::new();
    let mut new = new_migration("web");
    new.events = vec![event(Some(new.id), "made")];
    let Created::New(made) = fixture.store.create_migration(new.clone()).await.unwrap() else {
        panic!("it is new");
    };
    assert_eq!((made.id, made.state, made.since), (new.id, State::Defined, at(0)));

    let mut described = machine("web");
    described.nics.clear();
    fixture.store.save_machine(new.id, &described).await.unwrap();
    let cutover = CutoverRecord {
        forced: true,
        attempt: 2,
        was_running: Some(true),
        source_stopped: Some(at(5)),
        start_requested_at: Some(at(6)),
        target_running: None,
        rolled_back: Some(at(14)),
        handed_over_at: Some(at(7)),
        reclaimed_at: Some(at(3)),
        barrier_wait: std::time::Duration::from_micros(7_000_001),
        hold_off: Some(HoldOff { autostart: true }),
        create_requested: true,
        monitor_until: Some(at(99)),
    };
    let state =
        State::Failed { reason: "\"no\" room\n".to_owned(), resumable: true, from: ResumePoint::Seeding };
    let change = MigrationUpdate {
        cutover: Some(cutover.clone()),
        warnings: Some(vec!["slow".to_owned()]),
        events: vec![event(Some(new.id), "failed")],
        ..MigrationUpdate::to(state.clone(), at(6))
    };
    fixture.store.save_state(new.id, change).await.unwrap();
    // The same state again is no new state: since when it lasts stays.
    fixture.store.save_state(new.id, MigrationUpdate::to(state.clone(), at(9))).await.unwrap();

    let fixture = fixture.reopen().await;
    let row = fixture.store.migration(new.id).await.unwrap().unwrap();
    assert_eq!((row.machine, row.state, row.since, row.created), (described, state, at(6), at(0)));
    assert_eq!((row.warnings, row.cutover), (vec!["slow".to_owned()], cutover));
    assert_eq!((row.vm_name.as_str(), row.target_name.as_str()), ("web", "web-moved"));
    let texts = texts(&fixture.store, Some(new.id)).await;
    assert_eq!(texts, ["made", "failed"]);
}

#[tokio::test]
async fn an_appointment_is_kept_with_its_line_until_a_step_forgets_it() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let asked = ScheduledCutover::At { at: at(100), force: true, by: "operator".to_owned() };
    let lines = vec![event(Some(id), "asked")];
    fixture.store.save_appointment(id, Some(asked.clone()), lines).await.unwrap();
    let kept =
        async |fixture: &Fixture| fixture.store.migration(id).await.unwrap().unwrap().scheduled_cutover;
    let fixture = fixture.reopen().await;
    assert_eq!(kept(&fixture).await, Some(asked.clone()));
    let texts = texts(&fixture.store, Some(id)).await;
    assert_eq!(texts.last().map(String::as_str), Some("asked"));
    fixture.store.save_state(id, MigrationUpdate::to(State::Synced, at(2))).await.unwrap();
    assert_eq!(kept(&fixture).await, Some(asked), "a step that says nothing leaves it");
    let held = ScheduledCutover::OnHold { why: "it failed".to_owned() };
    let change = MigrationUpdate {
        scheduled_cutover: Some(Some(held.clone())),
        ..MigrationUpdate::to(State::Syncing, at(3))
    };
    fixture.store.save_state(id, change).await.unwrap();
    assert_eq!(kept(&fixture).await, Some(held));
    let change =
        MigrationUpdate { scheduled_cutover: Some(None), ..MigrationUpdate::to(State::Synced, at(4)) };
    fixture.store.save_state(id, change).await.unwrap();
    assert_eq!(kept(&fixture).await, None);
    let missing = fixture.store.save_appointment(MigrationId::generate(), None, Vec::new()).await;
    assert_eq!(missing.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn one_vm_has_one_migration_at_a_time() {
    let fixture = Fixture::new();
    let first = migration(&fixture.store, "web").await;
    let second = new_migration("web");
    let Created::Exists(row) = fixture.store.create_migration(second.clone()).await.unwrap() else {
        panic!("a second live migration of one VM was made");
    };
    assert_eq!(row.id, first);
    fixture.store.save_state(first, MigrationUpdate::to(State::Cancelled, at(1))).await.unwrap();
    assert!(matches!(fixture.store.create_migration(second).await.unwrap(), Created::New(_)));
    assert_eq!(fixture.store.migrations().await.unwrap().len(), 2);
}

#[tokio::test]
async fn state_and_journal_are_one_transaction() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let orphan = MigrationUpdate {
        events: vec![event(Some(MigrationId::generate()), "of nobody")],
        ..MigrationUpdate::to(State::Seeding, at(1))
    };
    let error = fixture.store.save_state(id, orphan).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert_eq!(fixture.store.migration(id).await.unwrap().unwrap().state, State::Defined);

    let missing = MigrationId::generate();
    let error = fixture.store.save_state(missing, MigrationUpdate::to(State::Done, at(1))).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains(&missing.to_string()), "{error}");
}

#[tokio::test]
async fn the_journal_only_grows() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let lines: Vec<_> = (0..5).map(|n| event((n % 2 == 0).then_some(id), &format!("line {n}"))).collect();
    fixture.store.append_events(lines.clone()).await.unwrap();
    let store = &fixture.store;
    let page = async |id, after, limit| store.events(id, after, limit).await.unwrap();
    assert_eq!(page(None, None, 3).await, JournalPage { lines: lines[2..].to_vec(), cursor: 5 });
    let theirs = [lines[2].clone(), lines[4].clone()];
    assert_eq!(page(Some(id), None, 2).await, JournalPage { lines: theirs.to_vec(), cursor: 5 });
    // Page after page, no line is left out and none comes twice.
    assert_eq!(page(None, Some(0), 2).await, JournalPage { lines: lines[..2].to_vec(), cursor: 2 });
    assert_eq!(page(None, Some(2), 9).await, JournalPage { lines: lines[2..].to_vec(), cursor: 5 });
    assert_eq!(page(Some(id), Some(1), 1).await, JournalPage { lines: vec![lines[2].clone()], cursor: 3 });
    assert_eq!(page(None, Some(5), 9).await, JournalPage { lines: vec![], cursor: 5 });
    assert_eq!(page(None, Some(u64::MAX), 9).await, JournalPage { lines: vec![], cursor: 5 }, "put back");
    fixture.store.close().await.unwrap();

    let raw = rusqlite::Connection::open(fixture.store.file()).unwrap();
    for attempt in ["UPDATE events SET text = 'other'", "DELETE FROM events WHERE id = 1"] {
        let error = raw.execute(attempt, []).unwrap_err().to_string();
        assert!(error.contains("append-only"), "{attempt}: {error}");
    }
}

#[tokio::test]
async fn the_end_of_a_journal_is_that_of_one_moment() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let line = move |n: u64| EventView {
        kind: if n.is_multiple_of(10) { EventKind::Request } else { EventKind::State },
        ..event(Some(id), &n.to_string())
    };
    fixture.store.append_events((0..20).map(line).collect()).await.unwrap();
    let store = fixture.store.clone();
    let writing = tokio::spawn(async move {
        for n in 20..600 {
            store.append_events(vec![line(n)]).await.unwrap();
        }
    });
    let mut looks = 0;
    while !writing.is_finished() || looks == 0 {
        let end = fixture.store.journal(id, 7).await.unwrap();
        let last: u64 = end.lines.last().unwrap().text.parse().unwrap();
        assert_eq!((end.lines.len(), end.left_out), (7, last + 1 - 7));
        let asked: u64 = end.requests.last().unwrap().text.parse().unwrap();
        assert_eq!(asked, last / 10 * 10, "requests of another moment");
        looks += 1;
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn disks_are_saved_once_and_never_mistaken() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let disks = vec![new_disk("vdb", 3 << 30, false), new_disk("vda", 100_000, true)];
    let rows = fixture.store.save_disks(id, disks.clone()).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.key.0.as_str()).collect::<Vec<_>>(), ["vdb", "vda"]);
    let commit = LedgerCommit { anchor: Some(ChangeMark("cp1".to_owned())), ..LedgerCommit::default() };
    fixture.store.commit(rows[0].id, commit).await.unwrap();

    let again = fixture.store.save_disks(id, disks).await.unwrap();
    assert_eq!(again[0].anchor, Some(ChangeMark("cp1".to_owned())), "the ledger is not reset");
    assert_eq!((again[0].id, again[1].id), (rows[0].id, rows[1].id));
    assert_eq!(fixture.store.disks(id).await.unwrap(), again);

    let grown = vec![new_disk("vdc", 1 << 20, false), new_disk("vda", 100_001, true)];
    let error = fixture.store.save_disks(id, grown).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("100001"), "{error}");
    assert_eq!(fixture.store.disks(id).await.unwrap(), again, "and vdc was not added");
}

#[tokio::test]
async fn figures_of_a_pass_grow_with_the_drains() {
    let fixture = Fixture::new();
    let (id, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    let (other, stranger) = disk(&fixture.store, "db", 1 << 30, false).await;
    let new = |disk| NewDiskPass {
        disk,
        pending: 1 << 30,
        changed: 5,
        extents: 1,
        unknown: Some("first".to_owned()),
        mark: ChangeMark("cp1".to_owned()),
    };
    let pass = fixture.store.begin_pass(id, PassKind::Full, at(1), vec![new(vda)]).await.unwrap();
    assert_eq!((pass.view.number, pass.view.kind, pass.disks[0].0), (1, PassKind::Full, vda));
    let figures =
        PassFigures { read: 1, written: 2, zeroed: 3, skipped: 4, drained: 5, requests: 6, batches: 7 };
    let commit = LedgerCommit { pass: Some(pass.disks[0].1), figures, ..LedgerCommit::default() };
    fixture.store.commit(vda, commit.clone()).await.unwrap();
    fixture.store.commit(vda, commit.clone()).await.unwrap();
    let error = fixture.store.commit(stranger, commit).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "a pass of another disk");

    assert_eq!(fixture.store.last_pass(id).await.unwrap().unwrap().view.ended, None);
    fixture.store.end_pass(pass.id, at(2), Some("lost".to_owned())).await.unwrap();
    fixture.store.begin_pass(id, PassKind::Delta, at(3), vec![new(vda)]).await.unwrap();
    fixture.store.begin_pass(other, PassKind::Full, at(3), vec![new(stranger)]).await.unwrap();

    let fixture = fixture.reopen().await;
    let passes = fixture.store.passes(id).await.unwrap();
    assert_eq!(passes.iter().map(|pass| pass.view.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(passes[0].view.ended, Some(at(2)));
    assert_eq!(passes[0].view.error, Some(PassFailure::Error("lost".to_owned())));
    let seen = &passes[0].view.disks;
    assert_eq!((seen.len(), &seen[0].key), (1, &DiskKey("vda".to_owned())));
    assert_eq!((seen[0].pending, seen[0].changed, seen[0].extents), (1 << 30, 5, 1));
    let mut twice = figures;
    twice += figures;
    assert_eq!(seen[0].figures, twice);
    assert_eq!(fixture.store.last_pass(id).await.unwrap().unwrap(), passes[1]);
    assert_eq!(fixture.store.last_pass(other).await.unwrap().unwrap().view.number, 1);
    let error = fixture.store.end_pass(999, at(2), None).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn the_cost_of_a_snapshot_is_kept_with_its_pass_and_foretells() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let cost = |made, removed| SnapshotCost { made, removed };
    // No pass was recorded since then.
    fixture.store.note_snapshot(id, at(0), cost(9.0, Some(9.0))).await.unwrap();
    fixture.store.begin_pass(id, PassKind::Full, at(1), Vec::new()).await.unwrap();
    fixture.store.note_snapshot(id, at(2), cost(9.0, Some(9.0))).await.unwrap();
    fixture.store.note_snapshot(id, at(1), cost(0.5, Some(2.0))).await.unwrap();
    fixture.store.begin_pass(id, PassKind::Delta, at(3), Vec::new()).await.unwrap();
    fixture.store.note_snapshot(id, at(3), cost(1.5, None)).await.unwrap();
    fixture.store.begin_pass(id, PassKind::Delta, at(4), Vec::new()).await.unwrap();
    let costs: Vec<_> =
        fixture.store.passes(id).await.unwrap().iter().map(|pass| pass.view.snapshot).collect();
    assert_eq!(costs, [Some(cost(0.5, Some(2.0))), Some(cost(1.5, None)), None]);
    // A snapshot that is still there says nothing about its removal.
    assert_eq!(fixture.store.measured_cutovers(id).await.unwrap().snapshot, [2.5]);
    let other = migration(&fixture.store, "db").await;
    assert!(fixture.store.measured_cutovers(other).await.unwrap().snapshot.is_empty());
}

#[tokio::test]
async fn the_last_passes_teach_what_all_their_disks_changed() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    let disks = vec![new_disk("vda", 1 << 30, false), new_disk("vdb", 1 << 20, false)];
    let disks = fixture.store.save_disks(id, disks).await.unwrap();
    let new = |at: usize, changed, unknown: bool| NewDiskPass {
        disk: disks[at].id,
        pending: 9,
        changed,
        extents: 1,
        unknown: unknown.then(|| "lost".to_owned()),
        mark: ChangeMark("cp".to_owned()),
    };
    let first = vec![new(0, 1, true), new(1, 2, true)];
    let second = vec![new(0, 3, false), new(1, 4, true)];
    for (pass, kind) in [(first, PassKind::Full), (second, PassKind::Delta), (Vec::new(), PassKind::Delta)] {
        let begun = fixture.store.begin_pass(id, kind, at(1), pass).await.unwrap();
        let error = (begun.view.number == 2).then(|| "cut".to_owned());
        fixture.store.end_pass(begun.id, at(begun.view.number.into()), error).await.unwrap();
    }
    fixture.store.begin_pass(id, PassKind::Final, at(9), vec![new(0, 5, false)]).await.unwrap();

    let passes = fixture.store.recent_passes(id, 3).await.unwrap();
    let ended: Vec<_> = passes.iter().map(|pass| (pass.number, pass.ended, pass.failed)).collect();
    assert_eq!(ended, [(2, Some(at(2)), true), (3, Some(at(3)), false), (4, None, false)]);
    assert_eq!((passes[0].kind, passes[2].kind), (PassKind::Delta, PassKind::Final));
    let seen = |key: &str, changed| DiskFacts { key: DiskKey(key.to_owned()), pending: 9, changed };
    assert_eq!(passes[0].disks, [seen("vda", Some(3)), seen("vdb", None)]);
    assert_eq!((passes[1].disks.len(), &passes[2].disks), (0, &vec![seen("vda", Some(5))]));
    assert_eq!(fixture.store.recent_passes(id, 100).await.unwrap().len(), 4);
}

#[tokio::test]
async fn phases_of_the_last_attempt_are_told_in_order() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    assert_eq!(fixture.store.phases(id).await.unwrap(), []);
    fixture.store.begin_phase(id, 1, Phase::CatchUpDelta, at(1)).await.unwrap();
    for (phase, second) in [(Phase::StopSource, 12), (Phase::CatchUpDelta, 10), (Phase::Verify, 20)] {
        fixture.store.begin_phase(id, 2, phase, at(second)).await.unwrap();
        fixture.store.end_phase(id, 2, phase, at(second + 1), &PhaseOutcome::Done).await.unwrap();
    }
    // Begun again after a restart.
    fixture.store.begin_phase(id, 2, Phase::Verify, at(30)).await.unwrap();
    let phases = fixture.store.phases(id).await.unwrap();
    let names: Vec<_> = phases.iter().map(|view| view.phase).collect();
    assert_eq!(names, [Phase::CatchUpDelta, Phase::StopSource, Phase::Verify]);
    assert_eq!((phases[0].ended, &phases[0].outcome), (Some(at(11)), &Some(PhaseOutcome::Done)));
    assert_eq!((phases[2].started, phases[2].ended, &phases[2].outcome), (at(20), None, &None));
    let error =
        fixture.store.end_phase(id, 3, Phase::BootCheck, at(1), &PhaseOutcome::Done).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn last_verify_result_counts() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "web").await;
    assert_eq!(fixture.store.verify_result(id).await.unwrap(), None);
    let mut result = VerifyResult {
        mode: VerifyMode::Compare,
        at: at(1),
        disks: vec![DiskVerifyResult {
            key: DiskKey("vda".to_owned()),
            checked: 1 << 40,
            mismatched_bytes: 512,
            mismatches: vec![(65_536, 512)],
            root: "ab".repeat(32),
            image: None,
        }],
        scope: VerifyScope::Changed,
        seed: Some(7),
        miss_probabilities: vec![MissProbability { blocks: 1, probability: 0.5 }],
    };
    fixture.store.put_verify_result(id, &result).await.unwrap();
    result.disks[0].mismatched_bytes = 0;
    fixture.store.put_verify_result(id, &result).await.unwrap();
    assert_eq!(fixture.store.verify_result(id).await.unwrap(), Some(result));
}

#[tokio::test]
async fn a_machine_of_many_terabytes_is_cheap_to_begin() {
    let fixture = Fixture::new();
    let id = migration(&fixture.store, "big").await;
    let rows = fixture.store.save_disks(id, vec![new_disk("vda", 64 << 40, true)]).await.unwrap();
    let ledger = fixture.store.load(rows[0].id).await.unwrap();
    assert_eq!((ledger.size, ledger.chunks.len()), (Length(64 << 40), 65_536));
    fixture.store.close().await.unwrap();
    let bytes = std::fs::metadata(fixture.store.file()).unwrap().len();
    assert!(bytes < 4 << 20, "{bytes} bytes for a ledger of nothing but full chunks");
}
