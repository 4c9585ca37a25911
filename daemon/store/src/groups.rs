//! Cutovers of VMs together, and the status of each VM.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row, params};
use warmd_core::model::{
    group::{Group, GroupMember},
    state::{ResumePoint, State},
    view::EventView,
};

use super::{
    Store, StoreError,
    error::StoreFault,
    journal,
    row::{from_json, micros, migration_id, moment, unsigned},
};

const TABLE: &str = "groups";

/// A group to begin.
#[derive(Clone, Debug)]
pub struct NewGroup {
    pub plan: String,
    pub by: String,
    pub forced: bool,
    pub all_or_nothing: bool,
    pub begun: DateTime<Utc>,
    pub members: Vec<GroupMember>,
}

/// The parts of a migration that give its status in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    pub state: State,
    /// Of its last cutover.
    pub attempt: u32,
    /// Whether the target VM's start was asked for in it.
    pub start_requested: bool,
}

impl Store {
    /// Begins a group, with its line in the journal, unless one of the plan runs already: then it is that
    /// one.
    pub async fn begin_group(&self, new: NewGroup, event: EventView) -> Result<(Group, bool), StoreError> {
        self.write(format!("beginning the group cutover of plan {}", new.plan), move |db| {
            if let Some(running) = find(db, "plan = ?1 AND ended IS NULL", &[&new.plan], read)?.pop() {
                return Ok((running, false));
            }
            db.prepare_cached(
                "INSERT INTO groups (plan, asked_by, forced, all_or_nothing, begun) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                new.plan,
                new.by,
                new.forced,
                new.all_or_nothing,
                micros(new.begun)
            ])?;
            let id = db.last_insert_rowid();
            for GroupMember { migration, tier, attempt, .. } in &new.members {
                db.prepare_cached(
                    "INSERT INTO group_members (group_id, migration, tier, attempt) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    id,
                    migration.to_string(),
                    i64::try_from(*tier).unwrap_or(i64::MAX),
                    attempt
                ])?;
            }
            journal::append(db, std::slice::from_ref(&event))?;
            let begun = find(db, "id = ?1", &[&id], read)?.pop();
            begun
                .map(|group| (group, true))
                .ok_or_else(|| StoreFault::Missing(format!("there is no group {id}")))
        })
        .await
    }

    /// The groups that have not ended, the oldest first. A group that cannot be read as a whole becomes a
    /// broken one of those of its members that can: no member passes the barrier, and all are undone.
    pub async fn running_groups(&self) -> Result<Vec<Group>, StoreError> {
        self.read("reading the groups", |db| {
            find(db, "ended IS NULL", &[], |db, row| read(db, row).or_else(|fault| salvaged(db, row, fault)))
        })
        .await
    }

    /// The group of a plan that was begun last.
    pub async fn last_group(&self, plan: &str) -> Result<Option<Group>, StoreError> {
        let plan = plan.to_owned();
        self.read(format!("reading the group of plan {plan}"), move |db| {
            let newest = "id = (SELECT max(id) FROM groups WHERE plan = ?1)";
            Ok(find(db, newest, &[&plan], read)?.pop())
        })
        .await
    }

    /// Notes why a group is halted, unless that was noted before, with its line in the journal.
    pub async fn break_group(&self, id: u64, why: &str, event: EventView) -> Result<(), StoreError> {
        self.change_group(id, "halted", why.to_owned(), event).await
    }

    /// Notes that a group has ended, unless that was noted before, with its line in the journal.
    pub async fn end_group(&self, id: u64, at: DateTime<Utc>, event: EventView) -> Result<(), StoreError> {
        self.change_group(id, "ended", micros(at), event).await
    }

    async fn change_group(
        &self,
        id: u64,
        column: &'static str,
        value: impl rusqlite::ToSql + Send + 'static,
        event: EventView,
    ) -> Result<(), StoreError> {
        self.write(format!("saving group {id}"), move |db| {
            let sql = format!("UPDATE groups SET {column} = ?1 WHERE id = ?2 AND {column} IS NULL");
            let changed = db.prepare_cached(&sql)?.execute(params![value, key(id)])? > 0;
            // A commit that failed may be durable all the same: it is reported once.
            if changed { journal::append(db, std::slice::from_ref(&event)) } else { Ok(()) }
        })
        .await
    }

    /// The status of a group's members, in their order.
    pub async fn member_facts(&self, id: u64) -> Result<Vec<MemberFacts>, StoreError> {
        self.read(format!("reading how group {id} stands"), move |db| {
            let mut select = db.prepare_cached(
                "SELECT m.id, m.state, m.attempt, m.start_requested_at IS NOT NULL FROM group_members g
                 JOIN migrations m ON m.id = g.migration WHERE g.group_id = ? ORDER BY g.tier, m.created, m.id",
            )?;
            let mut rows = select.query([key(id)])?;
            let mut facts = Vec::new();
            while let Some(row) = rows.next()? {
                let migration: String = row.get(0)?;
                let start_requested = row.get(3)?;
                let read = || -> Result<_, StoreFault> {
                    let state = from_json("migrations", &migration, &row.get::<_, String>(1)?)?;
                    Ok((state, unsigned("migrations", &migration, row.get(2)?)?))
                };
                // That group stops; the others need not wait for it.
                let (state, attempt) = read().unwrap_or_else(|fault| {
                    let reason = fault.into_error("reading it from the state").to_string();
                    let from = if start_requested { ResumePoint::BootCheck } else { ResumePoint::Synced };
                    (State::Failed { reason, resumable: false, from }, u32::MAX)
                });
                facts.push(MemberFacts { state, attempt, start_requested });
            }
            Ok(facts)
        })
        .await
    }
}

