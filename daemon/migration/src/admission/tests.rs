//! The admission control alone.

use warmd_schedules::quota::Quota;

use super::*;

fn gate(quotas: &[(QuotaScope, &str)]) -> (Arc<AdmissionControl>, CancellationToken) {
    let read = |text: &str| vec![toml::from_str::<Quota>(text).unwrap()];
    let scopes = quotas.iter().map(|(scope, text)| (scope.clone(), read(text))).collect();
    let configured = ConfiguredQuotas { scopes, ..ConfiguredQuotas::default() };
    let shutdown = CancellationToken::new();
    (AdmissionControl::new(RateLimiter::new(), &configured, shutdown.clone()), shutdown)
}

fn store(number: u64) -> QuotaScope {
    QuotaScope::Datastore(format!("store {number}"))
}

#[tokio::test]
async fn who_stops_waiting_or_ends_lets_the_next_one_in() {
    let (gate, shutdown) = gate(&[(QuotaScope::Global, "passes = 1")]);
    let ask = || gate.ask(|id| AdmissionJob::pass(id, "p", 1));
    let mut first = ask();
    let (mut second, mut third, mut fourth) = (ask(), ask(), ask());
    assert!(first.is_granted() && !second.is_granted() && !third.is_granted());
    let id = second.admission.id;
    assert_eq!(gate.why(id).as_deref(), Some("all of warmd: 1 of 1 passes are in use"));
    drop(second);
    drop(first);
    assert!(third.is_granted() && !fourth.is_granted());
    // A job that cannot wait counts, and does not wait.
    let forced = gate.admit_at_once(|id| AdmissionJob::pass(id, "p", 1));
    drop(third);
    assert!(!fourth.is_granted());
    drop(forced);
    let granted = tokio::time::timeout(std::time::Duration::from_secs(9), fourth.granted()).await.unwrap();
    let mut fifth = ask();
    shutdown.cancel();
    drop(granted);
    assert!(!fifth.is_granted(), "the daemon ends: nothing is begun");
    drop(fifth);
    assert!(gate.lock().waiting.is_empty() && gate.lock().stop_signals.is_empty());
}

/// The cost of one end and one new pass where five hundred wait at forty full datastores, in steps of the
/// admission queue.
#[test]
fn five_hundred_that_wait_cost_little() {
    const STORES: u64 = 40;
    const WAITING: u64 = 500;
    let quotas: Vec<_> = (0..STORES).map(|number| (store(number), "snapshots = 2")).collect();
    let (gate, _shutdown) = gate(&quotas);
    let ask = |number: u64| {
        let plan = format!("plan {}", number % 10);
        gate.ask(|id| AdmissionJob::pass(id, &plan, 4).on(&store(number % STORES), 4))
    };
    let mut asked: Vec<_> = (0..WAITING).map(ask).collect();
    let mut running: Vec<_> = asked.extract_if(.., PendingAdmission::is_granted).collect();
    assert_eq!(running.len() as u64, 2 * STORES);
    let (begun, before) = (std::time::Instant::now(), gate.lock().queue.steps());
    for number in 0..WAITING {
        drop(running.remove(0));
        asked.push(ask(number));
        let admitted: Vec<_> = asked.extract_if(.., PendingAdmission::is_granted).collect();
        assert_eq!(admitted.len(), 1, "one ends, and one is woken");
        running.extend(admitted);
    }
    let steps = (gate.lock().queue.steps() - before) / WAITING;
    println!("{steps} steps and {:?} for each, unoptimised", begun.elapsed() / WAITING as u32);
    assert!(steps < 30 * WAITING, "{steps} steps");
}
