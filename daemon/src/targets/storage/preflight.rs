//! What this host's storage has against disks that are to come.
//!
//! Rule: nothing is made, claimed or written. A disk that an earlier call made for the migration takes no further room.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Storage, blocking, claims::NotOurs, doing, export, place::Where, volume};
use crate::{
    model::{
        id::MigrationId,
        rule::{Objection, Rule},
        storage,
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
        let mut needed = BTreeMap::<_, u64>::new();
        let mut places: BTreeMap<&str, String> = BTreeMap::new();
        for (at, machine) in machines.iter().enumerate() {
            for spec in &machine.disks {
                let mut object = |rule, found: String| {
                    let found = format!("disk {}: {found}", spec.key);
                    objections.push((Some(at), Objection::new(rule, found)));
                };
                let place = spec.place.as_deref();
                if let Some(misfit) = self.misfit(place).await {
                    object(Rule::StorageUnknown, misfit);
                    continue;
                }
                if let Some(place) = place.filter(|place| storage::named(place).is_none()) {
                    let who = format!("disk {} of {}", spec.key, machine.name);
                    if let Some(other) = places.insert(place, who) {
                        object(Rule::PlaceUnusable, format!("{place} is where {other} goes too"));
                    }
                }
                match self.room_for(machine.owner, spec).await {
                    Ok(bytes) => {
                        let directory = place.and_then(|place| self.directory_of(place));
                        let sum: &mut u64 =
                            needed.entry(directory.unwrap_or(&self.directory).to_owned()).or_default();
                        *sum = sum.saturating_add(bytes);
                    }
                    Err(error) => object(Rule::PlaceUnusable, error.to_string()),
                }
            }
        }
        let too_small = self.too_small(needed).await?.into_iter();
        objections.extend(too_small.map(|objection| (None, objection)));
        Ok(objections)
    }

    /// Bytes that the disk may yet take of its storage. Fails if its place will not do.
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
