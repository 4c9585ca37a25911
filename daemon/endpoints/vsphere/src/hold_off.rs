//! Holding off: nothing but warmd starts a VM that was stopped to be moved.
//!
//! Rule: what is taken away is written into the VM's notes before it is taken, with the migration's id, so
//! that a record that was lost is found there; and what is set is read back. A VM's line in its host's
//! autostart is warmd's to change. The rules of a cluster are its administrators': HA does not start a VM
//! that was shut down in order, so they are named only.

use std::time::Duration;

use crate::{
    Vsphere,
    error::{During as _, Result, VsphereError},
    inventory::Vm,
    snapshot::Owner,
    soap::MoRef,
    vim::{
        hosts, server,
        tasks::{self, AtDeadline},
        vm,
    },
};

const MARK: &str = "[warmd] moved to ";
const WITHIN: Duration = Duration::from_mins(5);

/// What can start a VM beside warmd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starters {
    /// Its ESXi host starts it when the host starts.
    pub autostart: bool,
    /// What its cluster may do with it, for people.
    pub named: Vec<String>,
}

/// The line that warmd leaves in a VM's notes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    target: String,
    owner: Owner,
    autostart: bool,
}

impl Mark {
    fn write(&self) -> String {
        let was = if self.autostart { "was on" } else { "was off" };
        let (target, owner) = (&self.target, &self.owner);
        format!("{MARK}{target} by migration {owner}; its autostart {was}; do not start it here")
    }

    fn read(line: &str) -> Option<Self> {
        let rest = line.trim_end().strip_prefix(MARK)?;
        let (rest, was) = rest.split_once("; its autostart was ")?;
        let (target, owner) = rest.rsplit_once(" by migration ")?;
        let autostart = match was.split(';').next()? {
            "on" => true,
            "off" => false,
            _ => return None,
        };
        Some(Self { target: target.to_owned(), owner: Owner::new(owner), autostart })
    }

    /// The mark in a VM's notes.
    fn find(notes: &str) -> Option<Self> {
        notes.lines().find_map(Self::read)
    }
}

/// The notes without any mark.
fn without_mark(notes: &str) -> String {
    let lines: Vec<&str> = notes.lines().filter(|line| Mark::read(line).is_none()).collect();
    lines.join("\n")
}

fn with_mark(notes: &str, mark: &Mark) -> String {
    let rest = without_mark(notes);
    if rest.trim().is_empty() { mark.write() } else { format!("{rest}\n{}", mark.write()) }
}

/// What is told of a VM that is held off; `None` if it is not.
pub fn held_off(vm: &Vm) -> Option<String> {
    let mark = Mark::find(&vm.annotation)?;
    let was = if mark.autostart { "; its autostart was on, and is off" } else { "" };
    Some(format!(
        "it was moved to {} by migration {}{was}: do not start it here while it runs there",
        mark.target, mark.owner
    ))
}

impl Vsphere {
    /// What can start the VM beside warmd, as it was before this migration took it away. Changes nothing.
    pub async fn starters(&self, of: &MoRef, owner: &Owner) -> Result<Starters> {
        let context = || format!("VM {}: looking what starts it", of.id);
        let vm = self.inventory.fresh(of).await.during(context)?;
        let now = match &vm.host_ref {
            Some(host) => self.starts_with_host(host, of).await.during(context)?,
            None => false,
        };
        let marked = Mark::find(&vm.annotation).filter(|mark| mark.owner == *owner);
        let named = match &vm.host_ref {
            Some(host) => self.cluster_says(host, of).await,
            None => Vec::new(),
        };
        Ok(Starters { autostart: now || marked.is_some_and(|mark| mark.autostart), named })
    }

    /// Fails unless [`Vsphere::hold_off`] may take away what starts the VM beside warmd. Changes nothing.
    pub async fn can_hold_off(&self, vm: &Vm) -> Result<()> {
        let context = || format!("VM {}: looking whether its autostart can be switched off", vm.of.id);
        let Some(host) = &vm.host_ref else { return Ok(()) };
        if !self.starts_with_host(host, &vm.of).await.during(context)? {
            return Ok(());
        }
        server::require(&self.client, host, &["Host.Config.AutoStart"]).await.during(context)
    }

    /// Takes away what can start the VM beside warmd, and leaves a mark that tells where it went. Done
    /// already is success.
    pub async fn hold_off(&self, of: &MoRef, owner: &Owner, target: &str, autostart: bool) -> Result<()> {
        let context = || format!("VM {}: holding it off, so that only warmd starts it", of.id);
        let vm = self.inventory.fresh(of).await.during(context)?;
        let marked = Mark::find(&vm.annotation).filter(|mark| mark.owner == *owner);
        let autostart = autostart || marked.as_ref().is_some_and(|mark| mark.autostart);
        let target: String = target.chars().filter(|character| !character.is_control()).collect();
        let mark = Mark { target, owner: owner.clone(), autostart };
        if marked.as_ref() != Some(&mark) {
            self.note(of, &with_mark(&vm.annotation, &mark)).await.during(context)?;
        }
        let Some(host) = &vm.host_ref else { return Ok(()) };
        self.set_start_with_host(host, of, false).await.during(context)
    }

