//! Storages beside the target's directory: disks are there, and no file is left there.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;
use warmd_cbt::units::Length;
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{CpuTopology, Firmware, Machine},
        rule::Rule,
    },
    targets::{
        DiskSpec, Incoming, LastWriter, TargetError, TargetErrorKind as Kind,
        conversion_overlay::ConversionOverlay,
        host::{Host, LocationClaim, VmDisk, VmDisks},
    },
};

use super::Storage;

const SIZE: u64 = 1 << 20;
const MODE: u32 = 0o711;

fn spec(key: &str, place: Option<&str>) -> DiskSpec {
    DiskSpec { key: DiskKey(key.to_owned()), size: Length(SIZE), place: place.map(str::to_owned) }
}

/// One in each storage; the third in the target's directory.
fn specs() -> Vec<DiskSpec> {
    vec![spec("vda", Some("storage:fast")), spec("../b", Some("storage:slow")), spec("vdc", None)]
}

fn storage(dir: &TempDir) -> Storage {
    let place = |name: &str| -> PathBuf {
        let place = dir.path().join(name);
        fs::create_dir_all(&place).unwrap();
        place
    };
    let others = ["fast", "slow"].map(|name| (name.to_owned(), place(name)));
    Storage::new(&place("default"), MODE).unwrap().with(&BTreeMap::from(others)).unwrap()
}

/// Every file and folder in the storages.
fn all(dir: &TempDir) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            all.push(path.strip_prefix(dir.path()).unwrap().display().to_string());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn each_disk_lies_in_its_storage_and_all_of_it_goes() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    let made = storage.prepare(owner, &specs()).await.unwrap();
    let wanted = [
        format!("fast/{owner}/vda.raw"),
        format!("slow/{owner}/%2E.%2Fb.raw"),
        format!("default/{owner}/vdc.raw"),
    ]
    .map(|path| dir.path().join(path));
    let at: Vec<_> = made.iter().map(|disk| PathBuf::from(&disk.location)).collect();
    assert_eq!(at, wanted);
    for path in &at {
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE, "{}", path.display());
    }
    assert_eq!(storage.prepare(owner, &specs()).await.unwrap(), made);
    let located: Vec<_> =
        storage.locate(owner, &specs()).await.unwrap().iter().map(|disk| disk.place.location()).collect();
    assert_eq!(located, made.iter().map(|disk| disk.location.clone()).collect::<Vec<_>>());
    for spec in &specs() {
        assert_eq!(storage.open(owner, spec).await.unwrap().size(), spec.size);
    }
    storage.note_writer(owner, Some(LastWriter::Pass { number: 7, faults: 0 })).await.unwrap();
    // Another migration has no part of it.
    let other = MigrationId::generate();
    assert_eq!(storage.open(other, &specs()[0]).await.err().unwrap().kind, Kind::NotFound);
    storage.discard(other, &specs(), |_| false).await.unwrap();
    assert_eq!(storage.noted_writer(owner).await.unwrap(), Some(LastWriter::Pass { number: 7, faults: 0 }));
    storage.discard(owner, &specs(), |_| false).await.unwrap();
    assert_eq!(all(&dir), ["default", "fast", "slow"]);
    storage.discard(owner, &specs(), |_| false).await.unwrap();
}

#[tokio::test]
async fn disk_in_another_storage_is_not_recreated_and_not_left() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    let made = storage.prepare(owner, &specs()[..1]).await.unwrap();
    fs::write(&made[0].location, vec![7; SIZE as usize]).unwrap();
    for place in [None, Some("storage:slow"), Some("storage:default")] {
        let error = storage.prepare(owner, &[spec("vda", place)]).await.unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        assert!(error.to_string().contains("it is in storage fast already"), "{error}");
    }
    assert_eq!(fs::read(&made[0].location).unwrap(), vec![7; SIZE as usize]);
    assert!(!dir.path().join(format!("slow/{owner}/vda.raw")).exists());
    // Dropped by a plan that sends it elsewhere, it goes all the same.
    storage.discard(owner, &[spec("vda", None)], |_| false).await.unwrap();
    assert_eq!(all(&dir), ["default", "fast", "slow"]);
}

