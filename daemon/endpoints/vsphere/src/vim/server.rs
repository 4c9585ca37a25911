//! What a server is, and questions to the server as a whole.

use chrono::{DateTime, Utc};

use crate::{
    client::{Client, Repeat},
    error::{Result, VsphereError},
    limits::OLDEST,
    soap::{Element, MoRef, SoapRequest},
};

/// The server's managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceContent {
    pub about: About,
    pub root_folder: MoRef,
    pub property_collector: MoRef,
    pub session_manager: MoRef,
    pub view_manager: Option<MoRef>,
    pub search_index: Option<MoRef>,
    pub authorization_manager: Option<MoRef>,
    pub event_manager: Option<MoRef>,
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its product, version and build, for people.
    pub full_name: String,
    pub api_version: String,
    /// A vCenter, or a standalone ESXi host.
    pub is_vcenter: bool,
}

impl About {
    /// Major and minor release of its API.
    pub fn release(&self) -> Option<(u32, u32)> {
        let mut parts = self.api_version.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Whether it is too old to be spoken to.
    pub fn is_too_old(&self) -> bool {
        self.release().is_none_or(|release| release < OLDEST)
    }
}

impl ServiceContent {
    /// From the answer to RetrieveServiceContent.
    pub fn read(answer: &Element) -> Result<Self> {
        let missing = |what: &str| {
            VsphereError::failed("reading what the server is", format!("its answer has no `{what}`"))
        };
        let content = answer.child("returnval").ok_or_else(|| missing("returnval"))?;
        let text = |path: &str| content.text_at(path).map(str::to_owned).ok_or_else(|| missing(path));
        let object = |path: &str| content.moref_at(path).ok_or_else(|| missing(path));
        let api_type = text("about.apiType")?;
        let api_version = text("about.apiVersion")?;
        // It goes into a header.
        if !api_version.chars().all(|character| character.is_ascii_alphanumeric() || character == '.') {
            let why = format!("the API's version is {api_version:?}");
            return Err(VsphereError::failed("reading what the server is", why));
        }
        let about = About {
            full_name: text("about.fullName")?,
            api_version,
            is_vcenter: match api_type.as_str() {
                "VirtualCenter" => true,
                "HostAgent" => false,
                other => {
                    let why = format!("it is a `{other}`: neither a vCenter nor an ESXi");
                    return Err(VsphereError::refused("reading what the server is", why));
                }
            },
        };
        Ok(Self {
            about,
            root_folder: object("rootFolder")?,
            property_collector: object("propertyCollector")?,
            session_manager: object("sessionManager")?,
            view_manager: content.moref_at("viewManager"),
            search_index: content.moref_at("searchIndex"),
            authorization_manager: content.moref_at("authorizationManager"),
            event_manager: content.moref_at("eventManager"),
        })
    }
}

/// The server's time.
pub async fn current_time(client: &Client) -> Result<DateTime<Utc>> {
    let request = SoapRequest::new("CurrentTime", &MoRef::service_instance(), |arguments| arguments);
    let answer = client.call(&request, Repeat::Safe).await?;
    answer
        .child("returnval")
        .and_then(time)
        .ok_or_else(|| VsphereError::failed("CurrentTime", "the answer is no time"))
}

/// A moment in an answer.
pub(crate) fn time(element: &Element) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(element.text.trim()).ok().map(|time| time.to_utc())
}

/// Which of the privileges the session has on the object: in their order.
pub async fn privileges(client: &Client, on: &MoRef, wanted: &[&str]) -> Result<Vec<bool>> {
    let content = client.content().await?;
    let Some(manager) = &content.authorization_manager else {
        return Err(VsphereError::failed(
            "HasPrivilegeOnEntities",
            "the server has no authorization manager",
        ));
    };
    let session = client.session_key().await?;
    let request = SoapRequest::new("HasPrivilegeOnEntities", manager, |arguments| {
        arguments
            .object("entity", on)
            .text("sessionId", session)
            .each(wanted, |node, privilege| node.text("privId", privilege))
    });
    let answer = client.call(&request, Repeat::Safe).await?;
    let granted = |privilege: &str| {
        let mut said = answer.all("returnval").flat_map(|entity| entity.all("privAvailability"));
        said.find(|said| said.text_at("privId") == Some(privilege)).and_then(|said| said.flag_at("isGranted"))
    };
    wanted
        .iter()
        .map(|privilege| {
            granted(privilege).ok_or_else(|| {
                let why = format!("the answer does not name {privilege}");
                VsphereError::failed("HasPrivilegeOnEntities", why)
            })
        })
        .collect()
}

