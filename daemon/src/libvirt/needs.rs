//! What libvirt knows of the things beside a domain that its start needs (volumes, networks, secrets), and whether the
//! guest of a paused one ever ran.
//!
//! Rule: a question here changes nothing, and a secret's value is never kept, shown or logged.

use super::{
    DomainId, Libvirt,
    disk::Disk,
    error::{LibvirtError, LibvirtErrorKind},
    xml,
};

/// A volume of a storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is on the host: a path, or what the pool's storage calls it.
    pub path: String,
    /// Its virtual size in bytes.
    pub size: u64,
}

impl Libvirt {
    /// A volume, by its pool's name and its own; an error with libvirt's words if the pool is not active.
    pub async fn volume(&self, pool: &str, name: &str) -> Result<Volume, LibvirtError> {
        let (pool, vol) = (format!("--pool={pool}"), format!("--vol={name}"));
        let text = self.call(&["vol-dumpxml", &pool, &vol]).await?;
        read_volume(&text).ok_or_else(|| LibvirtError::malformed(format!("vol-dumpxml {vol}"), text))
    }

    /// The names of the networks that are active.
    pub async fn active_networks(&self) -> Result<Vec<String>, LibvirtError> {
        let list = self.call(&["net-list", "--name"]).await?;
        Ok(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Fails, with libvirt's words, unless the secret is defined and has a value. What may not be told counts as there.
    pub async fn check_secret(&self, uuid: &str) -> Result<(), LibvirtError> {
        let secret = format!("--secret={uuid}");
        self.call(&["secret-dumpxml", &secret]).await?;
        match self.call(&["secret-get-value", &secret]).await {
            Err(error) if error.cause.to_string().contains("does not have a value") => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the guest of a domain that has power and stands still has never executed an instruction.
    pub async fn never_ran(&self, domain: DomainId) -> Result<bool, LibvirtError> {
        let text = self.about("qemu-monitor-command", domain, &[r#"{"execute":"query-status"}"#]).await?;
        let answer: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| LibvirtError::malformed(format!("query-status {domain}"), error))?;
        match answer.pointer("/return/status").and_then(serde_json::Value::as_str) {
            // QEMU leaves this state with the first instruction, and never comes back to it.
            Some(status) => Ok(status == "prelaunch"),
            None => Err(LibvirtError::malformed(format!("query-status {domain}"), text)),
        }
    }

    /// The disks that the domain had when the checkpoint was made.
    pub async fn checkpoint_disks(&self, domain: DomainId, name: &str) -> Result<Vec<Disk>, LibvirtError> {
        let text = self.about("checkpoint-dumpxml", domain, &["--checkpointname", name]).await?;
        let call = || format!("checkpoint-dumpxml {domain} {name}");
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

fn read_volume(text: &str) -> Option<Volume> {
    let document = xml::parse(text, "volume").ok()?;
    let root = document.root_element();
    let size = xml::text(root, "capacity")?.trim().parse().ok()?;
    let path = xml::descend(root, &["target", "path"])?.text()?.trim().to_owned();
    Some(Volume { path, size })
}

/// Whether a failed question tells nothing of what was asked about, as libvirt itself did not answer.
pub fn went_unanswered(error: &LibvirtError) -> bool {
    matches!(
        error.kind,
        LibvirtErrorKind::Unreachable | LibvirtErrorKind::Timeout | LibvirtErrorKind::MissingTool
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_says_where_it_is_and_how_large() {
        let text = "<volume type='file'><name>a</name><capacity unit='bytes'>8388608</capacity>\
            <target><path>/p/a &amp; b</path></target></volume>";
        assert_eq!(read_volume(text), Some(Volume { path: "/p/a & b".to_owned(), size: 8_388_608 }));
        assert_eq!(read_volume("<volume><name>a</name></volume>"), None);
    }
}
