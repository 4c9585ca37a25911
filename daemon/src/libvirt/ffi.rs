//! libvirt's C interface, loaded when it is first needed: the only unsafe code that talks to libvirt.
//!
//! Rule: nothing of C leaves this file but owned values. Each object that libvirt hands out is freed once, by its
//! `Drop`, and cannot outlive its connection; each text is copied and freed; each failure is read in the thread that it
//! happened in, before anything else is asked. The library is never unloaded.

#![allow(unsafe_code, reason = "a C interface; the rest of the daemon sees the safe types of this file")]
#![allow(non_snake_case, reason = "C's names")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uchar, c_uint, c_ulong, c_ulonglong, c_void},
    marker::PhantomData,
    ptr::{NonNull, null, null_mut},
    sync::OnceLock,
};

use libloading::Library;
use uuid::Uuid;

use super::child::MAX_OUTPUT;

unsafe extern "C" {
    /// Of the C library, which libvirt allocates with.
    #[link_name = "free"]
    fn release(_: *mut c_void);
}

type Object = *mut c_void;
type Event = unsafe extern "C" fn(Object, Object, c_int, c_int, *mut c_void) -> c_int;

/// Declares the functions, and how they are looked up in the library.
macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions of `libvirt.so.0`, with the signatures of its headers.
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
            /// Keeps the code behind the pointers.
            _library: Library,
        }

        impl Api {
            fn of(library: Library) -> Result<Self, String> {
                $(
                    // SAFETY: the name and the signature are those of libvirt's headers, whose interface only grows; the
                    // pointer lives no longer than the library, which is kept beside it.
                    let $name = *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|error| format!("libvirt here is too old: {error}"))?;
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

functions! {
    fn virInitialize() -> c_int;
    fn virSetErrorFunc(*mut c_void, Option<unsafe extern "C" fn(*mut c_void, *mut Said)>);
    fn virGetLastError() -> *mut Said;
    fn virEventRegisterDefaultImpl() -> c_int;
    fn virEventRunDefaultImpl() -> c_int;
    fn virConnectOpen(*const c_char) -> Object;
    fn virConnectClose(Object) -> c_int;
    fn virConnectIsAlive(Object) -> c_int;
    fn virConnectSetKeepAlive(Object, c_int, c_uint) -> c_int;
    fn virConnectGetLibVersion(Object, *mut c_ulong) -> c_int;
    fn virConnectGetVersion(Object, *mut c_ulong) -> c_int;
    fn virConnectGetType(Object) -> *const c_char;
    fn virConnectGetDomainCapabilities(
        Object, *const c_char, *const c_char, *const c_char, *const c_char, c_uint
    ) -> *mut c_char;
    fn virConnectListAllDomains(Object, *mut *mut Object, c_uint) -> c_int;
    fn virConnectListAllNetworks(Object, *mut *mut Object, c_uint) -> c_int;
    fn virConnectDomainEventRegisterAny(
        Object, Object, c_int, Option<Event>, *mut c_void, Option<unsafe extern "C" fn(*mut c_void)>
    ) -> c_int;
    fn virConnectDomainEventDeregisterAny(Object, c_int) -> c_int;
    fn virDomainLookupByUUID(Object, *const c_uchar) -> Object;
    fn virDomainDefineXMLFlags(Object, *const c_char, c_uint) -> Object;
    fn virDomainCreateXML(Object, *const c_char, c_uint) -> Object;
    fn virDomainFree(Object) -> c_int;
    fn virDomainGetName(Object) -> *const c_char;
    fn virDomainGetUUID(Object, *mut c_uchar) -> c_int;
    fn virDomainGetXMLDesc(Object, c_uint) -> *mut c_char;
    fn virDomainGetState(Object, *mut c_int, *mut c_int, c_uint) -> c_int;
    fn virDomainGetBlockInfo(Object, *const c_char, *mut BlockInfo, c_uint) -> c_int;
    fn virDomainIsPersistent(Object) -> c_int;
    fn virDomainHasManagedSaveImage(Object, c_uint) -> c_int;
    fn virDomainGetAutostart(Object, *mut c_int) -> c_int;
    fn virDomainSetAutostart(Object, c_int) -> c_int;
    fn virDomainListAllSnapshots(Object, *mut *mut Object, c_uint) -> c_int;
    fn virDomainSnapshotGetName(Object) -> *const c_char;
    fn virDomainSnapshotFree(Object) -> c_int;
    fn virDomainCreate(Object) -> c_int;
    fn virDomainDestroyFlags(Object, c_uint) -> c_int;
    fn virDomainShutdownFlags(Object, c_uint) -> c_int;
    fn virDomainUndefineFlags(Object, c_uint) -> c_int;
    fn virDomainSetLifecycleAction(Object, c_uint, c_uint, c_uint) -> c_int;
    fn virDomainSetMetadata(Object, c_int, *const c_char, *const c_char, *const c_char, c_uint) -> c_int;
    fn virDomainBackupBegin(Object, *const c_char, *const c_char, c_uint) -> c_int;
    fn virDomainBackupGetXMLDesc(Object, c_uint) -> *mut c_char;
    fn virDomainGetJobStats(Object, *mut c_int, *mut *mut c_void, *mut c_int, c_uint) -> c_int;
    fn virTypedParamsGetInt(*mut c_void, c_int, *const c_char, *mut c_int) -> c_int;
    fn virTypedParamsFree(*mut c_void, c_int);
    fn virDomainAbortJob(Object) -> c_int;
    fn virDomainListAllCheckpoints(Object, *mut *mut Object, c_uint) -> c_int;
    fn virDomainCheckpointLookupByName(Object, *const c_char, c_uint) -> Object;
    fn virDomainCheckpointGetName(Object) -> *const c_char;
    fn virDomainCheckpointGetXMLDesc(Object, c_uint) -> *mut c_char;
    fn virDomainCheckpointDelete(Object, c_uint) -> c_int;
    fn virDomainCheckpointFree(Object) -> c_int;
    fn virNetworkGetName(Object) -> *const c_char;
    fn virNetworkIsActive(Object) -> c_int;
    fn virNetworkFree(Object) -> c_int;
    fn virNetworkLookupByName(Object, *const c_char) -> Object;
    fn virNetworkGetXMLDesc(Object, c_uint) -> *mut c_char;
    fn virConnectListAllNWFilters(Object, *mut *mut Object, c_uint) -> c_int;
    fn virNWFilterGetName(Object) -> *const c_char;
    fn virNWFilterFree(Object) -> c_int;
    fn virSecretLookupByUUIDString(Object, *const c_char) -> Object;
    fn virSecretGetValue(Object, *mut usize, c_uint) -> *mut c_uchar;
    fn virSecretFree(Object) -> c_int;
    fn virStoragePoolLookupByName(Object, *const c_char) -> Object;
    fn virStoragePoolGetXMLDesc(Object, c_uint) -> *mut c_char;
    fn virStoragePoolFree(Object) -> c_int;
    fn virStorageVolLookupByName(Object, *const c_char) -> Object;
    fn virStorageVolGetInfo(Object, *mut VolumeInfo) -> c_int;
    fn virStorageVolGetPath(Object) -> *mut c_char;
    fn virStorageVolFree(Object) -> c_int;
}

/// `virError`, up to the last field that is read.
#[repr(C)]
struct Said {
    code: c_int,
    domain: c_int,
    message: *const c_char,
    level: c_int,
    connection: Object,
    object: Object,
    strings: [*const c_char; 3],
    number: c_int,
}

/// `virDomainBlockInfo`.
#[repr(C)]
#[derive(Default)]
struct BlockInfo {
    capacity: c_ulonglong,
    allocation: c_ulonglong,
    physical: c_ulonglong,
}

/// `virStorageVolInfo`.
#[repr(C)]
#[derive(Default)]
struct VolumeInfo {
    kind: c_int,
    capacity: c_ulonglong,
    allocation: c_ulonglong,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The library is not here, or is too old.
    Missing(String),
    /// libvirt's answer: `virErrorNumber`, `virErrorDomain`, an errno where it has one, and its words, for people.
    Said { code: i32, domain: i32, errno: i32, words: String },
    /// What was asked or answered is no text that fits.
    Malformed(String),
}

type Answer<T> = Result<T, Failure>;

fn api() -> Answer<&'static Api> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(|why| Failure::Missing(why.clone()))
}

fn load() -> Result<Api, String> {
    // SAFETY: libvirt's library runs no code at loading that this process has to prepare for.
    let library = unsafe { Library::new("libvirt.so.0") }
        .map_err(|error| format!("libvirt's library is not here ({error}): install the package libvirt0"))?;
    let api = Api::of(library)?;
    // SAFETY: the order that libvirt documents: the event loop before anything else, then the initialisation. The handler
    // is a function without state; without it libvirt would print to stderr.
    let ready = unsafe {
        (api.virSetErrorFunc)(null_mut(), Some(silence));
        (api.virEventRegisterDefaultImpl)() >= 0 && (api.virInitialize)() >= 0
    };
    if !ready {
        return Err("libvirt's library does not start".to_owned());
    }
    let run = api.virEventRunDefaultImpl;
    let events = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(move || {
        loop {
            // SAFETY: the event loop was registered above, the library is never unloaded, and no other thread runs it.
            if unsafe { run() } < 0 {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    });
    events.map_err(|error| format!("no thread for libvirt's events: {error}"))?;
    Ok(api)
}

unsafe extern "C" fn silence(_: *mut c_void, _: *mut Said) {}

/// This thread's last failure.
fn failure(api: &Api) -> Failure {
    // SAFETY: the pointer is null or this thread's error, which stays until its next call; it is only read here.
    let said = unsafe { (api.virGetLastError)().as_ref() };
    said.map_or_else(
        || Failure::Said { code: 1, domain: 0, errno: 0, words: "failed without a word".to_owned() },
        |said| Failure::Said {
            code: said.code,
            domain: said.domain,
            // `VIR_ERR_SYSTEM_ERROR` has it there.
            errno: if said.code == 38 { said.number } else { 0 },
            words: copied(said.message).unwrap_or_else(|| "failed without a word".to_owned()),
        },
    )
}

/// A copy of a text that stays libvirt's.
fn copied(text: *const c_char) -> Option<String> {
    // SAFETY: libvirt's texts end with a zero byte, and this one lives until the next call.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// A text that libvirt made for the caller.
fn owned(api: &Api, text: *mut c_char) -> Answer<String> {
    if text.is_null() {
        return Err(failure(api));
    }
    // SAFETY: the text ends with a zero byte, and is freed after it was copied, once, with the C library's function as
    // libvirt says.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    let answer = if bytes.len() > MAX_OUTPUT {
        Err(Failure::Malformed(format!("the answer is above {MAX_OUTPUT} bytes")))
    } else {
        String::from_utf8(bytes.to_vec()).map_err(|error| Failure::Malformed(error.to_string()))
    };
    // SAFETY: see above.
    unsafe { release(text.cast()) };
    answer
}

fn number(api: &Api, answer: c_int) -> Answer<c_int> {
    if answer < 0 { Err(failure(api)) } else { Ok(answer) }
}

fn text(text: &str) -> Answer<CString> {
    CString::new(text).map_err(|_| Failure::Malformed(format!("{text:?} has a zero byte")))
}

/// An object of libvirt's, freed with its own function. It lives no longer than what it was asked of.
struct Handle<'a> {
    api: &'static Api,
    raw: NonNull<c_void>,
    free: unsafe extern "C" fn(Object) -> c_int,
    parent: PhantomData<&'a ()>,
}

// SAFETY: libvirt's objects may be used and freed by any thread, also by several at the same time.
unsafe impl Send for Handle<'_> {}
// SAFETY: see above.
unsafe impl Sync for Handle<'_> {}

impl std::fmt::Debug for Handle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of libvirt")
    }
}

