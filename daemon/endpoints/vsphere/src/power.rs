//! Power: whether a VM runs, stopping it, starting it.
//!
//! Rule: "cannot be reached" is never "off". What vCenter says of a VM whose host it does not reach is old,
//! so it counts for nothing. A suspended VM is not off: its memory waits on a disk, and the disks are in the
//! middle of something.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    inventory::Power,
    soap::{FaultKind, MoRef},
    vim::{
        properties,
        tasks::{self, AtDeadline},
        vm,
    },
};

const POLL: Duration = Duration::from_secs(1);
/// A guest that is just booting, or whose tools start slowly, loses the first request.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// For cutting the power, and for starting.
const SWITCH: Duration = Duration::from_mins(5);
/// How often a VM is looked at and switched until it is as wanted.
const ATTEMPTS: usize = 4;

/// How a VM may be stopped.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// How long the guest gets to shut itself down.
    pub graceful: Duration,
    /// Whether the power is cut after that.
    pub force: bool,
}

/// How a VM came to be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    WasOff,
    Gracefully,
    Forced,
}

/// What a look at a VM's power found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PowerStatus {
    power: Power,
    /// What it waits to be told, if it waits.
    question: Option<String>,
    has_tools: bool,
}

impl Vsphere {
    /// Whether the VM runs, asked now.
    pub async fn power(&self, of: &MoRef) -> Result<Power> {
        Ok(self.status(of).await.during(|| format!("VM {}: looking whether it runs", of.id))?.power)
    }

    async fn status(&self, of: &MoRef) -> Result<PowerStatus> {
        let paths = [
            "runtime.powerState",
            "runtime.connectionState",
            "runtime.host",
            "runtime.question",
            "guest.toolsRunningStatus",
        ];
        let object = properties::read_properties(&self.client, of, &paths).await?;
        let host = match object.moref("runtime.host") {
            Some(host) => {
                let found =
                    properties::read_properties(&self.client, &host, &["name", "runtime.connectionState"])
                        .await;
                match found {
                    Ok(host) => Some(host),
                    // It was moved in this moment, or its host may not be looked at: the VM's own state
                    // counts.
                    Err(error) if error.is_gone(&host) || error.kind == Kind::Refused => None,
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        power_status(&object, host.as_ref())
    }

    /// Stops the VM: asks the guest, waits, then cuts the power if it may. Off already is success.
    pub async fn shut_down(&self, of: &MoRef, how: Shutdown) -> Result<Stopped> {
        let context = || format!("VM {}: shutting it down", of.id);
        let deadline = Instant::now() + how.graceful;
        let mut asked_once = false;
        let mut ask_at = Instant::now();
        loop {
            let status = self.status(of).await.during(context)?;
            match status.power {
                Power::Off if asked_once => return Ok(Stopped::Gracefully),
                Power::Off => return Ok(Stopped::WasOff),
                Power::Suspended => return Err(suspended()).during(context),
                Power::On => {}
            }
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            if now >= ask_at {
                ask_at = now + ASK_AGAIN;
                match vm::shutdown_guest(&self.client, of).await {
                    Ok(()) => asked_once = true,
                    Err(error) if error.fault() == Some(&FaultKind::PowerState) => asked_once = true,
                    // A guest that cannot be asked may still be cut off; who may not ask may not do that
                    // either.
                    Err(error) if error.kind == Kind::NotFound || may_not(&error) => {
                        return Err(error).during(context);
                    }
                    Err(error) => {
                        tracing::warn!(vm = %of, %error, tools = status.has_tools, "the guest could not be asked to shut down");
                    }
                }
                continue;
            }
            sleep_until(deadline.min(now + POLL)).await;
        }
        if !how.force {
            let told = if asked_once {
                "the guest was asked, and has not shut down"
            } else {
                "the guest could not be asked: VMware Tools do not run in it"
            };
            let why = format!(
                "{told} within {} s: shut the guest down from inside, or allow to cut the power",
                how.graceful.as_secs()
            );
            return Err(VsphereError::new(Kind::StillRunning, context(), why));
        }
        self.cut_power(of).await.during(context)
    }

    async fn cut_power(&self, of: &MoRef) -> Result<Stopped> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.status(of).await?.power {
                Power::Off if last.is_none() => return Ok(Stopped::Gracefully),
                Power::Off => return Ok(Stopped::Forced),
                // Cutting it off would throw away what the guest had in memory.
                Power::Suspended => return Err(suspended()),
                Power::On => {}
            }
            let begun = vm::power_off(&self.client, of).await;
            last =
                Some(self.switched(of, begun, "the server says that it is done, and it still runs").await?);
        }
        // The last attempt may have done it.
        if self.status(of).await?.power == Power::Off {
            return Ok(Stopped::Forced);
        }
        Err(VsphereError::new(Kind::Failed, "cutting the power", last.unwrap_or_default()))
    }

    /// Waits for a switch of the power that was begun, and for the task that prevents it, if one does.
    /// Returns the result, in case that a look finds the VM as it was: `unchanged` if the server says that
    /// the switch is done.
    async fn switched(&self, of: &MoRef, begun: Result<MoRef>, unchanged: &str) -> Result<String> {
        let result = match begun {
            Ok(task) => tasks::wait(&self.client, &task, SWITCH, AtDeadline::Leave).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(_) => Ok(unchanged.to_owned()),
            // It was switched in this moment, or the answer was lost: the caller looks.
            Err(error) if error.fault() == Some(&FaultKind::PowerState) || error.is_undecided() => {
                Ok(error.to_string())
            }
            Err(error) if error.kind == Kind::Blocked => {
                sleep_until(Instant::now() + POLL).await;
                // As a rule the removal of a pass's snapshot, which may take hours: the VM must not stay off
                // for longer than that.
                if error.fault() == Some(&FaultKind::TaskInProgress) {
                    self.idle(of).await?;
                }
                Ok(error.to_string())
            }
            Err(error) => Err(error),
        }
    }

    /// Starts the VM; running already is success.
    pub async fn power_on(&self, of: &MoRef) -> Result<()> {
        let context = || format!("VM {}: starting it", of.id);
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let status = self.status(of).await.during(context)?;
            if status.power == Power::On {
                return match status.question {
                    Some(question) => Err(VsphereError::blocked(context(), waits(&question))),
                    None => Ok(()),
                };
            }
            let begun = vm::power_on(&self.client, of).await;
            let came = self.switched(of, begun, "the server says that it is done, and it is off").await;
            last = Some(came.during(context)?);
            if let Ok(PowerStatus { question: Some(question), .. }) = self.status(of).await {
                return Err(VsphereError::blocked(context(), waits(&question)));
            }
        }
        if self.status(of).await.during(context)?.power == Power::On {
            return Ok(());
        }
        Err(VsphereError::new(Kind::Failed, context(), last.unwrap_or_default()))
    }
}

