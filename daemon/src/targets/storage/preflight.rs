//! What this host's storage has against disks that are to come.
//!
//! Rule: nothing is made, claimed or written. A disk that an earlier call made for the migration takes no further room.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Storage, blocking, claims::NotOurs, doing, export, place::Where, volume};
use crate::{
    human,
    model::{
        id::MigrationId,
        rule::{Objection, Rule},
    },
    targets::{DiskSpec, Incoming, TargetError},
};

impl Storage {
    /// See [`crate::targets::Target::objections`].
    pub async fn objections(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        let mut objections = Vec::new();
        let mut needed: u64 = 0;
        let mut places: BTreeMap<&str, String> = BTreeMap::new();
        for (at, machine) in machines.iter().enumerate() {
            for spec in &machine.disks {
                let mut object = |found: String| {
                    let found = format!("disk {}: {found}", spec.key);
                    objections.push((Some(at), Objection::new(Rule::PlaceUnusable, found)));
                };
                if let Some(place) = spec.place.as_deref() {
                    let who = format!("disk {} of {}", spec.key, machine.name);
                    if let Some(other) = places.insert(place, who) {
                        object(format!("{place} is where {other} goes too"));
                    }
                }
                match self.room_for(machine.owner, spec).await {
                    Ok(bytes) => needed = needed.saturating_add(bytes),
                    Err(error) => object(error.to_string()),
                }
            }
        }
        if needed > 0 {
            let room = self.room().await?.0;
            if needed > room {
                let (needed, room) = (human::bytes(needed), human::bytes(room));
                let found = format!("the disks take up to {needed}, and {room} are free");
                objections.push((None, Objection::new(Rule::Capacity, found)));
            }
        }
        Ok(objections)
    }

    /// Bytes that the disk may yet take of the target's directory. Fails if its place will not do.
    async fn room_for(&self, owner: Option<MigrationId>, spec: &DiskSpec) -> Result<u64, TargetError> {
        let is_new = owner.is_none();
        let owner = owner.unwrap_or(MigrationId(Uuid::nil()));
        let size = spec.size;
        let (path, place) = match self.place(owner, spec)? {
            Where::Own(path) if is_new => (path, None),
            Where::Own(path) => {
                let there = blocking(doing("looking for", owner, spec), move || Ok(path.exists())).await?;
                return Ok(if there { 0 } else { size.0 });
            }
            Where::Path(path) => {
                let place = path.display().to_string();
                (path, Some(place))
            }
            Where::Nbd(uri) => {
                self.check_free(owner, &uri).await?;
                if is_new {
                    export::open(&uri, size, &format!("looking at {uri}")).await?.close().await;
                }
                return Ok(0);
            }
        };
        let Some(place) = place else { return Ok(size.0) };
        self.check_free(owner, &place).await?;
        blocking(format!("looking at {place}"), move || volume::find(&path, size)).await?;
        Ok(0)
    }

    /// Whether the place is nobody else's.
    async fn check_free(&self, owner: MigrationId, place: &str) -> Result<(), TargetError> {
        let (claims, of) = (self.claims.clone(), place.to_owned());
        let doing = format!("looking at {place}");
        match blocking(doing.clone(), move || claims.check(owner, &of)).await? {
            Err(taken @ NotOurs::Taken { .. }) => super::answer(&doing, Err(taken)),
            Ok(()) | Err(NotOurs::Unclaimed { .. }) => Ok(()),
        }
    }
}