#[tokio::test]
async fn a_storage_that_is_not_there_is_refused_by_name() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    let error = storage.prepare(owner, &[spec("vda", Some("storage:tape"))]).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    let told =
        "disk vda is to go to storage tape: the target has no such storage, it has: default, fast, slow";
    assert_eq!(error.to_string(), told);
    // A directory that is not mounted is not created.
    fs::remove_dir(dir.path().join("slow")).unwrap();
    let error = storage.prepare(owner, &[spec("vda", Some("storage:slow"))]).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(!dir.path().join("slow").exists());
    let words = storage.others_in_words().await;
    assert!(
        words.contains("; storage fast: ") && words.contains("; storage slow: cannot be used"),
        "{words}"
    );
}

fn incoming(name: &str, disks: Vec<DiskSpec>) -> Incoming {
    let machine = Machine {
        id: VmId(name.to_owned()),
        name: name.to_owned(),
        uuid: String::new(),
        firmware: Firmware::Bios,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
        memory: Length(1 << 20),
        disks: Vec::new(),
        nics: Vec::new(),
        hardware: None,
        host: None,
    };
    Incoming { owner: None, name: name.to_owned(), machine, disks }
}

#[tokio::test]
async fn what_is_to_come_is_judged_by_its_storage() {
    let dir = tempfile::tempdir().unwrap();
    let storage = storage(&dir);
    let found = async |disks: Vec<DiskSpec>| -> Vec<(Rule, String)> {
        let objections = storage.objections(&[incoming("web", disks)]).await.unwrap();
        objections.into_iter().map(|(_, objection)| (objection.rule, objection.found)).collect()
    };
    assert_eq!(found(specs()).await, []);
    // Two disks in one storage have different places.
    assert_eq!(found(vec![spec("a", Some("storage:fast")), spec("b", Some("storage:fast"))]).await, []);
    let [(rule, told)] = found(vec![spec("vda", Some("storage:tape"))]).await.try_into().unwrap();
    assert_eq!(rule, Rule::StorageUnknown);
    assert_eq!(told, "disk vda: storage tape: the target has no such storage, it has: default, fast, slow");
    // No single one is larger than the file system that all three are on, but together they are.
    let room = storage.room().await.unwrap().0;
    let half = Length(room / 2);
    let large = || specs().into_iter().map(|spec| DiskSpec { size: half, ..spec }).collect::<Vec<_>>();
    assert_eq!(found(large()[..1].to_vec()).await, []);
    let [(rule, told)] = found(large()).await.try_into().unwrap();
    assert_eq!(rule, Rule::Capacity);
    assert!(told.starts_with("the disks in storage default and fast and slow take up to"), "{told}");
    fs::remove_dir(dir.path().join("fast")).unwrap();
    let [(rule, told)] = found(specs()).await.try_into().unwrap();
    assert!(rule == Rule::StorageUnknown && told.starts_with("disk vda: storage fast: looking at"), "{told}");
    assert_eq!(all(&dir), ["default", "slow"], "judging made something");
}

#[tokio::test]
async fn a_conversion_writes_into_the_disk_wherever_it_lies() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    let made = storage.prepare(owner, &specs()).await.unwrap();
    assert!(specs().iter().all(|spec| storage.refusal(spec).is_none()));
    assert!(storage.refusal(&spec("vda", Some("storage:tape"))).unwrap().contains("it has: default"));
    let overlays = storage.create_overlays(owner, &specs()).await.unwrap();
    for disk in &overlays.disks {
        let mut program = Command::new("qemu-io");
        let done = program.args(["-f", "qcow2", "-c", "write -P 9 0 512"]).arg(&disk.path).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }
    let changed = storage.changed(owner, &specs(), &overlays).await.unwrap();
    assert!(changed.len() == 3 && changed.iter().all(|(_, extents)| !extents.is_empty()), "{changed:?}");
    let first = |nth: usize| fs::read(&made[nth].location).unwrap()[0];
    assert_eq!((first(0), first(1), first(2)), (0, 0, 0));
    storage.commit(owner, &specs(), &overlays, Duration::from_secs(30)).await.unwrap();
    assert_eq!((first(0), first(1), first(2)), (9, 9, 9));
    storage.remove_overlays(owner, &specs()).await.unwrap();
    storage.discard(owner, &specs(), |_| false).await.unwrap();
    assert_eq!(all(&dir), ["default", "fast", "slow"]);
}

