//! The used functions of libvirt, and the records that they fill.
//!
//! Rule: signatures and layouts are those of libvirt's headers, and are declared nowhere else. The functions
//! are looked up here, and called by the files beside this one.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulong, c_ulonglong, c_void};

use libloading::Library;

unsafe extern "C" {
    /// Of the C library, which libvirt allocates with.
    #[link_name = "free"]
    pub(super) fn release(_: *mut c_void);
}

pub(super) type Object = *mut c_void;
type Event = unsafe extern "C" fn(Object, Object, c_int, c_int, *mut c_void) -> c_int;

/// Declares the functions, and how they are looked up in the library.
macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions of `libvirt.so.0`, with the signatures of its headers.
        pub(super) struct LibvirtApi {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
            /// Keeps the code behind the pointers.
            _library: Library,
        }

        impl LibvirtApi {
            pub(super) fn of(library: Library) -> Result<Self, String> {
                $(
                    // SAFETY: the name and the signature are those of libvirt's headers, whose interface only
                    // grows; the pointer lives no longer than the library, which is kept beside it.
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
    fn virSetErrorFunc(*mut c_void, Option<unsafe extern "C" fn(*mut c_void, *mut VirError)>);
    fn virGetLastError() -> *mut VirError;
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
    fn virConnectCompareHypervisorCPU(
        Object, *const c_char, *const c_char, *const c_char, *const c_char, *const c_char, c_uint
    ) -> c_int;
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
pub(super) struct VirError {
    pub(super) code: c_int,
    pub(super) domain: c_int,
    pub(super) message: *const c_char,
    level: c_int,
    connection: Object,
    object: Object,
    strings: [*const c_char; 3],
    pub(super) number: c_int,
}

/// `virDomainBlockInfo`.
#[repr(C)]
#[derive(Default)]
pub(super) struct BlockInfo {
    pub(super) capacity: c_ulonglong,
    allocation: c_ulonglong,
    physical: c_ulonglong,
}

/// `virStorageVolInfo`.
#[repr(C)]
#[derive(Default)]
pub(super) struct VolumeInfo {
    kind: c_int,
    pub(super) capacity: c_ulonglong,
    allocation: c_ulonglong,
}

pub(super) type AgentCommand = unsafe extern "C" fn(Object, *const c_char, c_int, c_uint) -> *mut c_char;

pub(super) type MonitorCommand =
    unsafe extern "C" fn(Object, *const c_char, *mut *mut c_char, c_uint) -> c_int;
