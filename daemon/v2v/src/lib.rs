//! Conversion of guests by virt-v2v, and inspection of guests by guestfish: what both are asked, and what
//! they say.
//!
//! Rule: it runs in a child process of the daemon (`warmd virt-v2v`), which the daemon kills with everything
//! that it started. So waits here end with that process, and a guest's disk that breaks a tool breaks no
//! daemon. Everything that comes from a guest is outside data: bounded, and never a name of a file of the
//! host. Knows the machine and the plan's settings of `core`; not a migration, an endpoint or the state.
#![forbid(unsafe_code)]

mod appliance;
mod arguments;
mod domain;
mod fish;
mod guest;
mod input;
mod interfaces;
mod read_guest;
mod result;
mod run;
pub mod tools;

pub use self::{
    guest::{FileSystemRoom, Guest},
    run::{INSPECT, SUBCOMMAND, main},
};
