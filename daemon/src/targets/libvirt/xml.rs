//! A small tree of XML to be written.
//!
//! Rule: names are the code's own; every text and every attribute is escaped, wherever it comes from.

use std::fmt;

use crate::libvirt::xml::escape;

/// An element with attributes and either children or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: String,
    children: Vec<Element>,
}

#[allow(clippy::needless_pass_by_value, reason = "numbers and temporaries read best by value")]
impl Element {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: String::new(), children: Vec::new() }
    }

    /// An element that holds nothing but a text.
    pub(super) fn of(name: &'static str, text: impl ToString) -> Self {
        Self { text: text.to_string(), ..Self::new(name) }
    }

    pub(super) fn attr(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name, value.to_string()));
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
