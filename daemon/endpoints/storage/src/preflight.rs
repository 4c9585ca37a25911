//! This host's storage obstacles for planned disks.
//!
//! Rule: nothing is created, claimed or written. A disk from an earlier call for the migration needs no
//! further space.

use std::collections::BTreeMap;

use uuid::Uuid;
use warmd_core::{
    model::{
        id::MigrationId,
        rule::{Objection, Rule},
        storage,
    },
    targets::{DiskSpec, Incoming, TargetError},
};

use super::{
    Storage, blocking_on, claims::ClaimConflict, doing, export, neighbours, place::WantedLocation, volume,
};

impl Storage {
    /// See [`warmd_core::targets::Target::objections`].
    pub async fn objections(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        let mut objections = Vec::new();
        let mut needed = BTreeMap::<_, u64>::new();
        let mut places: BTreeMap<String, String> = BTreeMap::new();
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
                let mut identity = None;
                if let Some(place) = place.filter(|place| storage::named(place).is_none()) {
                    let who = format!("disk {} of {}", spec.key, machine.name);
                    let known = identity.insert(self.identity_of(machine.owner, spec).await?);
                    if let Some(other) = places.insert(known.clone(), who) {
                        object(Rule::LocationUnusable, format!("{place} is where {other} goes too"));
                    }
                }
                match self.room_for(machine.owner, spec, identity.as_deref()).await {
                    Ok(bytes) => {
                        let directory = place.and_then(|place| self.directory_of(place));
                        let sum: &mut u64 =
                            needed.entry(directory.unwrap_or(&self.directory).to_owned()).or_default();
                        *sum = sum.saturating_add(bytes);
                    }
                    Err(error) => object(Rule::LocationUnusable, error.to_string()),
                }
            }
        }
        let too_small = self.too_small(needed).await?.into_iter();
        objections.extend(too_small.map(|objection| (None, objection)));
        Ok(objections)
    }

    /// Bytes that the disk may still need in its storage. Fails if its place is not usable. `identity` is by
    /// [`Self::identity_of`], where that is known: a name server is not asked twice.
    async fn room_for(
        &self,
        owner: Option<MigrationId>,
        spec: &DiskSpec,
        identity: Option<&str>,
    ) -> Result<u64, TargetError> {
        let is_new = owner.is_none();
        let owner = owner.unwrap_or(MigrationId(Uuid::nil()));
        let size = spec.size;
        let (path, place) = match self.place(owner, spec)? {
            WantedLocation::Own(path) if is_new => (path, None),
            WantedLocation::Own(path) => {
                let (doing, there) = (doing("looking for", owner, spec), path.clone());
                let there = blocking_on(&path, doing, move || Ok(there.exists())).await?;
                return Ok(if there { 0 } else { size.0 });
            }
            WantedLocation::Path(path) => {
                let place = path.display().to_string();
                (path, Some(place))
            }
            WantedLocation::Nbd(uri) => {
                self.check_free(owner, &uri).await?;
                let identity = match identity {
                    Some(identity) => identity.to_owned(),
                    None => neighbours::export_name(&uri).await,
                };
                self.check_held(owner, &uri, &identity, &format!("looking at {uri}")).await?;
                if is_new {
                    export::look(&uri, size, &format!("looking at {uri}")).await?;
                }
                return Ok(0);
            }
        };
        let Some(place) = place else { return Ok(size.0) };
        let is_new = self.check_free(owner, &place).await?;
        let (doing, there) = (format!("looking at {place}"), path.clone());
        // First: another size never fixes a place that is in use.
        self.check_neighbours(owner, is_new, &path, &doing).await?;
        blocking_on(&path, doing, move || volume::find(&there, size)).await?;
        Ok(0)
    }

    /// A place by its identity, so that two names of one are equal; a dangling name is its own identity.
    async fn identity_of(&self, owner: Option<MigrationId>, spec: &DiskSpec) -> Result<String, TargetError> {
        let doing = format!("looking at the place of disk {}", spec.key);
        let kin = match self.place(owner.unwrap_or(MigrationId(Uuid::nil())), spec) {
            Ok(WantedLocation::Own(path) | WantedLocation::Path(path)) => {
                neighbours::kin(&path, &doing).await?
            }
            Ok(WantedLocation::Nbd(uri)) => return Ok(neighbours::export_name(&uri).await),
            Err(_) => None,
        };
        Ok(kin.map_or_else(|| spec.place.clone().unwrap_or_default(), |kin| kin.name()))
    }

    /// Fails if the place is another migration's by its name; returns whether it is still unclaimed.
    pub(super) async fn check_free(&self, owner: MigrationId, place: &str) -> Result<bool, TargetError> {
        let (claims, of) = (self.claims.clone(), place.to_owned());
        let doing = format!("looking at {place}");
        match blocking_on(&self.directory, doing.clone(), move || claims.check(owner, &of)).await? {
            Err(taken @ ClaimConflict::Taken { .. }) => super::answer(&doing, Err(taken)).map(|()| false),
            Ok(()) => Ok(false),
            Err(ClaimConflict::Unclaimed { .. }) => Ok(true),
        }
    }
}
