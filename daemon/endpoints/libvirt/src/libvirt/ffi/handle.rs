//! An owned object of libvirt.
//!
//! Rule: it is freed once, by its `Drop`, and does not outlive its parent object.

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    ptr::{NonNull, null_mut},
};

use super::{
    answer::{CallResult, failure, number},
    symbols::{LibvirtApi, Object, release},
};

/// An object of libvirt's, freed with its own function. It lives no longer than its parent object.
pub(super) struct LibvirtObject<'a> {
    pub(super) api: &'static LibvirtApi,
    raw: NonNull<c_void>,
    free: unsafe extern "C" fn(Object) -> c_int,
    parent: PhantomData<&'a ()>,
}

// SAFETY: libvirt's objects may be used and freed by any thread, also by several at the same time.
unsafe impl Send for LibvirtObject<'_> {}
// SAFETY: see above.
unsafe impl Sync for LibvirtObject<'_> {}

impl std::fmt::Debug for LibvirtObject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of libvirt")
    }
}

impl LibvirtObject<'_> {
    pub(super) fn new(
        api: &'static LibvirtApi,
        raw: Object,
        free: unsafe extern "C" fn(Object) -> c_int,
    ) -> CallResult<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| failure(api))?;
        Ok(Self { api, raw, free, parent: PhantomData })
    }

    pub(super) fn raw(&self) -> Object {
        self.raw.as_ptr()
    }

    /// All objects of a list that libvirt makes.
    pub(super) fn list(
        api: &'static LibvirtApi,
        free: unsafe extern "C" fn(Object) -> c_int,
        ask: impl FnOnce(*mut *mut Object) -> c_int,
    ) -> CallResult<Vec<Self>> {
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

impl Drop for LibvirtObject<'_> {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and this is the end of its only owner.
        unsafe { (self.free)(self.raw()) };
    }
}
