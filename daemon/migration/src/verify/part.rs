//! The part of each disk that a verification reads, and where an interrupted one continues.
//!
//! Rule: a verification continues only over the ledger with which it began: after any pass, even one without
//! changes, it begins again. And its cursor is never past a mismatched block.

use std::sync::Arc;

use warmd_cbt::{
    ledger::Ledger,
    units::{Length, Offset},
    verify::{Sample, VerifyPart},
};
use warmd_core::{
    clock,
    model::{
        plan::VerifyMode,
        state::State,
        verify::{MAX_SEED, MissProbability, VerifyOrder, VerifyScope},
    },
};
use warmd_store::{DiskRow, VerifyCursor};

use super::super::{context::Context, failure::WorkError};

/// Numbers of bad blocks for which a result gives the miss probability.
const BAD: [u64; 4] = [1, 10, 100, 1000];

/// The parts of all disks of one verification.
#[derive(Debug)]
pub(super) struct VerifyParts {
    /// Mode and scope in words: the key of the saved cursors.
    pub(super) what: String,
    pub(super) seed: Option<u64>,
    /// For this state of the ledgers.
    cursors: Vec<VerifyCursor>,
    /// Whether the target's own disk is read, so that the verification can be continued.
    goes_on: bool,
    last_pass: i64,
}

impl VerifyParts {
    pub(super) async fn load(
        context: &Context,
        order: &VerifyOrder,
        disks: &[(DiskRow, Arc<Ledger>)],
    ) -> Result<Self, WorkError> {
        let what = format!("{} {}", order.mode, order.scope);
        // A comparison has its own pass, after which it begins again; and a disk that was handed over may
        // have been written to since.
        let goes_on =
            order.images.is_empty() && order.mode == VerifyMode::Readback && context.state() != State::Done;
        let last_pass = context.store.last_pass(context.id).await?.map_or(0, |pass| pass.id);
        let mut cursors =
            if goes_on { context.store.verify_cursors(context.id, &what).await? } else { Vec::new() };
        cursors.retain(|cursor| {
            disks
                .iter()
                .any(|(row, disk)| row.id == cursor.disk && cursor.ledger == state_of(disk, last_pass))
        });
        let seed = match order.scope {
            VerifyScope::Full | VerifyScope::Changed => None,
            VerifyScope::Sample(_) => {
                let earlier = || cursors.iter().find_map(|cursor| cursor.seed);
                Some(order.seed.or_else(earlier).unwrap_or_else(|| drawn(context)))
            }
        };
        Ok(Self { what, seed, cursors, goes_on, last_pass })
    }

    /// The disk's part, and the state of its ledger for which that is valid.
    pub(super) async fn of(
        &self,
        context: &Context,
        order: &VerifyOrder,
        row: &DiskRow,
        ledger: &Ledger,
    ) -> Result<(VerifyPart, VerifyCursor), WorkError> {
        let mut cursor = VerifyCursor {
            disk: row.id,
            what: self.what.clone(),
            seed: self.seed,
            ledger: state_of(ledger, self.last_pass),
            checked_to: Offset(0),
        };
        let earlier =
            self.cursors.iter().find(|earlier| earlier.disk == cursor.disk && earlier.seed == cursor.seed);
        if let Some(earlier) = earlier {
            cursor.checked_to = earlier.checked_to;
        }
        let only = match (order.scope, self.sample(order, row.size)) {
            (VerifyScope::Changed, _) => Some(context.store.unverified(row.id, order.mode).await?),
            (_, Some(sample)) => Some(sample.set().await),
            (_, None) => None,
        };
        Ok((VerifyPart { only: only.map(Arc::new), from: cursor.checked_to }, cursor))
    }

    /// A number of this verification, for choices that must not be the same each time.
    pub(super) fn round(&self) -> u64 {
        self.last_pass.unsigned_abs()
    }

    /// Saves the cursors.
    pub(super) async fn keep(
        &self,
        context: &Context,
        cursor: &VerifyCursor,
        checked_to: Offset,
    ) -> Result<(), WorkError> {
        if self.goes_on && checked_to > cursor.checked_to {
            context.store.put_verify_cursor(VerifyCursor { checked_to, ..cursor.clone() }).await?;
        }
        Ok(())
    }

    /// The miss probabilities of a sample of these disks: those of the worst disk, as all bad blocks may be
    /// there.
    pub(super) fn miss_probabilities(&self, order: &VerifyOrder, sizes: &[Length]) -> Vec<MissProbability> {
        let samples: Vec<_> = sizes.iter().filter_map(|size| self.sample(order, *size)).collect();
        let worst = |bad| samples.iter().map(|sample| sample.miss_probability(bad)).fold(0.0, f64::max);
        if samples.is_empty() {
            return Vec::new();
        }
        BAD.iter().map(|bad| MissProbability { blocks: *bad, probability: worst(*bad) }).collect()
    }

    fn sample(&self, order: &VerifyOrder, size: Length) -> Option<Sample> {
        let VerifyScope::Sample(amount) = order.scope else { return None };
        Some(Sample::new(size, Length(amount.of(size.0)), self.seed.unwrap_or(0)))
    }
}

/// The state of a ledger in which a verification continues.
fn state_of(ledger: &Ledger, last_pass: i64) -> String {
    format!("{}@{last_pass}", ledger.anchor().map(|mark| mark.0).unwrap_or_default())
}

/// Whether the verification covers all unverified blocks of the disks themselves, so that they are settled.
pub(super) fn proves_changes(order: &VerifyOrder) -> bool {
    order.images.is_empty() && matches!(order.scope, VerifyScope::Full | VerifyScope::Changed)
}

/// A seed that was unpredictable when the disk was written.
fn drawn(context: &Context) -> u64 {
    let moment = clock::now().timestamp_nanos_opt().unwrap_or_default();
    let hash = blake3::hash(format!("{} {moment}", context.id).as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*first) & MAX_SEED
}
