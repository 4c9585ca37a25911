//! Whatever an NBD server sends: no panic, no allocation beyond what was asked for, no answer that is not one.
//!
//! The first byte says who listens: 0 and 1 the transmission phase without and with structured replies, 2 the
//! handshake, 3 a request for the list of exports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warmd_daemon::nbd::exercise;

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    match mode % 4 {
        mode @ (0 | 1) => {
            let replayed = exercise::replies(bytes, mode == 1);
            assert!(replayed.data.iter().all(|read| read.len() == exercise::LENGTH as usize));
        }
        2 => drop(exercise::handshake(bytes)),
        _ => drop(exercise::list(bytes)),
    }
});
