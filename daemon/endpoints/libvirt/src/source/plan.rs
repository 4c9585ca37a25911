//! A snapshot's request to libvirt: the disks, their anchors, and the XML. Pure.
//!
//! Rule: a disk is requested incrementally only if all conditions of its anchor still hold. Any doubt makes
//! it [`SnapshotBase::Whole`], with the reason: that costs a comparison, where a wrong answer would cost
//! data.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use warmd_cbt::mark::ChangeMark;
use warmd_core::model::id::{DiskKey, MigrationId};

use crate::libvirt::{Checkpoint, Disk, xml::escape};

use super::{
    marks::{self, ImageIdentity, LibvirtMark},
    runtime_dirs::RuntimeDirs,
};

/// One disk of the planned snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskPlan {
    pub(super) key: DiskKey,
    pub(super) image: ImageIdentity,
    pub(super) tracking: SnapshotBase,
}

/// The facts from a disk's image beside the domain's XML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageFacts {
    /// Distinguishes its file from another at the same path.
    pub(super) identity: Option<String>,
    /// Why it has no bitmaps.
    pub(super) untracked: Option<String>,
}

/// By target name; a disk that could not be read is missing.
pub(super) type ImageFactsByDisk = BTreeMap<String, ImageFacts>;

/// What libvirt can report of a disk's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SnapshotBase {
    /// Nothing, and no mark is possible; why.
    Untracked(String),
    /// Nothing since the anchor, but a new mark is possible; why.
    Whole(String),
    /// All changes since its anchor.
    Since(Anchor),
}

/// A mark that still holds, as far as is known before the disk is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) checkpoint: String,
    pub(super) size: warmd_cbt::units::Length,
}

/// Why a disk of the request cannot be in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    #[error("it has no disk {0} (any more)")]
    Missing(DiskKey),
    #[error(
        "disk {0} is a LUN passed through, which libvirt cannot take a snapshot of: make it an ordinary disk"
    )]
    Lun(DiskKey),
    #[error(
        "disk {disk} is {now} now that the VM is off, and was {then} at the last pass: what was copied of the running VM is \
         not what it has now; see which of the two is right (`virsh dumpxml --inactive`), run a pass, and begin again"
    )]
    OtherImage { disk: DiskKey, then: String, now: String },
}

/// Plans the requested disks of a domain that has these `disks`, and these `checkpoints` of the owner.
pub(super) fn plan(
    owner: MigrationId,
    requested: &[(DiskKey, Option<ChangeMark>)],
    disks: &[Disk],
    looks: &ImageFactsByDisk,
    checkpoints: &[Checkpoint],
) -> Result<Vec<DiskPlan>, PlanError> {
    requested
        .iter()
        .map(|(key, anchor)| {
            let disk = disks.iter().find(|disk| disk.target == key.0 && is_disk(disk));
            let disk = disk.ok_or_else(|| PlanError::Missing(key.clone()))?;
            if disk.device == "lun" {
                return Err(PlanError::Lun(key.clone()));
            }
            let ImageFacts { identity, untracked } = looks.get(&key.0).cloned().unwrap_or_default();
            let image = ImageIdentity { place: disk.source.to_string(), identity };
            let tracking = match disk.untracked().or(untracked) {
                Some(reason) => SnapshotBase::Untracked(reason),
                None => match since(owner, key, anchor.as_ref(), &image, checkpoints) {
                    Ok(anchor) => SnapshotBase::Since(anchor),
                    Err(reason) => SnapshotBase::Whole(reason),
                },
            };
            Ok(DiskPlan { key: key.clone(), image, tracking })
        })
        .collect()
}

/// Fails if a disk is surely another image than at the last pass. Once the VM is off that is no change of the
/// guest's: a comparison would overwrite the copy of the running VM with other data, and verify that.
pub(super) fn same_images(
    requested: &[(DiskKey, Option<ChangeMark>)],
    plans: &[DiskPlan],
) -> Result<(), PlanError> {
    for plan in plans {
        let anchor =
            requested.iter().find(|(key, _)| *key == plan.key).and_then(|(_, anchor)| anchor.as_ref());
        let mark = anchor.and_then(LibvirtMark::read);
        if let Some(then) = mark.as_ref().and_then(LibvirtMark::image)
            && plan.image.is_other_than(then)
        {
            let is_there = then.place == plan.image.place;
            let then = if is_there { "another file at that path" } else { &then.place }.to_owned();
            let (disk, now) = (plan.key.clone(), plan.image.place.clone());
            return Err(PlanError::OtherImage { disk, then, now });
        }
    }
    Ok(())
}

