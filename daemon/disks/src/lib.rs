//! NBD client, raw volumes and images.
#![deny(unsafe_code)]

pub mod nbd;
pub mod qemu_img;
pub mod volume;
