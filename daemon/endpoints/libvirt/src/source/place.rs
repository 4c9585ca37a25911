//! Hosts and datastores, by the names in quotas.
//!
//! Rule: the host is always this one. Disks lie together in a directory, in a storage pool, or in a pool of a
//! cluster.

/// The name of this host.
pub(super) fn this_host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The datastore of a disk: `/srv/images` of `/srv/images/a.qcow2`, `fast` of `volume:fast/a`, `rbd:pool` of
/// `rbd:pool/a`.
pub(super) fn datastore(location: &str) -> Option<String> {
    let (store, _) = location.strip_prefix("volume:").unwrap_or(location).rsplit_once('/')?;
    Some(if store.is_empty() { "/" } else { store }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::DiskSource;

    #[test]
    fn disks_lie_where_their_location_says() {
        let text = |text: &str| text.to_owned();
        for (source, store) in [
            (DiskSource::File(text("/srv/images/a.qcow2")), Some("/srv/images")),
            (DiskSource::File(text("/a.qcow2")), Some("/")),
            (DiskSource::Block(text("/dev/vg0/a")), Some("/dev/vg0")),
            (DiskSource::Volume { pool: text("fast"), volume: text("a") }, Some("fast")),
            (DiskSource::Network { protocol: text("rbd"), name: text("pool/a") }, Some("rbd:pool")),
            (DiskSource::Network { protocol: text("nbd"), name: text("a") }, None),
            (DiskSource::Empty, None),
        ] {
            assert_eq!(datastore(&source.to_string()).as_deref(), store, "{source}");
        }
    }

    #[test]
    fn this_host_has_a_name() {
        assert!(this_host().is_some_and(|name| !name.contains(char::is_whitespace)));
    }
}