impl<'a> Handle<'a> {
    fn new(api: &'static Api, raw: Object, free: unsafe extern "C" fn(Object) -> c_int) -> Answer<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| failure(api))?;
        Ok(Self { api, raw, free, parent: PhantomData })
    }

    fn raw(&self) -> Object {
        self.raw.as_ptr()
    }

    /// All objects of a list that libvirt makes.
    fn list(
        api: &'static Api,
        free: unsafe extern "C" fn(Object) -> c_int,
        ask: impl FnOnce(*mut *mut Object) -> c_int,
    ) -> Answer<Vec<Self>> {
        let mut list: *mut Object = null_mut();
        let count = number(api, ask(&raw mut list))?;
        if list.is_null() {
            return Ok(Vec::new());
        }
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: libvirt answered a list of `count` objects, which are the caller's, as is the list.
        let objects = unsafe { std::slice::from_raw_parts(list, count) }
            .iter()
            .map(|raw| Self::new(api, *raw, free))
            .collect();
        // SAFETY: the list was copied and is freed once.
        unsafe { release(list.cast()) };
        objects
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and this is the end of its only owner.
        unsafe { (self.free)(self.raw()) };
    }
}

/// A connection to a libvirt.
#[derive(Debug)]
pub(super) struct Connection(Handle<'static>, OnceLock<c_int>);

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(listener) = self.1.get() {
            // A listener holds its connection, as libvirt counts.
            // SAFETY: the connection is alive as an object, and the number is that of its listener.
            unsafe { (self.0.api.virConnectDomainEventDeregisterAny)(self.0.raw(), *listener) };
        }
    }
}

