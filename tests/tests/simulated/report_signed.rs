//! The signed report: it can be checked years later, and every change of it is detected.

use std::{fs, num::NonZero, path::Path, process::Command, sync::atomic::AtomicU64};

use serde_json::{Value, json};
use warmd_cbt::{
    manifest::BlockHash,
    store::{LedgerCommit, LedgerStore},
    units::{BlockIndex, Length},
    verify::manifest_root,
};
use warmd_core::{
    control::Control,
    model::{
        plan::VerifyMode,
        report::Report,
        request::{Request, RequestOutcome},
        state::State,
    },
    signed_report::SignedReport,
};
use warmd_report::{
    manifest_root::RawImage,
    signing::{self, PublicKey},
};
use warmd_tests::{
    simulated::{InjectedFault, Rig, SimulatedWorld},
    tool,
};

const BLOCK: u64 = 64 * 1024;
const DISKS: [(&str, u64); 2] = [("vda", 400 * BLOCK), ("vdb", 10 * BLOCK + 512)];

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&DISKS);
    for (at, fill) in [(0, 1), (7 * BLOCK - 10, 2), (300 * BLOCK + 5, 3)] {
        world.guest_writes("vda", at, &[fill; 5000]);
    }
    world.guest_writes("vdb", 10 * BLOCK + 1, &[4; 511]);
    world
}

async fn signed(rig: &Rig) -> (Report, SignedReport) {
    let report = rig.manager.report(rig.view().await.id).await.expect("a report");
    let signed = rig.manager.sign(&report).expect("a signature");
    (report, signed)
}

/// The root of `bytes` as the documentation alone defines it, and as `warmd root` computes it; they must
/// agree.
fn root_of(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("disk.raw");
    fs::write(&path, bytes).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/report/root.py");
    let documented = tool::output(Command::new("python3").arg(script).arg(&path), tool::DEADLINE).unwrap();
    let image = RawImage::open(&path, None).unwrap();
    let ours = image.root(NonZero::new(2).unwrap(), &AtomicU64::new(0)).unwrap();
    assert_eq!(documented.trim(), ours);
    ours
}

fn roots(report: &Report) -> Vec<String> {
    report.disks.iter().map(|disk| disk.manifest_root.clone().expect("a root")).collect()
}

#[tokio::test]
async fn roots_equal_those_of_the_raw_disks_and_stay_as_recorded() {
    for verify in [VerifyMode::None, VerifyMode::Compare] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(world()).await;
        rig.seed(Rig::plan(verify)).await;
        let (before, _) = signed(&rig).await;
        assert!(before.disks.iter().all(|disk| disk.root_recorded.is_none() && disk.verified_by.is_none()));
        rig.world.guest_writes("vda", 200 * BLOCK, &[9; 9000]);
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        let (done, _) = signed(&rig).await;
        let proof = if verify == VerifyMode::None { "none" } else { "compare full" };
        for disk in &done.disks {
            assert_eq!((disk.root_recorded.is_some(), disk.verified_by.as_deref()), (true, Some(proof)));
        }
        assert_ne!(roots(&before)[0], roots(&done)[0]);
        for (at, (key, _)) in DISKS.iter().enumerate() {
            let held = rig.world.with(|truth| truth.target_disks[*key].durable());
            assert_eq!(roots(&done)[at], root_of(dir.path(), &held), "{key}, {verify:?}");
            let source = rig.world.with(|truth| truth.source_disks[*key].clone());
            assert_eq!(roots(&done)[at], root_of(dir.path(), &source), "{key}, {verify:?}");
        }
        // Later changes of the manifest do not matter: the report describes the copy.
        let disk = rig.store().disks(done.migration).await.unwrap()[0].id;
        let hashes = vec![(BlockIndex(5), BlockHash([5; 16]))];
        rig.store().commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
        let now = manifest_root(rig.store(), disk, Length(DISKS[0].1)).await.unwrap();
        assert_ne!(now, roots(&done)[0], "the manifest is another one");
        rig.restart().await;
        let (later, _) = signed(&rig).await;
        assert_eq!(
            (roots(&later), &later.disks[0].root_recorded),
            (roots(&done), &done.disks[0].root_recorded)
        );
    }
}

