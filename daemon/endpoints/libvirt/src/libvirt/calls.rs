//! The typed calls of sources and targets.
//!
//! Rule: every call may be repeated. "Already so" is success only after a look at the domain confirmed it:
//! libvirt has one number for all operations that a domain's state does not allow.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method is not general enough over the lifetime of its connection"
)]

use std::{collections::BTreeMap, sync::Arc, time::Duration, time::Instant};

use super::{
    DomainId,
    disk::{Disk, DiskSource},
    domain::DomainXml,
    domain_status::{DomainStatus, RunState},
    error::{LibvirtError, LibvirtErrorKind},
    events::DomainChange,
    ffi::{CallFailure, LibvirtConnection, LibvirtDomain},
    link::{CALL_DEADLINE, CallLanes, Lane},
    metadata::Affects,
    xml,
};

/// One libvirt. Cloning gives another handle on the same connections.
#[derive(Clone, Debug)]
pub struct LibvirtClient {
    endpoint: Arc<CallLanes>,
}

/// One of a domain's two definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XmlForm {
    /// That of the running domain if it runs, else the persistent one.
    Current,
    /// The persistent one, with secrets: fit to define or create the domain from.
    Persistent,
}

/// A network of libvirt's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub active: bool,
}

/// `virDomainXMLFlags`.
const XML_SECURE: u32 = 1;
const XML_INACTIVE: u32 = 2;
/// `VIR_DOMAIN_START_PAUSED`.
const START_PAUSED: u32 = 1;
/// `VIR_DOMAIN_DESTROY_GRACEFUL`.
const DESTROY_GRACEFUL: u32 = 1;
/// `VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN`.
const SHUTDOWN_ACPI: u32 = 1;
/// Managed save, snapshots' metadata, NVRAM, checkpoints' metadata.
const UNDEFINE_ALL: u32 = 1 | 2 | 4 | 16;
const DESTROY: &str = "destroy";
/// `virDomainLifecycleAction`, by the words of the domain's XML.
const ACTIONS: [&str; 6] =
    ["destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart"];

impl LibvirtClient {
    /// A connection by libvirt's URI. It connects with the first call.
    pub fn new(uri: &str) -> Self {
        Self::with_deadline(uri, CALL_DEADLINE)
    }

    /// The same, with another deadline for each call.
    pub fn with_deadline(uri: &str, deadline: Duration) -> Self {
        Self { endpoint: Arc::new(CallLanes::new(uri, deadline)) }
    }

    /// The URI that it was opened with.
    pub fn uri(&self) -> &str {
        self.endpoint.uri()
    }

