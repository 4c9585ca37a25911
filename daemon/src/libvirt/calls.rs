//! The calls that sources and targets make, typed.
//!
//! Rule: every call bears being repeated; where libvirt says "already so", the call says success.

use std::{collections::BTreeMap, time::Duration};

use super::{
    DomainId,
    domain::DomainXml,
    error::{LibvirtError, LibvirtErrorKind},
    virsh::{CALL_DEADLINE, Virsh},
};

/// One libvirt connection. Cloning gives another handle on it; at most eight calls run at the same time.
#[derive(Clone, Debug)]
pub struct Libvirt {
    virsh: Virsh,
}

/// Which of a domain's two definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XmlForm {
    /// That of the running domain if it runs, else the persistent one.
    Current,
    /// The persistent one, with secrets: fit to define or create the domain from.
    Persistent,
}

/// Whether a domain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It has power and executes, or is about to end.
    Running,
    /// It has power and executes nothing: paused, suspended, or crashed and kept.
    Paused,
    Off,
}

/// A domain's state and libvirt's word on how it came to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub state: RunState,
    /// As libvirt says it: `paused (user)`.
    pub text: String,
}

impl Libvirt {
    /// A connection by libvirt's URI. Nothing is reached yet.
    pub fn new(uri: &str) -> Self {
        Self::with_deadline(uri, CALL_DEADLINE)
    }

    /// The same, with another deadline for each call.
    pub fn with_deadline(uri: &str, deadline: Duration) -> Self {
        Self { virsh: Virsh::new(uri, deadline) }
    }

    /// The URI that it was opened with.
    pub fn uri(&self) -> &str {
        self.virsh.uri()
    }

    /// Any call: `virsh ARGS`. Domains in `args` are to be [`DomainId`]s, paths absolute.
    pub async fn call(&self, args: &[&str]) -> Result<String, LibvirtError> {
        self.virsh.run(args, None).await
    }

    /// Any call that reads `input` from `/dev/stdin`.
    pub async fn call_with(&self, args: &[&str], input: &str) -> Result<String, LibvirtError> {
        self.virsh.run(args, Some(input)).await
    }

    /// A call about one domain.
    pub(super) async fn about(
        &self,
        verb: &str,
        domain: DomainId,
        args: &[&str],
    ) -> Result<String, LibvirtError> {
        let domain = domain.to_string();
        self.call(&[&[verb, domain.as_str()], args].concat()).await
    }

