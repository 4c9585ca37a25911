//! How much a vCenter and an ESXi can take: defaults for budgets, each with where it is from.
//!
//! Rule: numbers only. Who has them as budgets counts over all migrations; nothing here does.

/// The oldest API that is spoken: vSphere 6.5. Older ones have no instance UUIDs in all that is asked here.
pub const OLDEST_API: &str = "6.5";
/// The oldest release, for comparison.
pub const OLDEST: (u32, u32) = (6, 5);

/// Calls to a server at the same time. vCenter's own client uses about as many.
pub const SOAP_CONNECTIONS: usize = 12;

/// Memory that an ESXi host has for its NFC service, in bytes: 48 MiB through vCenter ("VDDK Programming
/// Guide", NFC session limits).
pub const NFC_MEMORY_PER_HOST: u64 = 48 << 20;

/// Bytes of that memory that one open disk takes in practice: about ten VMs of a host at a time exhaust it.
pub const NFC_MEMORY_PER_DISK: u64 = 4 << 20;

/// Disks of one ESXi host that are open at the same time through vCenter: the documented 50 are a bound above
/// what its memory carries.
pub const DISKS_PER_HOST: usize = (NFC_MEMORY_PER_HOST / NFC_MEMORY_PER_DISK) as usize;
pub const DISKS_PER_HOST_MOST: usize = 50;

/// Disks that are open at the same time through one vCenter: 52 connections ("VDDK Programming Guide"), two
/// of them left to others.
pub const DISKS_PER_VCENTER: usize = 50;

/// VMs of one ESXi host that are copied at the same time: sites report that more exhaust its NFC memory.
pub const VMS_PER_HOST: usize = 10;

/// Snapshots of one vCenter that are made or removed at the same time: each stuns a VM, and consolidations of
/// one datastore take from each other.
pub const SNAPSHOTS_AT_ONCE: usize = 4;

/// Objects in a page of properties.
pub const PAGE: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_host_carries_its_disks() {
        const { assert!(DISKS_PER_HOST as u64 * NFC_MEMORY_PER_DISK <= NFC_MEMORY_PER_HOST) };
        const { assert!(DISKS_PER_HOST <= DISKS_PER_HOST_MOST && DISKS_PER_HOST >= VMS_PER_HOST) };
    }
}