    /// A call about libvirt itself.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        name: impl Into<String>,
        ask: impl FnOnce(&LibvirtConnection) -> Result<T, CallFailure> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        self.endpoint.run(lane, name.into(), ask).await
    }

    /// A call about one domain. [`LibvirtErrorKind::NoSuchDomain`] is its answer only if a listing lacks the
    /// domain too.
    pub(super) async fn about<T: Send + 'static>(
        &self,
        lane: Lane,
        verb: &str,
        domain: DomainId,
        ask: impl FnOnce(&LibvirtDomain<'_>) -> Result<T, CallFailure> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let name = format!("{verb} {domain}");
        let turn = match lane {
            Lane::Urgent => Some(self.endpoint.turn(domain.0, &name, verb == DESTROY).await?),
            Lane::Look | Lane::Work | Lane::Power => None,
        };
        let answer = self.call(lane, name, move |libvirt| {
            // Returned when the call has ended, and not when its caller stops waiting.
            let _turn = turn;
            ask(&libvirt.domain(domain.0)?)
        });
        self.unless_listed(domain, answer.await).await
    }

    /// "No such domain" counts only if a listing that succeeded lacks it: else it is a failure like others.
    async fn unless_listed<T>(
        &self,
        domain: DomainId,
        answer: Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let error = match answer {
            Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => error,
            answer => return answer,
        };
        let kind = kind_of_absence(&self.is_absent(domain).await);
        if kind != LibvirtErrorKind::NoSuchDomain {
            tracing::warn!(%domain, %error, ?kind, "libvirt does not find a domain that no listing lacks");
        }
        Err(LibvirtError { kind, ..error })
    }

    /// The versions of the daemon there, on one line (`libvirt 9.0.0, QEMU 7.2.22`), and libvirt's major and
    /// minor version.
    pub async fn version(&self) -> Result<(String, (u32, u32)), LibvirtError> {
        let (library, hypervisor, kind) =
            self.call(Lane::Look, "version", LibvirtConnection::versions).await?;
        let three =
            |number: u64| format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000);
        let line = format!("libvirt {}, {kind} {}", three(library), three(hypervisor));
        Ok((line, major_and_minor(library)))
    }

    /// All domains, running or not, with their names.
    pub async fn domains(&self) -> Result<Vec<(DomainId, String)>, LibvirtError> {
        self.call(Lane::Power, "list", |libvirt| {
            let domains = libvirt.domains()?;
            domains.iter().map(|domain| Ok((DomainId(domain.id()?), domain.name()?))).collect()
        })
        .await
    }

    /// Whether a listing that succeeded lacks the domain: only then it is absent. "No such domain" alone may
    /// come from a daemon that has not read its definitions yet.
    pub async fn is_absent(&self, domain: DomainId) -> Result<bool, LibvirtError> {
        let listed = self.call(Lane::Power, "list", |libvirt| {
            libvirt.domains()?.iter().map(|domain| domain.id()).collect::<Result<Vec<_>, _>>()
        });
        Ok(!listed.await?.contains(&domain.0))
    }

    /// A domain's XML as text.
    pub async fn dump_xml(&self, domain: DomainId, form: XmlForm) -> Result<String, LibvirtError> {
        let flags = match form {
            XmlForm::Current => 0,
            XmlForm::Persistent => XML_INACTIVE | XML_SECURE,
        };
        self.about(Lane::Look, "dumpxml", domain, move |domain| domain.xml(flags)).await
    }

    /// A domain's current definition, read.
    pub async fn domain(&self, domain: DomainId) -> Result<DomainXml, LibvirtError> {
        let text = self.dump_xml(domain, XmlForm::Current).await?;
        DomainXml::read(&text).map_err(|error| LibvirtError::malformed(format!("dumpxml {domain}"), error))
    }

    /// A domain's persistent definition, read.
    pub async fn persistent(&self, domain: DomainId) -> Result<DomainXml, LibvirtError> {
        let text = self.dump_xml(domain, XmlForm::Persistent).await?;
        DomainXml::read(&text)
            .map_err(|error| LibvirtError::malformed(format!("dumpxml --inactive {domain}"), error))
    }

    /// Whether it runs. A domain that is gone is [`LibvirtErrorKind::NoSuchDomain`].
    pub async fn state(&self, domain: DomainId) -> Result<DomainStatus, LibvirtError> {
        let (state, reason) = self.about(Lane::Power, "domstate", domain, |domain| domain.state()).await?;
        DomainStatus::of(state, reason).ok_or_else(|| {
            LibvirtError::malformed(format!("domstate {domain}"), format!("the state {state} is not known"))
        })
    }

    /// Virtual sizes in bytes of these disks of the domain, by target name. A drive without a medium is
    /// missing, and so is a disk of whose image libvirt knows nothing.
    pub async fn disk_sizes(
        &self,
        domain: DomainId,
        disks: &[Disk],
    ) -> Result<BTreeMap<String, u64>, LibvirtError> {
        let disks = disks.to_vec();
        let sizes = self.call(Lane::Look, format!("domblkinfo {domain}"), move |libvirt| {
            let found = libvirt.domain(domain.0)?;
            let mut sizes = BTreeMap::new();
            for Disk { target, source, .. } in disks {
                if source == DiskSource::Empty {
                    continue;
                }
                let size = match (found.disk_size(&target), source) {
                    // The driver resolves volumes of pools only while the domain runs.
                    (Err(CallFailure::Said { .. }), DiskSource::Volume { pool, volume }) => {
                        libvirt.volume(&pool, &volume).map(|(_, size)| size)
                    }
                    (size, _) => size,
                };
                match size {
                    Ok(size) => drop(sizes.insert(target, size)),
                    Err(failure) => {
                        let error = LibvirtError::of("domblkinfo", failure.clone());
                        if matches!(
                            error.kind,
                            LibvirtErrorKind::Unreachable | LibvirtErrorKind::NoSuchDomain
                        ) {
                            return Err(failure);
                        }
                        tracing::debug!(%domain, disk = target, %error, "the size of a disk is not known");
                    }
                }
            }
            Ok(sizes)
        });
        self.unless_listed(domain, sizes.await).await
    }

    /// A storage pool's XML.
    pub async fn pool_xml(&self, pool: &str) -> Result<String, LibvirtError> {
        let pool = pool.to_owned();
        self.call(Lane::Look, format!("pool-dumpxml {pool}"), move |libvirt| libvirt.pool(&pool)).await
    }

    /// All networks; [`LibvirtErrorKind::Unsupported`] if it has no network driver.
    pub async fn networks(&self) -> Result<Vec<Network>, LibvirtError> {
        let networks = self.call(Lane::Look, "net-list", LibvirtConnection::networks).await?;
        Ok(networks.into_iter().map(|(name, active)| Network { name, active }).collect())
    }

    /// A network's XML.
    pub async fn network_xml(&self, network: &str) -> Result<String, LibvirtError> {
        let network = network.to_owned();
        self.call(Lane::Look, format!("net-dumpxml {network}"), move |libvirt| libvirt.network(&network))
            .await
    }

    /// The names of all network filters; none where libvirt has no driver for them.
    pub async fn network_filters(&self) -> Result<Vec<String>, LibvirtError> {
        match self.call(Lane::Look, "nwfilter-list", LibvirtConnection::filters).await {
            Err(error) if error.kind == LibvirtErrorKind::Unsupported => Ok(Vec::new()),
            result => result,
        }
    }

    /// The hypervisor's capabilities for machines of type `kind` (`kvm`, `qemu`), as XML.
    pub async fn domain_capabilities(
        &self,
        kind: &str,
        architecture: &str,
        machine: Option<&str>,
    ) -> Result<String, LibvirtError> {
        let name = format!("domcapabilities {kind} {architecture} {}", machine.unwrap_or_default());
        let (kind, architecture) = (kind.to_owned(), architecture.to_owned());
        let machine = machine.map(str::to_owned);
        self.call(Lane::Look, name.trim_end(), move |libvirt| {
            libvirt.capabilities(&kind, &architecture, machine.as_deref())
        })
        .await
    }

    /// The features of a processor that the host lacks (a domain's element `cpu`) for machines of that kind,
    /// in libvirt's words; `None` if none.
    pub async fn cpu_lacks(
        &self,
        kind: &str,
        architecture: &str,
        machine: &str,
        cpu: &str,
    ) -> Result<Option<String>, LibvirtError> {
        let name = format!("hypervisor-cpu-compare {kind} {architecture} {machine}");
        let of = [kind, architecture, machine, cpu].map(str::to_owned);
        self.call(Lane::Look, name, move |libvirt| {
            let [kind, architecture, machine, cpu] = &of;
            libvirt.cpu_lacks(kind, architecture, machine, cpu)
        })
        .await
    }

    /// Whether it stays defined when it is off, and whether a saved memory image waits for its next start.
    pub async fn persistent_and_saved(&self, domain: DomainId) -> Result<(bool, bool), LibvirtError> {
        self.about(Lane::Look, "dominfo", domain, |domain| Ok((domain.is_persistent()?, domain.is_saved()?)))
            .await
    }

    /// The names of its snapshots; none where the driver has no snapshots.
    pub async fn snapshot_names(&self, domain: DomainId) -> Result<Vec<String>, LibvirtError> {
        match self.about(Lane::Look, "snapshot-list", domain, |domain| domain.snapshot_names()).await {
            Err(error) if error.kind == LibvirtErrorKind::Unsupported => Ok(Vec::new()),
            result => result,
        }
    }

    /// Defines a domain, or changes its persistent definition.
    pub async fn define(&self, xml: &str) -> Result<(), LibvirtError> {
        let text = xml.to_owned();
        match self.call(Lane::Work, "define", move |libvirt| libvirt.define(&text)).await {
            Err(error) if error.kind == LibvirtErrorKind::Failed && self.is_taken(xml).await => {
                Err(LibvirtError { kind: LibvirtErrorKind::Exists, ..error })
            }
            result => result,
        }
    }

    /// Whether another domain has the name or the UUID that the XML names: libvirt has no number of its own
    /// for that.
    async fn is_taken(&self, xml: &str) -> bool {
        let Ok(document) = xml::parse(xml, "domain") else { return false };
        let root = document.root_element();
        let name = xml::child(root, "name").and_then(|name| name.text()).unwrap_or_default();
        let id = xml::text(root, "uuid").and_then(|id| id.parse::<DomainId>().ok());
        let Ok(domains) = self.domains().await else { return false };
        domains.iter().any(|(other, other_name)| (other_name == name) != (Some(*other) == id))
    }

    /// Starts a defined domain; running already is success, and "already" is checked: a domain that has power
    /// and executes nothing is [`LibvirtErrorKind::AlreadyActive`].
    pub async fn start(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let Err(error) = self.about(Lane::Urgent, "start", domain, |domain| domain.start()).await else {
            return Ok(());
        };
        if error.kind != LibvirtErrorKind::WrongState {
            return Err(error);
        }
        let DomainStatus { state, text, .. } = self.state(domain).await?;
        match state {
            RunState::Running => Ok(()),
            RunState::Off => Err(error),
            RunState::Paused => {
                let why = format!("it is {text} ({})", error.cause);
                Err(LibvirtError::new(LibvirtErrorKind::AlreadyActive, error.call, why))
            }
        }
    }

    /// Starts a domain from `xml`, paused: it executes nothing. If a domain of the same UUID is defined and
    /// off, that one starts, and its persistent definition stays unchanged.
    pub async fn create_paused(&self, xml: &str) -> Result<(), LibvirtError> {
        let xml = xml.to_owned();
        self.call(Lane::Urgent, "create --paused", move |libvirt| libvirt.create(&xml, START_PAUSED)).await
    }

    /// Cuts the power; off already is success. QEMU gets time to close its images, and is killed only if it
    /// hangs.
    pub async fn destroy(&self, domain: DomainId) -> Result<(), LibvirtError> {
        use LibvirtErrorKind as K;
        let cut = |flags| self.about(Lane::Urgent, DESTROY, domain, move |domain| domain.destroy(flags));
        match self.unless_off(domain, cut(DESTROY_GRACEFUL).await).await {
            Err(error) if matches!(error.kind, K::Busy | K::Failed) => {
                tracing::warn!(%domain, %error, "QEMU does not end in good order; killing it");
                self.unless_off(domain, cut(0).await).await
            }
            result => result,
        }
    }

    /// Presses the power button; off already is success. The guest may take its time, or ignore it.
    pub async fn press_power_button(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let pressed = self.about(Lane::Urgent, "shutdown", domain, |domain| domain.shut_down(SHUTDOWN_ACPI));
        self.unless_off(domain, pressed.await).await
    }

    /// Success also if the call failed because of the domain's state, and the domain is off.
    async fn unless_off(
        &self,
        domain: DomainId,
        result: Result<(), LibvirtError>,
    ) -> Result<(), LibvirtError> {
        match result {
            Err(error) if error.kind == LibvirtErrorKind::WrongState => {
                match self.state(domain).await?.state {
                    RunState::Off => Ok(()),
                    RunState::Running | RunState::Paused => Err(error),
                }
            }
            result => result,
        }
    }

    /// Sets what happens when the guest of a running domain powers off: `destroy`, `restart`. It applies
    /// until the domain is off.
    pub async fn set_poweroff_action(&self, domain: DomainId, action: &str) -> Result<(), LibvirtError> {
        let number = ACTIONS.iter().position(|known| *known == action);
        let number = number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
            let why = format!("{action:?} is no action that libvirt knows");
            LibvirtError::new(LibvirtErrorKind::Unsupported, "set-lifecycle-action", why)
        })?;
        self.about(Lane::Urgent, "set-lifecycle-action", domain, move |domain| {
            domain.set_lifecycle_action(0, number, Affects::Live.flag())
        })
        .await
    }

    /// Whether the guest's QEMU agent answers within five seconds; an error if it does not, or the domain has
    /// no channel to it.
    pub async fn ping_agent(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let ping = |domain: &LibvirtDomain<'_>| domain.agent(r#"{"execute":"guest-ping"}"#, 5);
        self.about(Lane::Work, "qemu-agent-command", domain, ping).await.map(drop)
    }

    /// Removes a domain's definition, its NVRAM and its snapshots' and checkpoints' metadata, never its
    /// disks; a missing one is success.
    pub async fn undefine(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let gone = self.about(Lane::Urgent, "undefine", domain, |domain| domain.undefine(UNDEFINE_ALL));
        already(gone.await, LibvirtErrorKind::NoSuchDomain)
    }

    /// Whether libvirt reported a start or a resumption of the domain since `when`; `None` if that is not
    /// known, because the connection was not there all the time. A first call begins the record.
    pub fn ran_since(&self, domain: DomainId, when: Instant) -> Option<bool> {
        self.endpoint.record().ran_since(domain.0, when, 0)
    }

    /// The same of a domain that the caller itself started, paused, since `when`: whether it was resumed from
    /// outside.
    pub fn was_let_run_since(&self, domain: DomainId, when: Instant) -> Option<bool> {
        self.endpoint.record().ran_since(domain.0, when, 1)
    }

    /// What libvirt reported of the domain's power, as far as it is kept, oldest first.
    pub fn happenings(&self, domain: DomainId) -> Vec<(Instant, DomainChange)> {
        self.endpoint.record().of(domain.0)
    }
}

