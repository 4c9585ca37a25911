//! A domain's data in libvirt beside its hardware: warmd's entries in its metadata, and whether it starts
//! with the host.
//!
//! Rule: changes that keep a source VM from starting use the urgent lane, so that they wait for no hanging
//! work.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the path of a method is not general enough over the lifetime of its connection"
)]

use super::{
    DomainId, LibvirtClient,
    calls::already,
    domain::DomainXml,
    error::{LibvirtError, LibvirtErrorKind},
    link::Lane,
};

/// The definition that a change is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Affects {
    /// The running domain alone: gone when it is off.
    Live,
    /// The persistent definition alone.
    Config,
}

impl Affects {
    /// `virDomainModificationImpact`.
    pub(super) fn flag(self) -> u32 {
        match self {
            Self::Live => 1,
            Self::Config => 2,
        }
    }
}

impl LibvirtClient {
    /// Whether libvirt starts it with the host.
    pub async fn autostart(&self, domain: DomainId, lane: Lane) -> Result<bool, LibvirtError> {
        self.about(lane, "autostart", domain, |domain| domain.autostart()).await
    }

    /// Sets whether libvirt starts it with the host.
    pub async fn set_autostart(&self, domain: DomainId, on: bool) -> Result<(), LibvirtError> {
        let verb = if on { "autostart" } else { "autostart --disable" };
        self.about(Lane::Urgent, verb, domain, move |domain| domain.set_autostart(on)).await
    }

    /// Writes the mark with its target into its persistent definition, in place of an older one.
    pub async fn set_moved_mark(&self, domain: DomainId, element: &str) -> Result<(), LibvirtError> {
        let element = element.to_owned();
        self.about(Lane::Urgent, "metadata --set", domain, move |domain| {
            let element = Some(("warmd", element.as_str()));
            domain.set_metadata(element, DomainXml::MOVED_NAMESPACE, Affects::Config.flag())
        })
        .await
    }

    /// Removes that mark; a missing one is success.
    pub async fn remove_moved_mark(&self, domain: DomainId) -> Result<(), LibvirtError> {
        self.remove_element(Lane::Urgent, domain, DomainXml::MOVED_NAMESPACE, Affects::Config).await
    }

    /// Removes the running domain's tag of warmd (any element of [`DomainXml::TAG_NAMESPACE`]); a missing one
    /// is success.
    pub async fn remove_live_tag(&self, domain: DomainId) -> Result<(), LibvirtError> {
        self.remove_element(Lane::Work, domain, DomainXml::TAG_NAMESPACE, Affects::Live).await
    }

    async fn remove_element(
        &self,
        lane: Lane,
        domain: DomainId,
        uri: &'static str,
        affects: Affects,
    ) -> Result<(), LibvirtError> {
        let removed = self.about(lane, "metadata --remove", domain, move |domain| {
            domain.set_metadata(None, uri, affects.flag())
        });
        already(removed.await, LibvirtErrorKind::NoSuchMetadata)
    }
}
