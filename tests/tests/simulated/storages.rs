//! Storage maps over simulated endpoints, with the target's disks in real files: each disk goes to the
//! storage that its datastore is mapped to, stays there, and the VM is cut over from there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use warmd_core::{
    control::{Control, Finding},
    model::{
        plan::{Plan, VerifyMode},
        request::Request,
        rule::Rule,
        state::State,
    },
};
use warmd_tests::simulated::{Rig, SimulatedWorld, VM};

const BLOCK: u64 = 64 * 1024;

struct Setting {
    dir: TempDir,
    rig: Rig,
}

impl Setting {
    /// A VM with a disk on each of two datastores and one without a datastore, and a target with two
    /// storages.
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let place = |name: &str| -> PathBuf {
            let place = dir.path().join(name);
            fs::create_dir(&place).unwrap();
            place
        };
        let storages = ["fast", "slow"].map(|name| (name.to_owned(), place(name)));
        let world = SimulatedWorld::new(&[("vda", 8 * BLOCK), ("vdb", 4 * BLOCK), ("vdc", 2 * BLOCK)]);
        let world = world.with_storages(&place("default"), BTreeMap::from(storages));
        let stores = [("vda", "/srv/ssd"), ("vdb", "/srv/disk")];
        let stores = stores.map(|(disk, store)| (disk.to_owned(), store.to_owned()));
        world.with(|truth| truth.datastores = BTreeMap::from(stores));
        for disk in ["vda", "vdb", "vdc"] {
            world.guest_writes(disk, 5, &vec![7; 70_000]);
        }
        Self { rig: Rig::start(world).await, dir }
    }

    /// The disks' locations on the target, by the names of the storages.
    async fn places(&self) -> Vec<String> {
        let view = self.rig.view().await;
        let folder = format!("/{}/", view.id);
        let name = |location: &str| {
            let place = Path::new(location).strip_prefix(self.dir.path()).unwrap();
            place.display().to_string().replacen(&folder, " ", 1)
        };
        view.disks.iter().map(|disk| name(&disk.location)).collect()
    }

    /// Checks that the files equal the guest's disks.
    async fn assert_copied(&self) {
        for disk in self.rig.view().await.disks {
            let there = fs::read(&disk.location).unwrap();
            let had = self.rig.world.with(|truth| truth.source_disks[&disk.key.0].clone());
            assert!(there == had, "disk {} at {} is another", disk.key, disk.location);
        }
    }

    /// Files and folders in the storages.
    fn left(&self) -> Vec<PathBuf> {
        let storages = fs::read_dir(self.dir.path()).unwrap();
        storages
            .flat_map(|each| fs::read_dir(each.unwrap().path()).unwrap())
            .map(|it| it.unwrap().path())
            .collect()
    }

    async fn findings(&self, plan: &Plan) -> Vec<Finding> {
        self.rig.manager.validate_plan(plan).await.unwrap()
    }
}

fn plan(maps: &str) -> Plan {
    let plan = toml::to_string(&Rig::plan(VerifyMode::Compare)).unwrap();
    toml::from_str(&format!("{plan}\n{maps}")).unwrap_or_else(|error| panic!("{error}: {plan}\n{maps}"))
}

const MAPS: &str = "[storage]\n\"/srv/ssd\" = \"fast\"\n\"/srv/disk\" = \"slow\"\n";

#[tokio::test]
async fn disks_are_created_and_cut_over_in_their_mapped_storage() {
    let mut setting = Setting::new().await;
    assert_eq!(setting.findings(&plan(MAPS)).await, []);
    setting.rig.seed(plan(MAPS)).await;
    let places = ["fast vda.raw", "slow vdb.raw", "default vdc.raw"];
    assert_eq!(setting.places().await, places);
    setting.assert_copied().await;
    setting.rig.restart().await;
    // A disk that moves on the source meanwhile stays where it was created.
    setting.rig.world.with(|truth| drop(truth.datastores.insert("vda".to_owned(), "/srv/disk".to_owned())));
    setting.rig.world.guest_writes("vda", 3 * BLOCK, &[9; 4096]);
    setting.rig.until("synced", |view| view.state == State::Synced).await;
    setting.rig.sync().await;
    assert_eq!(setting.places().await, places);
    assert_eq!(setting.rig.cutover().await.state, State::Done);
    setting.assert_copied().await;
    assert_eq!(setting.places().await, places);
}

#[tokio::test]
async fn the_star_takes_what_is_not_named_and_a_disk_may_have_its_own() {
    let setting = Setting::new().await;
    let maps =
        format!("{MAPS}\"*\" = \"fast\"\n[vm.{VM}.disks]\nvda = \"storage:slow\"\nvdb = \"storage:default\"");
    setting.rig.seed(plan(&maps)).await;
    assert_eq!(setting.places().await, ["slow vda.raw", "default vdb.raw", "fast vdc.raw"]);
    setting.assert_copied().await;
    setting.rig.ask(Request::Cancel).await;
    setting.rig.until("cancelled", |view| view.state == State::Cancelled).await;
    assert_eq!(setting.left(), [""; 0].map(PathBuf::from), "something is left");
}

#[tokio::test]
async fn a_storage_or_a_datastore_that_is_not_there_is_told() {
    let setting = Setting::new().await;
    let wrong = plan(&MAPS.replace("slow", "tape"));
    let [found] = setting.findings(&wrong).await.try_into().unwrap();
    assert_eq!((found.rule, found.subject), (Rule::StorageUnknown, format!("VM {VM}")));
    let told = "disk vdb: storage tape: the target has no such storage, it has: default, fast, slow";
    assert_eq!(found.message, told);
    let refused = setting.rig.manager.apply_plan(wrong, "test").await.unwrap_err();
    assert!(refused.message.contains("storage-unknown"), "{refused}");
    assert_eq!(setting.left(), [""; 0].map(PathBuf::from), "a refused plan made something");

    let idle = plan(&format!("{MAPS}\"/srv/sdd\" = \"fast\"\n\"*\" = \"slow\""));
    let [found] = setting.findings(&idle).await.try_into().unwrap();
    assert_eq!((found.rule, found.subject.as_str()), (Rule::StorageUnmatched, "plan plan"));
    let told = "`storage.\"/srv/sdd\"` is no datastore of these VMs; their disks lie in: /srv/disk, /srv/ssd";
    assert_eq!(found.message, told);
}

#[tokio::test]
async fn the_map_cannot_move_a_disk_that_is_made() {
    let setting = Setting::new().await;
    setting.rig.seed(plan(MAPS)).await;
    for (maps, told) in [
        (MAPS.replace("slow", "fast"), "disk vdb is to be at storage fast, and was made at storage slow"),
        (
            format!("{MAPS}\"*\" = \"slow\""),
            "disk vdc is to be at storage slow, and was made at a place of the target's choice",
        ),
        (
            MAPS.replace("\"/srv/ssd\" = \"fast\"\n", ""),
            "disk vda is to be at a place of the target's choice, and was made at storage fast",
        ),
    ] {
        let refused = setting.rig.manager.apply_plan(plan(&maps), "test").await.unwrap_err();
        assert!(refused.message.contains("vm-fixed") && refused.message.contains(told), "{refused}");
    }
    // Map entries that do not change its disks may be added.
    let more = format!("{MAPS}\"/srv/tape\" = \"slow\"");
    setting.rig.manager.apply_plan(plan(&more), "test").await.unwrap();
}
