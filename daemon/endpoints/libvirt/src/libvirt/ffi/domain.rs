//! A domain, and its checkpoints: the calls on them.
//!
//! Rule: states, reasons and flags are libvirt's unchanged numbers; their meaning is decided outside this
//! folder.

use std::{
    ffi::{CString, c_char, c_int},
    ptr::{null, null_mut},
};

use uuid::Uuid;

use super::{
    answer::{CallResult, copied, failure, number, owned, text},
    handle::LibvirtObject,
    library::{agent_command, monitor_command},
    symbols::{BlockInfo, LibvirtApi, Object},
};

/// A domain.
#[derive(Debug)]
pub(in crate::libvirt) struct LibvirtDomain<'a>(pub(super) LibvirtObject<'a>);

/// A checkpoint of a domain.
#[derive(Debug)]
pub(in crate::libvirt) struct DomainCheckpoint<'a>(LibvirtObject<'a>);

impl LibvirtDomain<'_> {
    fn ask(&self, call: impl FnOnce(&LibvirtApi, Object) -> c_int) -> CallResult<c_int> {
        number(self.0.api, call(self.0.api, self.0.raw()))
    }

    pub(in crate::libvirt) fn id(&self) -> CallResult<Uuid> {
        let mut uuid = [0; 16];
        // SAFETY: the domain is alive; 16 bytes are written.
        self.ask(|api, domain| unsafe { (api.virDomainGetUUID)(domain, uuid.as_mut_ptr()) })?;
        Ok(Uuid::from_bytes(uuid))
    }

    pub(in crate::libvirt) fn name(&self) -> CallResult<String> {
        let api = self.0.api;
        // SAFETY: the domain is alive; its name lives as long, and is copied.
        copied(unsafe { (api.virDomainGetName)(self.0.raw()) }).ok_or_else(|| failure(api))
    }

    pub(in crate::libvirt) fn xml(&self, flags: u32) -> CallResult<String> {
        // SAFETY: the domain is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainGetXMLDesc)(self.0.raw(), flags) })
    }

    /// State and reason, in libvirt's numbers.
    pub(in crate::libvirt) fn state(&self) -> CallResult<(i32, i32)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: the domain is alive, the numbers are ours.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetState)(domain, &raw mut state, &raw mut reason, 0)
        })?;
        Ok((state, reason))
    }

    /// A disk's virtual size.
    pub(in crate::libvirt) fn disk_size(&self, target: &str) -> CallResult<u64> {
        let (target, mut info) = (text(target)?, BlockInfo::default());
        // SAFETY: the domain is alive, the record is ours, the text lives for the call.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetBlockInfo)(domain, target.as_ptr(), &raw mut info, 0)
        })?;
        Ok(info.capacity)
    }

    pub(in crate::libvirt) fn is_persistent(&self) -> CallResult<bool> {
        // SAFETY: the domain is alive.
        Ok(self.ask(|api, domain| unsafe { (api.virDomainIsPersistent)(domain) })? > 0)
    }

    pub(in crate::libvirt) fn is_saved(&self) -> CallResult<bool> {
        // SAFETY: the domain is alive.
        Ok(self.ask(|api, domain| unsafe { (api.virDomainHasManagedSaveImage)(domain, 0) })? > 0)
    }

    pub(in crate::libvirt) fn autostart(&self) -> CallResult<bool> {
        let mut on = 0;
        // SAFETY: the domain is alive, the number is ours.
        self.ask(|api, domain| unsafe { (api.virDomainGetAutostart)(domain, &raw mut on) })?;
        Ok(on != 0)
    }

    pub(in crate::libvirt) fn set_autostart(&self, on: bool) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainSetAutostart)(domain, on.into()) }).map(drop)
    }

    pub(in crate::libvirt) fn snapshot_names(&self) -> CallResult<Vec<String>> {
        let api = self.0.api;
        // SAFETY: the domain is alive, and the list is taken over by `LibvirtObject::list`.
        let ask = |list| unsafe { (api.virDomainListAllSnapshots)(self.0.raw(), list, 0) };
        let snapshots: Vec<LibvirtObject<'_>> = LibvirtObject::list(api, api.virDomainSnapshotFree, ask)?;
        // SAFETY: the snapshot is alive; its name lives as long, and is copied.
        let name = |raw| copied(unsafe { (api.virDomainSnapshotGetName)(raw) }).ok_or_else(|| failure(api));
        snapshots.iter().map(|snapshot| name(snapshot.raw())).collect()
    }

    pub(in crate::libvirt) fn start(&self) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainCreate)(domain) }).map(drop)
    }

    pub(in crate::libvirt) fn destroy(&self, flags: u32) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainDestroyFlags)(domain, flags) }).map(drop)
    }

    pub(in crate::libvirt) fn shut_down(&self, flags: u32) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainShutdownFlags)(domain, flags) }).map(drop)
    }

    pub(in crate::libvirt) fn undefine(&self, flags: u32) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainUndefineFlags)(domain, flags) }).map(drop)
    }

    pub(in crate::libvirt) fn set_lifecycle_action(
        &self,
        kind: u32,
        action: u32,
        flags: u32,
    ) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainSetLifecycleAction)(domain, kind, action, flags) })
            .map(drop)
    }

    /// Sets the metadata element of a namespace, or removes it.
    pub(in crate::libvirt) fn set_metadata(
        &self,
        element: Option<(&str, &str)>,
        uri: &str,
        flags: u32,
    ) -> CallResult<()> {
        let (prefix, xml) = element.unzip();
        let (prefix, xml) = (prefix.map(text).transpose()?, xml.map(text).transpose()?);
        let uri = text(uri)?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(null(), |text| text.as_ptr());
        // SAFETY: the domain is alive, the texts live for the call; null for the element removes it. 2 is an
        // element.
        let set = |api: &LibvirtApi, domain| unsafe {
            (api.virDomainSetMetadata)(domain, 2, pointer(&xml), pointer(&prefix), uri.as_ptr(), flags)
        };
        self.ask(set).map(drop)
    }

    pub(in crate::libvirt) fn begin_backup(&self, backup: &str, checkpoint: Option<&str>) -> CallResult<()> {
        let (backup, checkpoint) = (text(backup)?, checkpoint.map(text).transpose()?);
        let checkpoint = checkpoint.as_ref().map_or(null(), |text| text.as_ptr());
        // SAFETY: the domain is alive, the texts live for the call.
        self.ask(|api, domain| unsafe { (api.virDomainBackupBegin)(domain, backup.as_ptr(), checkpoint, 0) })
            .map(drop)
    }

    pub(in crate::libvirt) fn backup(&self) -> CallResult<String> {
        // SAFETY: the domain is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainBackupGetXMLDesc)(self.0.raw(), 0) })
    }

    /// The job's type and operation, in libvirt's numbers.
    pub(in crate::libvirt) fn job(&self) -> CallResult<(i32, i32)> {
        let (mut kind, mut parameters, mut count) = (0, null_mut(), 0);
        // SAFETY: the domain is alive, the variables are ours.
        self.ask(|api, domain| unsafe {
            (api.virDomainGetJobStats)(domain, &raw mut kind, &raw mut parameters, &raw mut count, 0)
        })?;
        let mut operation = 0;
        if !parameters.is_null() {
            // SAFETY: libvirt answered `count` parameters, which are ours to free, once, after one of them
            // was read.
            unsafe {
                let name = c"operation".as_ptr();
                (self.0.api.virTypedParamsGetInt)(parameters, count, name, &raw mut operation);
                (self.0.api.virTypedParamsFree)(parameters, count);
            }
        }
        Ok((kind, operation))
    }

    pub(in crate::libvirt) fn abort_job(&self) -> CallResult<()> {
        // SAFETY: the domain is alive.
        self.ask(|api, domain| unsafe { (api.virDomainAbortJob)(domain) }).map(drop)
    }

    pub(in crate::libvirt) fn checkpoints(&self, flags: u32) -> CallResult<Vec<DomainCheckpoint<'_>>> {
        let api = self.0.api;
        // SAFETY: the domain is alive, and the list is taken over by `LibvirtObject::list`.
        let ask = |list| unsafe { (api.virDomainListAllCheckpoints)(self.0.raw(), list, flags) };
        let list = LibvirtObject::list(api, api.virDomainCheckpointFree, ask)?;
        Ok(list.into_iter().map(DomainCheckpoint).collect())
    }

    pub(in crate::libvirt) fn checkpoint(&self, name: &str) -> CallResult<DomainCheckpoint<'_>> {
        let (api, name) = (self.0.api, text(name)?);
        // SAFETY: the domain is alive, the name lives for the call.
        let raw = unsafe { (api.virDomainCheckpointLookupByName)(self.0.raw(), name.as_ptr(), 0) };
        LibvirtObject::new(api, raw, api.virDomainCheckpointFree).map(DomainCheckpoint)
    }

    /// The guest agent's answer to a command, waited for `seconds`.
    pub(in crate::libvirt) fn agent(&self, command: &str, seconds: i32) -> CallResult<String> {
        let command = text(command)?;
        let ask = agent_command()?;
        // SAFETY: the domain is alive, the command lives for the call.
        owned(self.0.api, unsafe { ask(self.0.raw(), command.as_ptr(), seconds, 0) })
    }

    /// QEMU's answer to a command of its monitor. libvirt marks the domain as tainted, for as long as it
    /// has power.
    pub(in crate::libvirt) fn monitor(&self, command: &str) -> CallResult<String> {
        let command = text(command)?;
        let ask = monitor_command()?;
        let mut answer: *mut c_char = null_mut();
        // SAFETY: the domain is alive, the command lives for the call, the answer's place is ours.
        number(self.0.api, unsafe { ask(self.0.raw(), command.as_ptr(), &raw mut answer, 0) })?;
        owned(self.0.api, answer)
    }
}

impl DomainCheckpoint<'_> {
    pub(in crate::libvirt) fn name(&self) -> CallResult<String> {
        let api = self.0.api;
        // SAFETY: the checkpoint is alive; its name lives as long, and is copied.
        copied(unsafe { (api.virDomainCheckpointGetName)(self.0.raw()) }).ok_or_else(|| failure(api))
    }

    pub(in crate::libvirt) fn xml(&self, flags: u32) -> CallResult<String> {
        // SAFETY: the checkpoint is alive.
        owned(self.0.api, unsafe { (self.0.api.virDomainCheckpointGetXMLDesc)(self.0.raw(), flags) })
    }

    pub(in crate::libvirt) fn delete(&self, flags: u32) -> CallResult<()> {
        // SAFETY: the checkpoint is alive.
        number(self.0.api, unsafe { (self.0.api.virDomainCheckpointDelete)(self.0.raw(), flags) }).map(drop)
    }
}
