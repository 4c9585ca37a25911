//! Events: what the server says happened to a VM.
//!
//! Rule: events are evidence where there are any. None proves nothing: a server keeps them for some time, and
//! a standalone host may keep none.

use crate::{
    client::{Client, Repeat},
    error::{Result, VsphereError},
    soap::{Element, MoRef, SoapRequest},
};

/// The events of a start, by a person, a schedule or a cluster.
const STARTS: [&str; 4] =
    ["VmStartingEvent", "VmPoweredOnEvent", "DrsVmPoweredOnEvent", "VmRestartedOnAlternateHostEvent"];

/// The key of the VM's last start, which rises from event to event; `None` if the server has none.
pub async fn last_start(client: &Client, vm: &MoRef) -> Result<Option<i64>> {
    let content = client.content().await?;
    let Some(manager) = &content.event_manager else {
        return Err(VsphereError::failed("QueryEvents", "the server has no events"));
    };
    let request = SoapRequest::new("QueryEvents", manager, |arguments| {
        arguments.nest("filter", |filter| {
            filter
                .nest("entity", |entity| entity.object("entity", vm).text("recursion", "self"))
                .text("disableFullMessage", true)
                .each(&STARTS, |node, kind| node.text("eventTypeId", kind))
        })
    });
    newest(&client.call(&request, Repeat::Safe).await?)
}

fn newest(answer: &Element) -> Result<Option<i64>> {
    let keys = answer.all("returnval").map(|event| {
        let lacks = || VsphereError::failed("QueryEvents", "an event has no key");
        event.value_at::<i64>("key").ok_or_else(lacks)
    });
    Ok(keys.collect::<Result<Vec<i64>>>()?.into_iter().max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_counts_in_whatever_order_they_come() {
        let read = |events: &str| {
            let text = format!("<QueryEventsResponse xmlns:xsi='u'>{events}</QueryEventsResponse>");
            newest(&Element::read(text.as_bytes()).unwrap())
        };
        let event =
            |key: &str| format!("<returnval xsi:type='VmPoweredOnEvent'><key>{key}</key></returnval>");
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read(&format!("{}{}{}", event("7"), event("41"), event("9"))).unwrap(), Some(41));
        assert!(read(&event("x")).is_err(), "what is not understood is not \"none\"");
    }
}
