//! The last conversion of a migration's disks.

use uuid::Uuid;
use warmd_cbt::store::StoreErrorKind;
use warmd_core::model::{
    conversion::{ConversionView, ConvertedDisk},
    id::DiskKey,
};
use warmd_store::ConversionRow;

use super::{Fixture, at, machine, migration};

#[tokio::test]
async fn the_last_one_is_kept_and_when_it_was_on_the_disks() {
    let fixture = Fixture::new();
    let (id, other) = (migration(&fixture.store, "web").await, migration(&fixture.store, "db").await);
    assert_eq!(fixture.store.conversion(id).await.unwrap(), None);
    let row = |attempt, pass| ConversionRow {
        id: Uuid::now_v7(),
        attempt,
        pass,
        view: ConversionView {
            command: vec!["/etc/warmd/convert".to_owned(), "virtio".to_owned()],
            started: at(7),
            committed: None,
            machine: Some(machine("web")),
            disks: vec![ConvertedDisk { key: DiskKey("vda".to_owned()), changed: 65_536 }],
        },
    };
    let (first, second) = (row(1, 3), row(2, 6));
    fixture.store.begin_conversion(id, first.clone()).await.unwrap();
    fixture.store.begin_conversion(other, row(1, 1)).await.unwrap();
    assert_eq!(fixture.store.conversion(id).await.unwrap(), Some(first.clone()));
    fixture.store.commit_conversion(id, first.id, at(9)).await.unwrap();

    let fixture = fixture.reopen().await;
    let kept = fixture.store.conversion(id).await.unwrap().unwrap();
    assert_eq!((kept.id, kept.view.committed), (first.id, Some(at(9))));
    assert_eq!(fixture.store.conversion(other).await.unwrap().unwrap().view.committed, None);

    fixture.store.begin_conversion(id, second.clone()).await.unwrap();
    assert_eq!(fixture.store.conversion(id).await.unwrap(), Some(second));
    let error = fixture.store.commit_conversion(id, first.id, at(10)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
}
