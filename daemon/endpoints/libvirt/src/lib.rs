//! libvirt as source and as target, over its C interface, loaded at run time.
//!
//! Rule: "cannot be reached" is never "off", and a code or a text that is not in a table is never success.
//! Knows the ports of `core`, disks, and the storage of a host's targets; not migrations, not the state.
#![deny(unsafe_code)]

pub mod libvirt;
pub mod source;
pub mod target;
