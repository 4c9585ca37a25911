//! libvirt's C interface, loaded when it is first needed: the only unsafe code that talks to libvirt.
//!
//! Rule: only owned values leave this folder. Each object that libvirt hands out is freed once, by its
//! `Drop`, and cannot outlive its connection; each text is copied and freed; each failure is read in its own
//! thread, before the next call. The library is never unloaded.

#![allow(unsafe_code, reason = "a C interface; the rest of the daemon sees the safe types of this folder")]
#![allow(non_snake_case, reason = "C's names")]

mod answer;
mod connection;
mod domain;
mod handle;
mod library;
mod symbols;

pub(super) use self::{answer::CallFailure, connection::LibvirtConnection, domain::LibvirtDomain};
