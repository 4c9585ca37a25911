//! The tag that identifies, also after a crash, a VM that warmd itself started, paused, only to read its
//! disks.
//!
//! Rule: the tag is set by the start, in one call, and ends with the power: there is no moment in which such
//! a VM has power and no tag, and the persistent definition never has it.

use warmd_core::model::id::MigrationId;

use crate::libvirt::{
    DomainXml,
    xml::{self, XmlError},
};

/// The element's name.
pub(super) const TAG: &str = "snapshot";

/// A domain's XML with the tag in its metadata.
pub(super) fn tagged(text: &str, owner: MigrationId) -> Result<String, XmlError> {
    let document = xml::parse(text, "domain")?;
    let root = document.root_element();
    let id = xml::text(root, "uuid").ok_or(XmlError::Missing("uuid"))?;
    // With the UUID: a clone that others make of the running VM copies its metadata.
    let tag = format!(
        "<warmd:{TAG} xmlns:warmd='{}' owner='{owner}' domain='{}'/>",
        DomainXml::TAG_NAMESPACE,
        xml::escape(id)
    );
    let whole = format!("<metadata>{tag}</metadata>");
    // The domain's elements are in no order: a new one can come first.
    let metadata = xml::child(root, "metadata");
    let (replaced, new) = match metadata.map(|metadata| (metadata.range(), metadata.first_child())) {
        Some((_, Some(inside))) => (inside.range().start..inside.range().start, tag),
        Some((empty, None)) => (empty, whole),
        // The domain's elements are in no order: a new one can come first.
        None => {
            let first = root.first_element_child().ok_or(XmlError::Missing("name"))?;
            (first.range().start..first.range().start, whole)
        }
    };
    Ok([&text[..replaced.start], &new, &text[replaced.end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_goes_into_any_metadata() {
        let owner = MigrationId::generate();
        let rest = "<name>x</name><uuid>11111111-2222-3333-4444-555555555555</uuid><memory>1</memory>\
            <os><type arch='x86_64'>hvm</type></os><devices/></domain>";
        for start in [
            "<domain>",
            "<domain type='kvm'>\n ",
            "<domain><metadata/>",
            "<domain><metadata></metadata>",
            "<domain><metadata>\n <a:b xmlns:a='urn:a'>metadata</a:b></metadata>",
            "<domain><!-- <metadata> --><description>&lt;metadata></description>",
        ] {
            let text = tagged(&format!("{start}{rest}"), owner).unwrap();
            let domain = DomainXml::read(&text).unwrap();
            assert_eq!(domain.tagged(TAG), Some(owner.to_string().as_str()), "{text}");
            assert_eq!(text.contains("urn:a"), start.contains("urn:a"));
            let clone = text.replacen("<uuid>1", "<uuid>9", 1);
            assert_eq!(
                DomainXml::read(&clone).unwrap().tagged(TAG),
                None,
                "a clone was not started by warmd"
            );
        }
        assert!(tagged("<domain/>", owner).is_err() && tagged("<network/>", owner).is_err());
    }
}
