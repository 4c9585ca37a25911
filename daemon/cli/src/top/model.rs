//! The screen's contents: the migrations in their order, the chosen one, and the last message.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use warmd_proto::v1::{Migration, MigrationState};

use super::{
    super::{labels, show},
    keys::{Key, KeyAction},
};

/// The screen's contents.
#[derive(Debug, Default)]
pub(super) struct TopModel {
    /// By id, which means by age.
    migrations: BTreeMap<String, Migration>,
    /// When the state that the target equals was that of the source: the start of the last pass that ended
    /// well.
    equal: BTreeMap<String, DateTime<Utc>>,
    /// The chosen migration's id.
    chosen: Option<String>,
    /// Whether the chosen one fills the screen.
    pub(super) details: bool,
    /// The action that waits for a confirmation.
    asked: Option<(Key, String)>,
    said: String,
}

impl TopModel {
    /// A migration's present state.
    pub(super) fn take(&mut self, migration: Migration) {
        let ended = migration.pass.as_ref().filter(|pass| pass.ended.is_some() && pass.error.is_none());
        if let Some(began) = ended.and_then(|pass| labels::at(pass.started.as_ref())) {
            self.equal.insert(migration.id.clone(), began);
        }
        self.migrations.insert(migration.id.clone(), migration);
    }

    /// A message at the bottom of the screen.
    pub(super) fn say(&mut self, what: impl Into<String>) {
        self.said = what.into();
    }

    /// The line at the bottom: a question has priority.
    pub(super) fn line(&self) -> String {
        match &self.asked {
            Some((key, id)) => {
                let who = self.migrations.get(id).map(labels::who).unwrap_or_default();
                format!("{} of {who}: press y to go on, any other key to leave it", key.word())
            }
            None => self.said.clone(),
        }
    }

    /// Whether a question waits.
    pub(super) fn asks(&self) -> bool {
        self.asked.is_some()
    }

    /// Failed ones first, then active ones, then the rest, each by name.
    pub(super) fn rows(&self) -> Vec<&Migration> {
        let mut rows: Vec<_> = self.migrations.values().collect();
        rows.sort_by_key(|migration| (rank(migration), &migration.vm_name, &migration.id));
        rows
    }

    /// The chosen row, the first one if none was chosen.
    pub(super) fn at(&self) -> usize {
        let chosen = self.chosen.as_deref();
        self.rows().iter().position(|row| Some(row.id.as_str()) == chosen).unwrap_or_default()
    }

    /// The chosen migration; none before any was drawn.
    pub(super) fn chosen(&self) -> Option<&Migration> {
        self.migrations.get(self.chosen.as_ref()?)
    }

    /// The drawn choice counts: a key means the VM that was shown as chosen, wherever its row goes meanwhile.
    pub(super) fn drawn(&mut self) {
        if self.chosen.is_none() {
            self.choose(0);
        }
    }

    /// How far the target lies behind the source, in seconds; none before the first pass has ended, or when
    /// the migration is finished.
    pub(super) fn lag(&self, migration: &Migration, now: DateTime<Utc>) -> Option<f64> {
        let over = matches!(migration.state(), MigrationState::Done | MigrationState::Cancelled);
        let equal = self.equal.get(&migration.id).filter(|_| !over)?;
        Some((now - *equal).as_seconds_f64().max(0.0))
    }

    /// What a key does.
    pub(super) fn press(&mut self, key: Key) -> KeyAction {
        if let Some((asked, id)) = self.asked.take() {
            if key == Key::Yes {
                return KeyAction::Ask(asked, id);
            }
            self.said = format!("no {}", asked.word());
            return if key == Key::Leave { KeyAction::Leave } else { KeyAction::None };
        }
        let last = self.migrations.len().saturating_sub(1);
        match key {
            Key::Up => self.choose(self.at().saturating_sub(1)),
            Key::Down => self.choose((self.at() + 1).min(last)),
            Key::First => self.choose(0),
            Key::Last => self.choose(last),
            Key::Details => self.details = !self.details,
            Key::Back if self.details => self.details = false,
            Key::Leave => return KeyAction::Leave,
            Key::Back | Key::Yes => {}
            Key::Cutover | Key::Abort => {
                self.asked = self.chosen().map(|migration| (key, migration.id.clone()));
            }
            Key::Pause | Key::Resume | Key::Sync => {
                if let Some(migration) = self.chosen() {
                    return KeyAction::Ask(key, migration.id.clone());
                }
            }
        }
        KeyAction::None
    }

    fn choose(&mut self, row: usize) {
        self.chosen = self.rows().get(row).map(|migration| migration.id.clone());
    }
}

/// Whether an operator should look.
pub(super) fn alarms(migration: &Migration) -> bool {
    matches!(
        migration.state(),
        MigrationState::Failed | MigrationState::Undoing | MigrationState::RollingBack
    ) || migration.disks.iter().any(|disk| disk.tracking_fault.is_some())
}

fn rank(migration: &Migration) -> u8 {
    match migration.state() {
        MigrationState::Done | MigrationState::Cancelled => 4,
        _ if alarms(migration) => 0,
        MigrationState::CuttingOver => 1,
        _ if show::is_busy(migration) => 2,
        _ => 3,
    }
}
