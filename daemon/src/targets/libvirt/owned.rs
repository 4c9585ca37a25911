//! Which domain is a migration's: the one whose metadata says so, with the migration's id and with its own UUID.
//!
//! Rule: nothing but that domain is ever started, stopped or removed. The own UUID is in the tag because a clone that
//! somebody makes of the domain takes its metadata along, and is theirs.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::xml::Element;
use crate::{
    libvirt::{DomainId, DomainXml, Libvirt, LibvirtError, LibvirtErrorKind, XmlForm, xml},
    model::id::MigrationId,
};

pub(super) const ELEMENT: &str = DomainXml::MOVED_HERE;

/// The metadata element of a migration's domain.
pub(super) fn tag(owner: MigrationId, id: DomainId) -> Element {
    Element::new("warmd:target")
        .attr("xmlns:warmd", DomainXml::TAG_NAMESPACE)
        .attr("owner", owner)
        .attr("domain", id)
}

/// Finds migrations' domains, and remembers where they were.
#[derive(Debug, Default)]
pub(super) struct Finder {
    /// Only a hint of where to look first.
    last: Mutex<HashMap<MigrationId, DomainId>>,
}

impl Finder {
    /// The migration's domain.
    pub(super) async fn find(
        &self,
        libvirt: &Libvirt,
        owner: MigrationId,
    ) -> Result<Option<DomainId>, LibvirtError> {
        let hint = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&owner).copied();
        if let Some(id) = hint
            && is_owned(libvirt, id, owner).await?
        {
            return Ok(Some(id));
        }
        for (id, _) in libvirt.domains().await? {
            if Some(id) != hint && is_owned(libvirt, id, owner).await? {
                self.remember(owner, id);
                return Ok(Some(id));
            }
        }
        self.forget(owner);
        Ok(None)
    }

    pub(super) fn remember(&self, owner: MigrationId, id: DomainId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, id);
    }

    pub(super) fn forget(&self, owner: MigrationId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(&owner);
    }
}

async fn is_owned(libvirt: &Libvirt, id: DomainId, owner: MigrationId) -> Result<bool, LibvirtError> {
    match libvirt.dump_xml(id, XmlForm::Current).await {
        // A domain of somebody else's that cannot be read is not ours.
        Ok(text) => Ok(says_owned(&text, id, owner)),
        // It went away while we looked.
        Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => Ok(false),
        Err(error) => Err(error),
    }
}

fn says_owned(text: &str, id: DomainId, owner: MigrationId) -> bool {
    let Ok(document) = xml::parse(text, "domain") else { return false };
    let Some(metadata) = xml::child(document.root_element(), "metadata") else { return false };
    xml::children(metadata, ELEMENT).any(|tag| {
        let says = |attribute| tag.attribute(attribute);
        tag.tag_name().namespace() == Some(DomainXml::TAG_NAMESPACE)
            && says("owner").and_then(|text| text.parse().ok()) == Some(owner)
            && says("domain").and_then(|text| text.parse().ok()) == Some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tagged_domain_itself_is_owned() {
        let (owner, id) = (MigrationId::generate(), DomainId(uuid::Uuid::from_u128(7)));
        let domain = |tag: &str| format!("<domain><metadata>{tag}</metadata></domain>");
        let tagged = domain(&tag(owner, id).to_string());
        assert!(says_owned(&tagged, id, owner));
        assert!(!says_owned(&tagged, DomainId(uuid::Uuid::from_u128(8)), owner), "a clone is not ours");
        assert!(!says_owned(&tagged, id, MigrationId::generate()));
        assert!(!says_owned(&tagged.replace("urn:warmd", "urn:other"), id, owner));
        assert!(!says_owned(&domain(""), id, owner));
        assert!(!says_owned("", id, owner));
    }
}
