//! The daemon's durable state as the simulation sees it: checked after every commit.
//!
//! Rule: it reads through its own connection, so it sees what a daemon that starts now would find.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, backup::Backup, ffi};
use warmd_cbt::chunk::ChunkBits;
use warmd_core::{
    clock,
    model::{
        id::MigrationId,
        phase::Phase,
        state::{ResumePoint, State},
    },
    targets::LastWriter,
};
use warmd_store::Store;

use super::{
    legal::is_legal,
    pages::Pages,
    restored::Copy,
    world::{LedgerSeen, SimulationWorld, Truth, delta},
};

/// An empty state.
static TEMPLATE: LazyLock<Mutex<Connection>> = LazyLock::new(|| {
    let name = "file:/warmd-template?vfs=memdb";
    let db = open(name).expect("a database in memory");
    Store::lay_out(name).expect("the daemon's own tables");
    Mutex::new(db)
});

/// A line of the journal.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) by: String,
    pub(super) kind: String,
    pub(super) text: String,
}

/// The state's watcher. It also keeps the database alive while there is no daemon.
#[derive(Debug)]
pub(super) struct Durable {
    pub(super) name: String,
    pub(super) db: Connection,
    pub(super) copy: Option<Copy>,
    pub(super) states: BTreeMap<String, String>,
    pub(super) disks: BTreeMap<i64, (MigrationId, String)>,
    pub(super) seen: BTreeMap<(MigrationId, String), Row>,
    pub(super) last_line: i64,
    /// The journal so far, of all migrations.
    pub(super) journal: Vec<(Option<String>, Line)>,
}

/// A state inside its version envelope.
#[derive(serde::Deserialize)]
struct Saved {
    is: State,
}

/// A disk's ledger as it is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    anchor: Option<String>,
    chunk: Option<(Vec<u8>, Vec<u8>)>,
}

impl Durable {
    /// Creates the empty database.
    pub(super) fn new(name: String) -> rusqlite::Result<Self> {
        let mut db = open(&name)?;
        // Copied from one with the tables: their creation would take a tenth of the whole time.
        let template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
        Backup::new(&template, &mut db)?.run_to_completion(i32::MAX, Duration::ZERO, None)?;
        drop(template);
        let (states, disks, seen) = Default::default();
        Ok(Self { name, db, copy: None, states, disks, seen, last_line: 0, journal: Vec::new() })
    }

