//! A generic tree of elements, read from an answer.
//!
//! Rule: the server is not trusted. Size, depth and the number of elements are bounded, a document type is
//! refused, and an entity that XML does not define itself is an error.

use std::str::FromStr;

use quick_xml::{
    XmlVersion,
    events::{BytesStart, Event},
};
use thiserror::Error;

use super::MoRef;

/// The largest answer that is read. A page of 100 VMs with 60 devices each has about 6 MB.
pub(crate) const MAX_BYTES: usize = 64 << 20;
/// A chain of 32 snapshots nests 32 deep; nothing known comes near this.
const MAX_DEPTH: usize = 128;
/// One takes about 150 bytes of memory.
const MAX_ELEMENTS: usize = 1_000_000;

/// One element of an answer. Namespaces are left out: every name is unique without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    /// `xsi:type`, without a prefix: the type that it has in truth, where the declared one is a base.
    pub kind: Option<String>,
    /// The attribute `type`: of a reference, the object's type.
    pub refers_to: Option<String>,
    pub text: String,
    pub children: Vec<Element>,
}

/// Why a text is no tree.
#[derive(Debug, Error)]
pub enum SoapXmlError {
    #[error("{0}")]
    Syntax(#[from] quick_xml::Error),
    #[error("it is not UTF-8: {0}")]
    Encoding(#[from] std::str::Utf8Error),
    #[error("it has {0} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge(usize),
    #[error("its elements are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("it has more than {MAX_ELEMENTS} elements")]
    TooMany,
    #[error("it declares a document type, which no answer has")]
    DocumentType,
    #[error("the entity &{0}; is not defined")]
    Entity(String),
    #[error("an element does not end")]
    Open,
    #[error("it has no element")]
    NoRoot,
    #[error("it has two roots")]
    TwoRoots,
}

impl Element {
    /// Reads the tree of a whole document.
    pub fn read(bytes: &[u8]) -> Result<Self, SoapXmlError> {
        if bytes.len() > MAX_BYTES {
            return Err(SoapXmlError::TooLarge(bytes.len()));
        }
        let mut reader = quick_xml::Reader::from_str(std::str::from_utf8(bytes)?);
        let mut open: Vec<Self> = Vec::new();
        let mut root: Option<Self> = None;
        let mut count = 0_usize;
        loop {
            let event = reader.read_event()?;
            match event {
                Event::Start(ref tag) | Event::Empty(ref tag) => {
                    count += 1;
                    if count > MAX_ELEMENTS {
                        return Err(SoapXmlError::TooMany);
                    }
                    let element = Self::start(tag)?;
                    if matches!(event, Event::Empty(_)) {
                        close(element, &mut open, &mut root)?;
                    } else if open.len() >= MAX_DEPTH {
                        return Err(SoapXmlError::TooDeep);
                    } else {
                        open.push(element);
                    }
                }
                Event::End(_) => {
                    let element = open.pop().ok_or(SoapXmlError::Open)?;
                    close(element, &mut open, &mut root)?;
                }
                Event::Text(text) => append(&mut open, &text.xml10_content()),
                Event::CData(text) => append(&mut open, &text.xml10_content()),
                Event::GeneralRef(entity) => {
                    let text = match entity.resolve_char_ref()? {
                        Some(character) => character.to_string(),
                        None => predefined(&entity)
                            .ok_or_else(|| SoapXmlError::Entity(entity.to_string()))?
                            .to_owned(),
                    };
                    append(&mut open, &text);
                }
                Event::DocType(_) => return Err(SoapXmlError::DocumentType),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof if !open.is_empty() => return Err(SoapXmlError::Open),
                Event::Eof => return root.ok_or(SoapXmlError::NoRoot),
            }
        }
    }

    fn start(tag: &BytesStart<'_>) -> Result<Self, SoapXmlError> {
        let mut element = Self { name: tag.local_name().as_ref().to_owned(), ..Self::default() };
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(quick_xml::Error::from)?;
            if attribute.key.local_name().as_ref() != "type" {
                continue;
            }
            let value = attribute.normalized_value(XmlVersion::Explicit1_0)?.into_owned();
            if attribute.key.prefix().is_some() {
                element.kind = Some(value.rsplit(':').next().unwrap_or_default().to_owned());
            } else {
                element.refers_to = Some(value);
            }
        }
        Ok(element)
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The element at a path of names with dots between them.
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |element, name| element.child(name))
    }