/// A host in memory.
#[derive(Debug, Default)]
struct Town {
    claims: Mutex<Vec<LocationClaim>>,
    disks: Vec<VmDisk>,
    unknown: Vec<String>,
    unseen: Option<String>,
}

#[async_trait]
impl Host for Town {
    async fn vm_disks(&self) -> VmDisks {
        VmDisks { found: self.disks.clone(), unknown: self.unknown.clone() }
    }

    async fn unseen(&self) -> Option<String> {
        self.unseen.clone()
    }

    async fn claim(&self, claim: &LocationClaim) -> Result<Option<LocationClaim>, TargetError> {
        let mut claims = self.claims.lock().unwrap();
        let holder = claims.iter().find(|other| other.identity == claim.identity).cloned();
        if let Some(holder) = holder {
            return Ok(Some(holder).filter(|other| (other.owner, &other.disk) != (claim.owner, &claim.disk)));
        }
        claims.push(claim.clone());
        Ok(None)
    }

    async fn claims_of_others(&self, owner: MigrationId) -> Result<Vec<LocationClaim>, TargetError> {
        Ok(self.claims.lock().unwrap().iter().filter(|claim| claim.owner != owner).cloned().collect())
    }

    async fn forget(&self, claim: &LocationClaim) -> Result<(), TargetError> {
        self.claims.lock().unwrap().retain(|other| other.identity != claim.identity);
        Ok(())
    }

    async fn give_up(&self, owner: MigrationId, disk: &DiskKey) -> Result<(), TargetError> {
        self.claims.lock().unwrap().retain(|claim| (claim.owner, &claim.disk) != (owner, disk));
        Ok(())
    }
}

fn place_of(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

fn at(path: &Path) -> Vec<DiskSpec> {
    vec![spec("vda", Some(path.to_str().unwrap()))]
}

#[tokio::test]
async fn a_place_has_one_owner_whatever_target_and_name_lead_to_it() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (one, two) = (storage(&dirs[0]), storage(&dirs[1]));
    let town: Arc<dyn Host> = Arc::new(Town::default());
    one.on(&town);
    two.on(&town);
    let (first, second) = (MigrationId::generate(), MigrationId::generate());
    let (path, link) = (place_of(&dirs[0], "lv"), dirs[0].path().join("by-id"));
    fs::hard_link(&path, &link).unwrap();
    for _ in 0..2 {
        one.prepare(first, &at(&path)).await.unwrap();
    }
    let error = two.prepare(second, &at(&link)).await.unwrap_err();
    assert!(error.kind == Kind::Conflict && error.to_string().contains(&first.to_string()), "{error}");
    // A disk of warmd's own has an owner as well.
    let own = one.prepare(first, &[spec("vdb", None)]).await.unwrap().remove(0).location;
    assert_eq!(two.prepare(second, &at(own.as_ref())).await.unwrap_err().kind, Kind::Conflict);
    one.discard(first, &at(&path), |_| false).await.unwrap();
    two.prepare(second, &at(&link)).await.unwrap();
    two.open(second, &at(&link)[0]).await.unwrap();
    let error = one.prepare(first, &at(&path)).await.unwrap_err();
    assert!(error.to_string().contains(&second.to_string()), "{error}");
}

