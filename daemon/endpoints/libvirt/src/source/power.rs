//! Power: on, off, and the paused start that reads the disks of a VM that is off.
//!
//! Rule: a VM that warmd started to read its disks is paused from its first moment and tagged
//! ([`super::tag`]); to others it counts as off. A VM that others paused is never ended.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use warmd_core::{
    model::{id::MigrationId, machine::PowerState},
    sources::{HowStopped, ShutdownPolicy, SourceError, SourceErrorKind},
};

use crate::libvirt::{DomainId, DomainStatus, DomainXml, LibvirtErrorKind, Reason, RunState, XmlForm};

use super::{
    LibvirtSource,
    error::{ErrorContext, blocked, elsewhere, refused},
    tag::{TAG, tagged},
};

/// The message about a VM that libvirt itself has moved.
pub(super) const ELSEWHERE: &str = "libvirt migrated it to another host, and it runs there: it is neither started nor taken \
                                    for off here; migrate it back, or cancel, and move it from the host where it is";
/// The power-off action of a guest that is to be stopped.
const ENDS: &str = "destroy";
/// The most attempts to check and start a VM until it runs.
const STARTS: usize = 4;
const POLL: Duration = Duration::from_millis(200);
/// A guest that is just booting, or whose button handler is slow to start, loses the first press.
const PRESS_AGAIN: Duration = Duration::from_secs(10);

impl LibvirtSource {
    pub(super) async fn power_of(&self, domain: DomainId) -> Result<PowerState, SourceError> {
        let doing = || format!("VM {domain}: looking whether it runs");
        let status = self.libvirt.state(domain).await.context(doing)?;
        self.power_by(domain, &status).await
    }

    /// The power of a VM by its checked state.
    pub(super) async fn power_by(
        &self,
        domain: DomainId,
        status: &DomainStatus,
    ) -> Result<PowerState, SourceError> {
        not_elsewhere(status, || format!("VM {domain}: looking whether it runs"))?;
        Ok(match status.state {
            RunState::Running => PowerState::Running,
            RunState::Off => PowerState::Off,
            RunState::Paused if self.is_tagged(domain).await? => PowerState::Off,
            RunState::Paused => PowerState::Paused,
        })
    }

    pub(super) async fn is_tagged(&self, domain: DomainId) -> Result<bool, SourceError> {
        let doing = || format!("VM {domain}: looking who paused it");
        self.is_at_rest(domain, &self.libvirt.domain(domain).await.context(doing)?).await
    }

    /// Whether a paused VM with this definition is one that warmd started to read its disks.
    pub(super) async fn is_at_rest(&self, domain: DomainId, xml: &DomainXml) -> Result<bool, SourceError> {
        let doing = || format!("VM {domain}: looking who paused it");
        // One that a user resumed and paused again carries the tag too, and is the user's.
        Ok(xml.tagged(TAG).is_some() && self.libvirt.never_ran(domain).await.context(doing)?)
    }

