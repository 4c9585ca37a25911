//! What changed on a disk between the anchor and a snapshot.

use warmd_cbt::mark::{ChangeMark, Changed};

use crate::{
    Vsphere,
    error::{During as _, Kind, Result, VsphereError},
    tracking::{Now, Since, Walk, after_fault, since},
    vim::vm,
};

use super::Taken;

impl Vsphere {
    /// What changed on the disk with this backing UUID since the anchor. What cannot be known is an answer, not a failure.
    pub async fn changed(&self, taken: &Taken, uuid: &str, anchor: Option<&ChangeMark>) -> Result<Changed> {
        let context = || format!("VM {}: asking what changed on disk {uuid}", taken.vm.id);
        let disk = taken
            .disk(uuid)
            .ok_or_else(|| VsphereError::new(Kind::NotFound, context(), "it is not in this snapshot"))?;
        let now = Now { mark: &disk.mark, tracking_enabled: disk.tracking_enabled };
        let id = match since(anchor, &now) {
            Since::Ask(id) => id.to_string(),
            Since::Unknown(why) => return Ok(Changed::Unknown(why)),
        };
        let mut walk = Walk::new(disk.disk.capacity);
        while let Some(at) = walk.next() {
            let key = disk.disk.key;
            let answer = vm::query_changed_areas(&self.client, &taken.vm, &taken.of, key, at, &id).await;
            let areas = match answer {
                Ok(areas) => areas,
                Err(error) => match error.fault().and_then(after_fault) {
                    Some(why) => return Ok(Changed::Unknown(format!("{why} ({})", error.cause))),
                    None => return Err(error).during(context),
                },
            };
            if let Err(nonsense) = walk.take(&areas) {
                tracing::warn!(vm = %taken.vm, disk = uuid, %nonsense, "what the server says is not believed");
                return Ok(Changed::Unknown(format!("the server's answer is not believed: {nonsense}")));
            }
        }
        tracing::debug!(vm = %taken.vm, disk = uuid, pages = walk.pages(), "what changed is known");
        Ok(Changed::Known(walk.changed()))
    }
}