    /// The text at a path, if there is any.
    pub fn text_at(&self, path: &str) -> Option<&str> {
        self.at(path).map(|element| element.text.trim()).filter(|text| !text.is_empty())
    }

    /// The value at a path; `None` if it is not there or is no such value.
    pub fn value_at<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text_at(path)?.parse().ok()
    }

    /// Whether the flag at the path is set.
    pub fn flag_at(&self, path: &str) -> Option<bool> {
        self.at(path)?.flag()
    }

    /// As a flag.
    pub fn flag(&self) -> Option<bool> {
        match self.text.trim() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// As a reference to an object.
    pub fn moref(&self) -> Option<MoRef> {
        let id = Some(self.text.trim()).filter(|id| !id.is_empty())?;
        Some(MoRef::new(self.refers_to.clone()?, id))
    }

    /// The reference at a path.
    pub fn moref_at(&self, path: &str) -> Option<MoRef> {
        self.at(path)?.moref()
    }

    /// Whether its true type is this one.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    pub(super) fn into_child(self, name: &str) -> Option<Self> {
        self.children.into_iter().find(|child| child.name == name)
    }

    pub(super) fn into_first_child(self) -> Option<Self> {
        self.children.into_iter().next()
    }
}

fn append(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// Puts a whole element where it belongs.
fn close(mut element: Element, open: &mut [Element], root: &mut Option<Element>) -> Result<(), SoapXmlError> {
    // White space between children is no text, and a tree of a million elements would keep it.
    if !element.children.is_empty() && element.text.trim().is_empty() {
        element.text = String::new();
    }
    element.children.shrink_to_fit();
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None if root.is_some() => return Err(SoapXmlError::TwoRoots),
        None => *root = Some(element),
    }
    Ok(())
}

fn predefined(entity: &str) -> Option<&'static str> {
    Some(match entity {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::soap::Node;

    #[test]
    fn types_references_entities_and_sections_are_read() {
        let tree = Element::read(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <a:val xmlns:a="urn:x" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="a:VirtualDisk">
              <key>2000</key><name>a &amp; b &#x41;&#66; <![CDATA[<raw>]]></name><on>true</on><odd/>
              <vm type="VirtualMachine">vm-57</vm><key>2001</key>
            </a:val>"#,
        )
        .unwrap();
        assert_eq!((tree.name.as_str(), tree.kind.as_deref()), ("val", Some("VirtualDisk")));
        assert_eq!(tree.value_at::<i32>("key"), Some(2000));
        assert_eq!(tree.all("key").count(), 2);
        assert_eq!(tree.text_at("name"), Some("a & b AB <raw>"));
        assert_eq!(tree.flag_at("on"), Some(true));
        assert_eq!(tree.moref_at("vm"), Some(MoRef::vm("vm-57")));
        assert_eq!(tree.text_at("odd"), None);
        assert_eq!(tree.moref_at("key"), None);
        assert_eq!(tree.text, "");
    }

    #[test]
    fn a_hostile_text_is_an_error() {
        let deep = format!("{}{}", "<a>".repeat(200), "</a>".repeat(200));
        let many = format!("<r>{}</r>", "<a/>".repeat(MAX_ELEMENTS));
        for (text, word) in [
            ("<a>", "does not end"),
            ("", "no element"),
            ("<a/><b/>", "two roots"),
            ("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", "document type"),
            ("<a>&x;</a>", "&x;"),
            ("<a></b>", ""),
            (&deep, "nested"),
            (&many, "more than"),
        ] {
            let error = Element::read(text.as_bytes()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(word), "{}: {error}", &text[..text.len().min(40)]);
        }
        assert!(matches!(Element::read(&[b'<', 0xff]), Err(SoapXmlError::Encoding(_))));
        assert!(matches!(Element::read(&vec![b' '; MAX_BYTES + 1]), Err(SoapXmlError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(texts in proptest::collection::vec("[ -~äß€\\t\\n]{0,20}", 0..6)) {
            let node = texts.iter().fold(Node::new(), |node, text| node.text("t", text));
            let tree = Element::read(format!("<r>{}</r>", node.as_str()).as_bytes()).unwrap();
            let read: Vec<_> = tree.all("t").map(|element| element.text.clone()).collect();
            prop_assert_eq!(read, texts);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Element::read(&bytes));
        }

        #[test]
        fn no_markup_makes_it_panic(text in "[<>/&;!\\[\\]a-c '\"=:?#x-]{0,80}") {
            drop(Element::read(text.as_bytes()));
        }
    }
}
