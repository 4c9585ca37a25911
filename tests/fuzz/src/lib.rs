//! What each fuzz target does with its bytes: shared with the test that replays the corpus without a fuzzer.
//!
//! Rule: external input does no harm: no panic, no allocation beyond the limit, and accepted
//! input can be used.

use warmd_daemon::config;
use warmd_disks::nbd;
use warmd_endpoint_libvirt::libvirt::{BackupJob, Checkpoint, DomainXml};
use warmd_report::signing;

/// A function that takes any bytes and must not panic.
pub type FuzzTarget = fn(&[u8]);

/// The targets by name; each has a folder in `corpus/`.
pub const TARGETS: [(&str, FuzzTarget); 6] = [
    ("nbd_reply", nbd_reply),
    ("libvirt_xml", libvirt_xml),
    ("config", config),
    ("store", store),
    ("api", api),
    ("report", report),
];

/// Data from an NBD server. The first byte selects the reader: 0 and 1 the transmission phase without and
/// with structured replies, 2 the handshake, 3 a request for the list of exports.
pub fn nbd_reply(bytes: &[u8]) {
    use nbd::fuzz;
    let Some((mode, bytes)) = bytes.split_first() else { return };
    match mode % 4 {
        mode @ (0 | 1) => {
            let replayed = fuzz::replies(bytes, mode == 1);
            assert!(replayed.data.iter().all(|read| read.len() == fuzz::LENGTH as usize));
        }
        2 => drop(fuzz::handshake(bytes)),
        _ => drop(fuzz::list(bytes)),
    }
}

/// Output of libvirt: a domain, a checkpoint, a backup job.
pub fn libvirt_xml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(domain) = DomainXml::read(text) {
        for disk in &domain.disks {
            assert!(disk.target.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{:?}", disk.target);
            disk.untracked();
        }
    }
    Checkpoint::read(text).ok();
    BackupJob::read(text).ok();
}

/// A plan file or a configuration file, as a user wrote it.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(plan) = config::load_plan(text, "plan.toml") {
        assert!(plan.problems().is_empty());
    }
    config::Config::parse(text, "warmd.toml").ok();
}

/// A value from SQLite; the first byte selects the column.
pub fn store(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    warmd_store::fuzz::saved(*kind, bytes);
}

/// A message of a client; the first byte selects it.
pub fn api(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    warmd_api::fuzz::message(*kind, bytes);
}

/// A report that a user passes to `report verify`.
pub fn report(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    signing::verify(text, None).ok();
}
