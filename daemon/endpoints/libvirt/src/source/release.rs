//! Deletes a migration's marks: its checkpoints, and the bitmaps that libvirt cannot reach.
//!
//! Rule: this is housekeeping, and never fails the work. A mark that cannot be removed is returned with the
//! reason and the command for the operator, does not stop the others, and is tried again with the next pass
//! and at the end. Bitmaps go before their checkpoint: while one is left, or could not be searched, the
//! checkpoint stays as the record.

use std::collections::BTreeMap;

use warmd_core::{
    model::id::MigrationId,
    sources::{Leftover, SourceError},
};
use warmd_disks::qemu_img::{ImageErrorKind, image};

use crate::libvirt::{
    Checkpoint, Disk, DiskSource, DomainId, LibvirtError, LibvirtErrorKind, RunState, went_unanswered,
};

use super::{LibvirtSource, error::ErrorContext, files, marks, plan::is_disk};

impl LibvirtSource {
    /// Deletes all checkpoints but those in `keep`; returns those that could not be removed.
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
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        let (attached, is_moved) = (xml.disks, xml.moved.is_some());
        let detached = self.detached(domain, &own, &attached).await.context(doing)?;
        let prefix = marks::prefix(owner);
        let mut left = Left::default();
        if self.libvirt.state(domain).await.context(doing)?.state != RunState::Off {
            self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
            let stay = self.delete_one_by_one(domain, &own, keep).await.context(doing)?;
            return Ok(left.into_leftovers(&own, keep).chain(stay).collect());
        }
        // libvirt deletes nothing from a domain that is off.
        self.remove_bitmaps(&attached, &prefix, keep, &mut left).await;
        self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
        // A domain that was moved away may run there: it gets no power here, not even paused.
        if left.wants_key() && keep.is_empty() && !is_moved {
            // QEMU has the key, and removes the bitmaps without running the guest.
            match self.delete_at_rest(domain, owner, &own).await {
                Ok(()) => {
                    left = Left::default();
                    self.remove_bitmaps(&attached, &prefix, keep, &mut left).await;
                    self.remove_bitmaps(&detached, &prefix, keep, &mut left).await;
                }
                Err(error) => {
                    tracing::warn!(%domain, %owner, %error, "marks cannot be removed by starting the VM paused");
                }
            }
        }
        let mut stay = Vec::new();
        for checkpoint in own.iter().rev().filter(|one| !keep.contains(&one.name.as_str())) {
            if left.needs(checkpoint) {
                continue;
            }
            if let Err(error) = self.libvirt.forget_checkpoint(domain, &checkpoint.name).await {
                stay.push(of_checkpoint(domain, &checkpoint.name, error).context(doing)?);
            }
        }
        Ok(left.into_leftovers(&own, keep).chain(stay).collect())
    }

    /// The domain's disks at these checkpoints that it no longer has.
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

    /// Removes the migration's bitmaps from the disks' images, and records what stays.
    async fn remove_bitmaps(&self, disks: &[Disk], prefix: &str, keep: &[&str], left: &mut Left) {
        for disk in disks.iter().filter(|disk| is_disk(disk) && disk.format == "qcow2") {
            let path = match self.path_of(&disk.source).await {
                Ok(Some(path)) => path,
                Ok(None) => {
                    left.not_seen(disk, "its image is neither a file nor a device of this host".to_owned());
                    continue;
                }
                Err(error) => {
                    left.not_seen(disk, error.to_string());
                    continue;
                }
            };
            match image::remove_bitmaps(&path, prefix, keep).await {
                Ok(removal) => left.add(removal.left),
                // Its bitmaps are gone with the image.
                Err(error) if error.kind == ImageErrorKind::NoSuchImage => {}
                Err(error) => left.not_seen(disk, error.to_string()),
            }
        }
    }

    /// Deletes checkpoints of a domain that has power; returns those that stay.
    async fn delete_one_by_one(
        &self,
        domain: DomainId,
        own: &[Checkpoint],
        keep: &[&str],
    ) -> Result<Vec<Leftover>, LibvirtError> {
        let mut stay = Vec::new();
        // The newest go first: libvirt then merges into an older parent that stays.
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
        let doing = || format!("VM {domain}: removing marks of migration {owner}");
        // After any failure the power is cut again.
        let deleted = match self.start_paused(domain, owner).await {
            Ok(()) => self.delete_checkpoints(domain, own, &[]).await.context(doing),
            error => error,
        };
        self.end(domain, owner).await?;
        deleted
    }

    /// The path of a disk's image on this host; `None` if it is no file and no block device.
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

    /// See [`warmd_core::sources::Source::leftovers`].
    pub(super) async fn remains(&self, known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        let known_ids = known.to_vec();
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
            let off = self.libvirt.state(domain).await.is_ok_and(|status| status.state == RunState::Off);
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
                    // The bitmap of a checkpoint is deleted with it, while the VM has power.
                    let is_bare = |name: &&String| is_stray(name) && (off || !strays.contains(name));
                    remains.extend(image.bitmaps.iter().filter(is_bare).map(|bitmap| Leftover {
                        what: format!("bitmap {bitmap} in {}", image.path),
                        why: why.clone(),
                        remedy: bitmap_remedy(&image, bitmap),
                    }));
                }
            }
        }
        remains.extend(self.files_left(&known_ids).await);
        Ok(remains)
    }
}

