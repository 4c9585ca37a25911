//! Places have one owner each, in the whole state.

use warmd_core::{
    model::id::{DiskKey, MigrationId},
    targets::host::LocationClaim,
};

use super::{Fixture, new_migration};

fn claim(owner: MigrationId, disk: &str, identity: &str) -> LocationClaim {
    LocationClaim {
        identity: identity.to_owned(),
        owner,
        disk: DiskKey(disk.to_owned()),
        location: format!("/dev/{identity}"),
        link: None,
        vm: String::new(),
        finished: false,
    }
}

#[tokio::test]
async fn a_place_is_claimed_once_and_given_up() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (web, db) = (new_migration("web"), new_migration("db"));
    let (first, second) = (web.id, db.id);
    store.create_migration(web).await.unwrap();
    store.create_migration(db).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.claim_place(claim(first, "vda", "7:1")).await.unwrap(), None);
    }
    let holder = store.claim_place(claim(second, "vda", "7:1")).await.unwrap().unwrap();
    assert_eq!((holder.owner, holder.finished), (first, false));
    let holder = store.claim_place(claim(first, "vdb", "7:1")).await.unwrap().unwrap();
    assert_eq!(holder.disk.0, "vda", "two disks of one migration have two places");
    assert_eq!(store.places_of_others(second).await.unwrap().len(), 1);
    assert!(store.places_of_others(first).await.unwrap().is_empty());
    // Another place for the disk frees the first.
    assert_eq!(store.claim_place(claim(first, "vda", "7:2")).await.unwrap(), None);
    assert_eq!(store.claim_place(claim(second, "vda", "7:1")).await.unwrap(), None);
    store.give_up_place(second, DiskKey("vda".to_owned())).await.unwrap();
    assert_eq!(store.claim_place(claim(first, "vdb", "7:1")).await.unwrap(), None);
    store.forget_place(claim(second, "vda", "7:1")).await.unwrap();
    assert_eq!(store.places_of_others(second).await.unwrap().len(), 2, "not its own to forget");
}
