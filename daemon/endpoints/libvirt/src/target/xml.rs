//! A small tree of XML to write.
//!
//! Rule: names are the code's own, or plain names from the carried hardware; every text and every attribute
//! is escaped, whatever its origin.

use std::{borrow::Cow, fmt};

use warmd_core::model::hardware::HardwareElement;

use crate::libvirt::xml::escape;

/// An element with attributes and either children or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    name: Cow<'static, str>,
    attributes: Vec<(Cow<'static, str>, String)>,
    text: String,
    children: Vec<Element>,
}

#[allow(clippy::needless_pass_by_value, reason = "numbers and temporaries read best by value")]
impl Element {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name: name.into(), attributes: Vec::new(), text: String::new(), children: Vec::new() }
    }

    /// An element with a text only.
    pub(super) fn of(name: &'static str, text: impl ToString) -> Self {
        Self { text: text.to_string(), ..Self::new(name) }
    }

    pub(super) fn attr(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name.into(), value.to_string()));
        self
    }

    /// A carried element with its contents; parts without a plain name are left out.
    pub(super) fn carried(part: &HardwareElement) -> Self {
        let attributes = part.attributes.iter().filter(|(name, _)| is_plain(name));
        Self {
            name: if is_plain(&part.name) { part.name.clone().into() } else { "unnamed".into() },
            attributes: attributes.map(|(name, value)| (name.clone().into(), value.clone())).collect(),
            text: part.text.clone(),
            children: part.parts.iter().filter(|part| is_plain(&part.name)).map(Self::carried).collect(),
        }
    }

    /// With that attribute, in place of one of that name.
    pub(super) fn set(mut self, name: &str, value: &str) -> Self {
        if is_plain(name) {
            self.attributes.retain(|(known, _)| known != name);
            self.attributes.push((name.to_owned().into(), value.to_owned()));
        }
        self
    }

    pub(super) fn with(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn with_all(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }
}

/// Whether it is a name that an element or attribute may have.
fn is_plain(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}='{}'", escape(value))?;
        }
        if self.text.is_empty() && self.children.is_empty() {
            return f.write_str("/>");
        }
        write!(f, ">{}", escape(&self.text))?;
        for child in &self.children {
            child.fmt(f)?;
        }
        write!(f, "</{}>", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let evil = "'/><devices a=\"&amp;\"></x>\n";
        let text = Element::new("a").attr("b", evil).with(Element::of("c", evil)).to_string();
        let document = crate::libvirt::xml::parse(&text, "a").unwrap();
        let root = document.root_element();
        assert_eq!(root.attribute("b"), Some(evil));
        assert_eq!(root.first_element_child().unwrap().text(), Some(evil));
        assert_eq!(document.descendants().filter(roxmltree::Node::is_element).count(), 2, "{text}");
    }
}
