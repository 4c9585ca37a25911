//! Which migration each line of the log belongs to.

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use warmd_core::model::{plan::VerifyMode, request::Request, state::State};
use warmd_daemon::config::{LogFormat, LogSettings};
use warmd_tests::simulated::{Rig, SimulatedWorld, VM};

/// The written log.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    /// The lines, of which each must be an object of JSON.
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Log targets that belong to no migration.
const ALL: [&str; 2] = ["warmd_store::schema", "warmd_report::signing::key"];
/// Calls of endpoints for no migration: when a plan is checked.
const FOR_PLANS: [&str; 7] = [
    "source.check",
    "source.describe",
    "source.objections",
    "source.power",
    "source.vms",
    "target.check",
    "target.objections",
];

#[tokio::test]
async fn every_line_that_is_written_for_a_migration_has_its_id() {
    let written = Written::default();
    let settings = LogSettings { format: LogFormat::Json, level: "trace".to_owned() };
    let to = written.clone();
    // The log of this thread, which runs all tasks.
    let _log = tracing::subscriber::set_default(settings.to(move || to.clone(), false));

    let mut rig = Rig::start(SimulatedWorld::new(&[("vda", 1 << 20), ("vdb", 100 << 10)])).await;
    rig.world.guest_writes("vda", 0, &vec![7; 300_000]);
    rig.seed(Rig::plan(VerifyMode::Compare)).await;
    rig.world.guest_writes("vdb", 4096, &[9; 5000]);
    rig.sync().await;
    rig.restart().await;
    rig.until("synced again", |view| view.state == State::Synced).await;
    rig.ask(Request::verify()).await;
    rig.until("a result", |view| view.verification.as_ref().is_some_and(|run| run.result.is_some())).await;
    assert_eq!(rig.cutover().await.state, State::Done);
    let id = rig.view().await.id.to_string();

    let mut calls = std::collections::BTreeMap::<String, usize>::new();
    for line in written.lines() {
        let call = line["fields"]["call"].as_str();
        let target = line["target"].as_str().unwrap();
        let is_ours = target.starts_with("warmd") && !ALL.contains(&target);
        if !is_ours || call.is_some_and(|call| FOR_PLANS.contains(&call)) {
            continue;
        }
        assert_eq!(line["span"]["migration"], id.as_str(), "{line}");
        assert_eq!(line["span"]["vm"], VM, "{line}");
        assert_eq!(line["spans"], Value::Null, "the id is in one place: {line}");
        let what = call.unwrap_or(target).to_owned();
        *calls.entry(what).or_default() += 1;
    }
    // Also lines of tasks that the engine or the cutover starts.
    for call in
        ["source.snapshot", "source-disk.read", "target-disk.write", "target-disk.flush", "target.start"]
    {
        assert!(calls.contains_key(call), "{call} is not in {calls:?}");
    }
    assert!(calls.contains_key("warmd_migration::driver::saving"), "{calls:?}");
}
