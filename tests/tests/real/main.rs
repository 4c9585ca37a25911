//! warmd with the real world: libvirtd, QEMU and guests, file systems and devices, systemd. One program,
//! because each would be linked with all of warmd.

mod access;
mod conversion_v2v;
mod end_to_end;
mod guest;
mod hardware_libvirt;
mod libvirt_calls;
mod security;
mod service;
mod source_libvirt;
mod target_disk;
mod target_libvirt;
mod target_volume;
