//! The command lines of virt-v2v and its companions, from the plan's settings. Pure.
//!
//! Rule: a key is passed as the name of its file, never as itself.

use std::path::Path;

use warmd_core::model::conversion::VirtV2v;

use crate::tools::Version;

/// From this version on virt-v2v-in-place writes the changed machine into a file.
const WRITES_MACHINE: Version = Version(2, 5);

/// The arguments of `virt-v2v-in-place`. `machine` is the file into which it writes the changed machine, if
/// it can.
pub(crate) fn in_place(options: &VirtV2v, version: Version, domain: &Path, machine: &Path) -> Vec<String> {
    let mut all = vec!["-i".to_owned(), "libvirtxml".to_owned()];
    if version >= WRITES_MACHINE {
        all.extend(["-O".to_owned(), machine.display().to_string()]);
    }
    all.extend(["--root".to_owned(), options.root.clone()]);
    all.extend(keys(options));
    for (mac, address) in &options.addresses {
        all.extend(["--mac".to_owned(), format!("{mac}:ip:{address}")]);
    }
    all.push(domain.display().to_string());
    all
}

/// The arguments that name keys of encrypted disks, for all tools of libguestfs.
pub(crate) fn keys(options: &VirtV2v) -> Vec<String> {
    let key = |(device, file): (&String, &std::path::PathBuf)| {
        ["--key".to_owned(), format!("{device}:file:{}", file.display())]
    };
    options.keys.iter().flat_map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_becomes_an_argument() {
        let options = VirtV2v {
            root: "/dev/sda2".to_owned(),
            keys: [("/dev/sda3".to_owned(), "/etc/warmd/key".into())].into(),
            addresses: [("00:50:56:00:00:01".to_owned(), "192.0.2.7,192.0.2.1,24".to_owned())].into(),
            ..VirtV2v::default()
        };
        let of = |version| in_place(&options, version, Path::new("/f/domain.xml"), Path::new("/f/back.xml"));
        assert_eq!(
            of(Version(2, 2)).join(" "),
            "-i libvirtxml --root /dev/sda2 --key /dev/sda3:file:/etc/warmd/key \
             --mac 00:50:56:00:00:01:ip:192.0.2.7,192.0.2.1,24 /f/domain.xml"
        );
        assert!(of(Version(2, 10)).join(" ").starts_with("-i libvirtxml -O /f/back.xml --root"));
        let plain = in_place(&VirtV2v::default(), Version(2, 0), Path::new("/d"), Path::new("/b"));
        assert_eq!(plain.join(" "), "-i libvirtxml --root single /d");
    }
}
