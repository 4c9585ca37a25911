//! Conversions of cutovers: real programs on real overlays over real files, between a simulated source and a
//! simulated target VM: the input, and that no data is lost when they fail, hang, are aborted or die with the
//! daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use warmd_core::{
    control::Control,
    model::{
        conversion::{Conversion, Converter},
        phase::Phase,
        plan::{Plan, VerifyMode, VmOverride},
        request::Request,
        rule::Severity,
        state::State,
        verify::VerifyOrder,
        view::MigrationView,
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, VM};

const BLOCK: u64 = 64 * 1024;
const SIZE: u64 = 8 * BLOCK;

/// Takes the first disk's path from its input, and saves the input in `facts` of the test's directory `$DIR`.
const READS: &str = "cat > $DIR/facts; at=$(sed 's/.*\"path\":\"\\([^\"]*\\)\".*/\\1/' < $DIR/facts); ";
/// Changes the second block of the disk.
const WRITES: &str = "qemu-io -f qcow2 -c 'write -P 0xcc 66000 1000' $at || exit 9; ";

struct Setting {
    dir: TempDir,
    rig: Rig,
}

impl Setting {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let files = dir.path().join("files");
        fs::create_dir(&files).unwrap();
        let world = SimulatedWorld::new(&[("vda", SIZE)]).with_files(&files);
        world.guest_writes("vda", 3, &vec![7; 200_000]);
        Self { rig: Rig::start(world).await, dir }
    }

    fn plan(&self, script: &str, timeout: Duration) -> Plan {
        let script = format!("DIR={}; {READS}{script}", self.dir.path().display());
        let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        let conversion = Conversion::Command(Converter { command, timeout });
        Plan { conversion, ..Rig::plan(VerifyMode::Readback) }
    }

    async fn seed(&self, script: &str) {
        self.rig.seed(self.plan(script, Duration::from_secs(30))).await;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn volume(&self) -> PathBuf {
        PathBuf::from(&self.rig.view().await.disks[0].location)
    }

    async fn held(&self) -> Vec<u8> {
        fs::read(self.volume().await).unwrap()
    }

    fn wanted(&self) -> Vec<u8> {
        self.rig.world.with(|truth| truth.source_disks["vda"].clone())
    }

    /// The cutover was undone: the source as it was, the replica untouched but for `differs`, nothing left
    /// behind.
    async fn assert_undone(&self, view: &MigrationView, why: &str) {
        let journal = self.rig.journal().await;
        assert_eq!(view.state, State::Synced, "{journal}");
        let failure = view.cutover.clone().unwrap().failure.unwrap();
        assert!(failure.contains(why), "{failure}\nis not: {why}\n{journal}");
        self.rig.world.with(|truth| {
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
            assert!(truth.source_runs && !truth.target_exists && !truth.snapshot_open, "{truth:?}");
        });
        self.assert_nothing_left().await;
    }

    async fn assert_nothing_left(&self) {
        let left = self.volume().await.parent().unwrap().join("conversion");
        assert!(!left.exists(), "{} was left", left.display());
    }

    /// Another cutover, without a conversion, moves the source's content.
    async fn assert_moves_plainly(&self) {
        self.rig.manager_applies(Rig::plan(VerifyMode::Readback)).await;
        assert_eq!(self.rig.cutover().await.state, State::Done, "{}", self.rig.journal().await);
        assert!(self.held().await == self.wanted(), "the target differs");
    }

    async fn until_there(&self, name: &str) {
        let (file, begun) = (self.file(name), Instant::now());
        while !file.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name}:\n{}", self.rig.journal().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn assert_dead(&self, pid: &str) {
        let pid = fs::read_to_string(self.file(pid)).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "it lives: {stat}");
    }
}

fn converted(mut disk: Vec<u8>) -> Vec<u8> {
    disk[66_000..67_000].fill(0xcc);
    disk
}

fn phase(view: &MigrationView, phase: Phase) -> String {
    let phases = view.cutover.clone().unwrap().phases;
    phases
        .iter()
        .find(|run| run.phase == phase)
        .unwrap()
        .outcome
        .clone()
        .map_or_else(String::new, String::from)
}

