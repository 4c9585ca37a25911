//! Holding off: nothing but warmd starts a VM that was stopped to be moved.
//!
//! Rule: what is taken away is written into the VM's own mark too, before it is taken: a state that was put back from an older
//! copy, or was lost, finds there what was.

use crate::{
    libvirt::{DomainId, DomainXml, xml::escape},
    model::id::MigrationId,
    sources::{HoldOff, Moved, SourceError},
};

use super::{LibvirtSource, error::Context};

impl LibvirtSource {
    pub(super) async fn starters_of(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<HoldOff, SourceError> {
        let doing = || format!("VM {domain}: looking what starts it");
        let now = self.libvirt.autostart(domain).await.context(doing)?;
        let mark = self.libvirt.domain(domain).await.context(doing)?.moved;
        // Taken away already, by a call whose answer or whose record was lost.
        let before = mark.is_some_and(|mark| mark.owner == owner.to_string() && mark.autostart);
        Ok(HoldOff { autostart: now || before })
    }

    pub(super) async fn take_starters(
        &self,
        domain: DomainId,
        moved: &Moved,
        was: &HoldOff,
    ) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: holding it off, so that nobody but warmd starts it");
        let autostart = if was.autostart { "yes" } else { "no" };
        let mark = format!(
            "<moved to='{}' owner='{}' autostart='{autostart}'/>",
            escape(&moved.target),
            moved.owner
        );
        self.libvirt.set_moved_mark(domain, &mark).await.context(doing)?;
        self.libvirt.set_autostart(domain, false).await.context(doing)
    }

    pub(super) async fn give_starters_back(
        &self,
        domain: DomainId,
        owner: MigrationId,
        was: &HoldOff,
    ) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: giving back what starts it");
        if was.autostart {
            self.libvirt.set_autostart(domain, true).await.context(doing)?;
        }
        let mark = self.libvirt.domain(domain).await.context(doing)?.moved;
        if mark.is_some_and(|mark| mark.owner == owner.to_string()) {
            self.libvirt.remove_moved_mark(domain).await.context(doing)?;
        }
        Ok(())
    }
}

/// What is told of a VM that is held off; `None` if it is not.
pub(super) fn held_off(xml: &DomainXml) -> Option<String> {
    let mark = xml.moved.as_ref()?;
    let was = if mark.autostart { "; its autostart was on, and is off" } else { "" };
    Some(format!(
        "it was moved to {} by migration {}{was}: do not start it here while it runs there",
        mark.to, mark.owner
    ))
}