#[tokio::test]
async fn disk_of_a_vm_is_a_location_only_for_the_vm_made_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (place_of(&dir, "image"), dir.path().join("link"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let owner = MigrationId::generate();
    let town = |moved_by: Option<String>| -> Arc<dyn Host> {
        let disk = VmDisk { path: link.clone(), vm: "VM web1 of x".to_owned(), moved_by };
        Arc::new(Town { disks: vec![disk], ..Town::default() })
    };
    let theirs = storage(&dir);
    theirs.on(&town(None));
    let error = theirs.prepare(owner, &at(&path)).await.unwrap_err();
    assert!(error.kind == Kind::Conflict && error.to_string().contains("web1"), "{error}");
    let ours = storage(&dir);
    ours.on(&town(Some(owner.to_string())));
    ours.prepare(owner, &at(&path)).await.unwrap();
    ours.open(owner, &at(&path)[0]).await.unwrap();
    let error = theirs.open(owner, &at(&path)[0]).await.err().unwrap();
    assert!(error.to_string().contains("web1"), "{error}");
}

#[tokio::test]
async fn location_is_first_claimed_only_when_all_vms_are_seen() {
    let unknown = || Town { unknown: vec!["the VMs of x: no answer".to_owned()], ..Town::default() };
    let unseen = || Town { unseen: Some("process 7 cannot be seen".to_owned()), ..Town::default() };
    for (town, kind, told) in [
        (unknown(), Kind::Unreachable, "the VMs of x: no answer"),
        (unseen(), Kind::Refused, "process 7 cannot be seen: let warmd run as root"),
    ] {
        let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
        let path = place_of(&dir, "lv");
        let blind = storage(&dir);
        let town: Arc<dyn Host> = Arc::new(town);
        blind.on(&town);
        let error = blind.prepare(owner, &at(&path)).await.unwrap_err();
        assert!(error.kind == kind && error.to_string().contains(told), "{error}");
        let found = blind.objections(&[incoming("web", at(&path))]).await.unwrap();
        let [(of, objection)] = <[_; 1]>::try_from(found).unwrap();
        assert_eq!((of, objection.rule), (Some(0), Rule::LocationUnusable));
        assert!(objection.found.contains(told), "{}", objection.found);
        // What warmd creates has no other owner; and an earlier claim stays valid.
        blind.prepare(owner, &[spec("vdb", None)]).await.unwrap();
        let seeing = storage(&dir);
        seeing.on(&(Arc::new(Town::default()) as Arc<dyn Host>));
        seeing.prepare(owner, &at(&path)).await.unwrap();
        blind.prepare(owner, &at(&path)).await.unwrap();
        blind.open(owner, &at(&path)[0]).await.unwrap();
    }
    let (dir, town) = (tempfile::tempdir().unwrap(), unseen());
    let storage = storage(&dir);
    storage.on(&(Arc::new(town) as Arc<dyn Host>));
    assert!(storage.others_in_words().await.contains("are refused: process 7 cannot be seen"));
}

#[tokio::test]
async fn a_place_that_hangs_keeps_no_other_place_from_answering() {
    // By its spelling on another file system; no file is read there.
    let hung = Path::new("/sys/hung");
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let calls = (0..64).map(|_| {
        let gate = Arc::clone(&gate);
        let call = super::blocking_on(hung, "looking".to_owned(), move || {
            gate.lock().unwrap().recv().ok();
            Ok(())
        });
        tokio::time::timeout(Duration::from_millis(200), call)
    });
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_err));
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    storage.prepare(owner, &specs()).await.unwrap();
    storage.discard(owner, &specs(), |_| false).await.unwrap();
    drop(release);
}

/// All threads of the place of a VM's disk are in use, as if its file system did not answer.
#[tokio::test]
async fn silent_disk_of_another_vm_does_not_block_a_claim() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let path = place_of(&dir, "lv");
    let disk = VmDisk { path: "/proc/hung".into(), vm: "VM web1 of x".to_owned(), moved_by: None };
    let town: Arc<dyn Host> = Arc::new(Town { disks: vec![disk], ..Town::default() });
    let storage = storage(&dir);
    storage.on(&town);
    let lane = warmd_threads::on(Path::new("/proc/hung")).unwrap();
    let mut turns = Vec::new();
    while let Ok(Ok(turn)) = tokio::time::timeout(Duration::from_millis(50), lane.turn()).await {
        turns.push(turn);
    }
    tokio::time::timeout(Duration::from_secs(30), storage.prepare(owner, &at(&path))).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_lies_beside_the_disks_goes_with_them_however_many_it_is() {
    let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
    let storage = storage(&dir);
    storage.prepare(owner, &[spec("vda", None)]).await.unwrap();
    let folder = storage.folder(owner);
    for name in ["console.log", "console.log.0", "console.log.1", "console.log.2"] {
        fs::write(folder.join(name), "login:").unwrap();
    }
    storage.discard(owner, &[spec("vda", None)], |name| name.starts_with("console.")).await.unwrap();
    assert!(!folder.exists(), "{:?}", all(&dir));
    storage.discard(owner, &[spec("vda", None)], |name| name.starts_with("console.")).await.unwrap();
}
