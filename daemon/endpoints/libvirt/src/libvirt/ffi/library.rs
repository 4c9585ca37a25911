//! libvirt's libraries: found, initialised and kept.
//!
//! Rule: each is loaded once, when it is first needed, and never unloaded; a missing library is an ordinary
//! error. One thread runs libvirt's events for as long as the process lives.

use std::{ffi::c_void, ptr::null_mut, sync::OnceLock};

use libloading::Library;

use super::{
    answer::{CallFailure, CallResult},
    symbols::{AgentCommand, LibvirtApi, MonitorCommand, VirError},
};

pub(super) fn api() -> CallResult<&'static LibvirtApi> {
    static API: OnceLock<Result<LibvirtApi, String>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(|why| CallFailure::Missing(why.clone()))
}

fn load() -> Result<LibvirtApi, String> {
    // SAFETY: libvirt's library runs no code at loading that this process has to prepare for.
    let library = unsafe { Library::new("libvirt.so.0") }
        .map_err(|error| format!("libvirt's library is not here ({error}): install the package libvirt0"))?;
    let api = LibvirtApi::of(library)?;
    // SAFETY: the order that libvirt documents: the event loop first, then the initialisation. The handler
    // is a function without state; without it libvirt would print to stderr.
    let ready = unsafe {
        (api.virSetErrorFunc)(null_mut(), Some(silence));
        (api.virEventRegisterDefaultImpl)() >= 0 && (api.virInitialize)() >= 0
    };
    if !ready {
        return Err("libvirt's library does not start".to_owned());
    }
    let run = api.virEventRunDefaultImpl;
    #[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
    let events = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(move || {
        loop {
            // SAFETY: the event loop was registered above, the library is never unloaded, and no other thread
            // runs it.
            if unsafe { run() } < 0 {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    });
    events.map_err(|error| format!("no thread for libvirt's events: {error}"))?;
    Ok(api)
}

unsafe extern "C" fn silence(_: *mut c_void, _: *mut VirError) {}

/// libvirt's library for QEMU alone, which comes in the same package.
fn qemu() -> CallResult<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    // SAFETY: the library runs no code at loading that this process has to prepare for.
    LIBRARY
        .get_or_init(|| unsafe { Library::new("libvirt-qemu.so.0") }.map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|why| CallFailure::Missing(why.clone()))
}

pub(super) fn agent_command() -> CallResult<AgentCommand> {
    // SAFETY: the name and the signature are those of libvirt's headers, and the library is never unloaded.
    let symbol = unsafe { qemu()?.get::<AgentCommand>(b"virDomainQemuAgentCommand\0") };
    symbol.map(|symbol| *symbol).map_err(|error| CallFailure::Missing(error.to_string()))
}

pub(super) fn monitor_command() -> CallResult<MonitorCommand> {
    // SAFETY: as above.
    let symbol = unsafe { qemu()?.get::<MonitorCommand>(b"virDomainQemuMonitorCommand\0") };
    symbol.map(|symbol| *symbol).map_err(|error| CallFailure::Missing(error.to_string()))
}
