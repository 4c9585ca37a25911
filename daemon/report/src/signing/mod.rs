//! The signature of a report: Ed25519, checked without a daemon, also years later.
//!
//! Rule: what is signed is carried verbatim beside what is readable, and both must say the same. So a report
//! survives being reformatted or re-encoded, and no readable part of it can be changed unnoticed.
//!
//! `docs/report-format.md` documents the form for those who check it without warmd.

mod form;
mod hex;
mod json;
mod key;

pub use self::{
    form::{InvalidSignature, SignedJson, Verified, sign, verify},
    key::{KEY_FILE, KeyError, PublicKey, ReportKey},
};
