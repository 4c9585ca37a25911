//! Hold-off: only warmd starts a VM that was stopped to be moved.
//!
//! Rule: each removed setting is also written into the VM's own mark, before it is removed: a state that was
//! restored from an older copy, or was lost, finds the earlier setting there. The mark is in the persistent
//! definition alone, and is read from there. Each change is read back.

use warmd_core::{
    model::id::MigrationId,
    sources::{HoldOff, MigratedMark, SourceError, SourceErrorKind},
};

use crate::libvirt::{DomainId, DomainXml, Lane, LibvirtError, xml::escape};

use super::{LibvirtSource, error::ErrorContext};

impl LibvirtSource {
    pub(super) async fn starters_of(
        &self,
        domain: DomainId,
        owner: MigrationId,
    ) -> Result<HoldOff, SourceError> {
        let doing = || format!("VM {domain}: looking what starts it");
        let now = self.libvirt.autostart(domain, Lane::Urgent).await.context(doing)?;
        // Removed already, by a call whose answer or whose record was lost.
        let marked = self.mark_of(domain, owner).await.context(doing)?;
        Ok(HoldOff { autostart: now || marked == Some(true) })
    }

    pub(super) async fn take_starters(
        &self,
        domain: DomainId,
        moved: &MigratedMark,
        was: &HoldOff,
    ) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: holding it off, so that only warmd starts it");
        // The record may be of a moment when it was removed already.
        let marked = self.mark_of(domain, moved.owner).await.context(doing)?;
        let autostart = if was.autostart || marked == Some(true) { "yes" } else { "no" };
        let mark = format!(
            "<moved to='{}' owner='{}' autostart='{autostart}' domain='{domain}'/>",
            escape(&moved.target),
            moved.owner
        );
        self.libvirt.set_moved_mark(domain, &mark).await.context(doing)?;
        self.set_autostart(domain, false, doing).await
    }

    pub(super) async fn give_starters_back(
        &self,
        domain: DomainId,
        owner: MigrationId,
        was: &HoldOff,
    ) -> Result<(), SourceError> {
        let doing = || format!("VM {domain}: giving back what starts it");
        let marked = self.mark_of(domain, owner).await.context(doing)?;
        if was.autostart || marked == Some(true) {
            self.set_autostart(domain, true, doing).await?;
        }
        if marked.is_some() {
            self.libvirt.remove_moved_mark(domain).await.context(doing)?;
        }
        Ok(())
    }

    /// Whether its autostart was on, by the mark that this migration left in its persistent definition, if
    /// there is one.
    async fn mark_of(&self, domain: DomainId, owner: MigrationId) -> Result<Option<bool>, LibvirtError> {
        let xml = self.libvirt.persistent(domain).await?;
        let own = xml.moved.filter(|mark| mark.owner == owner.to_string());
        Ok(own.map(|mark| mark.autostart))
    }

    async fn set_autostart(
        &self,
        domain: DomainId,
        on: bool,
        doing: impl Fn() -> String,
    ) -> Result<(), SourceError> {
        self.libvirt.set_autostart(domain, on).await.context(&doing)?;
        if self.libvirt.autostart(domain, Lane::Urgent).await.context(&doing)? == on {
            return Ok(());
        }
        let why = format!("its autostart was set, and is still {}", if on { "off" } else { "on" });
        Err(SourceError::new(SourceErrorKind::Failed, doing(), why))
    }
}

/// The report on a VM that is kept from starting; `None` if it is not.
pub(super) fn held_off(xml: &DomainXml) -> Option<String> {
    let mark = xml.moved.as_ref()?;
    let was = if mark.autostart { "; its autostart was on, and is off" } else { "" };
    Some(format!(
        "it was moved to {} by migration {}{was}: do not start it here while it runs there",
        mark.to, mark.owner
    ))
}