/// Whether it has data of the machine: CD-ROMs and floppies do not.
pub(super) fn is_disk(disk: &Disk) -> bool {
    matches!(disk.device.as_str(), "disk" | "lun")
}

fn since(
    owner: MigrationId,
    key: &DiskKey,
    anchor: Option<&ChangeMark>,
    image: &ImageIdentity,
    checkpoints: &[Checkpoint],
) -> Result<Anchor, String> {
    let anchor = anchor.ok_or("there is no earlier mark")?;
    let Some(mark) = LibvirtMark::read(anchor) else {
        return Err(format!("the mark {anchor} is none of libvirt's"));
    };
    let LibvirtMark::Checkpoint { name, size, image: then } = mark else {
        return Err("it could not be tracked at the last pass".to_owned());
    };
    if !name.starts_with(&marks::prefix(owner)) {
        return Err(format!("checkpoint {name} is another migration's"));
    }
    let (was, place) = (&then.place, &image.place);
    if was != place {
        return Err(format!("its image was {was} and is {place} now"));
    }
    if image.is_other_than(&then) {
        return Err(format!("its image {place} is another file than at the last pass"));
    }
    if then.identity.is_some() && image.identity.is_none() {
        return Err(format!(
            "whether its image {place} is the same file as at the last pass cannot be told now"
        ));
    }
    let checkpoint = checkpoints.iter().find(|checkpoint| checkpoint.name == name);
    let checkpoint = checkpoint.ok_or_else(|| format!("checkpoint {name} is gone"))?;
    if !checkpoint.disks.contains(&key.0) {
        return Err(format!("checkpoint {name} has no bitmap of {key}"));
    }
    Ok(Anchor { checkpoint: name, size })
}

/// The `<domainbackup>`.
pub(super) fn backup_xml(plans: &[DiskPlan], all: &[Disk], dirs: &RuntimeDirs, socket: &Path) -> String {
    let path = |path: &Path| escape(&path.to_string_lossy());
    let mut xml =
        format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>", path(socket));
    for (number, plan) in plans.iter().enumerate() {
        let (name, scratch) = (escape(&plan.key.0), path(&dirs.scratch_file(number)));
        let since = match &plan.tracking {
            SnapshotBase::Since(Anchor { checkpoint, .. }) => {
                format!("backupmode='incremental' incremental='{}'", escape(checkpoint))
            }
            SnapshotBase::Whole(_) | SnapshotBase::Untracked(_) => "backupmode='full'".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            xml,
            "<disk name='{name}' backup='yes' type='file' exportname='{name}' {since}>\
             <driver type='qcow2'/><scratch file='{scratch}'/></disk>"
        );
    }
    for disk in others(plans, all) {
        let _ = write!(xml, "<disk name='{}' backup='no'/>", escape(&disk.target));
    }
    xml.push_str("</disks></domainbackup>");
    xml
}

/// The `<domaincheckpoint>`; `None` if no disk can be tracked.
pub(super) fn checkpoint_xml(
    plans: &[DiskPlan],
    all: &[Disk],
    owner: MigrationId,
    name: &str,
) -> Option<String> {
    let is_tracked = |plan: &&DiskPlan| !matches!(plan.tracking, SnapshotBase::Untracked(_));
    plans.iter().find(is_tracked)?;
    let mut xml = format!(
        "<domaincheckpoint><name>{}</name><description>{}</description><disks>",
        escape(name),
        escape(&marks::description(owner))
    );
    for plan in plans {
        let kind = if is_tracked(&plan) { "bitmap" } else { "no" };
        let _ = write!(xml, "<disk name='{}' checkpoint='{kind}'/>", escape(&plan.key.0));
    }
    for disk in others(plans, all) {
        let _ = write!(xml, "<disk name='{}' checkpoint='no'/>", escape(&disk.target));
    }
    xml.push_str("</disks></domaincheckpoint>");
    Some(xml)
}

/// The domain's disks that are not in the snapshot.
fn others<'a>(plans: &'a [DiskPlan], all: &'a [Disk]) -> impl Iterator<Item = &'a Disk> {
    all.iter().filter(|disk| plans.iter().all(|plan| plan.key.0 != disk.target))
}

#[cfg(test)]
mod tests {
    use warmd_cbt::units::Length;

    use crate::libvirt::{BackupJob, DomainXml, xml};

    use super::super::settings::LibvirtSourceSettings;
    use super::*;

    const SIZE: Length = Length(1 << 20);