    /// Gives back what [`Vsphere::hold_off`] took away, and removes its mark. Nothing held off is success.
    pub async fn let_go(&self, of: &MoRef, owner: &Owner, autostart: bool) -> Result<()> {
        let context = || format!("VM {}: giving back what starts it", of.id);
        let vm = self.inventory.fresh(of).await.during(context)?;
        let marked = Mark::find(&vm.annotation).filter(|mark| mark.owner == *owner);
        if (autostart || marked.as_ref().is_some_and(|mark| mark.autostart))
            && let Some(host) = &vm.host_ref
        {
            self.set_start_with_host(host, of, true).await.during(context)?;
        }
        if marked.is_some() {
            self.note(of, &without_mark(&vm.annotation)).await.during(context)?;
        }
        Ok(())
    }

    /// Whether the host starts the VM. A host that has no such list starts none.
    async fn starts_with_host(&self, host: &MoRef, vm: &MoRef) -> Result<bool> {
        Ok(hosts::autostart(&self.client, host, vm).await?.is_some_and(|found| found.starts()))
    }

    async fn set_start_with_host(&self, host: &MoRef, vm: &MoRef, on: bool) -> Result<()> {
        let Some(now) = hosts::autostart(&self.client, host, vm).await? else {
            if !on {
                return Ok(());
            }
            let why = "the host has no autostart list, so the VM's autostart cannot be switched on again: start the VM by other means \
                       when the host starts";
            return Err(VsphereError::refused(host.to_string(), why));
        };
        if now.starts() == on {
            return Ok(());
        }
        hosts::set_autostart(&self.client, &now, vm, on).await?;
        if self.starts_with_host(host, vm).await? == on {
            return Ok(());
        }
        let why = format!("its autostart was set, and is still {}", if on { "off" } else { "on" });
        Err(VsphereError::failed(format!("{host}"), why))
    }

    /// What the cluster does with the VM; what cannot be read is said.
    async fn cluster_says(&self, host: &MoRef, vm: &MoRef) -> Vec<String> {
        let found = match self.inventory.cluster_of(host).await {
            Ok(Some((cluster, name))) => {
                hosts::cluster_rules(&self.client, &cluster, vm).await.map(|rules| (name, rules))
            }
            Ok(None) => return Vec::new(),
            Err(error) => Err(error),
        };
        let (name, rules) = match found {
            Ok(found) => found,
            Err(error) => return vec![format!("what its cluster does with it cannot be read: {error}")],
        };
        let mut named = Vec::new();
        if rules.restarts() {
            named.push(format!(
                "vSphere HA of cluster {name} restarts it when its host fails while it runs (priority {}); once it is shut \
                 down, HA leaves it off",
                rules.ha_priority.unwrap_or_default()
            ));
        }
        if let Some(behaviour) = rules.drs_behaviour.filter(|behaviour| behaviour != "disabled") {
            named.push(format!("DRS of cluster {name} may move it to another host ({behaviour})"));
        }
        named
    }

    async fn note(&self, of: &MoRef, notes: &str) -> Result<()> {
        let task =
            vm::reconfigure(&self.client, of, |spec| spec.text("annotation", vm::notes(notes))).await?;
        tasks::wait(&self.client, &task, WITHIN, AtDeadline::Leave).await?;
        let now = self.inventory.fresh(of).await?;
        if now.annotation.trim_end() == notes.trim_end() {
            return Ok(());
        }
        Err(VsphereError::failed(format!("{of}"), "its notes were set, and are others"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(autostart: bool) -> Mark {
        Mark { target: "rack by migration 2".to_owned(), owner: Owner::new("m-1"), autostart }
    }

    #[test]
    fn the_mark_is_found_in_notes_and_leaves_them_as_they_were() {
        for notes in ["", "web server\nask Ann", "a\n\nb"] {
            for autostart in [true, false] {
                let marked = with_mark(notes, &mark(autostart));
                assert_eq!(Mark::find(&marked), Some(mark(autostart)), "{marked}");
                assert_eq!(without_mark(&marked), notes);
                let again = with_mark(&marked, &mark(true));
                assert_eq!(again.matches(MARK).count(), 1, "{again}");
            }
        }
    }

    #[test]
    fn what_is_like_a_mark_is_none() {
        for line in [
            "",
            "[warmd] moved to x",
            "[warmd] moved to x by migration y; its autostart was maybe;",
            "moved to x",
        ] {
            assert_eq!(Mark::read(line), None, "{line}");
        }
    }
}