    /// Commits a transaction durably, or refuses it; checks its changes.
    pub(super) fn commit(
        &mut self,
        world: &SimulationWorld,
        commit: &mut dyn FnMut() -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let error = |code: i32, why: &str| {
            Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(why.to_owned())))
        };
        if world.step() {
            return error(ffi::SQLITE_IOERR, "the daemon is dead");
        }
        let (fault, durable) = {
            let mut truth = world.truth();
            let often = truth.store_faults;
            (truth.chance.happens(often), truth.chance.happens(500))
        };
        if fault {
            let mut truth = world.truth();
            truth.counts.add("store faults");
            truth.note(format_args!("a commit fails; durable: {durable}"));
        }
        if fault && !durable {
            return error(ffi::SQLITE_FULL, "a fault of the simulation");
        }
        commit()?;
        if let Err(cause) = self.look(&mut world.truth()) {
            world.truth().violated(format!("the durable state cannot be read: {cause}"));
        }
        if world.step() || fault {
            return error(ffi::SQLITE_IOERR_FSYNC, "a fault of the simulation");
        }
        Ok(())
    }

    /// Checks everything that may have changed.
    fn look(&mut self, truth: &mut Truth) -> rusqlite::Result<()> {
        self.look_at_ledgers(truth)?;
        let lines = self.new_lines()?;
        let moved = self.look_at_states(truth)?;
        self.look_at_groups(truth)?;
        self.look_at_sources(truth, &lines)?;
        for (id, before, now) in &moved {
            if matches!(now, State::CuttingOver { phase: Phase::CreateVm }) {
                self.look_at_recorded_roots(truth, id)?;
            }
            let told = lines.iter().any(|(of, line)| {
                let begins = before.as_ref().map(|before| format!("{before} → {now}"));
                of.as_deref() == Some(id)
                    && line.kind == "state"
                    && begins.is_some_and(|text| line.text.starts_with(&text))
            });
            if before.is_some() && !told {
                truth.violated(format!("the journal does not tell how a migration became {now}"));
            }
        }
        let told: Vec<_> = lines.iter().filter(|(of, line)| of.is_some() && line.kind == "state").collect();
        if told.len() > moved.len() {
            let (steps, texts) = (moved.len(), told.iter().map(|(_, line)| line.text.as_str()));
            let texts = texts.collect::<Vec<_>>().join("; ");
            truth
                .violated(format!("the journal tells {} steps, and there were {steps}: {texts}", told.len()));
        }
        self.journal.extend(lines);
        self.outdate(truth);
        // Blocks that a copy from the middle of a pass trusts may be written soon after. Half of the copies
        // wait for a delta, where trusted blocks differ from a fresh disk.
        let late = |at: u64| {
            let trusts = truth.ledgers.iter().any(|((owner, _), ledger)| {
                let is_delta = truth.states.get(owner) != Some(&State::Seeding);
                !ledger.trusted.is_empty() && (is_delta || at.is_multiple_of(2))
            });
            truth.steps >= at + if trusts { 0 } else { 200 + at % 2 * 800 }
        };
        if truth.copy_at.is_some_and(late) {
            self.copy(truth)?;
        }
        Ok(())
    }

    /// Migrations whose source was seen running after the cutover: the journal must have an error.
    fn look_at_sources(&self, truth: &mut Truth, lines: &[(Option<String>, Line)]) -> rusqlite::Result<()> {
        let now = self.sources_that_run()?;
        for id in now.difference(&truth.told.clone()) {
            let id = id.to_string();
            if !lines.iter().any(|(of, line)| of.as_ref() == Some(&id) && line.kind == "error") {
                truth.violated(
                    "a source is seen to run after its cutover, and the journal does not tell".to_owned(),
                );
            }
        }
        truth.told = now;
        Ok(())
    }

    /// Migrations whose source was last seen running after the cutover.
    pub(super) fn sources_that_run(&self) -> rusqlite::Result<BTreeSet<MigrationId>> {
        let mut select =
            self.db.prepare_cached("SELECT id FROM migrations WHERE source_seen_running_at IS NOT NULL")?;
        let ids = select.query_map([], |row| row.get::<_, String>(0))?;
        ids.map(|id| Ok(id?.parse().expect("the daemon's own id"))).collect()
    }

    /// The root that is recorded before the target VM is created equals the final snapshot's.
    fn look_at_recorded_roots(&self, truth: &mut Truth, id: &str) -> rusqlite::Result<()> {
        let mut select = self.db.prepare_cached(
            "SELECT disks.key, vm, root, anchor FROM disks JOIN migrations ON migrations.id = migration
             LEFT JOIN recorded_roots ON recorded_roots.disk = disks.id WHERE migration = ?",
        )?;
        let mut rows = select.query([id])?;
        while let Some(row) = rows.next()? {
            let (key, vm, recorded): (String, String, Option<String>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let anchor: Option<u64> = row.get::<_, Option<String>>(3)?.and_then(|mark| mark.parse().ok());
            let image = anchor.and_then(|mark| truth.vms.get(&vm)?.images.get(&mark)?.get(&key));
            let held = image.and_then(Pages::root);
            if recorded.is_none() || recorded != held {
                truth.violated(format!(
                    "{key} of {vm} has the recorded root {recorded:?}, and its snapshot had {held:?}"
                ));
            }
        }
        Ok(())
    }

    fn new_lines(&mut self) -> rusqlite::Result<Vec<(Option<String>, Line)>> {
        let mut select = self
            .db
            .prepare_cached("SELECT id, migration, by, kind, text FROM events WHERE id > ? ORDER BY id")?;
        let mut rows = select.query([self.last_line])?;
        let mut lines = Vec::new();
        while let Some(row) = rows.next()? {
            self.last_line = row.get(0)?;
            lines.push((row.get(1)?, Line { by: row.get(2)?, kind: row.get(3)?, text: row.get(4)? }));
        }
        Ok(lines)
    }

    /// All migrations as they are saved, with their VMs.
    pub(super) fn saved_states(&self) -> rusqlite::Result<Vec<(MigrationId, String, State, String)>> {
        let mut select = self.db.prepare("SELECT id, vm, state FROM migrations ORDER BY created, id")?;
        let saved = select.query_map([], |row| {
            let (id, json): (String, String) = (row.get(0)?, row.get(2)?);
            Ok((id.parse().expect("the daemon's own id"), row.get(1)?, parse(&json), json))
        })?;
        saved.collect()
    }

    fn look_at_states(&mut self, truth: &mut Truth) -> rusqlite::Result<Vec<(String, Option<State>, State)>> {
        let mut select =
            self.db.prepare_cached("SELECT id, vm, state FROM migrations ORDER BY created, id")?;
        let mut rows = select.query([])?;
        let mut moved = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, json): (String, String) = (row.get(0)?, row.get(2)?);
            let before = self.states.get(&id);
            if before == Some(&json) {
                continue;
            }
            let (before, now) = (before.map(|json| parse(json)), parse(&json));
            let owner: MigrationId = id.parse().expect("the daemon's own id");
            truth.stepped(owner, &row.get::<_, String>(1)?, before.as_ref(), &now);
            self.states.insert(id.clone(), json);
            moved.push((id, before, now));
        }
        Ok(moved)
    }

    pub(super) fn look_at_ledgers(&mut self, truth: &mut Truth) -> rusqlite::Result<()> {
        let mut select = self.db.prepare_cached(
            "SELECT disks.id, migration, disks.key, disks.anchor, pending, trusted, vm FROM disks
             JOIN migrations ON migrations.id = migration LEFT JOIN chunks ON chunks.key = disks.id << 32",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let disk: i64 = row.get(0)?;
            let key = match self.disks.entry(disk) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let owner: String = row.get(1)?;
                    new.insert((owner.parse().expect("the daemon's own id"), row.get(2)?))
                }
            };
            let key = &*key;
            let chunk: Option<Vec<u8>> = row.get(4)?;
            let chunk = chunk.map(|pending| Ok::<_, rusqlite::Error>((pending, row.get(5)?))).transpose()?;
            let now = Row { anchor: row.get(3)?, chunk };
            if self.seen.get(key) == Some(&now) {
                continue;
            }
            if self.seen.get(key).is_some_and(|before| before.anchor != now.anchor) {
                truth.stale.remove(key);
            }
            let bits = |bytes: &[u8]| blocks(&ChunkBits::decode(bytes).expect("the daemon's own bits"));
            let (pending, trusted) = match &now.chunk {
                None => Default::default(),
                Some((pending, trusted)) if trusted == &[0] => (bits(pending), bits(pending)),
                Some((pending, trusted)) => (bits(pending), bits(trusted)),
            };
            let ledger = LedgerSeen { vm: row.get(6)?, anchor: now.anchor.clone(), pending, trusted };
            truth.ledgers.insert(key.clone(), ledger);
            truth.check_disk(key.0, &key.1);
            self.seen.insert(key.clone(), now);
        }
        Ok(())
    }
}