    /// What the daemon there says of itself, on one line: `libvirt 9.0.0, QEMU 7.2.22`.
    pub async fn version(&self) -> Result<String, LibvirtError> {
        let text = self.call(&["version"]).await?;
        let after = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).map(str::trim);
        match (after("Using library:"), after("Running hypervisor:")) {
            (Some(library), Some(hypervisor)) => Ok(format!("{library}, {hypervisor}")),
            (Some(library), None) => Ok(library.to_owned()),
            _ => Err(LibvirtError::malformed("version", text)),
        }
    }

    /// All domains, running or not, with their names.
    pub async fn domains(&self) -> Result<Vec<(DomainId, String)>, LibvirtError> {
        let list = self.call(&["list", "--all", "--uuid", "--name"]).await?;
        list.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let (id, name) = line
                    .split_at_checked(36)
                    .ok_or_else(|| LibvirtError::malformed("list", format!("{line:?}")))?;
                let id = id.parse().map_err(|error| LibvirtError::malformed("list", error))?;
                Ok((id, name.strip_prefix(' ').unwrap_or(name).trim_end().to_owned()))
            })
            .collect()
    }

    /// A domain's XML as text.
    pub async fn dump_xml(&self, domain: DomainId, form: XmlForm) -> Result<String, LibvirtError> {
        let flags: &[&str] = match form {
            XmlForm::Current => &[],
            XmlForm::Persistent => &["--inactive", "--security-info"],
        };
        self.about("dumpxml", domain, flags).await
    }

    /// A domain's current definition, read.
    pub async fn domain(&self, domain: DomainId) -> Result<DomainXml, LibvirtError> {
        let text = self.dump_xml(domain, XmlForm::Current).await?;
        DomainXml::read(&text).map_err(|error| LibvirtError::malformed(format!("dumpxml {domain}"), error))
    }

    /// Whether it runs. A domain that is gone is [`LibvirtErrorKind::NoSuchDomain`].
    pub async fn state(&self, domain: DomainId) -> Result<Standing, LibvirtError> {
        let text = self.about("domstate", domain, &["--reason"]).await?;
        let text = text.trim().to_owned();
        let state = match text.split(" (").next().unwrap_or_default() {
            "running" | "idle" | "blocked" | "in shutdown" | "no state" => RunState::Running,
            "paused" | "pmsuspended" | "crashed" => RunState::Paused,
            "shut off" => RunState::Off,
            _ => return Err(LibvirtError::malformed(format!("domstate {domain}"), text)),
        };
        Ok(Standing { state, text })
    }

    /// Virtual sizes in bytes of its disks, by target name; a drive without a medium is missing.
    pub async fn disk_sizes(&self, domain: DomainId) -> Result<BTreeMap<String, u64>, LibvirtError> {
        let table = self.about("domblkinfo", domain, &["--all"]).await?;
        Ok(table
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
            })
            .collect())
    }

    /// Whether it stays defined when it is off, and whether a saved memory image waits for its next start.
    pub async fn persistent_and_saved(&self, domain: DomainId) -> Result<(bool, bool), LibvirtError> {
        let info = self.about("dominfo", domain, &[]).await?;
        let says = |key: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim() == "yes")
                .ok_or_else(|| {
                    LibvirtError::malformed(format!("dominfo {domain}"), format!("no line {key:?}"))
                })
        };
        Ok((says("Persistent:")?, says("Managed save:")?))
    }

    /// The names of its snapshots; none where the driver has no snapshots.
    pub async fn snapshot_names(&self, domain: DomainId) -> Result<Vec<String>, LibvirtError> {
        match self.about("snapshot-list", domain, &["--name"]).await {
            Ok(list) => {
                Ok(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
            }
            Err(error) if error.kind == LibvirtErrorKind::Unsupported => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Defines a domain, or changes its persistent definition.
    pub async fn define(&self, xml: &str) -> Result<(), LibvirtError> {
        self.call_with(&["define", "/dev/stdin"], xml).await.map(drop)
    }

    /// Starts a defined domain; running already is success.
    pub async fn start(&self, domain: DomainId) -> Result<(), LibvirtError> {
        already(self.about("start", domain, &[]).await, LibvirtErrorKind::AlreadyActive)
    }

    /// Starts a domain from `xml`, paused: it executes nothing. If a domain of the same UUID is defined and off, it is
    /// that one which starts, and its persistent definition stays what it was.
    pub async fn create_paused(&self, xml: &str) -> Result<(), LibvirtError> {
        self.call_with(&["create", "--paused", "/dev/stdin"], xml).await.map(drop)
    }

    /// Cuts the power; off already is success. QEMU gets time to close its images, and is killed only if it hangs.
    pub async fn destroy(&self, domain: DomainId) -> Result<(), LibvirtError> {
        use LibvirtErrorKind as K;
        match already(self.about("destroy", domain, &["--graceful"]).await, K::NotRunning) {
            Err(error) if matches!(error.kind, K::Busy | K::Failed) => {
                tracing::warn!(%domain, %error, "QEMU does not end in good order; killing it");
                already(self.about("destroy", domain, &[]).await, K::NotRunning)
            }
            result => result,
        }
    }

    /// Presses the power button; off already is success. The guest may take its time, or ignore it.
    pub async fn press_power_button(&self, domain: DomainId) -> Result<(), LibvirtError> {
        already(self.about("shutdown", domain, &["--mode", "acpi"]).await, LibvirtErrorKind::NotRunning)
    }

    /// Sets what happens when the guest of a running domain powers off: `destroy`, `restart`. Holds until it is off.
    pub async fn set_poweroff_action(&self, domain: DomainId, action: &str) -> Result<(), LibvirtError> {
        self.about("set-lifecycle-action", domain, &["poweroff", action, "--live"]).await.map(drop)
    }

    /// Removes the running domain's tag of warmd (any element of [`DomainXml::TAG_NAMESPACE`]); none is success.
    pub async fn remove_live_tag(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let args = [DomainXml::TAG_NAMESPACE, "--live", "--remove"];
        already(self.about("metadata", domain, &args).await, LibvirtErrorKind::NoSuchMetadata)
    }

    /// Whether the guest's QEMU agent answers within five seconds; an error if it does not, or the domain has no channel to it.
    pub async fn ping_agent(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let args = [r#"{"execute":"guest-ping"}"#, "--timeout", "5"];
        self.about("qemu-agent-command", domain, &args).await.map(drop)
    }

    /// Removes a domain's definition, its NVRAM and its snapshots' and checkpoints' metadata, never its disks; not
    /// there is success.
    pub async fn undefine(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let flags = ["--managed-save", "--snapshots-metadata", "--checkpoints-metadata", "--nvram"];
        already(self.about("undefine", domain, &flags).await, LibvirtErrorKind::NoSuchDomain)
    }
}

/// Success also if it failed because it is so already.
pub(super) fn already(
    result: Result<String, LibvirtError>,
    so: LibvirtErrorKind,
) -> Result<(), LibvirtError> {
    match result {
        Err(error) if error.kind != so => Err(error),
        _ => Ok(()),
    }
}
