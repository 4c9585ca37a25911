//! Updates of many objects by WaitForUpdatesEx: the whole state at first, then what changed.
//!
//! Rule: a collector of our own, so that its filters and versions belong to no other client. It belongs to
//! the session: when that ends, everything begins again.

use std::time::Duration;

use crate::{
    client::{Client, Repeat},
    error::{Result, VsphereError},
    limits::PAGE,
    soap::{Element, Fault, FaultKind, MoRef, SoapRequest},
};

use super::properties::{self, Wanted};

/// vCenter computes the first state of thousands of VMs.
const FIRST: Duration = Duration::from_mins(3);

/// Asks for updates of all objects of some types.
#[derive(Debug)]
pub(crate) struct Watch {
    collector: MoRef,
    version: String,
    generation: u64,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    Enter(MoRef, Vec<Change>),
    Modify(MoRef, Vec<Change>),
    Leave(MoRef),
}

/// What became of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: String,
    /// `None`: it has none any more.
    pub(crate) value: Option<Element>,
}

impl Watch {
    /// Begins to watch all objects of the types below `root`.
    pub(crate) async fn begin(client: &Client, wanted: &[Wanted<'_>]) -> Result<Self> {
        let content = client.content().await?;
        let generation = client.generation().await?;
        let returned = |answer: &Element, what: &str| {
            answer
                .moref_at("returnval")
                .ok_or_else(|| VsphereError::failed(what, "the answer has no reference to what was made"))
        };
        let manager = content.view_manager.as_ref();
        let manager =
            manager.ok_or_else(|| VsphereError::failed("CreateContainerView", "the server has no views"))?;
        let make = SoapRequest::new("CreateContainerView", manager, |arguments| {
            arguments
                .object("container", &content.root_folder)
                .each(wanted, |node, wanted| node.text("type", wanted.kind))
                .text("recursive", true)
        });
        let view = returned(&client.call(&make, Repeat::Safe).await?, "CreateContainerView")?;
        let make =
            SoapRequest::new("CreatePropertyCollector", &content.property_collector, |arguments| arguments);
        let collector = returned(&client.call(&make, Repeat::Safe).await?, "CreatePropertyCollector")?;
        let make = SoapRequest::new("CreateFilter", &collector, |arguments| {
            arguments
                .nest("spec", |spec| {
                    let spec = wanted.iter().fold(spec, |spec, wanted| wanted.write(spec));
                    spec.nest("objectSet", |set| {
                        set.object("obj", &view).text("skip", true).nest_typed(
                            "selectSet",
                            "TraversalSpec",
                            |select| {
                                select
                                    .text("name", "view")
                                    .text("type", "ContainerView")
                                    .text("path", "view")
                                    .text("skip", false)
                            },
                        )
                    })
                })
                .text("partialUpdates", false)
        });
        client.call(&make, Repeat::Safe).await?;
        Ok(Self { collector, version: String::new(), generation })
    }

    /// Whether the session that it belongs to is still the client's.
    pub(crate) async fn is_current(&self, client: &Client) -> Result<bool> {
        Ok(client.generation().await? == self.generation)
    }

    /// All that changed since the last time; the first time, all there is. `take` gets each page.
    pub(crate) async fn updates(&mut self, client: &Client, mut take: impl FnMut(Vec<Update>)) -> Result<()> {
        loop {
            let request = SoapRequest::new("WaitForUpdatesEx", &self.collector, |arguments| {
                arguments.text("version", &self.version).nest("options", |options| {
                    // Nothing is waited for: what there is now is answered.
                    options.text("maxWaitSeconds", 0).text("maxObjectUpdates", PAGE)
                })
            });
            let answer = client.call_within(&request, Repeat::Safe, FIRST).await?;
            let Some(set) = answer.child("returnval") else { return Ok(()) };
            let version = set.text_at("version").ok_or_else(|| {
                VsphereError::failed(
                    "WaitForUpdatesEx",
                    "the answer has no `version`, so that the next is unknown",
                )
            })?;
            if has_no_session(set) {
                client.forget(self.generation).await;
                let fault = Fault { kind: FaultKind::NotAuthenticated, message: String::new() };
                return Err(VsphereError::of_fault("WaitForUpdatesEx", fault));
            }
            take(updates(set));
            let more = set.flag_at("truncated") == Some(true);
            if more && version == self.version {
                let why = "more is said to follow under the version that was just answered";
                return Err(VsphereError::failed("WaitForUpdatesEx", why));
            }
            version.clone_into(&mut self.version);
            if !more {
                return Ok(());
            }
        }
    }

    /// Releases what the server holds for it.
    pub(crate) async fn end(self, client: &Client) {
        let request = SoapRequest::new("DestroyPropertyCollector", &self.collector, |arguments| arguments);
        if let Err(error) = client.call(&request, Repeat::Safe).await {
            tracing::debug!(%error, "a collector could not be destroyed; it ends with the session");
        }
    }
}

/// Whether properties are missing because the session has ended.
fn has_no_session(set: &Element) -> bool {
    let objects = set.all("filterSet").flat_map(|filter| filter.all("objectSet"));
    objects.flat_map(properties::missing).any(|(_, fault)| fault.kind == FaultKind::NotAuthenticated)
}

fn updates(set: &Element) -> Vec<Update> {
    let objects = set.all("filterSet").flat_map(|filter| filter.all("objectSet"));
    objects
        .filter_map(|object| {
            let of = object.moref_at("obj")?;
            let mut changes: Vec<Change> = object.all("changeSet").filter_map(change).collect();
            // What cannot be read now may be a value that was, and is not to be kept.
            changes.extend(
                properties::missing(object).into_iter().map(|(name, _)| Change { name, value: None }),
            );
            match object.text_at("kind")? {
                "enter" => Some(Update::Enter(of, changes)),
                "leave" => Some(Update::Leave(of)),
                _ => Some(Update::Modify(of, changes)),
            }
        })
        .collect()
}

fn change(change: &Element) -> Option<Change> {
    let name = change.text_at("name")?.to_owned();
    Some(Change { name, value: change.child("val").cloned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_set_is_read() {
        let text = "<returnval xmlns:xsi='u'><version>2</version><filterSet><filter type='PropertyFilter'>f</filter>\
            <objectSet><kind>enter</kind><obj type='VirtualMachine'>vm-1</obj>\
            <changeSet><name>name</name><op>assign</op><val xsi:type='xsd:string'>a</val></changeSet></objectSet>\
            <objectSet><kind>modify</kind><obj type='VirtualMachine'>vm-2</obj>\
            <changeSet><name>snapshot</name><op>assign</op></changeSet>\
            <missingSet><path>config</path><fault><fault xsi:type='NoPermission'/></fault></missingSet></objectSet>\
            <objectSet><kind>leave</kind><obj type='VirtualMachine'>vm-3</obj></objectSet></filterSet></returnval>";
        let read = updates(&Element::read(text.as_bytes()).unwrap());
        let Update::Enter(vm, changes) = &read[0] else { panic!() };
        assert_eq!((vm, changes[0].value.as_ref().unwrap().text.as_str()), (&MoRef::vm("vm-1"), "a"));
        let Update::Modify(_, changes) = &read[1] else { panic!() };
        let gone: Vec<_> =
            changes.iter().map(|change| (change.name.as_str(), change.value.is_none())).collect();
        assert_eq!(gone, [("snapshot", true), ("config", true)]);
        assert_eq!(read[2], Update::Leave(MoRef::vm("vm-3")));
    }
}
