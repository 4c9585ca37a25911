//! What an inspection found in a guest, and what that means for its move. Pure.
//!
//! Rule: what could not be read is unknown, and says nothing: neither that the guest boots nor that it does
//! not.

use serde::{Deserialize, Serialize};
use warmd_core::model::{
    conversion::Conversion,
    rule::{Objection, Rule},
};

/// Free space that virt-v2v needs, in bytes: on the root file system, and on /boot where it is its own.
const ROOT_NEEDS: u64 = 100 << 20;
const BOOT_NEEDS: u64 = 50 << 20;
const OTHERS_NEED: u64 = 10 << 20;

/// Families of Linux that virt-v2v converts, by libguestfs' names.
const LINUX: [&str; 18] = [
    "rhel",
    "centos",
    "scientificlinux",
    "redhat-based",
    "oraclelinux",
    "rocky",
    "almalinux",
    "fedora",
    "sles",
    "suse-based",
    "opensuse",
    "debian",
    "ubuntu",
    "linuxmint",
    "kalilinux",
    "altlinux",
    "eurolinux",
    "amazonlinux",
];

/// A guest, as its disks show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    /// The file systems that a system boots from; several of them: several systems.
    pub roots: Vec<String>,
    /// `linux`, `windows`, or another.
    pub kind: String,
    /// `debian`, `rhel` …
    pub distribution: String,
    pub product: String,
    pub host_name: String,
    /// `grub2`, `grub`, `other`, or empty.
    pub boot_loader: String,
    /// Lines of /etc/fstab that name a disk by its place, such as `/dev/sda2`.
    pub named_by_place: Vec<String>,
    /// Whether virtio's block driver is in the newest initramfs.
    pub boots_on_virtio: Option<bool>,
    pub vmware_tools: bool,
    /// Encrypted devices that no key opened.
    pub locked: Vec<String>,
    pub rooms: Vec<FileSystemRoom>,
    /// Configured names of interfaces that no MAC belongs to for certain.
    pub unknown_interfaces: Vec<String>,
}

/// A file system's free space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemRoom {
    pub mounted_at: String,
    pub size: u64,
    pub free: u64,
}

impl Guest {
    /// The name of its system.
    pub fn system(&self) -> String {
        if self.product.is_empty() {
            let kind = self.kind.as_str();
            return if kind.is_empty() { "no system that is known" } else { kind }.to_owned();
        }
        // Debian's product is its version alone.
        let is_version = self.product.starts_with(|first: char| first.is_ascii_digit());
        if is_version { format!("{} {}", self.distribution, self.product) } else { self.product.clone() }
    }

    /// One line about it.
    pub fn summary(&self) -> String {
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        let system = self.system();
        let virtio = match self.boots_on_virtio {
            Some(true) => "virtio in its initramfs",
            Some(false) => "no virtio in its initramfs",
            None => "whether it boots on virtio is not known",
        };
        let tools = if self.vmware_tools { ", VMware Tools" } else { "" };
        let loader = or(&self.boot_loader, "no boot loader that is known");
        format!("{system} on {}, {loader}, {virtio}{tools}", or(&self.roots.join(" and "), "no file system"))
    }

    /// What speaks against this conversion of it.
    pub fn concerns(&self, conversion: &Conversion) -> Vec<Objection> {
        match conversion {
            Conversion::None => self.unconverted(),
            Conversion::VirtV2v(options) => {
                let mut all: Vec<_> = self.obstacles(&options.root);
                if let [first, ..] = self.unknown_interfaces.as_slice() {
                    all.push(Objection::new(
                        Rule::GuestNamesInterfaces,
                        format!(
                            "it configures {}, and which MAC addresses these names belong to is not known: name them \
                             in `interfaces` of the conversion, such as `\"52:54:00:00:00:01\" = \"{first}\"`",
                            self.unknown_interfaces.join(", ")
                        ),
                    ));
                }
                all
            }
            // What a program of the user does about it is not known.
            Conversion::Command(_) => Vec::new(),
        }
    }