/// A domain.
#[derive(Debug)]
pub(super) struct Domain<'a>(Handle<'a>);

/// A checkpoint of a domain.
#[derive(Debug)]
pub(super) struct DomainCheckpoint<'a>(Handle<'a>);

/// What is told when a domain starts, stops and the like: its UUID, the event and its detail, in libvirt's numbers.
pub(super) type Listener = Box<dyn Fn(Uuid, i32, i32) + Send + Sync>;

impl Connection {
    /// Opens one. libvirt's own timeouts apply: none if the daemon there takes the connection and never answers.
    pub(super) fn open(uri: &str) -> Answer<Self> {
        let (api, uri) = (api()?, text(uri)?);
        // SAFETY: the URI lives for the call.
        let raw = unsafe { (api.virConnectOpen)(uri.as_ptr()) };
        Ok(Self(Handle::new(api, raw, api.virConnectClose)?, OnceLock::new()))
    }

    /// Has libvirt look every `seconds` whether the other side lives, and close the connection after `misses` silences.
    pub(super) fn keep_alive(&self, seconds: i32, misses: u32) -> Answer<()> {
        // SAFETY: the connection is alive.
        number(self.0.api, unsafe { (self.0.api.virConnectSetKeepAlive)(self.0.raw(), seconds, misses) })
            .map(drop)
    }

