//! Gives up a migration's marks: its checkpoints, and the bitmaps that libvirt cannot reach.
//!
//! Rule: this is housekeeping, and never fails the work. A mark that cannot be removed is answered with the reason and
//! the command for a person, stands in the way of no other, and is tried again with the next pass and at the end.
//! Bitmaps go before their checkpoint: while one is left, the checkpoint is there to tell.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    libvirt::{
        Checkpoint, Disk, DiskSource, DomainId, LibvirtError, LibvirtErrorKind, RunState, image,
        went_unanswered,
    },
    model::id::MigrationId,
    sources::{Leftover, SourceError},
};

use super::{LibvirtSource, error::Context, marks, plan::is_disk};

impl LibvirtSource {
    /// Gives up all checkpoints but those in `keep`; answers what could not be removed.
    pub(super) async fn release(
        &self,
        domain: DomainId,
        owner: MigrationId,
        keep: &[&str],
    ) -> Result<Vec<Leftover>, SourceError> {
        let doing = || format!("VM {domain}: giving up the marks of migration {owner}");
        let own = match self.own_checkpoints(domain, owner).await {
            Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => return Ok(Vec::new()),
            result => result.context(doing)?,
        };
        let attached = self.libvirt.domain(domain).await.context(doing)?.disks;
        let detached = self.detached(domain, &own, &attached).await.context(doing)?;
        let prefix = marks::prefix(owner);
        let mut left = BTreeMap::new();
        if self.libvirt.state(domain).await.context(doing)?.state != RunState::Off {
            self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
            let stay = self.delete_one_by_one(domain, &own, keep).await.context(doing)?;
            return Ok(told(left).chain(stay).collect());
        }
        // libvirt deletes nothing from a domain that is off.
        self.remove_bitmaps(&attached, &prefix, keep, &mut left).await;
        self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
        if left.values().any(|left| left.image.encrypted) && keep.is_empty() {
            // QEMU has the key, and removes them without running the guest.
            match self.delete_at_rest(domain, owner, &own).await {
                Ok(()) => {
                    left.clear();
                    self.remove_bitmaps(&attached, &prefix, keep, &mut left).await;
                    self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
                }
                Err(error) => {
                    tracing::warn!(%domain, %owner, %error, "marks cannot be removed by starting the VM paused");
                }
            }
        }
        let kept_for: BTreeSet<&str> = left.keys().map(|(_, bitmap)| bitmap.as_str()).collect();
        let mut stay = Vec::new();
        for Checkpoint { name, .. } in own.iter().rev() {
            if keep.contains(&name.as_str()) || kept_for.contains(name.as_str()) {
                continue;
            }
            if let Err(error) = self.libvirt.forget_checkpoint(domain, name).await {
                stay.push(of_checkpoint(domain, name, error).context(doing)?);
            }
        }
        Ok(told(left).chain(stay).collect())
    }

    /// The disks that the domain had at these checkpoints and has no more.
    async fn detached(
        &self,
        domain: DomainId,
        own: &[Checkpoint],
        attached: &[Disk],
    ) -> Result<Vec<Disk>, LibvirtError> {
        let mut detached: Vec<Disk> = Vec::new();
        for Checkpoint { name, .. } in own {
            let then = match self.libvirt.checkpoint_disks(domain, name).await {
                Err(error) if went_unanswered(&error) => return Err(error),
                // Gone since it was listed, or libvirt keeps no domain with it.
                Err(_) => continue,
                Ok(then) => then,
            };
            for disk in then {
                let is_known = |known: &Disk| known.source == disk.source;
                if !attached.iter().any(is_known) && !detached.iter().any(is_known) {
                    detached.push(disk);
                }
            }
        }
        Ok(detached)
    }

    /// Removes the migration's bitmaps from the disks' images, and notes what stays.
    async fn remove_bitmaps(
        &self,
        disks: &[Disk],
        prefix: &str,
        keep: &[&str],
        left: &mut BTreeMap<(String, String), image::Left>,
    ) {
        for disk in disks.iter().filter(|disk| is_disk(disk) && disk.format == "qcow2") {
            let Ok(Some(path)) = self.path_of(&disk.source).await else { continue };
            match image::remove_bitmaps(&path, prefix, keep).await {
                Ok(removal) => {
                    left.extend(
                        removal
                            .left
                            .into_iter()
                            .map(|one| ((one.image.path.clone(), one.bitmap.clone()), one)),
                    );
                }
                // With the image went what was in it.
                Err(error) if error.kind == LibvirtErrorKind::NoSuchImage => {}
                Err(error) => {
                    tracing::warn!(disk = disk.target, path, %error, "the image cannot be looked at for marks");
                }
            }
        }
    }

