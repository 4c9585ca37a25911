//! Quotas under random work, with a seed that is printed: no order of requests exceeds them.

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use warmd_tests::simulated::InjectedFault;

use super::*;

/// The parts of the fleets of the random test.
struct Chance(StdRng);

impl Chance {
    fn of<T: Copy>(&mut self, among: &[T]) -> T {
        *among.choose(&mut self.0).unwrap()
    }

    fn to(&mut self, most: u32) -> u32 {
        self.0.random_range(1..=most)
    }
}

#[test]
fn random_work_keeps_to_all_quotas_and_keeps_nothing() {
    let seeds = match std::env::var("BUDGET_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..8).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        let ended = std::panic::catch_unwind(|| on_a_clock(NOON, random(seed)));
        assert!(ended.is_ok(), "seed {seed}: replay with BUDGET_SEED={seed}");
    }
}

async fn random(seed: u64) {
    let mut chance = Chance(StdRng::seed_from_u64(seed));
    let plans = ["a", "b", "c"];
    // A plan has one source.
    let source = BTreeMap::from([("a", "s"), ("b", "s"), ("c", "z")]);
    let mut vms = BTreeMap::new();
    for at in 0..24 {
        let (plan, host) = (chance.of(&plans), chance.of(&["h1", "h2"]));
        let disks = (0..chance.to(5)).map(|disk| {
            (format!("vd{disk}"), u64::from(chance.to(4)) * 64 * KIB, chance.of(&["fast", "slow"]).to_owned())
        });
        let disks: Vec<_> = disks.collect();
        let (name, source) = (format!("{plan}-{at}"), source[plan].to_owned());
        let it = FleetVm { name: name.clone(), plan: plan.to_owned(), source, host: host.to_owned(), disks };
        vms.insert(name, it);
    }
    let fleet = Fleet::new(vms.values().cloned());
    let (mut quotas, mut of_plan) = (ConfiguredQuotas::default(), BTreeMap::new());
    let named = |name: &str| name.to_owned();
    let scopes = [
        QuotaScope::Global,
        QuotaScope::Source(named("s")),
        QuotaScope::Target(named("t")),
        QuotaScope::Host(named("h1")),
        QuotaScope::Datastore(named("fast")),
        QuotaScope::Plan(named("a")),
        QuotaScope::Plan(named("b")),
    ];
    for scope in scopes {
        let (snapshots, disks, passes) = (chance.to(6), chance.to(8), chance.to(6));
        fleet.allow(&scope.path(), snapshots.min(passes) as usize, disks as usize);
        let text = format!("snapshots = {snapshots}\ndisks = {disks}\npasses = {passes}");
        match scope {
            QuotaScope::Plan(name) => {
                of_plan.insert(name, format!("quotas = [{{ {} }}]", text.replace('\n', ", ")));
            }
            scope => quotas.scopes.push((scope, vec![quota(&text)])),
        }
    }
    let mut rig = FleetRig::start(fleet, quotas).await;
    for name in plans {
        let members: Vec<_> = vms.values().filter(|vm| vm.plan == name).map(|vm| vm.name.clone()).collect();
        if members.is_empty() {
            continue;
        }
        let (priority, own) = (chance.to(10), of_plan.remove(name).unwrap_or_default());
        let schedule = format!("every = \"20s\"\npriority = {priority}\n{own}");
        rig.apply(plan(name, source[name], &members, &schedule)).await;
    }
    for step in 0..150_u32 {
        tokio::time::sleep(Duration::from_millis(chance.0.random_range(1..4000))).await;
        let names: Vec<_> = vms.keys().collect();
        let name = *names.choose(&mut chance.0).unwrap();
        let world = rig.fleet.world(name);
        match chance.to(20) {
            1..=8 => world.guest_writes("vd0", 0, &vec![step as u8; 60 << 10]),
            9..=10 => drop(ask(&rig, name, Request::Sync).await),
            11..=12 => drop(ask(&rig, name, Request::Pause).await),
            13..=14 => drop(ask(&rig, name, Request::Resume).await),
            15 => drop(ask(&rig, name, Request::cutover()).await),
            16 => drop(ask(&rig, name, Request::AbortCutover).await),
            17 => world.faults.set("source.snapshot", InjectedFault::Passing(chance.to(2))),
            18 => world.faults.set("source-disk.read", InjectedFault::Passing(1)),
            19 => world.faults.set("source.changed", InjectedFault::Passing(1)),
            _ if chance.to(4) == 1 => {
                rig.stop().await;
                rig.go_on().await;
            }
            _ => {}
        }
    }
    for name in vms.keys() {
        rig.fleet.world(name).faults.clear();
    }
    let begun = clock::now();
    loop {
        let views = rig.manager.migrations(None).await.unwrap();
        for view in &views {
            if matches!(view.state, State::Paused { .. } | State::Failed { .. }) {
                ask(&rig, &view.vm_name, Request::Resume).await;
            }
        }
        let rests = |view: &MigrationView| {
            view.pass.is_some() && matches!(view.state, State::Synced | State::Syncing | State::Done)
        };
        if views.iter().all(rests) {
            break;
        }
        assert!(seconds_since(begun) < 36_000.0, "they do not come to rest: {views:#?}");
        sleep(1).await;
    }
    for name in vms.keys() {
        ask(&rig, name, Request::Pause).await;
    }
    sleep(1).await;
    assert_eq!(rig.fleet.violations(), [""; 0]);
    assert_eq!(rig.fleet.open(), [""; 0]);
    rig.assert_all_given_back();
    rig.stop().await;
}

async fn ask(rig: &FleetRig, vm: &str, request: Request) -> Option<RequestOutcome> {
    let view = rig.manager.migration(vm).await.ok()?;
    rig.manager.request(view.id, request, "test").await.ok()
}
