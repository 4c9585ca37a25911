//! The domain of a migration: the one whose metadata has the migration's id and its own UUID.
//!
//! Rule: only that domain is ever started, stopped or removed. The own UUID is in the tag because a clone
//! that others make of the domain copies its metadata, and is not warmd's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use warmd_core::model::id::MigrationId;

use super::{lost::ForeignDomain, xml::Element};
use crate::libvirt::{DomainId, DomainXml, LibvirtClient, LibvirtError, LibvirtErrorKind, XmlForm, xml};

pub(super) const ELEMENT: &str = DomainXml::MOVED_HERE;

/// The metadata element of a migration's domain.
pub(super) fn tag(owner: MigrationId, id: DomainId) -> Element {
    Element::new("warmd:target")
        .attr("xmlns:warmd", DomainXml::TAG_NAMESPACE)
        .attr("owner", owner)
        .attr("domain", id)
}

/// Finds migrations' domains, and remembers their UUIDs.
#[derive(Debug, Default)]
pub(super) struct Finder {
    /// Only a hint for the first look-up.
    last: Mutex<HashMap<MigrationId, DomainId>>,
}

impl Finder {
    /// The migration's domain; `Err` with the metadata of all others, if there is none.
    pub(super) async fn find(
        &self,
        libvirt: &LibvirtClient,
        owner: MigrationId,
    ) -> Result<Result<DomainId, Vec<ForeignDomain>>, LibvirtError> {
        let hint = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&owner).copied();
        if let Some(id) = hint
            && let Some(text) = read(libvirt, id).await?
            && owner_in(&text, id) == Some(owner)
        {
            return Ok(Ok(id));
        }
        let mut others = Vec::new();
        for (id, name) in libvirt.domains().await? {
            let Some(text) = read(libvirt, id).await? else { continue };
            match owner_in(&text, id) {
                Some(of) if of == owner => {
                    self.remember(owner, id);
                    return Ok(Ok(id));
                }
                // Another migration's.
                Some(_) => {}
                None => others.push(ForeignDomain::read(name, &text)),
            }
        }
        self.forget(owner);
        Ok(Err(others))
    }

    pub(super) fn remember(&self, owner: MigrationId, id: DomainId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, id);
    }

    pub(super) fn forget(&self, owner: MigrationId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(&owner);
    }
}

/// The domain's XML; `None` if it is gone.
async fn read(libvirt: &LibvirtClient, id: DomainId) -> Result<Option<String>, LibvirtError> {
    match libvirt.dump_xml(id, XmlForm::Current).await {
        Ok(text) => Ok(Some(text)),
        // It disappeared during the search.
        Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => Ok(None),
        Err(error) => Err(error),
    }
}

/// The migration in its metadata. An unreadable domain belongs to no migration.
fn owner_in(text: &str, id: DomainId) -> Option<MigrationId> {
    let document = xml::parse(text, "domain").ok()?;
    let metadata = xml::child(document.root_element(), "metadata")?;
    xml::children(metadata, ELEMENT)
        .filter(|tag| tag.tag_name().namespace() == Some(DomainXml::TAG_NAMESPACE))
        .filter(|tag| tag.attribute("domain").and_then(|text| text.parse().ok()) == Some(id))
        .find_map(|tag| tag.attribute("owner")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tagged_domain_itself_is_owned() {
        let (owner, id) = (MigrationId::generate(), DomainId(uuid::Uuid::from_u128(7)));
        let domain = |tag: &str| format!("<domain><metadata>{tag}</metadata></domain>");
        let tagged = domain(&tag(owner, id).to_string());
        assert_eq!(owner_in(&tagged, id), Some(owner));
        assert_eq!(owner_in(&tagged, DomainId(uuid::Uuid::from_u128(8))), None, "a clone is not ours");
        assert_ne!(owner_in(&tagged, id), Some(MigrationId::generate()));
        assert_eq!(owner_in(&tagged.replace("urn:warmd", "urn:other"), id), None);
        assert_eq!(owner_in(&domain(""), id), None);
        assert_eq!(owner_in("", id), None);
    }
}
