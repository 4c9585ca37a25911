//! The answer of a call of libvirt: its value, or why there is none.
//!
//! Rule: a failure is read in its own thread, before the next call there. A text is copied, and
//! freed if libvirt made it for the caller.

use std::ffi::{CStr, CString, c_char, c_int};

use super::symbols::{LibvirtApi, release};
use crate::libvirt::MAX_OUTPUT;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::libvirt) enum CallFailure {
    /// The library is missing, or too old.
    Missing(String),
    /// libvirt's answer: `virErrorNumber`, `virErrorDomain`, an errno where it has one, and its words, for
    /// messages.
    Said { code: i32, domain: i32, errno: i32, words: String },
    /// An argument or answer is no valid text.
    Malformed(String),
}

pub(super) type CallResult<T> = Result<T, CallFailure>;

/// This thread's last failure.
pub(super) fn failure(api: &LibvirtApi) -> CallFailure {
    // SAFETY: the pointer is null or this thread's error, which stays until its next call; it is only read
    // here.
    let said = unsafe { (api.virGetLastError)().as_ref() };
    said.map_or_else(
        || CallFailure::Said { code: 1, domain: 0, errno: 0, words: "failed without a word".to_owned() },
        |said| CallFailure::Said {
            code: said.code,
            domain: said.domain,
            // `VIR_ERR_SYSTEM_ERROR` has it there.
            errno: if said.code == 38 { said.number } else { 0 },
            words: copied(said.message).unwrap_or_else(|| "failed without a word".to_owned()),
        },
    )
}

/// A copy of a text that stays libvirt's.
pub(super) fn copied(text: *const c_char) -> Option<String> {
    // SAFETY: libvirt's texts end with a zero byte, and this one lives until the next call.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// A text that libvirt made for the caller.
pub(super) fn owned(api: &LibvirtApi, text: *mut c_char) -> CallResult<String> {
    if text.is_null() {
        return Err(failure(api));
    }
    // SAFETY: the text ends with a zero byte, and is freed after it was copied, once, with the C library's
    // function as libvirt says.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    let answer = if bytes.len() > MAX_OUTPUT {
        Err(CallFailure::Malformed(format!("the answer is above {MAX_OUTPUT} bytes")))
    } else {
        String::from_utf8(bytes.to_vec()).map_err(|error| CallFailure::Malformed(error.to_string()))
    };
    // SAFETY: see above.
    unsafe { release(text.cast()) };
    answer
}

pub(super) fn number(api: &LibvirtApi, answer: c_int) -> CallResult<c_int> {
    if answer < 0 { Err(failure(api)) } else { Ok(answer) }
}

pub(super) fn text(text: &str) -> CallResult<CString> {
    CString::new(text).map_err(|_| CallFailure::Malformed(format!("{text:?} has a zero byte")))
}
