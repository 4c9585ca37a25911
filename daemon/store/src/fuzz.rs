//! Drives the readers of what SQLite holds, over bytes in memory: for the fuzz target and its corpus.
//!
//! Rule: what runs here is what runs in production; only the file is missing.

use warmd_cbt::chunk::ChunkBits;
use warmd_core::model::{machine::Machine, plan::Plan, state::State, view::VerifyResult};

use super::{
    manifest_log,
    row::{Saved, from_json, to_json},
};

/// Takes `bytes` for the saved value that `kind` names; whether it is one. A valid value must be read back
/// unchanged.
pub fn saved(kind: u8, bytes: &[u8]) -> bool {
    match kind % 6 {
        0 => ChunkBits::decode(bytes).is_some_and(|bits| {
            assert!(ChunkBits::decode(&bits.encode()).as_ref() == Some(&bits), "bits that do not come back");
            true
        }),
        1 => manifest_log::exercise(bytes),
        2 => json::<Machine>(bytes),
        3 => json::<Plan>(bytes),
        4 => json::<State>(bytes),
        _ => json::<VerifyResult>(bytes),
    }
}

fn json<T: Saved + PartialEq>(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(value) = from_json::<T>("fuzz", 0, text) else { return false };
    let again = to_json("fuzz", 0, &value).ok().and_then(|text| from_json::<T>("fuzz", 0, &text).ok());
    assert!(again.as_ref() == Some(&value), "a value that does not come back");
    true
}