/// Opens a database in memory, which exists as long as a connection to it.
pub(super) fn open(name: &str) -> rusqlite::Result<Connection> {
    let access =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(name, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

fn parse(json: &str) -> State {
    serde_json::from_str::<Saved>(json).expect("the daemon's own state").is
}

fn blocks(bits: &ChunkBits) -> BTreeSet<usize> {
    bits.runs().flatten().collect()
}

impl Truth {
    /// A migration has durably entered another state.
    fn stepped(&mut self, owner: MigrationId, vm: &str, before: Option<&State>, now: &State) {
        self.states.insert(owner, now.clone());
        self.stands(owner, now);
        let name = self.name(owner);
        self.note(format_args!("{name} of {vm} is {now}"));
        self.counts.add(match now {
            State::Undoing { .. } => "undone cutovers",
            State::RollingBack => "rollbacks",
            State::Failed { from: ResumePoint::StaleState, .. } => "stale states",
            State::Failed { .. } => "failures",
            State::Paused { .. } => "pauses",
            State::Syncing => "deltas",
            State::CuttingOver { phase: Phase::CatchUpDelta } => "cutovers",
            State::Done => "done",
            State::Cancelled => "cancelled",
            _ => "other steps",
        });
        match before {
            None if *now == State::Defined => {}
            None => self.violated(format!("a migration begins as {now}")),
            Some(before) if !is_legal(before, now) => self.violated(format!("{before} → {now} cannot be")),
            Some(_) => {}
        }
        let copies = matches!(now, State::CuttingOver { phase: Phase::FinalDelta });
        // With a restored state the daemon detects it in the phase itself.
        let stale = self.stale.iter().any(|(of, _)| *of == owner);
        if copies && !stale && self.targets.get(&owner).is_some_and(|made| made.exists && made.ran) {
            self.violated(format!("{vm} takes its final delta into a target VM that ran"));
        }
        let begins = matches!(now, State::CuttingOver { phase: Phase::CatchUpDelta });
        let undone = matches!(
            (before, now),
            (Some(State::Undoing { .. }), State::Synced) | (Some(State::RollingBack), State::Paused { .. })
        );
        if undone {
            self.check_back(owner, vm, now);
        }
        if begins {
            self.begins_to_move(owner, vm);
        }
        let Some(found) = self.vms.get_mut(vm) else { return };
        if begins && found.wanted.is_none() {
            found.wanted = found.goes_off.is_none().then_some(found.runs);
        }
        found.is_in(now);
        // High availability does not ask how far a cutover is, or whether it has finished.
        let is_stopped = matches!(now, State::CuttingOver { phase } if *phase >= Phase::FinalDelta);
        if (is_stopped || *now == State::Done) && self.meddling && self.chance.happens(100) {
            found.comes_on = Some(clock::steady() + delta(self.chance.millis(0, 500)));
        }
        if found.phase.is_some() && found.phase == self.dies_in {
            self.dies_in = None;
            self.dies_at = Some(self.steps + self.chance.magnitude(60));
        }
        let (wanted, off) = (found.wanted == Some(true), !found.runs);
        let snapshot = found.snapshot.as_ref().is_some_and(|open| open.owner == owner);
        let goes_off = found.goes_off.is_some();
        if undone && wanted && (off || goes_off) {
            self.violated(format!("{vm} is off, or about to go off, after its cutover was undone"));
        }
        if *now == State::Cancelled && wanted && off {
            self.violated(format!("{vm} was given up, and is off"));
        }
        if *now == State::Synced && snapshot {
            self.violated(format!("{vm} lives on a snapshot, and nothing is copied"));
        }
        match now {
            State::Done => self.check_done(owner, vm),
            State::Cancelled => self.check_cancelled(owner, vm),
            _ => {}
        }
    }

    fn check_done(&mut self, owner: MigrationId, vm: &str) {
        self.check_left(owner, vm);
        let (Some(source), Some(made)) = (self.vms.get(vm), self.targets.get(&owner)) else {
            return self.violated(format!("{vm} is done, and nothing of it is on the target"));
        };
        let mut wrong = Vec::new();
        let (ran, started) = (made.ran, made.runs || made.died);
        if source.wanted.is_some_and(|wanted| wanted != started) {
            wrong.push(format!(
                "{vm} is done, wanted {:?}, and its target VM was started: {started}",
                source.wanted
            ));
        }
        if !made.exists {
            wrong.push(format!("{vm} is done, and has no machine on the target"));
        }
        if !matches!(made.noted, Some(LastWriter::Machine { confirmed_running: true, .. })) {
            wrong.push(format!("{vm} is done, and its disks are not noted as the target VM's"));
        }
        for what in wrong {
            self.violated(what);
        }
        self.check_moved(owner, vm);
        // From its start on the target VM writes freely.
        if !ran && !self.strayed_into(owner) {
            self.check_copy(owner, "is done");
        }
    }

    /// The target durably holds what the guest wrote last, independent of the ledgers.
    pub(super) fn check_copy(&mut self, owner: MigrationId, now: &str) {
        let Some(made) = self.targets.get(&owner) else { return };
        let source = made.vm.as_ref().and_then(|vm| self.vms.get(vm));
        let Some(source) = source else {
            return self.violated(format!("a target VM {now}, and no source knows it"));
        };
        let mut wrong = Vec::new();
        for (key, pages) in &source.disks {
            let differing = made.disks.get(key).map(|disk| {
                let mut blocks = pages.differing(&disk.durable);
                blocks.extend(pages.differing(&disk.seen));
                blocks
            });
            if differing.as_ref().is_none_or(|blocks| !blocks.is_empty()) {
                wrong.push(format!("lost: {} {now}, and {key} differs at blocks {differing:?}", source.name));
            }
        }
        for what in wrong {
            self.violated(what);
        }
    }

    fn check_cancelled(&mut self, owner: MigrationId, vm: &str) {
        self.check_left(owner, vm);
        self.check_back(owner, vm, &State::Cancelled);
        if self.targets.get(&owner).is_some_and(|made| made.exists || !made.disks.is_empty()) {
            self.violated(format!("{vm} was given up, and something of it is left on the target"));
        }
    }

    /// Nothing is left behind on the source.
    fn check_left(&mut self, owner: MigrationId, vm: &str) {
        let Some(found) = self.vms.get(vm) else { return };
        let marks: Vec<_> =
            found.marks.iter().filter(|(_, mark)| mark.owner == owner).map(|(at, _)| at).collect();
        if !marks.is_empty() || found.snapshot.as_ref().is_some_and(|open| open.owner == owner) {
            let what = format!("left on the source of {vm}: marks {marks:?}, snapshot {:?}", found.snapshot);
            self.violated(what);
        }
    }
}
