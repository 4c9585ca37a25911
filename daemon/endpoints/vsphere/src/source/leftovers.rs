//! What warmd's migrations left behind: snapshots of ours, and folders of readers.

use warmd_core::{
    model::id::{MigrationId, VmId},
    sources::{Leftover, SourceError, SourceErrorKind},
};

use crate::{Owner, reader, tracking};

use super::{VsphereSource, owner_of};

impl VsphereSource {
    /// See [`warmd_core::sources::Source::end_snapshot`].
    pub(super) async fn end(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError> {
        let owner = owner_of(owner);
        self.clear_readers(&owner).await;
        let of = match self.of(vm).await {
            // A VM that is gone has no snapshots.
            Err(error) if error.kind == SourceErrorKind::NotFound => return Ok(()),
            of => of?,
        };
        let _turn = self.turns.at_once();
        let removed = self.vsphere.end_snapshots(&of, &owner).await?;
        if removed.count > 0 {
            tracing::info!(%vm, %owner, count = removed.count, took = ?removed.took, "a snapshot was removed");
        }
        Ok(())
    }

    /// Leaves tracking as it was before the migration; what cannot be done now is no failure.
    pub(super) async fn restore_tracking(
        &self,
        vm: &VmId,
        owner: MigrationId,
    ) -> Result<Vec<Leftover>, SourceError> {
        let of = match self.of(vm).await {
            Err(error) if error.kind == SourceErrorKind::NotFound => return Ok(Vec::new()),
            of => of?,
        };
        match self.vsphere.restore_tracking(&of, &owner_of(owner)).await {
            Ok(true) => tracing::info!(%vm, %owner, "changed-block tracking is off again, as it was"),
            Ok(false) => {}
            Err(error) => return Ok(vec![tracked(&vm.0, &owner_of(owner), &error.to_string())]),
        }
        Ok(Vec::new())
    }

    /// Removes the folders of readers whose daemon was killed; they are no reason to fail.
    pub(super) async fn clear_readers(&self, owner: &Owner) {
        let runtime_dir = &self.vsphere.settings().reader.runtime_dir;
        if let Err(error) = reader::clear(runtime_dir, owner).await {
            tracing::warn!(%owner, %error, "the folders of readers that have ended are still there");
        }
    }

    /// See [`warmd_core::sources::Source::leftovers`].
    pub(super) async fn remains(&self, known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        let known: Vec<Owner> = known.iter().map(|migration| owner_of(*migration)).collect();
        let mut left = Vec::new();
        for vm in self.vsphere.vms().await? {
            if let Some(owner) = tracking::switched_on_for(&vm.annotation).filter(|it| !known.contains(it)) {
                let why = "this warmd does not have that migration at work";
                left.push(tracked(&vm.name, &owner, why));
            }
            for snapshot in &vm.snapshots {
                let Some(owner) = Owner::of(snapshot).filter(|owner| !known.contains(owner)) else {
                    continue;
                };
                left.push(Leftover {
                    what: format!("the snapshot {:?} of VM {} ({})", snapshot.name, vm.name, vm.of.id),
                    why: format!("it is of migration {owner}, which this warmd does not have at work"),
                    remedy: "in vSphere: the VM, Snapshots, Manage Snapshots, Delete".to_owned(),
                });
            }
        }
        let runtime_dir = &self.vsphere.settings().reader.runtime_dir;
        match reader::remains(runtime_dir, &known).await {
            Ok(folders) => left.extend(folders.into_iter().map(|folder| Leftover {
                what: format!("the folder of a reader, {}", folder.display()),
                why: "it is of no migration that this warmd has at work".to_owned(),
                remedy: format!("`rm -r '{}'`", folder.display()),
            })),
            Err(error) => left.push(Leftover {
                what: format!("what readers left in {}", runtime_dir.display()),
                why: format!("it cannot be looked at: {error}"),
                remedy: "see that its file system answers, and ask again".to_owned(),
            }),
        }
        Ok(left)
    }
}

/// Tracking that was switched on for a migration, and is still on.
fn tracked(vm: &str, owner: &Owner, why: &str) -> Leftover {
    Leftover {
        what: format!("changed-block tracking of VM {vm}, switched on for migration {owner},"),
        why: why.to_owned(),
        remedy: "in vSphere, with the VM off: Edit Settings, VM Options, Advanced, `ctkEnabled = FALSE`; and remove the line \
                 of [warmd] from its notes"
            .to_owned(),
    }
}