    /// Whether it is open, as far as is known on this side.
    pub(super) fn is_alive(&self) -> bool {
        // SAFETY: the connection is alive as an object.
        unsafe { (self.0.api.virConnectIsAlive)(self.0.raw()) > 0 }
    }

    /// Has `listener` called, in the event loop's thread, at each lifecycle event of any domain.
    pub(super) fn listen(&self, listener: Listener) -> Answer<()> {
        let api = self.0.api;
        let state = Box::into_raw(Box::new(listener));
        // SAFETY: the callback has the signature of the lifecycle event (number 0), and its state lives until libvirt frees
        // it with the function given here, after the last event.
        let id = unsafe {
            (api.virConnectDomainEventRegisterAny)(
                self.0.raw(),
                null_mut(),
                0,
                Some(on_event),
                state.cast(),
                Some(free_listener),
            )
        };
        match number(api, id) {
            Ok(id) => {
                self.1.set(id).ok();
                Ok(())
            }
            Err(failure) => {
                // SAFETY: libvirt did not take it, so nobody else frees it.
                drop(unsafe { Box::from_raw(state) });
                Err(failure)
            }
        }
    }

    /// Versions of the library there and of the hypervisor, as libvirt writes them (9.1.2 is 9001002), and its kind.
    pub(super) fn versions(&self) -> Answer<(u64, u64, String)> {
        let (api, mut library, mut hypervisor) = (self.0.api, 0, 0);
        // SAFETY: the connection is alive, the numbers are ours, and the kind is a text that stays.
        unsafe {
            number(api, (api.virConnectGetLibVersion)(self.0.raw(), &raw mut library))?;
            number(api, (api.virConnectGetVersion)(self.0.raw(), &raw mut hypervisor))?;
            let kind = copied((api.virConnectGetType)(self.0.raw())).ok_or_else(|| failure(api))?;
            Ok((library, hypervisor, kind))
        }
    }

    /// What the hypervisor says of machines of a kind.
    pub(super) fn capabilities(&self, kind: &str, arch: &str, machine: Option<&str>) -> Answer<String> {
        let (kind, arch, machine) = (text(kind)?, text(arch)?, machine.map(text).transpose()?);
        let machine = machine.as_ref().map_or(null(), |machine| machine.as_ptr());
        let ask = self.0.api.virConnectGetDomainCapabilities;
        // SAFETY: the texts live for the call; libvirt chooses what is null.
        owned(self.0.api, unsafe { ask(self.0.raw(), null(), arch.as_ptr(), machine, kind.as_ptr(), 0) })
    }