#[tokio::test]
async fn what_it_makes_of_the_copy_is_handed_over_with_its_machine() {
    let setting = Setting::new().await;
    let answers = "python3 -c 'import json,os;m=json.load(open(\"'$DIR'/facts\"))[\"machine\"];\
                   m[\"disks\"][0][\"bus\"]=\"nvme\";json.dump(m,open(os.environ[\"WARMD_MACHINE\"],\"w\"))'; ";
    setting.seed(&format!("{WRITES}{answers} echo all done")).await;
    let view = setting.rig.cutover().await;
    let journal = setting.rig.journal().await;
    assert_eq!(view.state, State::Done, "{journal}");
    let told = phase(&view, Phase::Convert);
    assert!(told.contains("changed 64.0 KiB of disk vda, and the machine"), "{told}");
    assert!(setting.held().await == converted(setting.wanted()), "the target is not the converted copy");
    setting.assert_nothing_left().await;
    let bus = setting.rig.world.with(|truth| truth.created.clone().unwrap().disks[0].bus.clone());
    assert_eq!(bus, "nvme");
    for line in ["/bin/sh begins on vda", "/bin/sh says:", "all done", "/bin/sh ended well after"] {
        assert!(journal.contains(line), "{line} is not in\n{journal}");
    }

    let facts: Value = serde_json::from_str(&fs::read_to_string(setting.file("facts")).unwrap()).unwrap();
    assert_eq!(
        (&facts["version"], &facts["attempt"], &facts["plan"]),
        (&1.into(), &1.into(), &"plan".into())
    );
    assert_eq!((&facts["disks"][0]["key"], &facts["disks"][0]["size"]), (&"vda".into(), &SIZE.into()));
    assert_eq!((&facts["disks"][0]["format"], &facts["machine"]["name"]), (&"qcow2".into(), &VM.into()));
    let answer = facts["answer"].as_str().unwrap();
    assert!(answer.contains("/conversion/") && answer.ends_with("/machine.json"), "{facts}");

    // The manifest describes the copy, and the report says what the conversion changed.
    let report = setting.rig.manager.report(view.id).await.unwrap();
    let conversion = report.conversion.unwrap();
    assert_eq!((conversion.program(), conversion.disks[0].changed), ("/bin/sh", BLOCK));
    assert!(conversion.committed.is_some() && conversion.machine.is_some());
    assert_eq!((report.disks[0].pending, report.disks[0].root_recorded.is_some()), (0, true));
    assert!(report.verify_result.unwrap().passed());
    setting.rig.world.with(|truth| (truth.target_exists, truth.target_runs) = (false, false));
    let order = VerifyOrder { mode: VerifyMode::Readback, ..VerifyOrder::default() };
    setting.rig.manager.verify(view.id, order, "test").await.unwrap();
    let view = setting
        .rig
        .until("an answer", |view| view.verification.as_ref().is_some_and(|run| run.error.is_some()));
    let why = view.await.verification.unwrap().error.unwrap();
    assert!(why.contains("/bin/sh changed 64.0 KiB of disk vda"), "{why}");
}

#[tokio::test]
async fn failed_conversion_leaves_the_copy_able_to_take_deltas() {
    let setting = Setting::new().await;
    setting.seed(&format!("{WRITES} echo no driver for this guest; exit 3")).await;
    let view = setting.rig.cutover().await;
    setting.assert_undone(&view, "the conversion failed: /bin/sh: it ended with exit status: 3").await;
    setting.assert_undone(&view, "it said last: no driver for this guest").await;
    assert!(phase(&view, Phase::Convert).starts_with("failed: "), "{view:?}");
    assert!(setting.held().await == setting.wanted(), "the replica was touched");
    assert_eq!(setting.rig.view().await.disks[0].pending, 0);
    setting.rig.world.guest_writes("vda", 3 * BLOCK, &[5; 100]);
    setting.rig.sync().await;
    assert!(setting.held().await == setting.wanted(), "the delta did not come");
    assert!(!setting.rig.journal().await.contains("not of the same time"), "it was not trusted");
    setting.assert_moves_plainly().await;
}

