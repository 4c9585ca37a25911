//! Requests: an envelope around one method with its arguments.
//!
//! Rule: a real vCenter wants the children in the order of its description, so they are written in the order
//! in which the caller names them. Every text is escaped here and nowhere else. A request is never printed: a
//! login's has the password.

use std::fmt::{self, Display, Write as _};

use super::MoRef;

const ENVELOPE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\
    <soapenv:Body>";
const END: &str = "</soapenv:Body></soapenv:Envelope>";

/// Elements that are being written, one after the other.
#[derive(Clone, Default)]
pub struct Node(String);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} bytes)", self.0.len())
    }
}

impl Node {
    pub fn new() -> Self {
        Self::default()
    }

    /// An element with a text, a number or a flag.
    pub fn text(mut self, name: &str, value: impl Display) -> Self {
        let text = value.to_string();
        self.0.reserve(text.len() + 2 * name.len() + 5);
        self.open(name, "");
        escape(&text, &mut self.0);
        self.close(name);
        self
    }

    /// A reference to an object.
    pub fn object(mut self, name: &str, of: &MoRef) -> Self {
        let mut kind = String::new();
        escape(&of.kind, &mut kind);
        self.open(name, &format!(" type=\"{kind}\""));
        escape(&of.id, &mut self.0);
        self.close(name);
        self
    }

    /// An element with children.
    pub fn nest(self, name: &str, inner: impl FnOnce(Self) -> Self) -> Self {
        self.nest_with(name, "", inner)
    }

    /// An element with children whose type is to be said.
    pub fn nest_typed(self, name: &str, kind: &str, inner: impl FnOnce(Self) -> Self) -> Self {
        self.nest_with(name, &format!(" xsi:type=\"{kind}\""), inner)
    }

    fn nest_with(mut self, name: &str, attributes: &str, inner: impl FnOnce(Self) -> Self) -> Self {
        self.open(name, attributes);
        let mut within = inner(self);
        within.close(name);
        within
    }

    /// One element for each of `items`.
    pub fn each<T>(self, items: impl IntoIterator<Item = T>, write: impl Fn(Self, T) -> Self) -> Self {
        items.into_iter().fold(self, write)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn open(&mut self, name: &str, attributes: &str) {
        // Writing to a string does not fail.
        write!(self.0, "<{name}{attributes}>").ok();
    }

    fn close(&mut self, name: &str) {
        write!(self.0, "</{name}>").ok();
    }
}

/// One call of a method of an object.
#[derive(Clone)]
pub struct SoapRequest {
    pub(crate) method: &'static str,
    pub(crate) this: MoRef,
    arguments: Node,
}

impl fmt::Debug for SoapRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.method, self.this)
    }
}

impl SoapRequest {
    /// `method` of `this`, with the arguments that `write` writes in their order.
    pub fn new(method: &'static str, this: &MoRef, write: impl FnOnce(Node) -> Node) -> Self {
        Self { method, this: this.clone(), arguments: write(Node::new()) }
    }

    /// The whole envelope.
    pub(crate) fn envelope(&self) -> String {
        let method = self.method;
        let this = Node::new().object("_this", &self.this);
        let arguments = self.arguments.as_str();
        format!("{ENVELOPE}<{method} xmlns=\"urn:vim25\">{}{arguments}</{method}>{END}", this.as_str())
    }
}

/// Appends `text` so that it is read back as it is; what XML cannot hold becomes a replacement character.
fn escape(text: &str, into: &mut String) {
    for character in text.chars() {
        match character {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&apos;"),
            // Bare, it would be read as a line feed.
            '\r' => into.push_str("&#13;"),
            '\t' | '\n' => into.push(character),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => into.push('\u{fffd}'),
            c => into.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::Element;

    #[test]
    fn arguments_keep_their_order_and_are_escaped() {
        let request = SoapRequest::new("CreateSnapshot_Task", &MoRef::vm("vm-<57>"), |arguments| {
            arguments
                .text("name", "a & \"b\" <c> \u{1}\r")
                .text("memory", false)
                .nest_typed("spec", "TraversalSpec", |spec| spec.text("type", "X").text("path", "view"))
                .each([1, 2], |node, number| node.text("n", number))
        });
        let envelope = request.envelope();
        let root = Element::read(envelope.as_bytes()).unwrap();
        let method = root.at("Body.CreateSnapshot_Task").unwrap();
        let order: Vec<_> = method.children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(order, ["_this", "name", "memory", "spec", "n", "n"]);
        assert_eq!(method.moref_at("_this"), Some(MoRef::vm("vm-<57>")));
        assert_eq!(method.child("name").unwrap().text, "a & \"b\" <c> \u{fffd}\r");
        assert!(method.child("spec").unwrap().is("TraversalSpec"));
    }

    #[test]
    fn a_request_with_a_password_does_not_show_it() {
        let manager = MoRef::new("SessionManager", "SessionManager");
        let request = SoapRequest::new("Login", &manager, |arguments| arguments.text("password", "s3cret"));
        assert_eq!(format!("{request:?}"), "Login on SessionManager SessionManager");
        assert!(request.envelope().contains("s3cret"));
    }
}
