//! Hooks that are services on this host: their input, and what follows when they refuse, fail, hang or are
//! missing.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use warmd_core::{
    control::Control,
    model::{
        hook::{Hook, HookSide, OnFailure},
        phase::Phase,
        plan::{Plan, VerifyMode},
        rule::Rule,
        state::State,
    },
};
use warmd_proto::hooks::v1::{
    RunRequest, RunResponse,
    hooks_server::{Hooks, HooksServer},
};
use warmd_tests::simulated::{Rig, SimulatedWorld};

/// The service's answers to calls; `None` never answers.
type Answer = Option<Result<RunResponse, Status>>;

/// Answers the calls in order, and repeats the last answer.
#[derive(Clone, Default)]
struct Service {
    seen: Arc<Mutex<Vec<RunRequest>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

#[tonic::async_trait]
impl Hooks for Service {
    async fn run(&self, request: Request<RunRequest>) -> Result<Response<RunResponse>, Status> {
        self.seen.lock().unwrap().push(request.into_inner());
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
        };
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }
}

fn serve(socket: &Path, answers: impl IntoIterator<Item = Answer>) -> Service {
    let service = Service::default();
    service.answers.lock().unwrap().extend(answers);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = Server::builder().add_service(HooksServer::new(service.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    service
}

fn well(said: &str) -> RunResponse {
    RunResponse { failure: String::new(), said: said.to_owned() }
}

fn plan(address: &str, retries: u32) -> Plan {
    let hook = Hook {
        phase: Phase::FinalDelta,
        when: HookSide::After,
        command: Vec::new(),
        grpc: Some(address.to_owned()),
        timeout: Duration::from_secs(1),
        retries,
        on_failure: OnFailure::Abort,
    };
    Plan { hooks: vec![hook], ..Rig::plan(VerifyMode::Readback) }
}

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", 1 << 20)]);
    world.guest_writes("vda", 3, &vec![7; 100_000]);
    world
}

#[tokio::test]
async fn hook_service_gets_the_facts_and_its_answer_is_journaled() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("hooks.sock");
    let address = format!("unix:{}", socket.display());
    let service =
        serve(&socket, [Some(Err(Status::unavailable("starting"))), Some(Ok(well("drained\u{1b}[31m")))]);
    let rig = Rig::start(world()).await;
    rig.seed(plan(&address, 1)).await;
    let view = rig.cutover().await;
    let journal = rig.journal().await;
    assert_eq!(view.state, State::Done, "{journal}");
    rig.world.assert_moved();
    let seen = service.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "it is tried again");
    assert_eq!((seen[1].phase.as_str(), seen[1].when.as_str()), ("final-delta", "after"));
    assert_eq!(seen[1].migration_id, view.id.to_string());
    let facts: Value = serde_json::from_str(&seen[1].facts).unwrap();
    assert_eq!((&facts["hook"]["grpc"], &facts["hook"]["attempt"]), (&address.clone().into(), &2.into()));
    assert_eq!(facts["disks"][0]["key"], "vda");
    assert!(journal.contains("it failed with Unavailable: starting"), "{journal}");
    assert!(journal.contains("says:\ndrained\u{fffd}[31m"), "{journal}");
    let report = rig.manager.report(view.id).await.unwrap();
    assert_eq!(
        (report.hooks[0].command.clone(), report.hooks[0].outcome.as_deref()),
        (vec![address], Some("done"))
    );
}

#[tokio::test]
async fn one_that_does_not_say_well_takes_the_cutover_back() {
    let no = Some(Ok(RunResponse { failure: "the pool is not drained".to_owned(), said: String::new() }));
    for (answer, why) in [
        (Some(no), "it answered: the pool is not drained"),
        (Some(Some(Err(Status::internal("broken")))), "it failed with Internal: broken"),
        (Some(None), "it did not answer within 1s"),
        (None, "it failed with Unavailable: "),
    ] {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("hooks.sock");
        let _service = answer.map(|answer| serve(&socket, [answer]));
        let rig = Rig::start(world()).await;
        rig.seed(plan(&format!("unix:{}", socket.display()), 0)).await;
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
        rig.world.assert_undone();
        let failure = view.cutover.unwrap().failure.unwrap();
        assert!(
            failure.contains("hook after final-delta failed: unix:/") && failure.contains(why),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn an_address_elsewhere_or_beside_a_command_is_an_error() {
    let rig = Rig::start(world()).await;
    let found = |plan: Plan| {
        let manager = Arc::clone(&rig.manager);
        async move {
            let findings = manager.validate_plan(&plan).await.unwrap();
            let wrong = findings.into_iter().filter(|finding| finding.rule == Rule::PlanWrong);
            wrong.map(|finding| finding.message).collect::<Vec<_>>().join("\n")
        }
    };
    assert_eq!(found(plan("unix:/run/x.sock", 0)).await, "");
    assert_eq!(found(plan("http://127.0.0.1:7070", 0)).await, "");
    let elsewhere = found(plan("http://10.0.0.1:7070", 0)).await;
    assert!(
        elsewhere.contains("`hooks[0].grpc`") && elsewhere.contains("only programs on this host"),
        "{elsewhere}"
    );
    let relative = found(plan("run/x.sock", 0)).await;
    assert!(relative.contains("write unix:/path/of/socket or http://127.0.0.1:PORT"), "{relative}");
    let mut both = plan("unix:/run/x.sock", 0);
    both.hooks[0].command = vec!["/bin/true".to_owned()];
    let both = found(both).await;
    assert!(both.contains("`hooks[0]` has a `command` and `grpc`"), "{both}");
    let mut none = plan("", 0);
    none.hooks[0].grpc = None;
    assert!(found(none).await.contains("`hooks[0].command` is []"));
}