#[tokio::test]
async fn one_that_hangs_is_killed_at_its_deadline() {
    let setting = Setting::new().await;
    let script = format!("{WRITES} echo $$ > $DIR/pid; sleep 1000 & wait");
    setting.rig.seed(setting.plan(&script, Duration::from_secs(2))).await;
    let view = setting.rig.cutover().await;
    setting.assert_undone(&view, "it did not end within 2s and was killed").await;
    setting.assert_dead("pid");
    assert!(setting.held().await == setting.wanted(), "the replica was touched");
    setting.assert_moves_plainly().await;
}

#[tokio::test]
async fn one_that_is_aborted_shows_how_far_it_is_and_is_killed() {
    let setting = Setting::new().await;
    setting.seed(&format!("{WRITES} echo $$ > $DIR/pid; echo 40 % of it; sleep 1000")).await;
    setting.rig.ask(Request::cutover()).await;
    setting
        .rig
        .until("progress", |view| {
            view.cutover.as_ref().is_some_and(|cutover| cutover.progress.as_deref() == Some("40 % of it"))
        })
        .await;
    setting.rig.ask(Request::AbortCutover).await;
    let view = setting.rig.until("synced", |view| view.state == State::Synced).await;
    setting.assert_undone(&view, "aborted by the operator").await;
    assert_eq!(view.cutover.unwrap().progress, None);
    setting.assert_dead("pid");
    assert!(setting.held().await == setting.wanted(), "the replica was touched");
    setting.assert_moves_plainly().await;
}

#[tokio::test]
async fn one_that_dies_with_the_daemon_is_begun_anew_on_the_copy() {
    let mut setting = Setting::new().await;
    let script = format!("{WRITES} test -e $DIR/pid && exit 0; echo $$ > $DIR/pid; sleep 1000");
    setting.seed(&script).await;
    setting.rig.ask(Request::cutover()).await;
    setting.until_there("pid").await;
    setting.rig.restart().await;
    setting.assert_dead("pid");
    let view = setting.rig.until("done", |view| view.state == State::Done).await;
    assert!(setting.held().await == converted(setting.wanted()), "the target is not the converted copy");
    assert_eq!(setting.rig.journal().await.matches("begins on vda").count(), 2);
    setting.assert_nothing_left().await;
    // The state was not taken for an older one.
    assert!(!setting.rig.journal().await.contains("not of the same time"), "{view:?}");
}

#[tokio::test]
async fn one_that_ends_the_daemon_each_time_is_not_begun_for_ever() {
    let mut setting = Setting::new().await;
    setting.seed(&format!("{WRITES} echo $$ >> $DIR/pids; echo $$ > $DIR/pid; sleep 1000")).await;
    setting.rig.ask(Request::cutover()).await;
    let day = 86_400_000_000_i64;
    for since in [0, day] {
        setting.until_there("pid").await;
        remove(&setting.file("pid"));
        setting.rig.stop().await;
        // A killed daemon does not record the end of the phase; and the second time the phase began long ago.
        let state = rusqlite::Connection::open(setting.rig.state_file()).unwrap();
        let cut =
            "UPDATE phases SET ended = NULL, outcome = NULL, started = started - ?1 WHERE phase = 'convert'";
        assert_eq!(state.execute(cut, [since]).unwrap(), 1);
        drop(state);
        setting.rig.go_on().await;
    }
    let view = setting.rig.until("synced", |view| view.state == State::Synced).await;
    setting.assert_undone(&view, "the daemon ended 2 times in the middle of phase convert").await;
    assert_eq!(fs::read_to_string(setting.file("pids")).unwrap().lines().count(), 2);
    assert!(setting.held().await == setting.wanted(), "the replica was touched");
    // The next cutover is another one.
    setting.rig.ask(Request::cutover()).await;
    setting.until_there("pid").await;
    setting.rig.ask(Request::AbortCutover).await;
    setting.rig.until("synced", |view| view.state == State::Synced).await;
    setting.assert_moves_plainly().await;
}