/// The plan's groups are deleted with it.
pub(super) fn forget(db: &Connection, plan: &str) -> Result<(), StoreFault> {
    db.prepare_cached("DELETE FROM groups WHERE plan = ?")?.execute([plan])?;
    Ok(())
}

fn find(
    db: &Connection,
    condition: &str,
    parameters: &[&dyn rusqlite::ToSql],
    read: impl Fn(&Connection, &Row<'_>) -> Result<Group, StoreFault>,
) -> Result<Vec<Group>, StoreFault> {
    let mut select = db.prepare_cached(&format!(
        "SELECT id, plan, asked_by, forced, all_or_nothing, begun, halted, ended FROM groups WHERE {condition} ORDER BY id"
    ))?;
    let mut rows = select.query(parameters)?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        groups.push(read(db, row)?);
    }
    Ok(groups)
}

fn read(db: &Connection, row: &Row) -> Result<Group, StoreFault> {
    let id: i64 = row.get("id")?;
    let ended: Option<i64> = row.get("ended")?;
    Ok(Group {
        id: u64::try_from(id).map_err(|error| StoreFault::bad(TABLE, id, error))?,
        plan: row.get("plan")?,
        by: row.get("asked_by")?,
        forced: row.get("forced")?,
        all_or_nothing: row.get("all_or_nothing")?,
        begun: moment(TABLE, id, row.get("begun")?)?,
        halted: row.get("halted")?,
        ended: ended.map(|at| moment(TABLE, id, at)).transpose()?,
        members: members(db, id)?,
    })
}

/// The readable part of a group, marked as broken.
fn salvaged(db: &Connection, row: &Row<'_>, fault: StoreFault) -> Result<Group, StoreFault> {
    let id: i64 = row.get("id")?;
    let why = fault.into_error("reading the group from the state").to_string();
    tracing::error!(group = id, why, "the group is not let through its barrier");
    let text = |column: &str| row.get::<_, String>(column).unwrap_or_else(|_| "?".to_owned());
    let mut select = db.prepare_cached(
        "SELECT m.id, m.vm_name, max(g.tier, 0), max(g.attempt, 0) FROM group_members g
         JOIN migrations m ON m.id = g.migration WHERE g.group_id = ? ORDER BY g.tier, m.created, m.id",
    )?;
    let mut rows = select.query([id])?;
    let mut members = Vec::new();
    while let Some(member) = rows.next()? {
        let Ok(migration) = migration_id("group_members", id, &member.get::<_, String>(0)?) else { continue };
        let tier = usize::try_from(member.get::<_, i64>(2)?).unwrap_or_default();
        let attempt = u32::try_from(member.get::<_, i64>(3)?).unwrap_or_default();
        members.push(GroupMember { migration, vm: member.get(1)?, tier, attempt });
    }
    Ok(Group {
        id: u64::try_from(id).map_err(|error| StoreFault::bad(TABLE, id, error))?,
        plan: text("plan"),
        by: text("asked_by"),
        forced: false,
        all_or_nothing: true,
        begun: DateTime::default(),
        halted: Some(why),
        ended: None,
        members,
    })
}

fn members(db: &Connection, id: i64) -> Result<Vec<GroupMember>, StoreFault> {
    let mut select = db.prepare_cached(
        "SELECT m.id, m.vm_name, g.tier, g.attempt FROM group_members g JOIN migrations m ON m.id = g.migration
         WHERE g.group_id = ? ORDER BY g.tier, m.created, m.id",
    )?;
    let mut rows = select.query([id])?;
    let mut members = Vec::new();
    while let Some(row) = rows.next()? {
        let tier: i64 = row.get(2)?;
        members.push(GroupMember {
            migration: migration_id("group_members", id, &row.get::<_, String>(0)?)?,
            vm: row.get(1)?,
            tier: usize::try_from(tier).map_err(|error| StoreFault::bad("group_members", id, error))?,
            attempt: unsigned("group_members", id, row.get(3)?)?,
        });
    }
    Ok(members)
}

/// As SQLite keeps it; a number that does not fit exists in no row.
fn key(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(-1)
}
