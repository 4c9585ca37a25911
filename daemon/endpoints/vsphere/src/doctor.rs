//! What is right and wrong about a vCenter, each with what to do.
//!
//! Rule: it changes nothing and never fails: what cannot be looked at is a finding too.

mod privileges;

use std::{fmt, os::unix::fs::MetadataExt as _, time::Duration};

use chrono::Utc;
use tokio::{net::TcpStream, time::timeout};

pub use privileges::{PRIVILEGES, Privilege};

use crate::{Vsphere, error::Kind, settings::ReaderKind, soap::MoRef, vim::server};

const CONNECT: Duration = Duration::from_secs(5);
/// Beyond this, certificates and tickets between the hosts begin to fail.
const SKEW: Duration = Duration::from_mins(1);
/// NFC, on ESXi hosts.
const NFC_PORT: u16 = 902;
/// Hosts whose ports are tried; a vCenter can have thousands.
const HOSTS_TRIED: usize = 64;

/// Whether what was found stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DoctorSeverity {
    Good,
    Warning,
    Error,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoctorFinding {
    pub severity: DoctorSeverity,
    pub what: String,
    /// What to do; empty if nothing is to be done.
    pub remedy: String,
}

impl DoctorFinding {
    fn good(what: impl Into<String>) -> Self {
        Self { severity: DoctorSeverity::Good, what: what.into(), remedy: String::new() }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: DoctorSeverity::Warning, what: what.into(), remedy: remedy.into() }
    }

    fn error(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: DoctorSeverity::Error, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for DoctorFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            DoctorSeverity::Good => "good",
            DoctorSeverity::Warning => "warning",
            DoctorSeverity::Error => "error",
        };
        write!(f, "{mark}: {}", self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl Vsphere {
    /// Looks at everything that a migration will need; at privileges on `vms`, or on the root folder if none
    /// is named.
    pub async fn doctor(&self, vms: &[MoRef]) -> Vec<DoctorFinding> {
        let mut findings = vec![self.password_file().await];
        let (about, login) = self.login().await;
        findings.push(login);
        findings.extend(self.reader_findings().await);
        let Some(about) = about else { return findings };
        findings.push(self.certificate());
        findings.push(self.clock().await);
        if vms.is_empty() {
            match self.client.content().await {
                Ok(content) => {
                    let root = content.root_folder.clone();
                    findings.push(self.privileges_on(&root, about.is_vcenter).await);
                }
                Err(error) => findings.push(DoctorFinding::error(error.to_string(), "try again")),
            }
        }
        for vm in vms {
            findings.push(self.privileges_on(vm, about.is_vcenter).await);
        }
        findings.extend(self.ports().await);
        findings
    }

    async fn password_file(&self) -> DoctorFinding {
        let path = &self.client.account().password_file;
        let shown = path.display();
        match tokio::fs::metadata(path).await {
            Ok(found) if found.mode() & 0o077 != 0 => DoctorFinding::warning(
                format!("others may read the password in {shown} (mode {:o})", found.mode() & 0o777),
                format!("`chmod 600 {shown}`"),
            ),
            Ok(_) => DoctorFinding::good(format!("the password is in {shown}")),
            Err(error) => DoctorFinding::error(
                format!("the password in {shown} cannot be read: {error}"),
                "name a file that the daemon's user can read",
            ),
        }
    }

    async fn login(&self) -> (Option<server::About>, DoctorFinding) {
        match self.about().await {
            Ok(about) => {
                let what = format!("{} as {}", about.full_name, self.client.account().user);
                (Some(about), DoctorFinding::good(what))
            }
            Err(error) => {
                let remedy = match error.kind {
                    Kind::Unreachable | Kind::Timeout => {
                        "see that its name resolves, that port 443 is open from here, and that its services run"
                    }
                    _ => "see what it says, correct the settings, and try again",
                };
                (None, DoctorFinding::error(error.to_string(), remedy))
            }
        }
    }

    fn certificate(&self) -> DoctorFinding {
        match self.client.certificate() {
            Some(seen) => DoctorFinding::good(format!(
                "its certificate is trusted, with the SHA-1 thumbprint {}",
                seen.sha1
            )),
            None => DoctorFinding::warning("its certificate was not seen", "try again"),
        }
    }

    async fn clock(&self) -> DoctorFinding {
        let before = Utc::now();
        match server::current_time(&self.client).await {
            Ok(theirs) => {
                let ours = before + (Utc::now() - before) / 2;
                let skew = (theirs - ours).abs();
                if skew.to_std().unwrap_or_default() > SKEW {
                    DoctorFinding::warning(
                        format!("its clock differs from this one's by {} s", skew.num_seconds()),
                        "let both follow the same time servers",
                    )
                } else {
                    DoctorFinding::good(format!("its clock differs by {} ms", skew.num_milliseconds()))
                }
            }
            Err(error) => DoctorFinding::error(error.to_string(), "try again"),
        }
    }

    async fn privileges_on(&self, on: &MoRef, is_vcenter: bool) -> DoctorFinding {
        let wanted: Vec<&Privilege> =
            PRIVILEGES.iter().filter(|privilege| is_vcenter || !privilege.is_vcenters).collect();
        let ids: Vec<&str> = wanted.iter().map(|privilege| privilege.id).collect();
        match server::privileges(&self.client, on, &ids).await {
            Ok(granted) => {
                let missing: Vec<&Privilege> = wanted
                    .into_iter()
                    .zip(granted)
                    .filter(|(_, granted)| !granted)
                    .map(|(privilege, _)| privilege)
                    .collect();
                privileges::finding(on, &missing)
            }
            Err(error) => DoctorFinding::warning(
                format!("whether {} has its privileges cannot be asked: {error}", self.client.account().user),
                "compare its role with the documented list",
            ),
        }
    }

    /// The hosts that the data comes from, on NFC's port.
    async fn ports(&self) -> Vec<DoctorFinding> {
        if self.settings.reader.kind == ReaderKind::Outside {
            return Vec::new();
        }
        let hosts = match self.inventory.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => return vec![DoctorFinding::error(error.to_string(), "try again")],
        };
        let mut findings = Vec::new();
        let more = hosts.len().saturating_sub(HOSTS_TRIED);
        let tries = hosts.iter().take(HOSTS_TRIED).map(|host| async move {
            if !host.is_connected {
                return DoctorFinding::warning(
                    format!("vCenter does not reach the host {}", host.name),
                    "its VMs cannot be moved until it does",
                );
            }
            let direct = self.settings.direct_host(&host.name).and_then(|direct| direct.server().ok());
            let address = direct.map_or_else(|| host.name.clone(), |direct| direct.host);
            port(&host.name, &address, NFC_PORT).await
        });
        findings.extend(futures::future::join_all(tries).await);
        if more > 0 {
            findings.push(DoctorFinding::good(format!("{more} more hosts were not tried")));
        }
        for direct in &self.settings.hosts {
            if !hosts.iter().any(|host| host.name.eq_ignore_ascii_case(&direct.name)) {
                findings.push(DoctorFinding::warning(
                    format!("the settings name a host {}, which the server does not have", direct.name),
                    "name it as vCenter does",
                ));
            }
        }
        findings
    }

    async fn reader_findings(&self) -> Vec<DoctorFinding> {
        match crate::reader::check(&self.settings.reader).await {
            Ok(what) => vec![DoctorFinding::good(what)],
            Err(error) => vec![DoctorFinding::error(error.to_string(), error.remedy())],
        }
    }
}

async fn port(name: &str, address: &str, port: u16) -> DoctorFinding {
    match timeout(CONNECT, TcpStream::connect((address, port))).await {
        Ok(Ok(_)) => DoctorFinding::good(format!("the host {name} answers on port {port}")),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => DoctorFinding::error(
            format!("the host {name} refuses connections on port {port}"),
            "see that its firewall lets NFC through, and that its management services run",
        ),
        Ok(Err(error)) => DoctorFinding::error(
            format!("the host {name} cannot be reached at {address}:{port}: {error}"),
            "see that its name resolves here as in vCenter, and that its address is not one of this cluster's own \
             networks",
        ),
        Err(_) => DoctorFinding::error(
            format!("the host {name} does not answer at {address}:{port} within {} s", CONNECT.as_secs()),
            "open the port from here to the host",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_closed_is_an_error_with_a_remedy() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let open = listener.local_addr().unwrap().port();
        assert_eq!(port("esx1", "127.0.0.1", open).await.severity, DoctorSeverity::Good);
        drop(listener);
        let closed = port("esx1", "127.0.0.1", open).await;
        assert_eq!(closed.severity, DoctorSeverity::Error);
        assert!(closed.to_string().contains("esx1") && !closed.remedy.is_empty());
    }
}
