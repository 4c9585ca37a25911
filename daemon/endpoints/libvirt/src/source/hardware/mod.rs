//! All parts of a domain's XML, sorted by the table: carried parts, and parts to report.
//!
//! Rule: no part is left out silently. A part that the table does not name is a finding too. The carried part
//! is a tree of names and values that the table allows, never the text.

mod compare;
mod table;

use std::collections::BTreeMap;

use roxmltree::Node;
use warmd_core::model::{
    hardware::HardwareElement,
    rule::{Objection, Rule},
};

pub(super) use self::compare::{differences, isolation_of_running_alone};
use self::table::{HardwareClass, TABLE};
use crate::libvirt::{DomainXml, xml};

const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The deepest nesting of elements that is read.
const DEEPEST: usize = 64;

/// The parts of a domain that [`DomainXml`] does not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    /// The part for a target with libvirt.
    pub(super) carried: HardwareElement,
    pub(super) findings: Vec<Objection>,
}

/// Sorts the whole of a definition.
pub(super) fn sort(text: &str) -> Result<Hardware, xml::XmlError> {
    let document = xml::parse(text, "domain")?;
    let mut sorter = Sorter::default();
    let mut carried = sorter.element(document.root_element(), HardwareClass::Read).unwrap_or_default();
    "domain".clone_into(&mut carried.name);
    let findings = sorter.found.into_iter().map(|((rule, meaning), places)| {
        let places = places.join(", ");
        Objection::new(rule, format!("{places}: {meaning}"))
    });
    Ok(Hardware { carried, findings: findings.collect() })
}

#[derive(Default)]
struct Sorter<'a, 'i> {
    path: Vec<Node<'a, 'i>>,
    /// The finding, and its place.
    found: BTreeMap<(Rule, String), Vec<String>>,
}

impl<'a, 'i> Sorter<'a, 'i> {
    /// The carried part of an element; `None` if there is none.
    fn element(&mut self, node: Node<'a, 'i>, class: HardwareClass) -> Option<HardwareElement> {
        let mut part =
            HardwareElement { name: node.tag_name().name().to_owned(), ..HardwareElement::default() };
        for attribute in node.attributes() {
            let name = name_of(attribute.namespace(), attribute.name());
            match self.class(Some((&name, attribute.value()))) {
                HardwareClass::Carry => part.attributes.push((name, attribute.value().to_owned())),
                HardwareClass::Read | HardwareClass::Harmless(_) => {}
                HardwareClass::Find(rule, why) => self.find(rule, why, Some(&name)),
            }
        }
        let text: String = node.children().filter(Node::is_text).filter_map(|text| text.text()).collect();
        if class == HardwareClass::Carry && !text.trim().is_empty() {
            text.trim().clone_into(&mut part.text);
        }
        if self.path.len() >= DEEPEST {
            self.find(Rule::HardwareUnclassified, "nested too deeply to be understood", None);
            return None;
        }
        for child in node.children().filter(Node::is_element) {
            self.path.push(child);
            if self.path.len() == 2 && self.path[0].tag_name().name() == "metadata" {
                part.parts.extend(foreign(child, None, 0));
            } else {
                match self.class(None) {
                    kept @ (HardwareClass::Carry | HardwareClass::Read) => {
                        part.parts.extend(self.element(child, kept));
                    }
                    HardwareClass::Harmless(_) => {}
                    HardwareClass::Find(rule, why) => self.find(rule, why, None),
                }
            }
            self.path.pop();
        }
        let is_empty = part.attributes.is_empty() && part.text.is_empty() && part.parts.is_empty();
        (class == HardwareClass::Carry || !is_empty).then_some(part)
    }

    /// The class of the element that the path leads to, or of its attribute.
    fn class(&self, attribute: Option<(&str, &str)>) -> HardwareClass {
        let line = TABLE.iter().find(|(pattern, _)| matches(pattern, &self.path, attribute));
        line.map_or(
            HardwareClass::Find(
                Rule::HardwareUnclassified,
                "unclassified: warmd does not know it, and does not carry it over",
            ),
            |line| line.1,
        )
    }

    fn find(&mut self, rule: Rule, why: &str, attribute: Option<&str>) {
        let place = place(&self.path, attribute);
        let places = self.found.entry((rule, why.to_owned())).or_default();
        if !places.contains(&place) {
            places.push(place);
        }
    }
}