    fn disks() -> Vec<Disk> {
        let text = "<domain><name>x</name><uuid>u</uuid><memory>1</memory>\
            <os><type arch='x86_64'>hvm</type></os><devices>\
            <disk type='file'><driver type='qcow2'/><source file='/a&apos;&lt;b>'/><target dev='vda'/></disk>\
            <disk type='file'><driver type='qcow2'/><source file='/c'/><target dev='vdb'/></disk>\
            <disk type='file'><driver type='raw'/><source file='/d'/><target dev='vdc'/></disk>\
            <disk type='block' device='lun'><source dev='/e'/><target dev='sda'/></disk>\
            <disk type='file' device='cdrom'><target dev='sdb'/></disk></devices></domain>";
        DomainXml::read(text).unwrap().disks
    }

    fn key(name: &str) -> DiskKey {
        DiskKey(name.to_owned())
    }

    fn anchor(owner: MigrationId, image: &str) -> ChangeMark {
        let name = format!("{}3", marks::prefix(owner));
        let image = ImageIdentity { place: image.to_owned(), identity: Some("1".to_owned()) };
        LibvirtMark::Checkpoint { name, size: SIZE, image }.write()
    }

    fn checkpoint(owner: MigrationId, disks: &[&str]) -> Checkpoint {
        Checkpoint {
            name: format!("{}3", marks::prefix(owner)),
            description: marks::description(owner),
            disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        }
    }

    fn looks(identity: &str) -> ImageFactsByDisk {
        let looked = ImageFacts { identity: Some(identity.to_owned()), untracked: None };
        [("vda".to_owned(), looked)].into()
    }

    fn one(owner: MigrationId, mark: Option<ChangeMark>, checkpoints: &[Checkpoint]) -> SnapshotBase {
        plan(owner, &[(key("vda"), mark)], &disks(), &looks("1"), checkpoints).unwrap().remove(0).tracking
    }

    #[test]
    fn an_anchor_holds_only_if_nothing_speaks_against_it() {
        let (owner, other) = (MigrationId::generate(), MigrationId::generate());
        let good = [checkpoint(owner, &["vda", "vdb"])];
        let since = one(owner, Some(anchor(owner, "/a'<b>")), &good);
        let SnapshotBase::Since(Anchor { checkpoint: name, size }) = since else { panic!("{since:?}") };
        assert_eq!((name, size), (good[0].name.clone(), SIZE));
        // A newer one belongs to an advance that was never committed: it lacks changes since the anchor.
        let newer = Checkpoint { name: format!("{}4", marks::prefix(owner)), ..good[0].clone() };
        let since = one(owner, Some(anchor(owner, "/a'<b>")), &[good[0].clone(), newer]);
        assert!(
            matches!(&since, SnapshotBase::Since(since) if since.checkpoint == good[0].name),
            "{since:?}"
        );

        let cases = [
            (None, &good[..], "no earlier mark"),
            (Some(anchor(owner, "/other")), &good, "/other"),
            (Some(anchor(other, "/a'<b>")), &good, "another migration"),
            (Some(anchor(owner, "/a'<b>")), &[], "gone"),
            (Some(anchor(owner, "/a'<b>")), &[checkpoint(owner, &["vdb"])], "no bitmap of vda"),
            (Some(LibvirtMark::Untracked { number: 3, image: None }.write()), &good, "last pass"),
            (Some(ChangeMark("52 de ad/9".to_owned())), &good, "none of libvirt's"),
        ];
        for (mark, checkpoints, word) in cases {
            let tracking = one(owner, mark.clone(), checkpoints);
            assert!(
                matches!(&tracking, SnapshotBase::Whole(reason) if reason.contains(word)),
                "{mark:?}: {tracking:?}"
            );
        }
    }

    #[test]
    fn exchanged_or_bitmapless_image_is_found_by_inspection() {
        let owner = MigrationId::generate();
        let good = [checkpoint(owner, &["vda"])];
        let with = |looks: &ImageFactsByDisk| {
            let requested = [(key("vda"), Some(anchor(owner, "/a'<b>")))];
            plan(owner, &requested, &disks(), looks, &good).unwrap().remove(0).tracking
        };
        assert!(matches!(with(&looks("1")), SnapshotBase::Since(_)));
        assert!(
            matches!(with(&ImageFactsByDisk::new()), SnapshotBase::Whole(reason) if reason.contains("cannot be told"))
        );
        assert!(matches!(with(&looks("2")), SnapshotBase::Whole(reason) if reason.contains("another file")));
        let old = ImageFacts { identity: None, untracked: Some("old".to_owned()) };
        assert!(matches!(with(&[("vda".to_owned(), old)].into()), SnapshotBase::Untracked(_)));
    }

