//! What libvirt knows of the resources beside a domain that its start needs (volumes, networks, secrets), and
//! whether the guest of a paused one ever ran.
//!
//! Rule: a query here changes nothing, and a secret's value is never kept, shown or logged.

use super::{
    DomainId, LibvirtClient,
    disk::Disk,
    error::{LibvirtError, LibvirtErrorKind},
    ffi::LibvirtDomain,
    link::Lane,
    xml,
};

/// A volume of a storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolVolume {
    /// Its place on the host: a path, or its name in the pool's storage.
    pub path: String,
    /// Its virtual size in bytes.
    pub size: u64,
}

impl LibvirtClient {
    /// A volume, by its pool's name and its own; an error with libvirt's words if the pool is not active.
    pub async fn volume(&self, pool: &str, name: &str) -> Result<PoolVolume, LibvirtError> {
        let call = format!("vol-info {pool}/{name}");
        let (pool, name) = (pool.to_owned(), name.to_owned());
        let (path, size) = self.call(Lane::Look, call, move |libvirt| libvirt.volume(&pool, &name)).await?;
        Ok(PoolVolume { path, size })
    }

    /// The names of the networks that are active.
    pub async fn active_networks(&self) -> Result<Vec<String>, LibvirtError> {
        let networks = self.networks().await?;
        Ok(networks.into_iter().filter(|network| network.active).map(|network| network.name).collect())
    }

    /// Fails, with libvirt's words, unless the secret is defined and has a value. A value that may not be
    /// read counts as existing.
    pub async fn check_secret(&self, uuid: &str) -> Result<(), LibvirtError> {
        let (call, uuid) = (format!("secret {uuid}"), uuid.to_owned());
        self.call(Lane::Look, call, move |libvirt| libvirt.check_secret(&uuid)).await
    }

    /// Whether the guest of a paused domain has never executed an instruction.
    pub async fn never_ran(&self, domain: DomainId) -> Result<bool, LibvirtError> {
        let ask = |domain: &LibvirtDomain<'_>| domain.monitor(r#"{"execute":"query-status"}"#);
        let text = self.about(Lane::Urgent, "query-status", domain, ask).await?;
        let answer: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| LibvirtError::malformed(format!("query-status {domain}"), error))?;
        match answer.pointer("/return/status").and_then(serde_json::Value::as_str) {
            // QEMU leaves this state with the first instruction, and never returns to it.
            Some(status) => Ok(status == "prelaunch"),
            None => Err(LibvirtError::malformed(format!("query-status {domain}"), text)),
        }
    }

    /// The disks that the domain had when the checkpoint was created.
    pub async fn checkpoint_disks(&self, domain: DomainId, name: &str) -> Result<Vec<Disk>, LibvirtError> {
        let call = || format!("checkpoint-dumpxml {domain} {name}");
        let wanted = name.to_owned();
        let ask = move |domain: &LibvirtDomain<'_>| domain.checkpoint(&wanted)?.xml(0);
        let text = self.about(Lane::Look, "checkpoint-dumpxml", domain, ask).await?;
        let document =
            xml::parse(&text, "domaincheckpoint").map_err(|error| LibvirtError::malformed(call(), error))?;
        let Some(devices) = xml::descend(document.root_element(), &["domain", "devices"]) else {
            return Ok(Vec::new());
        };
        xml::children(devices, "disk")
            .map(Disk::read)
            .collect::<Result<_, _>>()
            .map_err(|error| LibvirtError::malformed(call(), error))
    }
}

/// Whether a failed query gives no information, because libvirt itself did not answer.
pub fn went_unanswered(error: &LibvirtError) -> bool {
    matches!(
        error.kind,
        LibvirtErrorKind::Unreachable | LibvirtErrorKind::Timeout | LibvirtErrorKind::MissingTool
    )
}