#[tokio::test]
async fn leftover_of_a_conversion_does_not_reach_the_next_disks() {
    let mut setting = Setting::new().await;
    // In its own session it is not killed with the command's process group.
    let stays = "setsid sh -c \"echo \\$\\$ > $DIR/left; until test -e $DIR/go; do sleep 0.05; done; \
                 qemu-io -f qcow2 -c 'write -P 0xee 0 512' $at; touch $DIR/went; sleep 1000\" > $DIR/said 2>&1 < /dev/null & ";
    let script = format!(
        "{WRITES} test -e $DIR/left || {{ {stays} sleep 1000; }}; touch $DIR/go; \
                          until test -e $DIR/went; do sleep 0.05; done"
    );
    setting.seed(&script).await;
    setting.rig.ask(Request::cutover()).await;
    setting.until_there("left").await;
    setting.rig.restart().await;
    let view = setting.rig.until("done", |view| view.state == State::Done).await;
    let left: i32 = fs::read_to_string(setting.file("left")).unwrap().trim().parse().unwrap();
    let said = fs::read_to_string(setting.file("said")).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(left).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert!(said.contains("No such file"), "it wrote: {said}\n{view:?}");
    assert!(setting.held().await == converted(setting.wanted()), "the target is not the converted copy");
}

#[tokio::test]
async fn an_answer_or_a_disk_that_cannot_be_used_undoes_the_cutover() {
    for (script, why) in [
        ("echo '{' > $WARMD_MACHINE", "/bin/sh handed back cannot be used: it is no machine as JSON"),
        (
            "sed 's/.*\"machine\"://; s/,\"answer.*//; s/\"0001\"/\"0002\"/' $DIR/facts > $WARMD_MACHINE",
            "its `id` is \"0002\"",
        ),
        ("head -c 2000000 /dev/zero > $WARMD_MACHINE", "longer than"),
        ("mkfifo $WARMD_MACHINE", "is no file"),
        ("rm $at", "No such file"),
        ("qemu-img resize -q -f qcow2 $at +1M", "bytes now, and had"),
        (
            "qemu-img create -q -f raw $DIR/x 512K; qemu-img rebase -u -f qcow2 -F raw -b $DIR/x $at",
            "does not lie over",
        ),
        ("echo broken > $at", "qemu-img info"),
    ] {
        let setting = Setting::new().await;
        setting.seed(&format!("{WRITES}{script}")).await;
        let view = setting.rig.cutover().await;
        setting.assert_undone(&view, why).await;
        assert!(setting.held().await == setting.wanted(), "{script}: the replica was touched");
        setting.assert_moves_plainly().await;
    }
}

#[tokio::test]
async fn cutover_failing_after_a_conversion_copies_only_its_blocks() {
    let mut setting = Setting::new().await;
    setting.seed(WRITES).await;
    for restarts in [false, true] {
        setting.rig.world.faults.set("target.create", InjectedFault::Refused);
        let view = setting.rig.cutover().await;
        setting.assert_undone(&view, "create").await;
        setting.rig.world.faults.clear();
        assert!(setting.held().await == converted(setting.wanted()), "it was not written");
        assert_eq!(view.disks[0].pending, BLOCK);
        if restarts {
            setting.rig.restart().await;
        }
        setting.rig.sync().await;
        assert!(setting.held().await == setting.wanted(), "the source's blocks did not come back");
        let pass = setting.rig.view().await.pass.unwrap();
        assert_eq!(pass.disks[0].pending, BLOCK, "more was copied than had to be");
        assert!(!setting.rig.journal().await.contains("not of the same time"));
    }
    assert_eq!(setting.rig.cutover().await.state, State::Done, "{}", setting.rig.journal().await);
    assert!(setting.held().await == converted(setting.wanted()), "the target is not the converted copy");
}