/// The bitmaps left in images, and the unreadable images.
#[derive(Debug, Default)]
struct Left {
    /// By image and bitmap.
    bitmaps: BTreeMap<(String, String), image::Left>,
    /// By the disk's name: its image's location, and why it could not be read.
    unseen: BTreeMap<String, (String, String)>,
}

impl Left {
    fn add(&mut self, left: Vec<image::Left>) {
        let named = left.into_iter().map(|one| ((one.image.path.clone(), one.bitmap.clone()), one));
        self.bitmaps.extend(named);
    }

    fn not_seen(&mut self, disk: &Disk, why: String) {
        tracing::warn!(disk = disk.target, source = %disk.source, why, "the image cannot be looked at for marks");
        self.unseen.insert(disk.target.clone(), (disk.source.to_string(), why));
    }

    fn wants_key(&self) -> bool {
        self.bitmaps.values().any(|left| left.image.encrypted)
    }

    /// Whether the checkpoint is the only record of a bitmap which is there, or may be.
    fn needs(&self, checkpoint: &Checkpoint) -> bool {
        self.bitmaps.keys().any(|(_, bitmap)| *bitmap == checkpoint.name)
            || checkpoint.disks.iter().any(|disk| self.unseen.contains_key(disk))
    }

    /// For messages: the bitmaps, and for unread images those that checkpoints name.
    fn into_leftovers(self, own: &[Checkpoint], keep: &[&str]) -> impl Iterator<Item = Leftover> {
        let bitmaps = self.bitmaps.into_values().map(|image::Left { image, bitmap, error }| Leftover {
            what: format!("bitmap {bitmap} in {}", image.path),
            why: error.to_string(),
            remedy: bitmap_remedy(&image, &bitmap),
        });
        let mut unseen = Vec::new();
        for (disk, (source, why)) in self.unseen {
            let gone = own.iter().filter(|one| !keep.contains(&one.name.as_str()));
            let marks: Vec<_> =
                gone.filter(|one| one.disks.contains(&disk)).map(|one| one.name.as_str()).collect();
            if !marks.is_empty() {
                unseen.push(Leftover {
                    what: format!("bitmaps {} in {source} (disk {disk})", marks.join(", ")),
                    why: format!("the image cannot be looked at: {why}"),
                    remedy: "see that the image can be read on this host; `warmctl source check` then tells what is in it"
                        .to_owned(),
                });
            }
        }
        bitmaps.chain(unseen)
    }
}

/// A leftover checkpoint, or the failure if libvirt did not answer.
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

fn bitmap_remedy(image: &image::Qcow2Image, bitmap: &str) -> String {
    let path = files::quoted(&image.path);
    if image.encrypted {
        return format!(
            "while the VM is off, `qemu-img bitmap --remove --object secret,id=key,file=KEYFILE --image-opts \
             driver=qcow2,encrypt.key-secret=key,file.filename={path} {bitmap}`, or `virsh checkpoint-delete` \
             while it runs"
        );
    }
    format!("while the VM is off, `qemu-img bitmap --remove -f qcow2 {path} {bitmap}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::DomainXml;

    fn checkpoint(name: &str, disks: &[&str]) -> Checkpoint {
        let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
        Checkpoint { name: name.to_owned(), description: String::new(), disks }
    }

    #[test]
    fn a_checkpoint_stays_while_an_image_of_it_was_not_seen() {
        let text = "<domain><name>x</name><uuid>u</uuid><memory>1</memory><os><type arch='x86_64'>hvm</type></os>\
            <devices><disk><source file='/hung/a'/><target dev='vdb'/></disk></devices></domain>";
        let disk = DomainXml::read(text).unwrap().disks.remove(0);
        let mut left = Left::default();
        left.not_seen(&disk, "no answer".to_owned());
        let own =
            [checkpoint("m-1", &["vda", "vdb"]), checkpoint("m-2", &["vda"]), checkpoint("m-3", &["vdb"])];
        assert_eq!(own.each_ref().map(|one| left.needs(one)), [true, false, true]);
        let told: Vec<_> = left.into_leftovers(&own, &["m-3"]).collect();
        let [one] = told.as_slice() else { panic!("{told:?}") };
        assert!(one.what.contains("m-1") && !one.what.contains("m-3"), "{one}");
        assert!(one.what.contains("/hung/a") && one.why.contains("no answer"), "{one}");
        // It has no known mark.
        let mut left = Left::default();
        left.not_seen(&disk, "no answer".to_owned());
        assert_eq!(left.into_leftovers(&own[1..2], &[]).count(), 0);
    }
}