/// Reads libvirt's number for a version.
fn major_and_minor(number: u64) -> (u32, u32) {
    let part = |number| u32::try_from(number).unwrap_or(u32::MAX);
    (part(number / 1_000_000), part(number / 1000 % 1000))
}

/// The meaning of "no such domain" together with a listing.
fn kind_of_absence(absent: &Result<bool, LibvirtError>) -> LibvirtErrorKind {
    match absent {
        Ok(true) => LibvirtErrorKind::NoSuchDomain,
        Ok(false) => LibvirtErrorKind::Failed,
        Err(_) => LibvirtErrorKind::Unreachable,
    }
}

/// Success also if it failed because the state is already reached.
pub(super) fn already<T>(result: Result<T, LibvirtError>, so: LibvirtErrorKind) -> Result<(), LibvirtError> {
    match result {
        Err(error) if error.kind != so => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_number() {
        assert_eq!(major_and_minor(7_002_022), (7, 2));
        assert_eq!(major_and_minor(11_000_000), (11, 0));
    }

    #[test]
    fn only_a_listing_that_lacks_it_makes_a_domain_absent() {
        use LibvirtErrorKind as K;
        assert_eq!(kind_of_absence(&Ok(true)), K::NoSuchDomain);
        assert_eq!(kind_of_absence(&Ok(false)), K::Failed);
        for kind in [K::Unreachable, K::Timeout, K::Denied, K::Failed] {
            assert_eq!(kind_of_absence(&Err(LibvirtError::new(kind, "list", "x"))), K::Unreachable);
        }
    }

    #[tokio::test]
    async fn a_domain_that_is_listed_is_never_said_to_be_gone() {
        let libvirt = LibvirtClient::new("test:///default");
        let (there, _) = libvirt.domains().await.unwrap().remove(0);
        let gone = DomainId(uuid::Uuid::from_u128(7));
        let error = libvirt.state(gone).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::NoSuchDomain, "{error}");
        let says_gone = || {
            let words = "Domain not found".to_owned();
            Err::<(), _>(CallFailure::Said { code: 42, domain: 10, errno: 0, words })
        };
        let error = libvirt.about(Lane::Look, "dumpxml", there, move |_| says_gone()).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::Failed, "{error}");
        assert!(error.to_string().contains("Domain not found"), "{error}");
    }
}