#[tokio::test]
async fn state_from_before_a_conversion_trusts_no_block() {
    let mut setting = Setting::new().await;
    let state = setting.rig.state_file();
    let (wal, shm) = (state.with_extension("db-wal"), state.with_extension("db-shm"));
    // A copy of the state after the last pass, when the daemon has nothing to write.
    let copies = format!("sleep 0.5; cp {} {} $DIR/ || exit 8; ", state.display(), wal.display());
    setting.seed(&format!("{copies}{WRITES}")).await;
    setting.rig.world.faults.set("target.create", InjectedFault::Refused);
    let view = setting.rig.cutover().await;
    setting.assert_undone(&view, "create").await;
    setting.rig.world.faults.clear();
    assert!(setting.held().await == converted(setting.wanted()), "it was not written");
    setting.rig.stop().await;
    fs::copy(setting.file("warmd.db"), &state).unwrap();
    fs::copy(setting.file("warmd.db-wal"), &wal).unwrap();
    fs::remove_file(&shm).ok();
    setting.rig.go_on().await;
    // The copy knows of the cutover, and not of its undo.
    let view = setting.rig.until("synced", |view| view.state == State::Synced).await;
    setting.assert_undone(&view, "the source VM was started again").await;
    setting.rig.sync().await;
    let journal = setting.rig.journal().await;
    assert!(journal.contains("beside the disks is a note of a conversion"), "{journal}");
    assert!(setting.held().await == setting.wanted(), "the source's blocks did not come back");
}

#[tokio::test]
async fn what_cannot_be_converted_is_told_when_the_plan_is_judged() {
    let judged = async |rig: &Rig, plan: Plan| {
        let findings = rig.manager.validate_plan(&plan).await.unwrap();
        let errors = findings.into_iter().filter(|finding| finding.rule.severity() == Severity::Error);
        errors.map(|error| format!("{} {}", error.rule.id(), error.message)).collect::<Vec<_>>()
    };
    let setting = Setting::new().await;
    let plan = setting.plan("", Duration::from_secs(1));
    assert!(judged(&setting.rig, plan.clone()).await.is_empty());
    let mut missing = plan.clone();
    missing.conversion = Conversion::Command(Converter {
        command: vec!["/nowhere/convert".to_owned()],
        timeout: Duration::from_secs(1),
    });
    let errors = judged(&setting.rig, missing.clone()).await;
    assert!(
        errors.len() == 1
            && errors[0].starts_with("conversion-missing `conversion.command`: \"/nowhere/convert\""),
        "{errors:?}"
    );
    let mut exported = plan.clone();
    let over =
        VmOverride { disks: [("vda".to_owned(), "nbd://host/x".to_owned())].into(), ..VmOverride::default() };
    exported.vm.insert(VM.to_owned(), over.clone());
    let errors = judged(&setting.rig, exported.clone()).await;
    let place = "conversion-location disk vda: ";
    assert!(errors.len() == 1 && errors[0].starts_with(place), "{errors:?}");
    assert!(errors[0].contains("cannot be kept apart from nbd://host/x"), "{errors:?}");
    // A disk that is not converted may go there.
    exported.vm.insert(VM.to_owned(), VmOverride { conversion: Some(Conversion::None), ..over });
    assert!(judged(&setting.rig, exported).await.is_empty());
    let memory = Rig::start(SimulatedWorld::new(&[("vda", SIZE)])).await;
    let errors = judged(&memory, plan).await;
    assert!(errors.len() == 1 && errors[0].starts_with("conversion-no-overlay "), "{errors:?}");

    // A missing program is detected before the source VM is stopped.
    let script = setting.file("convert");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let command = vec![script.display().to_string()];
    missing.conversion = Conversion::Command(Converter { command, timeout: Duration::from_secs(1) });
    setting.rig.seed(missing).await;
    remove(&script);
    let view = setting.rig.cutover().await;
    setting.assert_undone(&view, "the conversion's command").await;
    assert!(setting.rig.world.with(|truth| !truth.calls.contains(&"source off".to_owned())));
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}
