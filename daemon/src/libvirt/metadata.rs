//! What libvirt keeps of a domain beside its hardware: what warmd wrote into its metadata, and whether it starts with
//! the host.
//!
//! Rule: what holds a source off goes by the urgent lane, so that it waits for no work that hangs.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method is not general enough over the lifetime of its connection"
)]

use super::{
    DomainId, Libvirt,
    calls::already,
    domain::DomainXml,
    error::{LibvirtError, LibvirtErrorKind},
    ffi::{Domain, Failure},
    link::Lane,
};

/// Which of a domain's two definitions a change is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affects {
    /// The running domain alone: gone when it is off.
    Live,
    /// The persistent definition alone.
    Config,
}

const SET_METADATA: &str = "metadata --set";
const REMOVE_METADATA: &str = "metadata --remove";

impl Affects {
    /// `virDomainModificationImpact`.
    pub(super) fn flag(self) -> u32 {
        match self {
            Self::Live => 1,
            Self::Config => 2,
        }
    }
}

impl Libvirt {
    /// Whether libvirt starts it with the host.
    pub async fn autostart(&self, domain: DomainId, lane: Lane) -> Result<bool, LibvirtError> {
        self.about(lane, "autostart", domain, |domain| domain.autostart()).await
    }

    /// Says whether libvirt is to start it with the host.
    pub async fn set_autostart(&self, domain: DomainId, on: bool) -> Result<(), LibvirtError> {
        let verb = if on { "autostart" } else { "autostart --disable" };
        self.about(Lane::Urgent, verb, domain, move |domain| domain.set_autostart(on)).await
    }

    /// Puts the mark of where it went into its persistent definition, in place of an older one.
    pub async fn set_moved_mark(&self, domain: DomainId, element: &str) -> Result<(), LibvirtError> {
        let set = set_element(DomainXml::MOVED_NAMESPACE, "warmd", element, Affects::Config);
        self.about(Lane::Urgent, SET_METADATA, domain, set).await
    }

    /// Removes that mark; none is success.
    pub async fn remove_moved_mark(&self, domain: DomainId) -> Result<(), LibvirtError> {
        let removed = remove_element(DomainXml::MOVED_NAMESPACE, Affects::Config);
        let removed = self.about(Lane::Urgent, REMOVE_METADATA, domain, removed);
        already(removed.await, LibvirtErrorKind::NoSuchMetadata)
    }

    /// Sets warmd's metadata element of the namespace `uri`, `<prefix:… xmlns:prefix='uri'>` without the declaration,
    /// in one of the two definitions, in place of an earlier one.
    pub async fn set_metadata(
        &self,
        domain: DomainId,
        affects: Affects,
        uri: &str,
        prefix: &str,
        element: &str,
    ) -> Result<(), LibvirtError> {
        let set = set_element(uri, prefix, element, affects);
        self.about(Lane::Work, SET_METADATA, domain, set).await
    }

    /// Removes the metadata element of the namespace `uri` from one of the two definitions; none is success.
    pub async fn remove_metadata(
        &self,
        domain: DomainId,
        affects: Affects,
        uri: &str,
    ) -> Result<(), LibvirtError> {
        let removed = self.about(Lane::Work, REMOVE_METADATA, domain, remove_element(uri, affects));
        already(removed.await, LibvirtErrorKind::NoSuchMetadata)
    }

    /// Removes the running domain's tag of warmd (any element of [`DomainXml::TAG_NAMESPACE`]); none is success.
    pub async fn remove_live_tag(&self, domain: DomainId) -> Result<(), LibvirtError> {
        self.remove_metadata(domain, Affects::Live, DomainXml::TAG_NAMESPACE).await
    }
}

fn set_element(
    uri: &str,
    prefix: &str,
    element: &str,
    affects: Affects,
) -> impl FnOnce(&Domain<'_>) -> Result<(), Failure> + Send + use<> {
    let (uri, prefix, element) = (uri.to_owned(), prefix.to_owned(), element.to_owned());
    move |domain| domain.set_metadata(Some((&prefix, &element)), &uri, affects.flag())
}

fn remove_element(
    uri: &str,
    affects: Affects,
) -> impl FnOnce(&Domain<'_>) -> Result<(), Failure> + Send + use<> {
    let uri = uri.to_owned();
    move |domain| domain.set_metadata(None, &uri, affects.flag())
}