    #[test]
    fn an_anchor_that_knows_no_file_holds_without_a_look() {
        let owner = MigrationId::generate();
        let good = [checkpoint(owner, &["vda"])];
        let image = ImageIdentity { place: "/a'<b>".to_owned(), identity: None };
        let mark = LibvirtMark::Checkpoint { name: good[0].name.clone(), size: SIZE, image }.write();
        let plans =
            plan(owner, &[(key("vda"), Some(mark))], &disks(), &ImageFactsByDisk::new(), &good).unwrap();
        assert!(matches!(plans[0].tracking, SnapshotBase::Since(_)), "{plans:?}");
    }

    #[test]
    fn other_image_than_at_the_last_pass_is_refused_when_off() {
        let owner = MigrationId::generate();
        let judged = |name: &str, mark: Option<ChangeMark>, looks: &ImageFactsByDisk| {
            let requested = [(key(name), mark)];
            let plans = plan(owner, &requested, &disks(), looks, &[]).unwrap();
            same_images(&requested, &plans)
        };
        let untracked = |place: &str| {
            let image = ImageIdentity { place: place.to_owned(), identity: None };
            Some(LibvirtMark::Untracked { number: 3, image: Some(image) }.write())
        };
        let same = || Some(anchor(owner, "/a'<b>"));
        assert_eq!(judged("vda", same(), &looks("1")), Ok(()));
        assert_eq!(judged("vda", same(), &ImageFactsByDisk::new()), Ok(()), "a doubt costs a comparison");
        assert_eq!(judged("vda", None, &looks("1")), Ok(()));
        assert_eq!(judged("vdc", untracked("/d"), &ImageFactsByDisk::new()), Ok(()));
        for (name, mark, looks, word) in [
            ("vda", Some(anchor(owner, "/x/new")), looks("1"), "/x/new"),
            ("vda", same(), looks("2"), "another file"),
            ("vdc", untracked("/x/new"), ImageFactsByDisk::new(), "/x/new"),
        ] {
            let error = judged(name, mark, &looks).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_no_disk_or_cannot_be_read_is_an_error() {
        let owner = MigrationId::generate();
        let plan = |name| {
            plan(owner, &[(key("vda"), None), (key(name), None)], &disks(), &ImageFactsByDisk::new(), &[])
        };
        assert_eq!(plan("vdz").unwrap_err(), PlanError::Missing(key("vdz")));
        assert_eq!(plan("sdb").unwrap_err(), PlanError::Missing(key("sdb")));
        assert_eq!(plan("sda").unwrap_err(), PlanError::Lun(key("sda")));
        assert!(matches!(plan("vdc").unwrap()[1].tracking, SnapshotBase::Untracked(_)));
    }

    #[test]
    fn the_xml_names_each_disk_once_and_survives_odd_paths() {
        let owner = MigrationId::generate();
        let settings = LibvirtSourceSettings {
            scratch_dir: "/s/it's <here>".into(),
            ..LibvirtSourceSettings::default()
        };
        let dirs = RuntimeDirs::new(&settings, owner);
        let requested = [(key("vda"), Some(anchor(owner, "/a'<b>"))), (key("vdc"), None)];
        let plans = plan(owner, &requested, &disks(), &looks("1"), &[checkpoint(owner, &["vda"])]).unwrap();

        let text = backup_xml(&plans, &disks(), &dirs, Path::new("/q/so&ck"));
        let job = BackupJob::read(&text).unwrap();
        assert_eq!(job.socket.as_deref(), Some("/q/so&ck"));
        let scratch = [0, 1].map(|number| dirs.scratch_file(number).to_string_lossy().into_owned());
        assert_eq!(job.scratch, scratch);
        let document = xml::parse(&text, "domainbackup").unwrap();
        let disks_node = xml::child(document.root_element(), "disks").unwrap();
        let said: Vec<_> = xml::children(disks_node, "disk")
            .map(|disk| (disk.attribute("name"), disk.attribute("backup"), disk.attribute("backupmode")))
            .collect();
        let (yes, no) = (Some("yes"), Some("no"));
        assert_eq!(
            said,
            [
                (Some("vda"), yes, Some("incremental")),
                (Some("vdc"), yes, Some("full")),
                (Some("vdb"), no, None),
                (Some("sda"), no, None),
                (Some("sdb"), no, None),
            ]
        );

        let text = checkpoint_xml(&plans, &disks(), owner, "warmd-x-4").unwrap();
        let read = Checkpoint::read(&text).unwrap();
        assert_eq!((read.name.as_str(), read.disks), ("warmd-x-4", vec!["vda".to_owned()]));
        assert!(read.description.contains(&owner.to_string()));
        assert_eq!(checkpoint_xml(&plans[1..], &disks(), owner, "x"), None);
    }
}