    /// Deletes checkpoints of a domain that has power; answers those that stay.
    async fn delete_one_by_one(
        &self,
        domain: DomainId,
        own: &[Checkpoint],
        keep: &[&str],
    ) -> Result<Vec<Leftover>, LibvirtError> {
        let mut stay = Vec::new();
        // The newest go first: whatever libvirt folds into a parent is folded into an older one that stays.
        for one in own.iter().rev() {
            if let Err(error) = self.delete_checkpoints(domain, std::slice::from_ref(one), keep).await {
                stay.push(of_checkpoint(domain, &one.name, error)?);
            }
        }
        Ok(stay)
    }

    /// Lets QEMU remove all bitmaps of the checkpoints of a domain that is off.
    async fn delete_at_rest(
        &self,
        domain: DomainId,
        owner: MigrationId,
        own: &[Checkpoint],
    ) -> Result<(), SourceError> {
        self.start_paused(domain, owner).await?;
        let doing = || format!("VM {domain}: removing marks of migration {owner}");
        let deleted = self.delete_checkpoints(domain, own, &[]).await.context(doing);
        self.end(domain, owner).await?;
        deleted
    }

    /// Where a disk's image is on this host; `None` if it is no file and no block device.
    pub(super) async fn path_of(&self, source: &DiskSource) -> Result<Option<String>, LibvirtError> {
        Ok(match source {
            DiskSource::File(path) | DiskSource::Block(path) => Some(path.clone()),
            DiskSource::Volume { pool, volume } => {
                let path = self.libvirt.volume(pool, volume).await?.path;
                Some(path).filter(|path| path.starts_with('/'))
            }
            DiskSource::Network { .. } | DiskSource::Other(_) | DiskSource::Empty => None,
        })
    }

    /// See [`crate::sources::Source::leftovers`].
    pub(super) async fn remains(&self, known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        let known: Vec<String> = known.iter().map(|owner| marks::prefix(*owner)).collect();
        let is_stray = |name: &str| {
            name.starts_with(marks::PREFIX) && !known.iter().any(|prefix| name.starts_with(prefix))
        };
        let mut remains = Vec::new();
        let domains = self.libvirt.domains().await.context(|| "listing VMs".to_owned())?;
        for (domain, vm) in domains {
            let why = format!("it is of no migration that this warmd has at work on VM {vm:?}");
            let Ok(names) = self.libvirt.checkpoint_names(domain).await else { continue };
            let Ok(xml) = self.libvirt.domain(domain).await else { continue };
            let off = self.libvirt.state(domain).await.is_ok_and(|standing| standing.state == RunState::Off);
            let strays: Vec<String> = names.into_iter().filter(|name| is_stray(name)).collect();
            for name in &strays {
                remains.push(Leftover {
                    what: format!("checkpoint {name}"),
                    why: why.clone(),
                    remedy: checkpoint_remedy(domain, name, off),
                });
            }
            for disk in xml.disks.iter().filter(|disk| is_disk(disk) && disk.format == "qcow2") {
                let Ok(Some(path)) = self.path_of(&disk.source).await else { continue };
                for image in image::chain(&path).await.unwrap_or_default() {
                    // The bitmap of a checkpoint goes with that, while the VM has power.
                    let is_bare = |name: &&String| is_stray(name) && (off || !strays.contains(name));
                    remains.extend(image.bitmaps.iter().filter(is_bare).map(|bitmap| Leftover {
                        what: format!("bitmap {bitmap} in {}", image.path),
                        why: why.clone(),
                        remedy: bitmap_remedy(&image, bitmap),
                    }));
                }
            }
        }
        Ok(remains)
    }
}

fn told(left: BTreeMap<(String, String), image::Left>) -> impl Iterator<Item = Leftover> {
    left.into_values().map(|image::Left { image, bitmap, error }| Leftover {
        what: format!("bitmap {bitmap} in {}", image.path),
        why: error.to_string(),
        remedy: bitmap_remedy(&image, &bitmap),
    })
}

/// A checkpoint that stays behind, or the failure if libvirt did not answer.
fn of_checkpoint(domain: DomainId, name: &str, error: LibvirtError) -> Result<Leftover, LibvirtError> {
    if went_unanswered(&error) || error.kind == LibvirtErrorKind::NoSuchDomain {
        return Err(error);
    }
    let remedy = checkpoint_remedy(domain, name, false);
    Ok(Leftover { what: format!("checkpoint {name}"), why: error.to_string(), remedy })
}

fn checkpoint_remedy(domain: DomainId, name: &str, off: bool) -> String {
    let metadata = if off { " --metadata" } else { "" };
    format!("`virsh checkpoint-delete {domain} {name}{metadata}`")
}

fn bitmap_remedy(image: &image::Image, bitmap: &str) -> String {
    // The path may hold anything.
    let path = image.path.replace('\'', r"'\''");
    if image.encrypted {
        return format!(
            "while the VM is off, `qemu-img bitmap --remove --object secret,id=key,file=KEYFILE --image-opts \
             driver=qcow2,encrypt.key-secret=key,file.filename='{path}' {bitmap}`, or `virsh checkpoint-delete` \
             while it runs"
        );
    }
    format!("while the VM is off, `qemu-img bitmap --remove -f qcow2 '{path}' {bitmap}`")
}
