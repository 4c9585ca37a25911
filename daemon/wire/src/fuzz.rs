//! Drives the decoder over bytes in memory, for the property tests and a fuzzer.
//!
//! Rule: what runs here is what runs in production.

use super::message::Message;

/// Whether `bytes` are a message; one must be the same after it is written and read again.
///
/// # Panics
/// If it is not.
pub fn message(bytes: &[u8]) -> bool {
    let Ok(message) = Message::decode(bytes) else { return false };
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(again[..4], ((again.len() - 4) as u32).to_be_bytes());
    assert_eq!(Message::decode(&again[4..]), Ok(message));
    true
}
