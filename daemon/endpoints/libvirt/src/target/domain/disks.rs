//! The disks, drives and boot order of a domain. Pure.
//!
//! Rule: a disk keeps its bus and its name where the target may keep them; the order of booting stays.

use warmd_cbt::buffer::ALIGNMENT;
use warmd_core::model::hardware::HardwareElement;
use warmd_storage::{DiskLocation, LocatedDisk};

use super::{
    super::{carried::Carried, foreign, settings::DiskBus, xml::Element},
    DomainBuilder, UnsupportedHardware, family,
};

/// From `vda` to `vdzz`.
pub(super) const MAX_DISKS: usize = 26 * 27;

impl DomainBuilder<'_> {
    /// The disks in the order of booting.
    fn in_order(&self) -> Vec<&LocatedDisk> {
        let mut disks: Vec<&LocatedDisk> = self.disks.iter().collect();
        disks.sort_by_key(|disk| self.request.boot_order(&disk.key));
        disks
    }

    /// All boot devices, the first one first: disks in the machine's order, and between them the carried
    /// devices.
    pub(super) fn boot_order(&self) -> Vec<Boots<'_>> {
        let disks = self.in_order();
        let Some(carried) = self.carried() else {
            return disks.into_iter().map(|disk| Boots::Disk(&disk.key.0)).collect();
        };
        let rank =
            |key: &str| carried.part.disk(key).and_then(|disk| carried.boot_rank(disk)).unwrap_or(u32::MAX);
        // A conversion may have put them in another order: then they swap places.
        let mut ranks: Vec<_> = disks.iter().map(|disk| rank(&disk.key.0)).collect();
        ranks.sort_unstable();
        let mut order: Vec<_> =
            ranks.into_iter().zip(disks.into_iter().map(|disk| Boots::Disk(&disk.key.0))).collect();
        for drive in carried.drives() {
            order.extend(carried.boot_rank(drive).zip(drive.target().map(Boots::Drive)));
        }
        for nic in &self.request.machine.nics {
            let rank = carried.part.nic(&nic.mac).and_then(|part| carried.boot_rank(part));
            order.extend(rank.map(|rank| (rank, Boots::Nic(nic.mac.as_str()))));
        }
        order.sort_by_key(|(rank, _)| *rank);
        order.into_iter().map(|(_, device)| device).collect()
    }

    pub(super) fn disks(&self, boots: &[Boots<'_>]) -> Result<Vec<Element>, UnsupportedHardware> {
        // The order of attaching is the order of booting, so that the guest's names stay with virtio as they
        // were.
        let disks = self.in_order();
        let carried = self.carried();
        let boot = |device: Boots<'_>| {
            let at = boots.iter().position(|known| *known == device);
            at.map(|at| Element::new("boot").attr("order", at + 1))
        };
        let mut elements: Vec<_> =
            carried.into_iter().flat_map(|carried| carried.controllers("scsi")).collect();
        let mut has_scsi = !elements.is_empty();
        let mut names = Names::default();
        if carried.is_some() {
            for disk in &disks {
                names.keep(&disk.key.0, self.bus(disk).1);
            }
        }
        for drive in carried.into_iter().flat_map(Carried::drives) {
            names.keep(drive.target().unwrap_or_default(), self.drive_bus(drive).1);
        }
        for disk in disks {
            let (bus, prefix) = self.bus(disk);
            let name =
                names.take(&disk.key.0, prefix).ok_or(UnsupportedHardware::TooManyDisks(self.disks.len()))?;
            if bus == "scsi" && !has_scsi {
                let model = foreign::scsi_model(&self.request.machine);
                elements.push(Element::new("controller").attr("type", "scsi").attr("model", model));
                has_scsi = true;
            }
            let is_same_bus = self.had_bus(disk) == Some(bus);
            let (kind, source) = match &disk.place {
                DiskLocation::File(path) => ("file", Element::new("source").attr("file", path.display())),
                DiskLocation::Device(path) => ("block", Element::new("source").attr("dev", path.display())),
                DiskLocation::Nbd(_) => return Err(UnsupportedHardware::Nbd(disk.key.0.clone())),
            };
            // With the page cache bypassed QEMU accepts only whole blocks, and does not start if the disk
            // ends within one.
            let cache = if disk.size.0.is_multiple_of(ALIGNMENT as u64) { "none" } else { "writeback" };
            let driver = Element::new("driver")
                .attr("name", "qemu")
                .attr("type", "raw")
                .attr("cache", cache)
                .attr("discard", "unmap");
            let mut target = Element::new("target").attr("dev", name).attr("bus", bus);
            let mut element = Element::new("disk").attr("type", kind).attr("device", "disk");
            let (mut driver, mut rest) = (driver, Vec::new());
            if let Some(carried) = carried {
                driver = carried.disk_driver(&disk.key.0, is_same_bus, cache, driver);
                rest = carried.disk(&disk.key.0, is_same_bus);
                if let Some(had) = carried.part.disk(&disk.key.0).filter(|_| is_same_bus) {
                    element =
                        had.attribute("model").map_or(element.clone(), |model| element.attr("model", model));
                    for (name, value) in had.part("target").into_iter().flat_map(|target| &target.attributes)
                    {
                        if matches!(name.as_str(), "removable" | "rotation_rate") {
                            target = target.set(name, value);
                        }
                    }
                }
            }
            let boot = boot(Boots::Disk(&disk.key.0));
            elements.push(element.with(driver).with(source).with(target).with_all(boot).with_all(rest));
        }
        for drive in carried.into_iter().flat_map(Carried::drives) {
            let (bus, prefix) = self.drive_bus(drive);
            let own = drive.target().unwrap_or_default();
            let name = names.take(own, prefix).ok_or(UnsupportedHardware::TooManyDisks(self.disks.len()))?;
            if bus == "scsi" && !has_scsi {
                elements.push(Element::new("controller").attr("type", "scsi").attr("model", "virtio-scsi"));
                has_scsi = true;
            }
            let element = Element::new("disk").attr("type", "file");
            let element = element.attr("device", drive.attribute("device").unwrap_or("cdrom"));
            let driver = Element::new("driver").attr("name", "qemu").attr("type", "raw");
            let target = Element::new("target").attr("dev", name).attr("bus", bus);
            let readonly = drive.part("readonly").map(Element::carried);
            let serial = drive.part("serial").map(Element::carried);
            let boot = boot(Boots::Drive(own));
            elements
                .push(element.with(driver).with(target).with_all(boot).with_all(readonly).with_all(serial));
        }
        Ok(elements)
    }

    /// The bus that the disk had on the source.
    fn had_bus(&self, disk: &LocatedDisk) -> Option<&str> {
        let had = self.request.machine.disks.iter().find(|known| known.key == disk.key);
        had.map(|disk| disk.bus.as_str())
    }

    fn drive_bus(&self, drive: &HardwareElement) -> (&'static str, &'static str) {
        let bus = drive.part("target").and_then(|target| target.attribute("bus"));
        match (bus, family(&self.request.machine.machine_type)) {
            _ if drive.attribute("device") == Some("floppy") => ("fdc", "fd"),
            (Some("scsi"), _) => ("scsi", "sd"),
            (Some("usb"), _) => ("usb", "sd"),
            (Some("ide"), "pc") => ("ide", "hd"),
            _ => ("sata", "sd"),
        }
    }

    fn bus(&self, disk: &LocatedDisk) -> (&'static str, &'static str) {
        match (self.disk_bus, self.had_bus(disk)) {
            (DiskBus::Keep, Some(bus)) if foreign::is_scsi(bus) => ("scsi", "sd"),
            (DiskBus::Keep, Some("sata")) => ("sata", "sd"),
            (DiskBus::Keep, Some("usb")) => ("usb", "sd"),
            (DiskBus::Keep, Some("ide")) => ("ide", "hd"),
            _ => ("virtio", "vd"),
        }
    }
}

