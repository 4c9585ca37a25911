//! Gathers finished pieces into batches, makes them durable on the target, and drains them from the ledger.
//!
//! Rule: only writes that had returned before a flush began are drained by it, and one batch is committed at
//! a time. A failed flush makes all writes since the last good one uncertain, so none of them is drained.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until},
};

use super::{PassError, TransferSettings, copy::PassShared, issue::PieceResult};
use crate::{
    batch::Batch,
    disk::{ErrorKind, Operation},
    ledger::Ledger,
    stop::StopSignal,
    store::PassFigures,
    telemetry::Stage,
    units::BLOCK,
};

/// Runs of drained blocks after which a batch is committed, regardless of its bytes: bounds its memory when
/// all is skipped.
const MANY_EXTENTS: usize = 1 << 16;

/// Returns the work that was done, and the blocks of room that it used.
type Committing = Pin<Box<dyn Future<Output = Result<(PassFigures, usize), PassError>> + Send>>;

/// Collects one pass's answers.
pub(super) struct Committer {
    ledger: Arc<Ledger>,
    sides: Arc<PassShared>,
    settings: TransferSettings,
    pass: Option<i64>,
    room: Arc<Semaphore>,
    halt: StopSignal,
    batch: Batch,
    /// Blocks moved for the batch, which use room.
    moved: usize,
    since: Instant,
    committing: Option<Committing>,
    answered: u64,
    done: PassFigures,
    failure: Option<PassError>,
}

/// The result of a pass.
pub(super) struct CommittedBatches {
    pub(super) figures: PassFigures,
    pub(super) answered: u64,
    pub(super) failure: Option<PassError>,
}

impl Committer {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        sides: Arc<PassShared>,
        settings: TransferSettings,
        pass: Option<i64>,
        room: Arc<Semaphore>,
        halt: StopSignal,
    ) -> Self {
        Self {
            ledger,
            sides,
            settings,
            pass,
            room,
            halt,
            batch: Batch::default(),
            moved: 0,
            since: Instant::now(),
            committing: None,
            answered: 0,
            done: PassFigures::default(),
            failure: None,
        }
    }

    /// Takes answers until every piece has given its own.
    pub(super) async fn gather(mut self, mut answers: mpsc::Receiver<PieceResult>) -> Self {
        loop {
            if self.is_due() {
                self.commit();
            }
            // After a failure no batch is due any more, and a wait for a passed deadline would repeat at
            // once.
            let waits = !self.batch.is_empty() && self.committing.is_none() && self.failure.is_none();
            tokio::select! {
                biased;
                Some(committed) = committed(&mut self.committing) => self.finish(committed),
                answer = answers.recv() => match answer {
                    Some(answer) => self.take(answer),
                    None => return self,
                },
                () = sleep_until(self.since + self.settings.batch_time), if waits => {}
            }
        }
    }

    /// Commits the rest.
    pub(super) async fn close(mut self) -> CommittedBatches {
        loop {
            if let Some(committed) = committed(&mut self.committing).await {
                self.finish(committed);
            } else if !self.commit_rest() {
                break;
            }
        }
        CommittedBatches { figures: self.done, answered: self.answered, failure: self.failure }
    }

    fn take(&mut self, answer: PieceResult) {
        self.answered += 1;
        match answer {
            Ok(finished) => {
                if self.batch.is_empty() {
                    self.since = Instant::now();
                }
                self.moved += finished.room;
                self.batch.add(finished.extent, finished.hashes, finished.figures);
            }
            Err(error) => self.fail(error),
        }
    }

    fn is_due(&self) -> bool {
        self.committing.is_none()
            && self.failure.is_none()
            && !self.batch.is_empty()
            && (self.moved as u64 * BLOCK >= self.settings.batch_bytes
                || self.batch.extents() >= MANY_EXTENTS
                || self.since.elapsed() >= self.settings.batch_time)
    }

    fn commit(&mut self) {
        let (batch, moved) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.moved));
        let (ledger, sides, pass) = (Arc::clone(&self.ledger), Arc::clone(&self.sides), self.pass);
        self.committing = Some(Box::pin(async move {
            let figures = PassFigures { batches: 1, ..batch.figures() };
            if figures.written + figures.zeroed > 0 {
                let flush = sides.progress.meter.stage(Stage::Flush).begin();
                sides.target.flush().await.map_err(PassError::Target)?;
                flush.done(figures.written + figures.zeroed);
            }
            let commit = sides.progress.meter.stage(Stage::Commit).begin();
            ledger.drain(batch, pass).await?;
            commit.done(figures.drained);
            Ok((figures, moved))
        }));
    }

    /// Commits the rest, unless a failure has made it worthless.
    fn commit_rest(&mut self) -> bool {
        let worthwhile = !self.batch.is_empty() && may_commit(self.failure.as_ref());
        if worthwhile {
            self.commit();
        }
        worthwhile
    }

    fn finish(&mut self, committed: Result<(PassFigures, usize), PassError>) {
        self.committing = None;
        match committed {
            Ok((figures, moved)) => {
                self.done += figures;
                self.sides.progress.drained.fetch_add(figures.drained, Relaxed);
                self.room.add_permits(moved);
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: PassError) {
        self.halt.stop();
        // A flush or a commit that failed forbids to commit the rest, also after another failure.
        if self.failure.is_none() || (may_commit(self.failure.as_ref()) && !may_commit(Some(&error))) {
            self.failure = Some(error);
        }
    }
}

/// After a failure of the source, or of single requests to the target, the finished work is valid.
fn may_commit(failure: Option<&PassError>) -> bool {
    match failure {
        None | Some(PassError::Source(_)) => true,
        Some(PassError::Store(_)) => false,
        Some(PassError::Target(error)) => {
            error.operation != Operation::Flush
                && matches!(error.kind, ErrorKind::NoSpace | ErrorKind::Media | ErrorKind::Refused)
        }
    }
}

async fn committed(committing: &mut Option<Committing>) -> Option<Result<(PassFigures, usize), PassError>> {
    match committing {
        Some(committing) => Some(committing.await),
        None => None,
    }
}
