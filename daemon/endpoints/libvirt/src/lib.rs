//! libvirt as source and target.
#![deny(unsafe_code)]

pub mod libvirt;
pub mod source;
pub mod target;