/// The element or attribute as users know it: `disk sda: source`, `cputune`.
fn place(path: &[Node<'_, '_>], attribute: Option<&str>) -> String {
    let names: Vec<_> =
        path.iter().map(|node| name_of(node.tag_name().namespace(), node.tag_name().name())).collect();
    let (device, rest) = match (names.first().map(String::as_str), path.get(1)) {
        (Some("devices"), Some(device)) => (Some(device_name(*device)), &names[2..]),
        _ => (None, &names[..]),
    };
    let mut rest = rest.join("/");
    if let Some(attribute) = attribute {
        rest = if rest.is_empty() { format!("@{attribute}") } else { format!("{rest}/@{attribute}") };
    }
    match device {
        Some(device) if rest.is_empty() => device,
        Some(device) => format!("{device}: {rest}"),
        None => rest,
    }
}

fn device_name(device: Node<'_, '_>) -> String {
    let of =
        |part: &str, attribute: &str| xml::child(device, part).and_then(|part| part.attribute(attribute));
    let kind = device.tag_name().name();
    let (kind, name) = match kind {
        "disk" => (device.attribute("device").unwrap_or(kind), of("target", "dev")),
        "interface" => (kind, of("mac", "address")),
        "channel" => (kind, of("target", "name")),
        "tpm" | "video" => (kind, None),
        _ => (kind, device.attribute("model").or_else(|| device.attribute("type"))),
    };
    name.map_or_else(|| kind.to_owned(), |name| format!("{kind} {name}"))
}

fn name_of(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None => name.to_owned(),
        Some(QEMU_NAMESPACE) => format!("qemu:{name}"),
        Some(other) => format!("{{{other}}}{name}"),
    }
}

/// Another tool's metadata, whole; warmd's own applies to this domain alone.
fn foreign(node: Node<'_, '_>, outer: Option<&str>, depth: usize) -> Option<HardwareElement> {
    let namespace = node.tag_name().namespace();
    let own = [DomainXml::TAG_NAMESPACE, DomainXml::MOVED_NAMESPACE];
    if namespace.is_some_and(|namespace| own.contains(&namespace)) || depth > DEEPEST {
        return None;
    }
    let mut part = HardwareElement { name: node.tag_name().name().to_owned(), ..HardwareElement::default() };
    if namespace != outer {
        part.attributes.push(("xmlns".to_owned(), namespace.unwrap_or_default().to_owned()));
    }
    let plain = node.attributes().filter(|attribute| attribute.namespace().is_none());
    part.attributes
        .extend(plain.map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned())));
    let text: String = node.children().filter(Node::is_text).filter_map(|text| text.text()).collect();
    text.trim().clone_into(&mut part.text);
    part.parts = node
        .children()
        .filter(Node::is_element)
        .filter_map(|child| foreign(child, namespace, depth + 1))
        .collect();
    Some(part)
}

fn matches(pattern: &str, path: &[Node<'_, '_>], attribute: Option<(&str, &str)>) -> bool {
    let mut at = 0;
    for segment in pattern.split('/') {
        if segment == "**" {
            return at < path.len() || attribute.is_some();
        }
        if let Some(wanted) = segment.strip_prefix('@') {
            let Some((name, value)) = attribute.filter(|_| at == path.len()) else { return false };
            let (wanted, values) = bracket(wanted);
            return (wanted == "*" || wanted == name)
                && values.is_none_or(|values| values.split('|').any(|one| one == value));
        }
        let Some(node) = path.get(at) else { return false };
        let (wanted, condition) = bracket(segment);
        if !is_named(*node, wanted) || !condition.is_none_or(|condition| holds(*node, condition)) {
            return false;
        }
        at += 1;
    }
    at == path.len() && attribute.is_none()
}

fn bracket(segment: &str) -> (&str, Option<&str>) {
    match segment.split_once('[') {
        Some((name, rest)) => (name, Some(rest.trim_end_matches(']'))),
        None => (segment, None),
    }
}

fn is_named(node: Node<'_, '_>, wanted: &str) -> bool {
    let (namespace, name) = (node.tag_name().namespace(), node.tag_name().name());
    match (namespace, wanted.strip_prefix("qemu:")) {
        (None, None) => wanted == "*" || wanted == name,
        (Some(QEMU_NAMESPACE), Some(wanted)) => wanted == "*" || wanted == name,
        _ => false,
    }
}

fn holds(node: Node<'_, '_>, condition: &str) -> bool {
    match condition.split_once('=') {
        None => node.has_attribute(condition),
        Some((name, values)) => {
            node.attribute(name).is_some_and(|has| values.split('|').any(|one| one == has))
        }
    }
}

#[cfg(test)]
mod tests;