/// Whether the user, or the host's licence, does not allow it.
fn may_not(error: &VsphereError) -> bool {
    matches!(error.fault(), Some(FaultKind::NoPermission { .. } | FaultKind::RestrictedVersion))
}

fn suspended() -> VsphereError {
    let why = "it is suspended: resume it first, so that its disks come to rest";
    VsphereError::blocked("looking at its power", why)
}

fn waits(question: &str) -> String {
    format!("it waits for the answer to a question, which a person gives in vSphere: {question:?}")
}

/// What the VM's and its host's properties say.
fn power_status(vm: &properties::Object, host: Option<&properties::Object>) -> Result<PowerStatus> {
    let unreachable = |why: String| {
        Err(VsphereError::new(
            Kind::Unreachable,
            "its state is not known",
            format!("{why}: whether it runs is not known; see that the host answers vCenter"),
        ))
    };
    let connection = vm.need_text("runtime.connectionState")?;
    if connection != "connected" {
        return unreachable(format!("vCenter says that the VM is {connection}"));
    }
    if let Some(host) = host
        && let Some(connection) = host.text("runtime.connectionState")
        && connection != "connected"
    {
        return unreachable(format!("its host {} is {connection}", host.text("name").unwrap_or(&host.of.id)));
    }
    let state = vm.need_text("runtime.powerState")?;
    let power = Power::read(state).ok_or_else(|| {
        VsphereError::failed("reading `runtime.powerState`", format!("it is `{state}`, which is not known"))
    })?;
    Ok(PowerStatus {
        power,
        question: vm.get("runtime.question").and_then(|question| question.text_at("text")).map(str::to_owned),
        has_tools: vm.text("guest.toolsRunningStatus") == Some("guestToolsRunning"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests_support::value;

    fn object(kind: &str, properties: &[(&str, &str)]) -> properties::Object {
        let mut object = properties::Object::new(MoRef::new(kind, "x-1"));
        for (name, text) in properties {
            object.set(name, value(text));
        }
        object
    }

    fn vm(power: &str, connection: &str) -> properties::Object {
        object("VirtualMachine", &[("runtime.powerState", power), ("runtime.connectionState", connection)])
    }

    #[test]
    fn what_cannot_be_reached_is_never_off() {
        let connected = object("HostSystem", &[("name", "esx1"), ("runtime.connectionState", "connected")]);
        let lost = object("HostSystem", &[("name", "esx1"), ("runtime.connectionState", "notResponding")]);
        assert_eq!(power_status(&vm("poweredOff", "connected"), Some(&connected)).unwrap().power, Power::Off);
        for (vm, host) in [
            (vm("poweredOff", "disconnected"), Some(&connected)),
            (vm("poweredOff", "orphaned"), None),
            (vm("poweredOff", "connected"), Some(&lost)),
        ] {
            let error = power_status(&vm, host).unwrap_err();
            assert_eq!(error.kind, Kind::Unreachable, "{error}");
        }
        assert!(
            power_status(&vm("poweredOff", "connected"), Some(&lost))
                .unwrap_err()
                .to_string()
                .contains("esx1")
        );
    }

    #[test]
    fn what_is_not_said_or_not_known_is_not_off() {
        assert!(power_status(&vm("hibernated", "connected"), None).is_err());
        assert!(
            power_status(&object("VirtualMachine", &[("runtime.powerState", "poweredOff")]), None).is_err()
        );
        assert!(
            power_status(&object("VirtualMachine", &[("runtime.connectionState", "connected")]), None)
                .is_err()
        );
        assert_eq!(power_status(&vm("suspended", "connected"), None).unwrap().power, Power::Suspended);
    }
}
