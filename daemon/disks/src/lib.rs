//! Disks as bytes: the NBD client, raw files and block devices, and images by way of `qemu-img`; and child
//! processes, which serve or convert them.
//!
//! Rule: data acknowledged as flushed is durable, and data that may not be durable is never called so. Knows
//! the engine's traits (`cbt`) and threads for calls that may hang; not the nouns of `core`, not endpoints.
//! With libvirt's C interface this is the only place of `unsafe` code: each use says why it is sound.
#![deny(unsafe_code)]

pub mod child;
pub mod nbd;
pub mod qemu_img;
pub mod spawner;
pub mod volume;