/// A device that takes part in booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boots<'a> {
    Disk(&'a str),
    /// A drive of a removable medium, by its name on the source.
    Drive(&'a str),
    Nic(&'a str),
}

/// The names of disks and drives: their own where the bus allows, else the next free one.
#[derive(Debug, Default)]
struct Names {
    kept: Vec<String>,
    taken: Vec<String>,
}

impl Names {
    /// Keeps a name for its old owner.
    fn keep(&mut self, name: &str, prefix: &str) {
        let letters = name.strip_prefix(prefix).unwrap_or_default();
        let fits = (1..=2).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase());
        if fits && !self.kept.iter().any(|kept| kept == name) {
            self.kept.push(name.to_owned());
        }
    }

    fn take(&mut self, own: &str, prefix: &str) -> Option<String> {
        let is_taken = |name: &String| self.taken.contains(name);
        let name = match self.kept.iter().find(|kept| *kept == own && kept.starts_with(prefix)) {
            Some(kept) if !is_taken(kept) => kept.clone(),
            _ => {
                let mut names =
                    (0..MAX_DISKS).filter_map(letters).map(|letters| format!("{prefix}{letters}"));
                names.find(|name| !is_taken(name) && !self.kept.contains(name))?
            }
        };
        self.taken.push(name.clone());
        Some(name)
    }
}

/// `a` to `z`, then `aa` to `zz`.
fn letters(nth: usize) -> Option<String> {
    let letter = |at: usize| u8::try_from(at).ok().map(|at| char::from(b'a' + at));
    match nth {
        0..26 => letter(nth).map(String::from),
        26..MAX_DISKS => Some([letter(nth / 26 - 1)?, letter(nth % 26)?].iter().collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_go_on_after_z() {
        let named: Vec<_> = [0, 25, 26, 27, 701].into_iter().filter_map(letters).collect();
        assert_eq!(named, ["a", "z", "aa", "ab", "zz"]);
        assert_eq!(letters(702), None);
    }
}