/// Fails, and names them, if the user lacks some of these privileges on the object.
pub async fn require(client: &Client, on: &MoRef, wanted: &[&str]) -> Result<()> {
    let granted = privileges(client, on, wanted).await?;
    let missing = wanted.iter().zip(granted).filter(|(_, granted)| !granted);
    let missing: Vec<&str> = missing.map(|(privilege, _)| *privilege).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let user = &client.account().user;
    let why =
        format!("{user} lacks privileges on it: {}; give the user a role with them", missing.join(", "));
    Err(VsphereError::refused(on.to_string(), why))
}

/// The VM with this instance UUID, which vCenter gave it. Refused if several have it: one of them is a clone
/// that was made beside vCenter, and which one is meant is not known.
pub async fn find_by_uuid(client: &Client, uuid: &str) -> Result<Option<MoRef>> {
    let content = client.content().await?;
    let Some(index) = &content.search_index else {
        return Err(VsphereError::failed("FindAllByUuid", "the server has no search index"));
    };
    let request = SoapRequest::new("FindAllByUuid", index, |arguments| {
        arguments.text("uuid", uuid).text("vmSearch", true).text("instanceUuid", true)
    });
    the_only(&client.call(&request, Repeat::Safe).await?, uuid)
}

fn the_only(answer: &Element, uuid: &str) -> Result<Option<MoRef>> {
    let mut found: Vec<MoRef> = answer.all("returnval").filter_map(Element::moref).collect();
    found.sort();
    found.dedup();
    if found.len() > 1 {
        let all: Vec<_> = found.iter().map(|vm| vm.id.as_str()).collect();
        let why = format!(
            "several VMs have the instance UUID {uuid} ({}): remove the clone from the \
             inventory, and register it again as a copy, so that it gets another",
            all.join(", ")
        );
        return Err(VsphereError::refused("FindAllByUuid", why));
    }
    Ok(found.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(about: &str) -> Element {
        let text = format!(
            "<RetrieveServiceContentResponse><returnval><rootFolder type='Folder'>group-d1</rootFolder>\
             <propertyCollector type='PropertyCollector'>propertyCollector</propertyCollector>\
             <viewManager type='ViewManager'>ViewManager</viewManager><about>{about}</about>\
             <sessionManager type='SessionManager'>SessionManager</sessionManager></returnval>\
             </RetrieveServiceContentResponse>"
        );
        Element::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_vcenter_tells_what_it_is() {
        let about = "<fullName>VMware vCenter Server 8.0.3 build-24022515</fullName><apiType>VirtualCenter</apiType>\
                     <apiVersion>8.0.3.0</apiVersion><instanceUuid>c0ffee</instanceUuid>";
        let content = ServiceContent::read(&answer(about)).unwrap();
        assert!(content.about.is_vcenter && !content.about.is_too_old());
        assert_eq!(content.about.release(), Some((8, 0)));
        assert_eq!(content.search_index, None);
    }

    #[test]
    fn what_is_missing_or_strange_is_named() {
        let told = |about: &str| ServiceContent::read(&answer(about)).unwrap_err().to_string();
        assert!(told("<fullName>x</fullName>").contains("apiType"));
        let strange = "<fullName>x</fullName><apiType>VirtualToaster</apiType><apiVersion>1.0</apiVersion>";
        assert!(told(strange).contains("VirtualToaster"));
        let header = "<fullName>x</fullName><apiType>HostAgent</apiType><apiVersion>1\r\nX: y</apiVersion>";
        assert!(told(header).contains("version"));
    }

    #[test]
    fn a_uuid_that_clones_share_names_no_vm() {
        let found = |vms: &[&str]| {
            let each = vms.iter().map(|vm| format!("<returnval type='VirtualMachine'>{vm}</returnval>"));
            let text = format!("<FindAllByUuidResponse>{}</FindAllByUuidResponse>", each.collect::<String>());
            the_only(&Element::read(text.as_bytes()).unwrap(), "u-1")
        };
        assert_eq!(found(&[]).unwrap(), None);
        assert_eq!(found(&["vm-1"]).unwrap(), Some(MoRef::vm("vm-1")));
        assert_eq!(found(&["vm-1", "vm-1"]).unwrap(), Some(MoRef::vm("vm-1")));
        let error = found(&["vm-2", "vm-1"]).unwrap_err();
        assert_eq!(error.kind, crate::Kind::Refused);
        assert!(error.to_string().contains("vm-1, vm-2"), "{error}");
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        let about = |version: &str| About {
            full_name: String::new(),
            api_version: version.to_owned(),
            is_vcenter: true,
        };
        for (version, too_old) in
            [("6.5", false), ("6.0", true), ("10.0.1", false), ("5.5", true), ("x", true), ("9.0.0.0", false)]
        {
            assert_eq!(about(version).is_too_old(), too_old, "{version}");
        }
    }
}
