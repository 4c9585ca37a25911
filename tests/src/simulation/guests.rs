//! What the guests of a simulation write, on the source and on the target.
//!
//! Rule: only a running VM writes, and every mark of its VM records each write of a source's guest.

use warmd_cbt::units::BLOCK;
use warmd_core::model::id::MigrationId;

use super::{
    pages::Pages,
    world::{TRACKED, Truth},
};

impl Truth {
    /// The guest writes, if it runs.
    pub(super) fn guest_writes(&mut self, vm: &str, disk: &str, at: u64, len: u64, byte: u8) {
        if self.changes(vm, disk, at, len, |pages, at| pages.fill(at, len, byte)) {
            self.note(format_args!("{vm} writes {len} times {byte} at {at} of {disk}"));
        }
    }

    /// The guest changes its disk, if it runs.
    fn changes(
        &mut self,
        vm: &str,
        disk: &str,
        at: u64,
        len: u64,
        change: impl FnOnce(&mut Pages, u64),
    ) -> bool {
        let Some(vm) = self.vms.get_mut(vm).filter(|vm| vm.runs) else { return false };
        let Some(pages) = vm.disks.get_mut(disk) else { return false };
        change(pages, at);
        for mark in vm.marks.values_mut() {
            for granule in at / TRACKED..(at + len).div_ceil(TRACKED) {
                mark.changed.insert((disk.to_owned(), granule));
            }
        }
        self.counts.add("guest writes");
        true
    }

    /// A running guest writes again what a block contained before its last snapshot.
    pub(super) fn guest_reverts(&mut self, vm: &str, disk: &str, block: usize) {
        let Some(found) = self.vms.get(vm) else { return };
        let Some(before) = found.images.values().rev().nth(1).and_then(|image| image.get(disk)) else {
            return;
        };
        let mut bytes = vec![0; (before.size() - block as u64 * BLOCK).min(BLOCK) as usize];
        before.read(block as u64 * BLOCK, &mut bytes);
        let len = bytes.len() as u64;
        self.changes(vm, disk, block as u64 * BLOCK, len, |pages, at| pages.write(at, &bytes));
    }

    /// A target's guest writes, if it runs.
    pub(super) fn target_writes(&mut self, id: MigrationId, disk: &str, at: u64, len: u64, byte: u8) {
        let Some(made) = self.targets.get_mut(&id).filter(|made| made.runs) else { return };
        let Some(disk) = made.disks.get_mut(disk) else { return };
        disk.seen.fill(at, len, byte);
        let blocks = at / BLOCK..(at + len).div_ceil(BLOCK);
        disk.used.extend(blocks.map(|block| block as usize));
        self.counts.add("target guest writes");
        self.note(format_args!("a target VM writes {len} times {byte} at {at}"));
    }
}