    /// Gives a VM that is off power, paused: it executes nothing.
    pub(super) async fn start_paused(&self, domain: DomainId, owner: MigrationId) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: starting it paused, to read its disks");
        let status = self.libvirt.state(domain).await.context(doing)?;
        not_elsewhere(&status, doing)?;
        self.not_locked_elsewhere(domain, &status).await?;
        let (persistent, saved) = self.libvirt.persistent_and_saved(domain).await.context(doing)?;
        if !persistent {
            return Err(refused(doing(), "it is transient: define it (virsh define) first"));
        }
        if saved {
            return Err(blocked(
                doing(),
                "it has a saved memory image, so its disks are inconsistent without that image: start it and shut it \
                 down, or drop the image (virsh managedsave-remove)",
            ));
        }
        let xml = self.libvirt.dump_xml(domain, XmlForm::Persistent).await.context(doing)?;
        let xml =
            tagged(&xml, owner).map_err(|error| SourceError::new(SourceErrorKind::Failed, doing(), error))?;
        self.libvirt.create_paused(&xml).await.context(doing)?;
        let DomainStatus { state, text, .. } = self.libvirt.state(domain).await.context(doing)?;
        if state == RunState::Paused {
            return Ok(());
        }
        Err(refused(doing(), format!("another user or program resumed it at the same moment: it is {text}")))
    }

    pub(super) async fn start(&self, domain: DomainId) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: starting it");
        for _ in 0..STARTS {
            let status = self.libvirt.state(domain).await.context(doing)?;
            not_elsewhere(&status, doing)?;
            match status.state {
                RunState::Running => {
                    // It runs, regardless of this step: a caller that waits for the start must not wait
                    // longer.
                    if let Err(error) = self.mend_poweroff(domain).await {
                        tracing::warn!(%domain, %error, "it runs, and what its power-off does is not given back");
                    }
                    return Ok(());
                }
                // If it is active already, that may be another user's start, or the paused one of an
                // abandoned call: it is checked again.
                RunState::Off => {
                    self.not_locked_elsewhere(domain, &status).await?;
                    self.libvirt.start(domain).await.context(doing)?;
                }
                RunState::Paused if self.is_tagged(domain).await? => {
                    // It never ran: the guest needs a real start.
                    self.libvirt.destroy(domain).await.context(doing)?;
                }
                RunState::Paused => {
                    let text = status.text;
                    let why = format!("it is {text}: resume it (virsh resume) once the cause is gone");
                    return Err(refused(doing(), why));
                }
            }
        }
        let text = self.libvirt.state(domain).await.context(doing)?.text;
        let why = format!("it was started, and is {text}: its log on the source's host may tell why");
        Err(SourceError::new(SourceErrorKind::Failed, doing(), why))
    }

    /// An interrupted stop may have left the running VM with a power-off that ends it where its definition
    /// has another.
    async fn mend_poweroff(&self, domain: DomainId) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: giving back what its power-off does");
        let now = self.libvirt.domain(domain).await.context(doing)?.on_poweroff;
        if now != ENDS {
            return Ok(());
        }
        let defined = self.libvirt.persistent(domain).await.context(doing)?.on_poweroff;
        if defined != ENDS {
            self.libvirt.set_poweroff_action(domain, &defined).await.context(doing)?;
        }
        Ok(())
    }

    pub(super) async fn stop(
        &self,
        domain: DomainId,
        policy: ShutdownPolicy,
    ) -> Result<HowStopped, SourceError> {
        let doing = || format!("VM {domain}: shutting it down");
        let status = self.libvirt.state(domain).await.context(doing)?;
        not_elsewhere(&status, doing)?;
        match status.state {
            RunState::Off => return Ok(HowStopped::WasOff),
            RunState::Paused if self.is_tagged(domain).await? => {
                self.libvirt.destroy(domain).await.context(doing)?;
                return Ok(HowStopped::WasOff);
            }
            RunState::Paused | RunState::Running => {}
        }
        let (persistent, _) = self.libvirt.persistent_and_saved(domain).await.context(doing)?;
        if !persistent {
            let why = "it is transient and would be gone for good: define it (virsh define) first";
            return Err(refused(doing(), why));
        }
        let on_poweroff = self.libvirt.domain(domain).await.context(doing)?.on_poweroff;
        if on_poweroff != ENDS {
            // Else the guest's power-off would start it again.
            self.libvirt.set_poweroff_action(domain, ENDS).await.context(doing)?;
        }
        let stopped = self.end_running(domain, policy).await;
        if stopped.is_err() && on_poweroff != ENDS {
            // The failure is not here; a setting that is not restored here is restored when the VM runs
            // again.
            if let Err(error) = self.libvirt.set_poweroff_action(domain, &on_poweroff).await {
                tracing::warn!(%domain, %error, on_poweroff, "what its power-off does is not given back yet");
            }
        }
        stopped
    }

    async fn end_running(&self, domain: DomainId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        let doing = || format!("VM {domain}: shutting it down");
        if let Some(how) = self.ask(domain, Instant::now() + policy.graceful).await? {
            return Ok(how);
        }
        if policy.force {
            self.libvirt.destroy(domain).await.context(doing)?;
            // Off already counts as success there, also if it went to another host meanwhile.
            not_elsewhere(&self.libvirt.state(domain).await.context(doing)?, doing)?;
            return Ok(HowStopped::Forced);
        }
        let text = self.libvirt.state(domain).await.context(doing)?.text;
        let seconds = policy.graceful.as_secs();
        Err(SourceError::new(
            SourceErrorKind::StillRunning,
            doing(),
            format!(
                "after {seconds} s it is still {text}: shut the guest down from inside, or allow to cut the power"
            ),
        ))
    }

    /// Presses the power button at intervals until the VM is off; `None` if it is not by then.
    async fn ask(&self, domain: DomainId, deadline: Instant) -> Result<Option<HowStopped>, SourceError> {
        let doing = || format!("VM {domain}: waiting for its shutdown");
        let mut press_at = Instant::now();
        loop {
            let status = self.libvirt.state(domain).await.context(doing)?;
            not_elsewhere(&status, doing)?;
            let DomainStatus { state, reason, .. } = status;
            if state == RunState::Off {
                let guest_shut_down = reason == Reason::Shutdown;
                return Ok(Some(if guest_shut_down { HowStopped::Gracefully } else { HowStopped::Forced }));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            if now >= press_at && state == RunState::Running {
                press_at = now + PRESS_AGAIN;
                if let Err(error) = self.libvirt.press_power_button(domain).await {
                    if matches!(error.kind, LibvirtErrorKind::NoSuchDomain | LibvirtErrorKind::Unreachable) {
                        return Err(error).context(doing);
                    }
                    tracing::warn!(%domain, %error, "the power button could not be pressed; trying again");
                }
                continue;
            }
            sleep_until(deadline.min(now + POLL)).await;
        }
    }
}

impl LibvirtSource {
    /// Refuses a VM that another host runs, where libvirt does not report why it is off.
    async fn not_locked_elsewhere(&self, domain: DomainId, status: &DomainStatus) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: looking whether another host has its disks");
        match self.libvirt.runs_elsewhere(domain, status).await.context(doing)? {
            Some(why) => Err(elsewhere(doing(), why)),
            None => Ok(()),
        }
    }
}

/// Refuses a VM that is off here because it was migrated: it runs on another host.
fn not_elsewhere(status: &DomainStatus, doing: impl FnOnce() -> String) -> Result<(), SourceError> {
    if status.is_elsewhere() { Err(elsewhere(doing(), ELSEWHERE)) } else { Ok(()) }
}