    /// All domains, running or not.
    pub(super) fn domains(&self) -> Answer<Vec<Domain<'_>>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `Handle::list`.
        let ask = |list| unsafe { (api.virConnectListAllDomains)(self.0.raw(), list, 0) };
        Ok(Handle::list(api, api.virDomainFree, ask)?.into_iter().map(Domain).collect())
    }

    /// Names of all networks, and whether each is active.
    pub(super) fn networks(&self) -> Answer<Vec<(String, bool)>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `Handle::list`.
        let ask = |list| unsafe { (api.virConnectListAllNetworks)(self.0.raw(), list, 0) };
        let networks: Vec<Handle<'_>> = Handle::list(api, api.virNetworkFree, ask)?;
        let told = networks.iter().map(|network| {
            // SAFETY: the network is alive; its name lives as long, and is copied.
            unsafe {
                let name = copied((api.virNetworkGetName)(network.raw())).ok_or_else(|| failure(api))?;
                Ok((name, number(api, (api.virNetworkIsActive)(network.raw()))? > 0))
            }
        });
        told.collect()
    }

    /// A network's XML.
    pub(super) fn network(&self, name: &str) -> Answer<String> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the connection is alive, the name lives for the call.
        let raw = unsafe { (api.virNetworkLookupByName)(self.0.raw(), name.as_ptr()) };
        let network = Handle::new(api, raw, api.virNetworkFree)?;
        // SAFETY: the network is alive.
        owned(api, unsafe { (api.virNetworkGetXMLDesc)(network.raw(), 0) })
    }

    /// Names of all network filters.
    pub(super) fn filters(&self) -> Answer<Vec<String>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `Handle::list`.
        let ask = |list| unsafe { (api.virConnectListAllNWFilters)(self.0.raw(), list, 0) };
        let filters: Vec<Handle<'_>> = Handle::list(api, api.virNWFilterFree, ask)?;
        let names = filters.iter().map(|filter| {
            // SAFETY: the filter is alive; its name lives as long, and is copied.
            copied(unsafe { (api.virNWFilterGetName)(filter.raw()) }).ok_or_else(|| failure(api))
        });
        names.collect()
    }

    /// Fails unless the secret is defined and has a value. A value that may not be told counts as there.
    pub(super) fn check_secret(&self, uuid: &str) -> Answer<()> {
        let (api, uuid) = (self.0.api, text(uuid)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virSecretLookupByUUIDString)(self.0.raw(), uuid.as_ptr()) };
        let secret = Handle::new(api, raw, api.virSecretFree)?;
        let mut size = 0_usize;
        // SAFETY: the secret is alive, the number is ours.
        let value = unsafe { (api.virSecretGetValue)(secret.raw(), &raw mut size, 0) };
        if value.is_null() {
            // `VIR_ERR_NO_SECRET`; any other refusal is about who may read it.
            return match failure(api) {
                none @ Failure::Said { code: 66, .. } => Err(none),
                _ => Ok(()),
            };
        }
        // SAFETY: libvirt made a value of `size` bytes for the caller, who wipes it and frees it once. What is freed
        // right after may be left out by the compiler, unless it is volatile.
        unsafe {
            for at in 0..size {
                std::ptr::write_volatile(value.add(at), 0);
            }
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
            release(value.cast());
        }
        Ok(())
    }

    /// A storage pool's XML.
    pub(super) fn pool(&self, name: &str) -> Answer<String> {
        let pool = self.find_pool(name)?;
        // SAFETY: the pool is alive.
        owned(self.0.api, unsafe { (self.0.api.virStoragePoolGetXMLDesc)(pool.raw(), 0) })
    }

    fn find_pool(&self, name: &str) -> Answer<Handle<'_>> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the connection is alive, the name lives for the call.
        let raw = unsafe { (api.virStoragePoolLookupByName)(self.0.raw(), name.as_ptr()) };
        Handle::new(api, raw, api.virStoragePoolFree)
    }

    /// A volume's path and size.
    pub(super) fn volume(&self, pool: &str, volume: &str) -> Answer<(String, u64)> {
        let (api, pool, name) = (self.0.api, self.find_pool(pool)?, text(volume)?);
        // SAFETY: the pool is alive, the name lives for the call.
        let raw = unsafe { (api.virStorageVolLookupByName)(pool.raw(), name.as_ptr()) };
        let volume = Handle::new(api, raw, api.virStorageVolFree)?;
        let mut info = VolumeInfo::default();
        // SAFETY: the volume is alive, the record is ours.
        number(api, unsafe { (api.virStorageVolGetInfo)(volume.raw(), &raw mut info) })?;
        // SAFETY: the volume is alive.
        let path = owned(api, unsafe { (api.virStorageVolGetPath)(volume.raw()) })?;
        Ok((path, info.capacity))
    }

    /// The domain of that UUID.
    pub(super) fn domain(&self, id: Uuid) -> Answer<Domain<'_>> {
        let api = self.0.api;
        // SAFETY: the connection is alive; the UUID has the 16 bytes that are read.
        let raw = unsafe { (api.virDomainLookupByUUID)(self.0.raw(), id.as_bytes().as_ptr()) };
        Handle::new(api, raw, api.virDomainFree).map(Domain)
    }

    /// Defines a domain.
    pub(super) fn define(&self, xml: &str) -> Answer<()> {
        let (api, xml) = (self.0.api, text(xml)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virDomainDefineXMLFlags)(self.0.raw(), xml.as_ptr(), 0) };
        Handle::new(api, raw, api.virDomainFree).map(drop)
    }

    /// Starts a domain from its XML.
    pub(super) fn create(&self, xml: &str, flags: u32) -> Answer<()> {
        let (api, xml) = (self.0.api, text(xml)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virDomainCreateXML)(self.0.raw(), xml.as_ptr(), flags) };
        Handle::new(api, raw, api.virDomainFree).map(drop)
    }
}

