//! XML from and for libvirt.
//!
//! Rule: input is untrusted: no DTD (so no entities), bounded in size and nodes. Output goes
//! through [`escape`].

use roxmltree::{Document, Node, ParsingOptions};

use super::MAX_OUTPUT;

/// The most elements, texts and comments of a document.
const MAX_NODES: u32 = 200_000;

/// Why a text is refused.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    #[error("the XML has {0} bytes, more than {MAX_OUTPUT}")]
    TooLong(usize),
    #[error("no XML as libvirt writes it")]
    Syntax(#[from] roxmltree::Error),
    #[error("the XML has no <{0}>")]
    Missing(&'static str),
    #[error("<{element}> is {value:?}")]
    Value { element: &'static str, value: String },
}

/// Reads a document whose root is `root`.
pub fn parse<'a>(text: &'a str, root: &'static str) -> Result<Document<'a>, XmlError> {
    if text.len() > MAX_OUTPUT {
        return Err(XmlError::TooLong(text.len()));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)?;
    if document.root_element().tag_name().name() != root {
        return Err(XmlError::Missing(root));
    }
    Ok(document)
}

/// The first child element of that name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// All child elements of that name.
pub fn children<'a, 'i, 'n>(
    node: Node<'a, 'i>,
    name: &'n str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i, 'n> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The element at the end of a path of child elements.
pub fn descend<'a, 'i>(node: Node<'a, 'i>, path: &[&str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| child(node, name))
}

/// The trimmed text of a child element; `None` if there is none or it is empty.
pub fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim).filter(|text| !text.is_empty())
}

/// `text` escaped for an attribute (in either quotes) or between tags. Characters that XML 1.0 does not allow
/// at all become U+FFFD.
pub fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() && c < ' ' => out.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_bombs_are_refused() {
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><domain><name>&b;</name></domain>";
        let error = parse(bomb, "domain").unwrap_err();
        assert!(matches!(error, XmlError::Syntax(roxmltree::Error::DtdDetected)), "{error:?}");
        let external = "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>";
        assert!(matches!(parse(external, "domain"), Err(XmlError::Syntax(_))));
    }

    #[test]
    fn size_and_nodes_are_bounded() {
        let long = format!("<domain>{}</domain>", " ".repeat(MAX_OUTPUT));
        assert!(matches!(parse(&long, "domain"), Err(XmlError::TooLong(_))));
        let many = format!("<domain>{}</domain>", "<a/>".repeat(MAX_NODES as usize));
        assert!(matches!(parse(&many, "domain"), Err(XmlError::Syntax(_))));
        let deep = format!("<domain>{}{}</domain>", "<a>".repeat(100_000), "</a>".repeat(100_000));
        // For any answer: no stack overflows.
        parse(&deep, "domain").ok();
    }

    #[test]
    fn another_root_is_refused() {
        assert!(matches!(parse("<network/>", "domain"), Err(XmlError::Missing("domain"))));
        assert!(matches!(parse("", "domain"), Err(XmlError::Syntax(_))));
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let odd = "--help <&>\"' \n\r\t ../../x é";
        let xml = format!("<domain a='{0}' b=\"{0}\">{0}</domain>", escape(odd));
        let document = parse(&xml, "domain").unwrap();
        let root = document.root_element();
        assert_eq!(
            (root.attribute("a"), root.attribute("b"), root.text()),
            (Some(odd), Some(odd), Some(odd))
        );
        assert!(parse(&format!("<domain>{}</domain>", escape("\u{1}\u{ffff}")), "domain").is_ok());
    }
}