#[tokio::test]
async fn root_record_says_what_verified_it() {
    for (mode, scope, proof) in [
        (VerifyMode::Readback, "full", "readback full"),
        (VerifyMode::Readback, "changed", "readback changed"),
        (VerifyMode::Compare, "sample=10%", "compare sample=10%, seed "),
    ] {
        let rig = Rig::start(world()).await;
        let mut plan = Rig::plan(mode);
        plan.verify.scope = scope.parse().unwrap();
        rig.seed(plan).await;
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        let (report, signed) = signed(&rig).await;
        let said = report.disks[0].verified_by.clone().unwrap();
        assert!(
            said.starts_with(proof) && (said == proof) == report.verify_result.unwrap().seed.is_none(),
            "{said}"
        );
        assert!(signed.json.contains(&format!("\"verified_by\": \"{said}\"")));
    }
}

#[tokio::test]
async fn root_record_of_an_undone_cutover_is_not_shown() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target.create", InjectedFault::Refused);
    assert_eq!(rig.cutover().await.state, State::Synced);
    let (undone, _) = signed(&rig).await;
    let stored = rig.store().recorded_roots(undone.migration).await.unwrap();
    assert_eq!(stored.len(), DISKS.len(), "it was recorded before it was undone");
    for disk in &undone.disks {
        assert_eq!((disk.root_recorded, disk.verified_by.as_deref()), (None, None));
    }
    rig.world.faults.clear();
    rig.world.guest_writes("vda", 0, &[77; 10]);
    assert_eq!(rig.cutover().await.state, State::Done);
    let (done, _) = signed(&rig).await;
    assert!(done.disks.iter().all(|disk| disk.root_recorded.is_some()));
    assert_ne!(roots(&done)[0], roots(&undone)[0]);
}

/// Every position in a JSON value, as pointers.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            places(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), into);
        }),
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{at}/{index}"), into);
            }
        }
        _ => {}
    }
    if !at.is_empty() {
        into.push(at.to_owned());
    }
}

#[tokio::test]
async fn a_moved_vms_report_verifies_and_every_field_of_it_is_signed() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    assert_eq!(rig.request(Request::Resume).await, RequestOutcome::NoChange);
    assert_eq!(rig.cutover().await.state, State::Done);
    let (report, signed) = signed(&rig).await;
    let key = PublicKey::from_text(&rig.manager.report_key().hex).unwrap();
    let verified = signing::verify(&signed.json, Some(key)).unwrap();
    assert_eq!((verified.key, &verified.digest), (key, &signed.digest));
    assert_eq!(serde_json::from_value::<Report>(verified.report).unwrap(), report);
    let asked: Vec<_> = report.requests.iter().map(|line| (line.by.as_str(), line.text.as_str())).collect();
    assert_eq!(
        asked,
        [
            ("test", "begun by applying plan plan"),
            ("test", "resume: no change"),
            ("test", "cutover accepted")
        ]
    );
    assert_eq!((report.format, report.source_kind.as_deref()), (3, Some("simulated")));
    assert_eq!(report.journal_left_out, 0);

    let whole: Value = serde_json::from_str(&signed.json).unwrap();
    let mut all = Vec::new();
    places(&whole, "", &mut all);
    assert!(all.len() > 200, "only {} places", all.len());
    for place in all {
        let mut changed = whole.clone();
        let field = changed.pointer_mut(&place).unwrap();
        *field = match &*field {
            Value::Number(number) if number.as_u64().is_some() => json!(number.as_u64().unwrap() + 1),
            Value::Bool(is) => json!(!*is),
            Value::String(text) if text.is_empty() => json!("x"),
            // One character: the rest stays unchanged.
            Value::String(text) => json!(format!(
                "{}{}",
                if text.starts_with('0') { '1' } else { '0' },
                text.chars().skip(1).collect::<String>()
            )),
            _ => json!("something else"),
        };
        let result = signing::verify(&changed.to_string(), None);
        assert!(result.is_err(), "{place} was changed, and nobody noticed");
    }
}