unsafe extern "C" fn on_event(
    _: Object,
    domain: Object,
    event: c_int,
    detail: c_int,
    state: *mut c_void,
) -> c_int {
    let Ok(api) = api() else { return 0 };
    let mut uuid = [0; 16];
    // SAFETY: libvirt passes a domain that is alive for the call, and the state that was registered with this function.
    unsafe {
        if (api.virDomainGetUUID)(domain, uuid.as_mut_ptr()) >= 0
            && let Some(listener) = state.cast::<Listener>().as_ref()
        {
            listener(Uuid::from_bytes(uuid), event, detail);
        }
    }
    0
}

unsafe extern "C" fn free_listener(state: *mut c_void) {
    // SAFETY: libvirt calls it once, with what `listen` gave it.
    drop(unsafe { Box::from_raw(state.cast::<Listener>()) });
}

impl Domain<'_> {
    fn ask(&self, call: impl FnOnce(&Api, Object) -> c_int) -> Answer<c_int> {
        number(self.0.api, call(self.0.api, self.0.raw()))
    }

    pub(super) fn id(&self) -> Answer<Uuid> {
        let mut uuid = [0; 16];
        // SAFETY: the domain is alive; 16 bytes are written.
        self.ask(|api, domain| unsafe { (api.virDomainGetUUID)(domain, uuid.as_mut_ptr()) })?;
        Ok(Uuid::from_bytes(uuid))
    }

    pub(super) fn name(&self) -> Answer<String> {
        let api = self.0.api;
        // SAFETY: the domain is alive; its name lives as long, and is copied.
        copied(unsafe { (api.virDomainGetName)(self.0.raw()) }).ok_or_else(|| failure(api))
    }

    pub(super) fn xml(&self, flags: u32) -> Answer<String> {
        // SAFETY: the domain is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainGetXMLDesc)(self.0.raw(), flags) })
    }

    /// State and reason, in libvirt's numbers.
    pub(super) fn state(&self) -> Answer<(i32, i32)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: the domain is alive, the numbers are ours.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetState)(domain, &raw mut state, &raw mut reason, 0)
        })?;
        Ok((state, reason))
    }

    /// A disk's virtual size.
    pub(super) fn disk_size(&self, target: &str) -> Answer<u64> {
        let (target, mut info) = (text(target)?, BlockInfo::default());
        // SAFETY: the domain is alive, the record is ours, the text lives for the call.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetBlockInfo)(domain, target.as_ptr(), &raw mut info, 0)
        })?;
        Ok(info.capacity)
    }

    pub(super) fn is_persistent(&self) -> Answer<bool> {
        // SAFETY: the domain is alive.
        Ok(self.ask(|api, domain| unsafe { (api.virDomainIsPersistent)(domain) })? > 0)
    }

    pub(super) fn is_saved(&self) -> Answer<bool> {
        // SAFETY: the domain is alive.
        Ok(self.ask(|api, domain| unsafe { (api.virDomainHasManagedSaveImage)(domain, 0) })? > 0)
    }

    pub(super) fn autostart(&self) -> Answer<bool> {
        let mut on = 0;
        // SAFETY: the domain is alive, the number is ours.
        self.ask(|api, domain| unsafe { (api.virDomainGetAutostart)(domain, &raw mut on) })?;
        Ok(on != 0)
    }

    pub(super) fn set_autostart(&self, on: bool) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainSetAutostart)(domain, on.into()) }).map(drop)
    }

    pub(super) fn snapshot_names(&self) -> Answer<Vec<String>> {
        let api = self.0.api;
        // SAFETY: the domain is alive, and the list is taken over by `Handle::list`.
        let ask = |list| unsafe { (api.virDomainListAllSnapshots)(self.0.raw(), list, 0) };
        let snapshots: Vec<Handle<'_>> = Handle::list(api, api.virDomainSnapshotFree, ask)?;
        // SAFETY: the snapshot is alive; its name lives as long, and is copied.
        let name = |raw| copied(unsafe { (api.virDomainSnapshotGetName)(raw) }).ok_or_else(|| failure(api));
        snapshots.iter().map(|snapshot| name(snapshot.raw())).collect()
    }

    pub(super) fn start(&self) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainCreate)(domain) }).map(drop)
    }

    pub(super) fn destroy(&self, flags: u32) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainDestroyFlags)(domain, flags) }).map(drop)
    }

    pub(super) fn shut_down(&self, flags: u32) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainShutdownFlags)(domain, flags) }).map(drop)
    }

    pub(super) fn undefine(&self, flags: u32) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainUndefineFlags)(domain, flags) }).map(drop)
    }

    pub(super) fn set_lifecycle_action(&self, kind: u32, action: u32, flags: u32) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainSetLifecycleAction)(domain, kind, action, flags) })
            .map(drop)
    }

    /// Sets the metadata element of a namespace, or removes it.
    pub(super) fn set_metadata(&self, element: Option<(&str, &str)>, uri: &str, flags: u32) -> Answer<()> {
        let (prefix, xml) = element.unzip();
        let (prefix, xml) = (prefix.map(text).transpose()?, xml.map(text).transpose()?);
        let uri = text(uri)?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(null(), |text| text.as_ptr());
        // SAFETY: the domain is alive, the texts live for the call; null for the element removes it. 2 is an element.
        let set = |api: &Api, domain| unsafe {
            (api.virDomainSetMetadata)(domain, 2, pointer(&xml), pointer(&prefix), uri.as_ptr(), flags)
        };
        self.ask(set).map(drop)
    }

    pub(super) fn begin_backup(&self, backup: &str, checkpoint: Option<&str>) -> Answer<()> {
        let (backup, checkpoint) = (text(backup)?, checkpoint.map(text).transpose()?);
        let checkpoint = checkpoint.as_ref().map_or(null(), |text| text.as_ptr());
        // SAFETY: the domain is alive, the texts live for the call.
        self.ask(|api, domain| unsafe { (api.virDomainBackupBegin)(domain, backup.as_ptr(), checkpoint, 0) })
            .map(drop)
    }

    pub(super) fn backup(&self) -> Answer<String> {
        // SAFETY: the domain is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainBackupGetXMLDesc)(self.0.raw(), 0) })
    }

    /// The job's type and operation, in libvirt's numbers.
    pub(super) fn job(&self) -> Answer<(i32, i32)> {
        let (mut kind, mut parameters, mut count) = (0, null_mut(), 0);
        // SAFETY: the domain is alive, the variables are ours.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetJobStats)(domain, &raw mut kind, &raw mut parameters, &raw mut count, 0)
        })?;
        let mut operation = 0;
        if !parameters.is_null() {
            // SAFETY: libvirt answered `count` parameters, which are ours to free, once, after one of them was read.
            unsafe {
                let name = c"operation".as_ptr();
                (self.0.api.virTypedParamsGetInt)(parameters, count, name, &raw mut operation);
                (self.0.api.virTypedParamsFree)(parameters, count);
            }
        }
        Ok((kind, operation))
    }

    pub(super) fn abort_job(&self) -> Answer<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainAbortJob)(domain) }).map(drop)
    }

    pub(super) fn checkpoints(&self, flags: u32) -> Answer<Vec<DomainCheckpoint<'_>>> {
        let api = self.0.api;
        // SAFETY: the domain is alive, and the list is taken over by `Handle::list`.
        let ask = |list| unsafe { (api.virDomainListAllCheckpoints)(self.0.raw(), list, flags) };
        let list = Handle::list(api, api.virDomainCheckpointFree, ask)?;
        Ok(list.into_iter().map(DomainCheckpoint).collect())
    }

    pub(super) fn checkpoint(&self, name: &str) -> Answer<DomainCheckpoint<'_>> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the domain is alive, the name lives for the call.
        let raw = unsafe { (api.virDomainCheckpointLookupByName)(self.0.raw(), name.as_ptr(), 0) };
        Handle::new(api, raw, api.virDomainCheckpointFree).map(DomainCheckpoint)
    }

    /// The guest agent's answer to a command, waited for `seconds`.
    pub(super) fn agent(&self, command: &str, seconds: i32) -> Answer<String> {
        let command = text(command)?;
        let ask = agent_command()?;
        // SAFETY: the domain is alive, the command lives for the call.
        owned(self.0.api, unsafe { ask(self.0.raw(), command.as_ptr(), seconds, 0) })
    }

    /// QEMU's answer to a command of its monitor. libvirt marks the domain as one that was meddled with, for as long as it
    /// has power.
    pub(super) fn monitor(&self, command: &str) -> Answer<String> {
        let command = text(command)?;
        let ask = monitor_command()?;
        let mut answer: *mut c_char = null_mut();
        // SAFETY: the domain is alive, the command lives for the call, the answer's place is ours.
        number(self.0.api, unsafe { ask(self.0.raw(), command.as_ptr(), &raw mut answer, 0) })?;
        owned(self.0.api, answer)
    }
}

