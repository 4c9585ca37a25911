//! Reads a guest through guestfish: its system, its boot, its room, and its network configuration.
//!
//! Rule: only what `run`, `inspect-os` and the mount of the root need must succeed; each other question may
//! fail, and its answer is unknown then.

use std::io;

use warmd_core::model::{conversion::VirtV2v, machine::Machine};

use crate::{
    fish::Fish,
    guest::{FileSystemRoom, Guest, named_by_place},
    interfaces::{self, ConfigFile},
};

/// The most files of one folder that are read.
const MOST_FILES: usize = 64;
/// The most lines of one file.
const MOST_LINES: &str = "2000";

/// Starts the appliance and finds the systems; mounts the chosen one. Returns the guest so far.
pub(crate) fn mount(fish: &mut Fish, options: &VirtV2v) -> io::Result<Guest> {
    // With keys guestfish has been started with `-i`, which opens and mounts everything.
    let is_mounted = !options.keys.is_empty();
    if !is_mounted {
        fish.must(&["run"])?;
    }
    let roots = if is_mounted { fish.must(&["inspect-get-roots"])? } else { fish.must(&["inspect-os"])? };
    let roots = lines(&roots);
    // Devices that were opened are file systems of their own.
    let systems = if is_mounted { String::new() } else { fish.ask(&["list-filesystems"])? };
    let locked = systems
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(_, kind)| ["crypto_LUKS", "BitLocker"].contains(&kind.trim()))
        .map(|(device, _)| device.to_owned())
        .collect();
    let mut guest = Guest { roots, locked, ..Guest::default() };
    let root = match options.root.as_str() {
        "single" | "first" => guest.roots.first().cloned(),
        device => guest.roots.iter().find(|root| *root == device).cloned(),
    };
    let Some(root) = root else { return Ok(guest) };
    let mut ask = |command: &str| fish.ask(&[command, &root]).map(|answer| answer.trim().to_owned());
    guest.kind = ask("inspect-get-type")?;
    guest.distribution = ask("inspect-get-distro")?;
    guest.product = ask("inspect-get-product-name")?;
    guest.host_name = ask("inspect-get-hostname")?;
    if !is_mounted {
        let mut points: Vec<_> = ask("inspect-get-mountpoints")?
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(point, device)| (point.trim().to_owned(), device.trim().to_owned()))
            .collect();
        points.sort_by_key(|(point, _)| point.len());
        for (point, device) in points {
            if point == "/" {
                fish.must(&["mount", &device, "/"])?;
            } else {
                fish.ask(&["mount", &device, &point])?;
            }
        }
    }
    Ok(guest)
}

/// Reads the mounted system.
pub(crate) fn read(
    fish: &mut Fish,
    guest: &mut Guest,
    machine: &Machine,
    options: &VirtV2v,
) -> io::Result<()> {
    for line in fish.ask(&["mountpoints"])?.lines() {
        let Some((_, point)) = line.split_once(": ") else { continue };
        let room = fish.ask(&["statvfs", point.trim()])?;
        guest.rooms.extend(room_of(point.trim(), &room));
    }
    if guest.kind != "linux" {
        guest.vmware_tools = is_there(fish, "/Program Files/VMware/VMware Tools")?;
        return Ok(());
    }
    guest.vmware_tools = is_there(fish, "/usr/bin/vmtoolsd")? || is_there(fish, "/usr/sbin/vmtoolsd")?;
    for (file, loader) in [
        ("/boot/grub2/grub.cfg", "grub2"),
        ("/boot/grub/grub.cfg", "grub2"),
        ("/boot/efi/EFI", "grub2"),
        ("/boot/grub/menu.lst", "grub"),
        ("/boot/grub/grub.conf", "grub"),
    ] {
        if guest.boot_loader.is_empty() && is_there(fish, file)? {
            loader.clone_into(&mut guest.boot_loader);
        }
    }
    guest.named_by_place = named_by_place(&fish.ask(&["head-n", MOST_LINES, "/etc/fstab"])?);
    guest.boots_on_virtio = boots_on_virtio(fish)?;
    let files = network_files(fish)?;
    guest.unknown_interfaces = interfaces::names(&options.interfaces, &machine.nics, &files).unknown;
    Ok(())
}

/// The files of the network's configuration.
pub(crate) fn network_files(fish: &mut Fish) -> io::Result<Vec<ConfigFile>> {
    let mut paths: Vec<String> = interfaces::FILES.map(str::to_owned).to_vec();
    for folder in interfaces::FOLDERS {
        if !is_there(fish, folder)? {
            continue;
        }
        let names = fish.ask(&["ls", folder])?;
        let names = names.lines().filter(|name| is_plain(name)).take(MOST_FILES);
        paths.extend(names.map(|name| format!("{folder}/{name}")));
    }
    let mut files = Vec::new();
    for path in paths {
        if fish.ask(&["is-file", &path])?.trim() != "true" {
            continue;
        }
        let text = fish.ask(&["head-n", MOST_LINES, &path])?;
        files.push(ConfigFile { path, text });
    }
    Ok(files)
}

/// Whether the newest initramfs has virtio's block driver; the guest's own tool lists it.
fn boots_on_virtio(fish: &mut Fish) -> io::Result<Option<bool>> {
    let script = "for f in $(ls -t /boot/initrd.img-* /boot/initramfs-*.img /boot/initrd-* 2>/dev/null | grep -v rescue | head -n 1); \
                  do if command -v lsinitramfs >/dev/null; then l=$(lsinitramfs $f); else l=$(lsinitrd $f); fi || exit 1; \
                  case $l in *virtio_blk*) echo yes;; ?*) echo no;; esac; done; \
                  grep -q virtio_blk /lib/modules/$(ls -t /lib/modules | head -n 1)/modules.builtin && echo builtin; true";
    let answer = fish.ask(&["sh", script])?;
    let said = |word: &str| answer.lines().any(|line| line.trim() == word);
    Ok(if said("yes") || said("builtin") { Some(true) } else { said("no").then_some(false) })
}

fn is_there(fish: &mut Fish, path: &str) -> io::Result<bool> {
    Ok(fish.ask(&["exists", path])?.trim() == "true")
}

/// A name that is no trouble in a command.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@:+ -".contains(&byte))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The room in `statvfs`' answer.
fn room_of(point: &str, answer: &str) -> Option<FileSystemRoom> {
    let number = |name: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    let block = number("frsize").or_else(|| number("bsize"))?;
    let size = number("blocks")?.checked_mul(block)?;
    let free = number("bavail")?.checked_mul(block)?;
    Some(FileSystemRoom { mounted_at: point.to_owned(), size, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_read_from_statvfs() {
        let answer = "bsize: 4096\nfrsize: 1024\nblocks: 2048\nbfree: 1000\nbavail: 512\nfiles: 1\n";
        let wanted = FileSystemRoom { mounted_at: "/".to_owned(), size: 2 << 20, free: 512 << 10 };
        assert_eq!(room_of("/", answer), Some(wanted));
        assert_eq!(room_of("/", "bsize: 4096\n"), None);
        assert_eq!(room_of("/", ""), None);
    }

    #[test]
    fn odd_names_of_files_are_not_asked_for() {
        assert!(is_plain("Wired connection 1.nmconnection") && is_plain("ifcfg-ens192"));
        assert!(!is_plain("a\"b") && !is_plain("$(x)") && !is_plain(""));
    }
}