    fn unconverted(&self) -> Vec<Objection> {
        let mut all = Vec::new();
        if self.boots_on_virtio == Some(false) {
            let from = if self.vmware_tools { "comes from VMware and " } else { "" };
            all.push(Objection::new(
                Rule::GuestNeedsConversion,
                format!(
                    "the guest {from}has no virtio in its initramfs: it does not boot from a virtio disk"
                ),
            ));
        }
        if !self.named_by_place.is_empty() {
            all.push(Objection::new(
                Rule::GuestNamesDisks,
                format!("its fstab has {}: these names change with the bus", self.named_by_place.join("; ")),
            ));
        }
        all
    }

    /// Why virt-v2v would fail, or leave something unconverted.
    fn obstacles(&self, root: &str) -> Vec<Objection> {
        let mut all = Vec::new();
        if !self.locked.is_empty() {
            let locked = self.locked.join(", ");
            all.push(format!(
                "{locked} is encrypted, and no key of the plan opens it: name its file in `keys`"
            ));
        }
        match self.roots.as_slice() {
            // With a locked disk the system is behind it.
            [] if self.locked.is_empty() => all.push("no operating system is found on its disks".to_owned()),
            [] | [_] => {}
            several if root == "single" => all.push(format!(
                "it has systems on {}: choose one with `root` of the conversion",
                several.join(", ")
            )),
            _ => {}
        }
        let is_known = match self.kind.as_str() {
            "linux" => LINUX.contains(&self.distribution.as_str()),
            "windows" | "" => true,
            _ => false,
        };
        if !is_known {
            all.push(format!("virt-v2v does not convert {} ({})", self.kind, self.distribution));
        }
        if self.kind == "linux" && self.boot_loader.is_empty() {
            all.push("no boot loader that virt-v2v knows (GRUB) is found".to_owned());
        }
        for room in &self.rooms {
            let needs = match room.mounted_at.as_str() {
                "/" => ROOT_NEEDS,
                "/boot" => BOOT_NEEDS,
                _ => OTHERS_NEED,
            };
            if room.free < needs {
                let (free, needs) = (room.free >> 20, needs >> 20);
                all.push(format!(
                    "{} has {free} MiB free, and virt-v2v needs {needs} MiB: make room in the guest",
                    room.mounted_at
                ));
            }
        }
        all.into_iter().map(|why| Objection::new(Rule::GuestNotConvertible, why)).collect()
    }
}

