//! A connection to a libvirt: calls about libvirt itself, and about its objects beside domains.
//!
//! Rule: a domain is found by its UUID alone. Networks, filters, pools, volumes and secrets are only read,
//! and a secret's value is wiped unread.

use std::{
    ffi::{c_int, c_void},
    ptr::{null, null_mut},
    sync::OnceLock,
};

use uuid::Uuid;

use super::{
    answer::{CallFailure, CallResult, copied, failure, number, owned, text},
    domain::LibvirtDomain,
    handle::LibvirtObject,
    library::api,
    symbols::{Object, VolumeInfo, release},
};

/// A connection to a libvirt.
#[derive(Debug)]
pub(in crate::libvirt) struct LibvirtConnection(LibvirtObject<'static>, OnceLock<c_int>);

impl Drop for LibvirtConnection {
    fn drop(&mut self) {
        if let Some(listener) = self.1.get() {
            // A listener holds its connection, as libvirt counts.
            // SAFETY: the connection is alive as an object, and the number is that of its listener.
            unsafe { (self.0.api.virConnectDomainEventDeregisterAny)(self.0.raw(), *listener) };
        }
    }
}

/// What libvirt reports when a domain starts, stops and the like: its UUID, the event and its detail, in
/// libvirt's numbers.
type EventListener = Box<dyn Fn(Uuid, i32, i32) + Send + Sync>;

impl LibvirtConnection {
    /// Opens one. libvirt's own timeouts apply: none if the daemon there takes the connection and never
    /// answers.
    pub(in crate::libvirt) fn open(uri: &str) -> CallResult<Self> {
        let (api, uri) = (api()?, text(uri)?);
        // SAFETY: the URI lives for the call.
        let raw = unsafe { (api.virConnectOpen)(uri.as_ptr()) };
        Ok(Self(LibvirtObject::new(api, raw, api.virConnectClose)?, OnceLock::new()))
    }

    /// Lets libvirt send a keepalive every `seconds`, and close the connection after `misses` without an
    /// answer.
    pub(in crate::libvirt) fn keep_alive(&self, seconds: i32, misses: u32) -> CallResult<()> {
        // SAFETY: the connection is alive.
        number(self.0.api, unsafe { (self.0.api.virConnectSetKeepAlive)(self.0.raw(), seconds, misses) })
            .map(drop)
    }

    /// Whether it is open, as far as this side knows.
    pub(in crate::libvirt) fn is_alive(&self) -> bool {
        // SAFETY: the connection is alive as an object.
        unsafe { (self.0.api.virConnectIsAlive)(self.0.raw()) > 0 }
    }

    /// Lets `listener` be called, in the event loop's thread, at each lifecycle event of any domain.
    pub(in crate::libvirt) fn listen(&self, listener: EventListener) -> CallResult<()> {
        let api = self.0.api;
        let state = Box::into_raw(Box::new(listener));
        // SAFETY: the callback has the signature of the lifecycle event (number 0), and its state lives until
        // libvirt frees it with the function given here, after the last event.
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
                // SAFETY: libvirt did not take it, so nothing else frees it.
                drop(unsafe { Box::from_raw(state) });
                Err(failure)
            }
        }
    }

    /// Versions of the library there and of the hypervisor, as libvirt writes them (9.1.2 is 9001002), and
    /// its kind.
    pub(in crate::libvirt) fn versions(&self) -> CallResult<(u64, u64, String)> {
        let (api, mut library, mut hypervisor) = (self.0.api, 0, 0);
        // SAFETY: the connection is alive, the numbers are ours, and the kind is a text that stays.
        unsafe {
            number(api, (api.virConnectGetLibVersion)(self.0.raw(), &raw mut library))?;
            number(api, (api.virConnectGetVersion)(self.0.raw(), &raw mut hypervisor))?;
            let kind = copied((api.virConnectGetType)(self.0.raw())).ok_or_else(|| failure(api))?;
            Ok((library, hypervisor, kind))
        }
    }

    /// The hypervisor's capabilities for machines of a kind.
    pub(in crate::libvirt) fn capabilities(
        &self,
        kind: &str,
        arch: &str,
        machine: Option<&str>,
    ) -> CallResult<String> {
        let (kind, arch, machine) = (text(kind)?, text(arch)?, machine.map(text).transpose()?);
        let machine = machine.as_ref().map_or(null(), |machine| machine.as_ptr());
        let ask = self.0.api.virConnectGetDomainCapabilities;
        // SAFETY: the texts live for the call; libvirt chooses what is null.
        owned(self.0.api, unsafe { ask(self.0.raw(), null(), arch.as_ptr(), machine, kind.as_ptr(), 0) })
    }

    /// The features of a processor that the host lacks, in libvirt's words; `None` if none.
    pub(in crate::libvirt) fn cpu_lacks(
        &self,
        kind: &str,
        arch: &str,
        machine: &str,
        cpu: &str,
    ) -> CallResult<Option<String>> {
        /// `VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE`: with words.
        const IN_WORDS: u32 = 1;
        let (kind, arch, machine, cpu) = (text(kind)?, text(arch)?, text(machine)?, text(cpu)?);
        let ask = self.0.api.virConnectCompareHypervisorCPU;
        // SAFETY: the texts live for the call; libvirt chooses the emulator, which is null.
        let answer = unsafe {
            let (arch, machine, kind) = (arch.as_ptr(), machine.as_ptr(), kind.as_ptr());
            ask(self.0.raw(), null(), arch, machine, kind, cpu.as_ptr(), IN_WORDS)
        };
        compared(number(self.0.api, answer))
    }

    /// All domains, running or not.
    pub(in crate::libvirt) fn domains(&self) -> CallResult<Vec<LibvirtDomain<'_>>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `LibvirtObject::list`.
        let ask = |list| unsafe { (api.virConnectListAllDomains)(self.0.raw(), list, 0) };
        Ok(LibvirtObject::list(api, api.virDomainFree, ask)?.into_iter().map(LibvirtDomain).collect())
    }

    /// Names of all networks, and whether each is active.
    pub(in crate::libvirt) fn networks(&self) -> CallResult<Vec<(String, bool)>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `LibvirtObject::list`.
        let ask = |list| unsafe { (api.virConnectListAllNetworks)(self.0.raw(), list, 0) };
        let networks: Vec<LibvirtObject<'_>> = LibvirtObject::list(api, api.virNetworkFree, ask)?;
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
    pub(in crate::libvirt) fn network(&self, name: &str) -> CallResult<String> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the connection is alive, the name lives for the call.
        let raw = unsafe { (api.virNetworkLookupByName)(self.0.raw(), name.as_ptr()) };
        let network = LibvirtObject::new(api, raw, api.virNetworkFree)?;
        // SAFETY: the network is alive.
        owned(api, unsafe { (api.virNetworkGetXMLDesc)(network.raw(), 0) })
    }

    /// Names of all network filters.
    pub(in crate::libvirt) fn filters(&self) -> CallResult<Vec<String>> {
        let api = self.0.api;
        // SAFETY: the connection is alive, and the list is taken over by `LibvirtObject::list`.
        let ask = |list| unsafe { (api.virConnectListAllNWFilters)(self.0.raw(), list, 0) };
        let filters: Vec<LibvirtObject<'_>> = LibvirtObject::list(api, api.virNWFilterFree, ask)?;
        let names = filters.iter().map(|filter| {
            // SAFETY: the filter is alive; its name lives as long, and is copied.
            copied(unsafe { (api.virNWFilterGetName)(filter.raw()) }).ok_or_else(|| failure(api))
        });
        names.collect()
    }

    /// Fails unless the secret is defined and has a value. A value that may not be read counts as there.
    pub(in crate::libvirt) fn check_secret(&self, uuid: &str) -> CallResult<()> {
        let (api, uuid) = (self.0.api, text(uuid)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virSecretLookupByUUIDString)(self.0.raw(), uuid.as_ptr()) };
        let secret = LibvirtObject::new(api, raw, api.virSecretFree)?;
        let mut size = 0_usize;
        // SAFETY: the secret is alive, the number is ours.
        let value = unsafe { (api.virSecretGetValue)(secret.raw(), &raw mut size, 0) };
        if value.is_null() {
            // `VIR_ERR_NO_SECRET`; any other refusal is about who may read it.
            return match failure(api) {
                none @ CallFailure::Said { code: 66, .. } => Err(none),
                _ => Ok(()),
            };
        }
        // SAFETY: libvirt made a value of `size` bytes for the caller, who wipes it and frees it once. What
        // is freed right after may be left out by the compiler, unless it is volatile.
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
    pub(in crate::libvirt) fn pool(&self, name: &str) -> CallResult<String> {
        let pool = self.find_pool(name)?;
        // SAFETY: the pool is alive.
        owned(self.0.api, unsafe { (self.0.api.virStoragePoolGetXMLDesc)(pool.raw(), 0) })
    }

    fn find_pool(&self, name: &str) -> CallResult<LibvirtObject<'_>> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the connection is alive, the name lives for the call.
        let raw = unsafe { (api.virStoragePoolLookupByName)(self.0.raw(), name.as_ptr()) };
        LibvirtObject::new(api, raw, api.virStoragePoolFree)
    }

    /// A volume's path and size.
    pub(in crate::libvirt) fn volume(&self, pool: &str, volume: &str) -> CallResult<(String, u64)> {
        let (api, pool, name) = (self.0.api, self.find_pool(pool)?, text(volume)?);
        // SAFETY: the pool is alive, the name lives for the call.
        let raw = unsafe { (api.virStorageVolLookupByName)(pool.raw(), name.as_ptr()) };
        let volume = LibvirtObject::new(api, raw, api.virStorageVolFree)?;
        let mut info = VolumeInfo::default();
        // SAFETY: the volume is alive, the record is ours.
        number(api, unsafe { (api.virStorageVolGetInfo)(volume.raw(), &raw mut info) })?;
        // SAFETY: the volume is alive.
        let path = owned(api, unsafe { (api.virStorageVolGetPath)(volume.raw()) })?;
        Ok((path, info.capacity))
    }

    /// The domain of that UUID.
    pub(in crate::libvirt) fn domain(&self, id: Uuid) -> CallResult<LibvirtDomain<'_>> {
        let api = self.0.api;
        // SAFETY: the connection is alive; the UUID has the 16 bytes that are read.
        let raw = unsafe { (api.virDomainLookupByUUID)(self.0.raw(), id.as_bytes().as_ptr()) };
        LibvirtObject::new(api, raw, api.virDomainFree).map(LibvirtDomain)
    }

    /// Defines a domain.
    pub(in crate::libvirt) fn define(&self, xml: &str) -> CallResult<()> {
        let (api, xml) = (self.0.api, text(xml)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virDomainDefineXMLFlags)(self.0.raw(), xml.as_ptr(), 0) };
        LibvirtObject::new(api, raw, api.virDomainFree).map(drop)
    }

    /// Starts a domain from its XML.
    pub(in crate::libvirt) fn create(&self, xml: &str, flags: u32) -> CallResult<()> {
        let (api, xml) = (self.0.api, text(xml)?);
        // SAFETY: the connection is alive, the text lives for the call.
        let raw = unsafe { (api.virDomainCreateXML)(self.0.raw(), xml.as_ptr(), flags) };
        LibvirtObject::new(api, raw, api.virDomainFree).map(drop)
    }
}

