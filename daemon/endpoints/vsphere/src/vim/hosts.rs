//! What ESXi hosts and clusters do with VMs on their own: starting them with the host, restarting them
//! elsewhere.
//!
//! Rule: only what concerns one VM is changed; the host's own settings never are.

use crate::{
    client::{Client, Repeat},
    error::Result,
    soap::{Element, MoRef, SoapRequest},
};

use super::properties;

/// What a host does with one VM when it starts and stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoStart {
    manager: MoRef,
    /// Whether the host starts any VM at all.
    pub is_host_on: bool,
    /// What is said of the VM; `None` if nothing is.
    pub info: Option<PowerInfo>,
}

/// One VM's line in a host's list, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerInfo {
    start_order: String,
    start_delay: String,
    wait_for_heartbeat: String,
    start_action: String,
    stop_delay: String,
    stop_action: String,
}

impl PowerInfo {
    /// What the line says, and the host's defaults for the rest.
    fn read(line: Option<&Element>) -> Self {
        let text =
            |name: &str, other: &str| line.and_then(|line| line.text_at(name)).unwrap_or(other).to_owned();
        Self {
            start_order: text("startOrder", "-1"),
            start_delay: text("startDelay", "-1"),
            wait_for_heartbeat: text("waitForHeartbeat", "systemDefault"),
            start_action: text("startAction", "none"),
            stop_delay: text("stopDelay", "-1"),
            stop_action: text("stopAction", "systemDefault"),
        }
    }
}

impl AutoStart {
    /// Whether the VM is in the host's list to be started.
    pub fn starts(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.start_action.eq_ignore_ascii_case("powerOn"))
    }
}

/// What the host does with the VM; `None` if it has no list of VMs that it starts.
pub async fn autostart(client: &Client, host: &MoRef, vm: &MoRef) -> Result<Option<AutoStart>> {
    let found = properties::read_properties(client, host, &["configManager.autoStartManager"]).await?;
    if let Some(error) = found.unread("configManager.autoStartManager") {
        return Err(error);
    }
    let Some(manager) = found.moref("configManager.autoStartManager") else { return Ok(None) };
    let config = properties::read_properties(client, &manager, &["config"]).await?;
    if let Some(error) = config.unread("config") {
        return Err(error);
    }
    Ok(Some(read(manager, config.get("config"), vm)))
}

fn read(manager: MoRef, config: Option<&Element>, vm: &MoRef) -> AutoStart {
    let is_host_on = config.and_then(|config| config.flag_at("defaults.enabled")) == Some(true);
    let mut all = config.into_iter().flat_map(|config| config.all("powerInfo"));
    let info =
        all.find(|info| info.moref_at("key").as_ref() == Some(vm)).map(|info| PowerInfo::read(Some(info)));
    AutoStart { manager, is_host_on, info }
}

/// Takes the VM out of what its host starts, or puts it back. The rest of its line stays.
pub async fn set_autostart(client: &Client, now: &AutoStart, vm: &MoRef, on: bool) -> Result<()> {
    let line = now.info.clone().unwrap_or_else(|| PowerInfo::read(None));
    let request = SoapRequest::new("ReconfigureAutostart", &now.manager, |arguments| {
        arguments.nest("spec", |spec| {
            spec.nest("powerInfo", |info| {
                info.object("key", vm)
                    .text("startOrder", &line.start_order)
                    .text("startDelay", &line.start_delay)
                    .text("waitForHeartbeat", &line.wait_for_heartbeat)
                    .text("startAction", if on { "powerOn" } else { "none" })
                    .text("stopDelay", &line.stop_delay)
                    .text("stopAction", &line.stop_action)
            })
        })
    });
    // Setting it twice sets the same.
    client.call(&request, Repeat::Safe).await.map(drop)
}

/// What a cluster does with one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRules {
    /// HA is on, and restarts the VM with this priority; `disabled` means never.
    pub ha_priority: Option<String>,
    /// DRS is on, with this automation for the VM: `fullyAutomated` moves it between hosts.
    pub drs_behaviour: Option<String>,
}