impl DomainCheckpoint<'_> {
    pub(super) fn name(&self) -> Answer<String> {
        let api = self.0.api;
        // SAFETY: the checkpoint is alive; its name lives as long, and is copied.
        copied(unsafe { (api.virDomainCheckpointGetName)(self.0.raw()) }).ok_or_else(|| failure(api))
    }

    pub(super) fn xml(&self, flags: u32) -> Answer<String> {
        // SAFETY: the checkpoint is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainCheckpointGetXMLDesc)(self.0.raw(), flags) })
    }

    pub(super) fn delete(&self, flags: u32) -> Answer<()> {
        // SAFETY: the checkpoint is alive.
        number(self.0.api, unsafe { (self.0.api.virDomainCheckpointDelete)(self.0.raw(), flags) }).map(drop)
    }
}

type AgentCommand = unsafe extern "C" fn(Object, *const c_char, c_int, c_uint) -> *mut c_char;

type MonitorCommand = unsafe extern "C" fn(Object, *const c_char, *mut *mut c_char, c_uint) -> c_int;

/// libvirt's library for QEMU alone, which comes in the same package.
fn qemu() -> Answer<&'static Library> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    // SAFETY: the library runs no code at loading that this process has to prepare for.
    LIBRARY
        .get_or_init(|| unsafe { Library::new("libvirt-qemu.so.0") }.map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|why| Failure::Missing(why.clone()))
}

fn agent_command() -> Answer<AgentCommand> {
    // SAFETY: the name and the signature are those of libvirt's headers, and the library is never unloaded.
    let symbol = unsafe { qemu()?.get::<AgentCommand>(b"virDomainQemuAgentCommand\0") };
    symbol.map(|symbol| *symbol).map_err(|error| Failure::Missing(error.to_string()))
}

fn monitor_command() -> Answer<MonitorCommand> {
    // SAFETY: as above.
    let symbol = unsafe { qemu()?.get::<MonitorCommand>(b"virDomainQemuMonitorCommand\0") };
    symbol.map(|symbol| *symbol).map_err(|error| Failure::Missing(error.to_string()))
}
