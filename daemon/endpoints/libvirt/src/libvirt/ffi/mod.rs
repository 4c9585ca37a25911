//! libvirt's C interface, loaded when it is first needed: the only unsafe code that talks to libvirt.
//!
//! Rule: nothing of C leaves this folder but owned values. Each object that libvirt hands out is freed once, by its
//! `Drop`, and cannot outlive its connection; each text is copied and freed; each failure is read in the thread that it
//! happened in, before anything else is asked. The library is never unloaded.

#![allow(unsafe_code, reason = "a C interface; the rest of the daemon sees the safe types of this folder")]
#![allow(non_snake_case, reason = "C's names")]

mod answer;
mod connection;
mod domain;
mod handle;
mod library;
mod symbols;

pub(super) use self::{answer::CallFailure, connection::LibvirtConnection, domain::LibvirtDomain};
