//! Properties of objects, by the property collector.
//!
//! Rule: answers come in pages, and all pages are asked for. A property that is not there is told apart from
//! one that may not be read.

use crate::{
    client::{Client, Repeat},
    error::{Result, VsphereError},
    limits::PAGE,
    soap::{Element, Fault, FaultKind, MoRef, Node, SoapRequest},
};

/// An object with the properties that were asked for and that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub of: MoRef,
    pub(crate) properties: Vec<(String, Element)>,
    /// Those that could not be read, and why.
    pub(crate) missing: Vec<(String, Fault)>,
}

impl Object {
    pub(crate) fn new(of: MoRef) -> Self {
        Self { of, properties: Vec::new(), missing: Vec::new() }
    }

    fn read(element: &Element) -> Option<Self> {
        let mut object = Self::new(element.moref_at("obj")?);
        for property in element.all("propSet") {
            if let (Some(name), Some(value)) = (property.text_at("name"), property.child("val")) {
                object.set(name, value.clone());
            }
        }
        object.missing = missing(element);
        Some(object)
    }

    pub(crate) fn set(&mut self, name: &str, value: Element) {
        match self.properties.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.properties.push((name.to_owned(), value)),
        }
    }

    /// The property, if the object has it.
    pub fn get(&self, name: &str) -> Option<&Element> {
        self.properties.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The property's text, if there is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).map(|value| value.text.trim()).filter(|text| !text.is_empty())
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.flag()
    }

    pub fn moref(&self, name: &str) -> Option<MoRef> {
        self.get(name)?.moref()
    }

    /// The property; an error that names it if it is not there.
    pub fn need(&self, name: &str) -> Result<&Element> {
        self.get(name).ok_or_else(|| self.lacks(name))
    }

    /// The property's text; an error that names it if there is none.
    pub fn need_text(&self, name: &str) -> Result<&str> {
        self.text(name).ok_or_else(|| self.lacks(name))
    }

    /// Whether properties are missing because the session has ended.
    fn lacks_session(&self) -> bool {
        self.missing.iter().any(|(_, fault)| fault.kind == FaultKind::NotAuthenticated)
    }

    /// Why the property, or one that it is part of, could not be read: then nothing is known of it.
    pub fn unread(&self, name: &str) -> Option<VsphereError> {
        let above = |path: &str| name == path || name.starts_with(&format!("{path}."));
        let (_, fault) = self.missing.iter().find(|(path, _)| above(path))?;
        Some(VsphereError::of_fault(self.reading(name), fault.clone()))
    }

    fn lacks(&self, name: &str) -> VsphereError {
        let absent = || VsphereError::failed(self.reading(name), "the server gives no such property");
        self.unread(name).unwrap_or_else(absent)
    }

    fn reading(&self, name: &str) -> String {
        format!("{}: reading `{name}`", self.of)
    }
}

/// The properties that an answer says could not be read.
pub(crate) fn missing(element: &Element) -> Vec<(String, Fault)> {
    let each = element.all("missingSet");
    each.filter_map(|entry| Some((entry.text_at("path")?.to_owned(), Fault::of_task(entry.child("fault")?))))
        .collect()
}

/// Which properties of objects of one type are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub kind: &'a str,
    pub paths: &'a [&'a str],
}

impl Wanted<'_> {
    pub(crate) fn write(self, node: Node) -> Node {
        node.nest("propSet", |set| {
            set.text("type", self.kind)
                .text("all", false)
                .each(self.paths, |node, path| node.text("pathSet", path))
        })
    }
}

/// The properties of one object.
pub async fn read_properties(client: &Client, object: &MoRef, paths: &[&str]) -> Result<Object> {
    let wanted = Wanted { kind: &object.kind, paths };
    let mut found = of_all(client, std::slice::from_ref(object), &[wanted]).await?;
    found.pop().ok_or_else(|| {
        VsphereError::failed(format!("{object}: reading properties"), "the server gives nothing of it")
    })
}

/// The properties of several objects.
///
/// A session that has ended shows in the properties, not as a fault; and the pages of one end with it. Then
/// all is asked for once more.
pub async fn of_all(client: &Client, objects: &[MoRef], wanted: &[Wanted<'_>]) -> Result<Vec<Object>> {
    let generation = client.generation().await?;
    let result = attempt(client, objects, wanted).await;
    match &result {
        Ok(found) if !found.iter().any(Object::lacks_session) => return result,
        Ok(_) => client.forget(generation).await,
        Err(_) if client.generation().await? == generation => return result,
        Err(_) => {}
    }
    tracing::info!(server = %client.account().server, "the session has ended; asking again");
    attempt(client, objects, wanted).await
}

async fn attempt(client: &Client, objects: &[MoRef], wanted: &[Wanted<'_>]) -> Result<Vec<Object>> {
    let content = client.content().await?;
    let collector = &content.property_collector;
    let first = SoapRequest::new("RetrievePropertiesEx", collector, |arguments| {
        arguments
            .nest("specSet", |spec| {
                let spec = wanted.iter().fold(spec, |spec, wanted| wanted.write(spec));
                spec.each(objects, |node, object| {
                    node.nest("objectSet", |set| set.object("obj", object).text("skip", false))
                })
            })
            .nest("options", |options| options.text("maxObjects", PAGE))
    });
    let mut found = Vec::new();
    let mut answer = client.call(&first, Repeat::Safe).await?;
    loop {
        let Some(page) = answer.child("returnval") else { return Ok(found) };
        let before = found.len();
        found.extend(page.all("objects").filter_map(Object::read));
        let Some(token) = page.text_at("token") else { return Ok(found) };
        if found.len() == before {
            let context = format!("{}: reading properties", client.account().server);
            return Err(VsphereError::failed(context, "a page is empty, and more are said to follow"));
        }
        let next = SoapRequest::new("ContinueRetrievePropertiesEx", collector, |arguments| {
            arguments.text("token", token)
        });
        answer = client.call(&next, Repeat::Safe).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn object() -> Object {
        let text = "<objects xmlns:xsi='u'><obj type='VirtualMachine'>vm-57</obj>\
            <propSet><name>name</name><val xsi:type='xsd:string'>web1</val></propSet>\
            <propSet><name>config.template</name><val xsi:type='xsd:boolean'>false</val></propSet>\
            <missingSet><path>config.hardware</path><fault><fault xsi:type='NoPermission'>\
            <privilegeId>System.Read</privilegeId></fault><localizedMessage>No.</localizedMessage></fault></missingSet>\
            </objects>";
        Object::read(&Element::read(text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_there_is_read() {
        let object = object();
        assert_eq!(object.need_text("name").unwrap(), "web1");
        assert_eq!(object.flag("config.template"), Some(false));
        assert_eq!(object.moref("name"), None);
    }

    #[test]
    fn what_is_not_there_is_named_with_its_object() {
        let error = object().need("runtime.powerState").map(drop).unwrap_err();
        assert_eq!(error.kind, Kind::Failed);
        let text = error.to_string();
        assert!(text.contains("vm-57") && text.contains("runtime.powerState"), "{text}");
    }

    #[test]
    fn what_may_not_be_read_names_the_privilege() {
        let error = object().need("config.hardware.device").map(drop).unwrap_err();
        assert!(matches!(error.fault(), Some(FaultKind::NoPermission { .. })), "{error}");
        assert!(error.to_string().contains("System.Read"), "{error}");
    }
}