/// The result of a comparison of processors: the missing features, in libvirt's words; `None` if none, or if
/// libvirt has no comparison for it. A processor that libvirt cannot read is a failure.
fn compared(answer: CallResult<c_int>) -> CallResult<Option<String>> {
    match answer {
        Ok(0) => Ok(Some("libvirt does not say what it lacks".to_owned())),
        Ok(_) => Ok(None),
        // `VIR_ERR_CPU_INCOMPATIBLE`.
        Err(CallFailure::Said { code: 91, words, .. }) => Ok(Some(words)),
        // `VIR_ERR_NO_SUPPORT`, `VIR_ERR_OPERATION_UNSUPPORTED`: of no processor of this architecture.
        Err(CallFailure::Said { code: 3 | 84, .. }) => Ok(None),
        Err(failure) => Err(failure),
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
    // SAFETY: libvirt passes a domain that is alive for the call, and the state that was registered with this
    // function.
    unsafe {
        if (api.virDomainGetUUID)(domain, uuid.as_mut_ptr()) >= 0
            && let Some(listener) = state.cast::<EventListener>().as_ref()
        {
            listener(Uuid::from_bytes(uuid), event, detail);
        }
    }
    0
}

unsafe extern "C" fn free_listener(state: *mut c_void) {
    // SAFETY: libvirt calls it once, with what `listen` gave it.
    drop(unsafe { Box::from_raw(state.cast::<EventListener>()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_fits_only_if_libvirt_says_so_or_compares_none() {
        let said =
            |code| compared(Err(CallFailure::Said { code, domain: 31, errno: 0, words: "x".to_owned() }));
        assert_eq!(said(91), Ok(Some("x".to_owned())));
        for none_is_compared in [3, 84] {
            assert_eq!(said(none_is_compared), Ok(None), "{none_is_compared}");
        }
        // Unsupported is this one's configuration, or an argument; the others are an internal error and no
        // permission.
        for not_known in [67, 74, 1, 88] {
            assert!(said(not_known).is_err(), "{not_known}");
        }
        assert_eq!((compared(Ok(1)), compared(Ok(2))), (Ok(None), Ok(None)));
        assert!(compared(Ok(0)).is_ok_and(|lacks| lacks.is_some()));
    }
}