/// The lines of an fstab that name a disk by its place on a bus.
pub(crate) fn named_by_place(fstab: &str) -> Vec<String> {
    let is_place = |device: &str| {
        ["/dev/sd", "/dev/hd", "/dev/vd", "/dev/xvd", "/dev/nvme", "/dev/disk/by-path/", "/dev/disk/by-id/"]
            .iter()
            .any(|place| device.starts_with(place))
    };
    let lines = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut all = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        if let (Some(device), Some(place)) = (words.next(), words.next())
            && is_place(device)
            // CD-ROM drives and floppies are not disks.
            && !["/media/cdrom", "/media/floppy"].iter().any(|medium| place.starts_with(medium))
        {
            all.push(format!("{device} ({place})"));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use warmd_core::model::conversion::{Converter, VirtV2v};

    use super::*;

    fn debian() -> Guest {
        Guest {
            roots: vec!["/dev/sda1".to_owned()],
            kind: "linux".to_owned(),
            distribution: "debian".to_owned(),
            boot_loader: "grub2".to_owned(),
            boots_on_virtio: Some(false),
            vmware_tools: true,
            rooms: vec![FileSystemRoom { mounted_at: "/".to_owned(), size: 2 << 30, free: 1 << 30 }],
            ..Guest::default()
        }
    }

    fn v2v() -> Conversion {
        Conversion::VirtV2v(VirtV2v::default())
    }

    fn texts(guest: &Guest, conversion: &Conversion) -> String {
        let all: Vec<_> = guest.concerns(conversion).into_iter().map(|concern| concern.found).collect();
        all.join("\n")
    }

    #[test]
    fn a_guest_from_vmware_needs_the_conversion_that_it_can_have() {
        assert_eq!(texts(&debian(), &v2v()), "");
        let told = texts(&debian(), &Conversion::None);
        assert!(told.contains("comes from VMware and has no virtio in its initramfs"), "{told}");
        let unknown = Guest { boots_on_virtio: None, ..debian() };
        assert_eq!(texts(&unknown, &Conversion::None), "", "unknown is not a finding");
        let command = Converter { command: vec!["/x".to_owned()], timeout: VirtV2v::default().timeout };
        assert_eq!(texts(&debian(), &Conversion::Command(command)), "");
    }

    #[test]
    fn what_virt_v2v_cannot_do_is_reported_before() {
        let room = |at: &str, free| FileSystemRoom { mounted_at: at.to_owned(), size: 1 << 30, free };
        for (guest, why) in [
            (Guest { roots: vec![], ..debian() }, "no operating system"),
            (
                Guest { roots: vec!["/dev/sda1".to_owned(), "/dev/sdb1".to_owned()], ..debian() },
                "choose one with `root`",
            ),
            (Guest { kind: "freebsd".to_owned(), ..debian() }, "does not convert freebsd"),
            (
                Guest { distribution: "archlinux".to_owned(), ..debian() },
                "does not convert linux (archlinux)",
            ),
            (Guest { boot_loader: String::new(), ..debian() }, "no boot loader"),
            (Guest { rooms: vec![room("/", 90 << 20)], ..debian() }, "/ has 90 MiB free"),
            (Guest { rooms: vec![room("/boot", 49 << 20)], ..debian() }, "/boot has 49 MiB free"),
            (
                Guest { roots: vec![], locked: vec!["/dev/sda3".to_owned()], ..debian() },
                "/dev/sda3 is encrypted",
            ),
        ] {
            let found = guest.concerns(&v2v());
            assert!(found.len() == 1 && found[0].found.contains(why), "{found:?} for {why}");
            assert_eq!(found[0].rule, Rule::GuestNotConvertible);
        }
        let several = Guest { roots: vec!["/dev/sda1".to_owned(), "/dev/sdb1".to_owned()], ..debian() };
        let first = VirtV2v { root: "first".to_owned(), ..VirtV2v::default() };
        assert_eq!(texts(&several, &Conversion::VirtV2v(first)), "");
        let named = Guest { unknown_interfaces: vec!["ens224".to_owned()], ..debian() };
        assert_eq!(named.concerns(&v2v())[0].rule, Rule::GuestNamesInterfaces);
    }

    #[test]
    fn places_in_fstab_are_found_and_names_are_not() {
        let fstab = "# /dev/sda1 was here\nUUID=1 / ext4 defaults 0 1\n/dev/sda2 none swap sw 0 0\n\
                     LABEL=x /x xfs\n/dev/mapper/vg-home /home ext4\n/dev/sr0 /media/cdrom0 udf\n\n/dev/hda3 /old ext3\n\
                     /dev/sdb /media/cdrom0 auto\n";
        assert_eq!(named_by_place(fstab), ["/dev/sda2 (none)", "/dev/hda3 (/old)"]);
        let guest = Guest { named_by_place: named_by_place(fstab), ..debian() };
        assert_eq!(guest.concerns(&Conversion::None).len(), 2);
    }

    #[test]
    fn a_summary_says_what_is_not_known() {
        assert_eq!(
            Guest::default().summary(),
            "no system that is known on no file system, no boot loader that is known, whether it boots on virtio is not known"
        );
        let product = Guest { product: "12.5".to_owned(), ..debian() };
        assert_eq!(
            product.summary(),
            "debian 12.5 on /dev/sda1, grub2, no virtio in its initramfs, VMware Tools"
        );
    }
}