impl ClusterRules {
    /// Whether HA would start the VM on another host.
    pub fn restarts(&self) -> bool {
        self.ha_priority.as_deref().is_some_and(|priority| priority != "disabled")
    }
}

/// What the cluster does with the VM.
pub async fn cluster_rules(client: &Client, cluster: &MoRef, vm: &MoRef) -> Result<ClusterRules> {
    let found = properties::read_properties(client, cluster, &["configurationEx"]).await?;
    Ok(found.get("configurationEx").map(|config| read_rules(config, vm)).unwrap_or_default())
}

fn read_rules(config: &Element, vm: &MoRef) -> ClusterRules {
    let own = |list: &str| config.all(list).find(|entry| entry.moref_at("key").as_ref() == Some(vm)).cloned();
    let text = |of: Option<&Element>, path: &str| of.and_then(|of| of.text_at(path)).map(str::to_owned);
    let ha = (config.flag_at("dasConfig.enabled") == Some(true)).then(|| {
        let own = own("dasVmConfig");
        let named = text(own.as_ref(), "dasSettings.restartPriority")
            .or_else(|| text(own.as_ref(), "restartPriority"))
            .filter(|priority| priority != "clusterRestartPriority");
        named
            .or_else(|| text(Some(config), "dasConfig.defaultVmSettings.restartPriority"))
            .unwrap_or_else(|| "medium".to_owned())
    });
    let drs = (config.flag_at("drsConfig.enabled") == Some(true)).then(|| {
        let own = own("drsVmConfig");
        if own.as_ref().and_then(|own| own.flag_at("enabled")) == Some(false) {
            return "disabled".to_owned();
        }
        text(own.as_ref(), "behavior")
            .or_else(|| text(Some(config), "drsConfig.defaultVmBehavior"))
            .unwrap_or_else(|| "fullyAutomated".to_owned())
    });
    ClusterRules { ha_priority: ha, drs_behaviour: drs }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Element {
        Element::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_vms_line_is_found_in_the_hosts_list() {
        let config = element(
            "<val><defaults><enabled>true</enabled></defaults>\
             <powerInfo><key type='VirtualMachine'>1</key><startAction>none</startAction></powerInfo>\
             <powerInfo><key type='VirtualMachine'>2</key><startOrder>3</startOrder><startAction>PowerOn</startAction>\
             </powerInfo></val>",
        );
        let manager = || MoRef::new("HostAutoStartManager", "ha-autostart-mgr");
        let of = |vm: &str| read(manager(), Some(&config), &MoRef::vm(vm));
        assert!(of("2").starts() && of("2").is_host_on);
        assert!(!of("1").starts() && of("1").info.is_some());
        assert_eq!(of("3").info, None);
        assert!(!read(manager(), None, &MoRef::vm("2")).starts());
    }

    #[test]
    fn a_vms_own_rule_goes_before_the_clusters() {
        let config = element(
            "<val><dasConfig><enabled>true</enabled></dasConfig>\
             <dasVmConfig><key type='VirtualMachine'>vm-1</key><dasSettings><restartPriority>disabled</restartPriority>\
             </dasSettings></dasVmConfig>\
             <drsConfig><enabled>true</enabled><defaultVmBehavior>manual</defaultVmBehavior></drsConfig>\
             <drsVmConfig><key type='VirtualMachine'>vm-1</key><enabled>false</enabled></drsVmConfig></val>",
        );
        let own = read_rules(&config, &MoRef::vm("vm-1"));
        assert!(!own.restarts());
        assert_eq!(own.drs_behaviour.as_deref(), Some("disabled"));
        let other = read_rules(&config, &MoRef::vm("vm-2"));
        assert!(other.restarts());
        assert_eq!(other.drs_behaviour.as_deref(), Some("manual"));
        assert_eq!(read_rules(&element("<val/>"), &MoRef::vm("vm-1")), ClusterRules::default());
    }
}
