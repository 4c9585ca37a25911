//! Which migration's disk owns which location, by the volume's identity.
//!
//! Rule: the identity is unique for the whole host, for all targets and names that lead to it. Claimed and
//! removed in one transaction each, so of two that ask at once one is refused.

use rusqlite::{Connection, OptionalExtension as _, Row, params, types::ValueRef};
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    location_claim::LocationClaim,
};

use super::{
    Store, StoreError,
    error::StoreFault,
    unreadable::{UNKNOWN, id_or_stand_in},
};

const TABLE: &str = "location_claims";

const SELECT: &str =
    "SELECT identity, migration, disk, location, link, vm_name, state_name IN ('done', 'cancelled')
                      FROM location_claims JOIN migrations ON id = migration";

impl Store {
    /// Takes the identity for the disk in the claim, and removes any other of that disk; having it already is
    /// success. Else whose it is.
    pub async fn claim_place(&self, claim: LocationClaim) -> Result<Option<LocationClaim>, StoreError> {
        self.write(format!("claiming {}", claim.location), move |db| {
            if let Some(holder) = holder(db, &claim.identity)?
                && (holder.owner, &holder.disk) != (claim.owner, &claim.disk)
            {
                return Ok(Some(holder));
            }
            give_up(db, claim.owner, &claim.disk)?;
            let link = claim.link.as_ref().map(|link| link.display().to_string());
            db.prepare_cached("INSERT INTO location_claims VALUES (?, ?, ?, ?, ?)")?.execute(params![
                claim.identity,
                claim.owner.to_string(),
                claim.disk.0,
                claim.location,
                link
            ])?;
            Ok(None)
        })
        .await
    }

    /// The locations of all migrations but this one.
    pub async fn places_of_others(&self, owner: MigrationId) -> Result<Vec<LocationClaim>, StoreError> {
        self.read("reading the places of migrations", move |db| {
            let mut select =
                db.prepare_cached(&format!("{SELECT} WHERE migration <> ? ORDER BY identity"))?;
            let mut rows = select.query([owner.to_string()])?;
            let mut claims = Vec::new();
            while let Some(row) = rows.next()? {
                claims.push(read(row)?);
            }
            Ok(claims)
        })
        .await
    }

    /// Removes the claims of a migration's disk.
    pub async fn give_up_place(&self, owner: MigrationId, disk: DiskKey) -> Result<(), StoreError> {
        self.write(format!("giving up the place of disk {disk}"), move |db| give_up(db, owner, &disk)).await
    }

    /// Deletes a claim, unless it was replaced meanwhile.
    pub async fn forget_place(&self, claim: LocationClaim) -> Result<(), StoreError> {
        self.write(format!("forgetting the claim of {}", claim.location), move |db| {
            db.prepare_cached(
                "DELETE FROM location_claims WHERE identity = ? AND migration = ? AND location = ?",
            )?
            .execute(params![claim.identity, claim.owner.to_string(), claim.location])?;
            Ok(())
        })
        .await
    }
}

fn give_up(db: &Connection, owner: MigrationId, disk: &DiskKey) -> Result<(), StoreFault> {
    db.prepare_cached("DELETE FROM location_claims WHERE migration = ? AND disk = ?")?
        .execute(params![owner.to_string(), disk.0])?;
    Ok(())
}

fn holder(db: &Connection, identity: &str) -> Result<Option<LocationClaim>, StoreFault> {
    let mut select = db.prepare_cached(&format!("{SELECT} WHERE identity = ?"))?;
    let found = select.query_row([identity], |row| Ok(read(row))).optional()?;
    found.transpose()
}

/// A row, garbage or not: a location whose owner cannot be read is still not free, and does not block other
/// locations.
fn read(row: &Row) -> Result<LocationClaim, StoreFault> {
    let text = |at: usize| match row.get_ref(at)? {
        ValueRef::Text(text) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
        _ => Ok::<_, StoreFault>(None),
    };
    let known = |at: usize| Ok::<_, StoreFault>(text(at)?.unwrap_or_else(|| UNKNOWN.to_owned()));
    Ok(LocationClaim {
        owner: id_or_stand_in(TABLE, &known(1)?)?,
        identity: known(0)?,
        disk: DiskKey(known(2)?),
        location: known(3)?,
        link: text(4)?.map(Into::into),
        vm: known(5)?,
        // An unreadable migration counts as unfinished.
        finished: row.get(6).unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn location_of_an_unreadable_owner_stays_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let garble = |db: &Connection| {
            Ok(db.execute_batch(
                "INSERT INTO migrations (id, plan, source, target, vm, vm_name, target_name, machine, state_name,
                     state, since, created, warnings)
                 VALUES ('garbage', 'p', 's', 't', 'v', 'web', 'web', '', 'synced', '', 0, 0, '[]');
                 INSERT INTO location_claims VALUES ('device 8:0', 'garbage', 'vda', '/dev/sda', NULL)",
            )?)
        };
        store.write("the test's own", garble).await.unwrap();
        let asker = MigrationId::generate();
        let others = store.places_of_others(asker).await.unwrap();
        assert_eq!(
            (others[0].location.as_str(), others[0].vm.as_str(), others[0].finished),
            ("/dev/sda", "web", false)
        );
        let claim = LocationClaim { owner: asker, ..others[0].clone() };
        let holder = store.claim_place(claim).await.unwrap().unwrap();
        assert_eq!(holder.owner, others[0].owner);
    }
}
