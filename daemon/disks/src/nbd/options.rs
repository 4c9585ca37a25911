//! The caller's choices when it opens an export.

use std::time::Duration;

use super::address::{NbdAddress, NbdUri};

/// How to open one export. Build it with [`NbdOptions::new`], then change what differs.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    pub address: NbdAddress,
    /// The export's name; the empty name is the server's default export.
    pub export: String,
    /// Meta contexts to ask for. Missing ones are left out: see `NbdDisk::contexts`.
    pub contexts: Vec<String>,
    /// Whether writes are allowed; a read-only export is then refused at open.
    pub writable: bool,
    /// The most connections, used where the server announces multi-conn.
    pub connections: usize,
    /// The most requests in flight on each connection.
    pub in_flight: usize,
    /// The most bytes that `DiskLimits::max_request` tells the engine to ask for at once. Larger requests
    /// work.
    pub max_request: usize,
    /// For reaching the server, name look-up included.
    pub connect_timeout: Duration,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For each request, from the moment it is handed to the connection. Its expiry ends the connection.
    pub request_timeout: Duration,
    /// How long a request goes on trying to reach a lost server; zero means never.
    pub reconnect_for: Duration,
    /// For servers that do not offer FLUSH: treat their acknowledgement as durable. Otherwise a flush of a
    /// disk opened for writing is refused there, because its result could not be true.
    pub trust_without_flush: bool,
    /// An earlier process may have written to the export, and its last writes may be applied late: writes
    /// there are read back for a while. For disks opened for writing.
    pub unknown_past: bool,
}

/// The meta context that reports holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

impl NbdOptions {
    /// The defaults, for reading: 4 connections of 16 requests, `base:allocation`, 30 s for each wait, 60 s
    /// to come back after a lost connection.
    pub fn new(address: NbdAddress, export: impl Into<String>) -> Self {
        Self {
            address,
            export: export.into(),
            contexts: vec![BASE_ALLOCATION.into()],
            writable: false,
            connections: 4,
            in_flight: 16,
            max_request: 1 << 20,
            connect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            reconnect_for: Duration::from_mins(1),
            trust_without_flush: false,
            unknown_past: false,
        }
    }

    /// The same, for writing too.
    pub fn writable(mut self) -> Self {
        self.writable = true;
        self
    }

    /// The same, with another meta context, such as `qemu:dirty-bitmap:NAME`.
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.contexts.push(name.into());
        self
    }
}

impl From<NbdUri> for NbdOptions {
    fn from(uri: NbdUri) -> Self {
        Self::new(uri.address, uri.export)
    }
}
