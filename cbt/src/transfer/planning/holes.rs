//! The source's holes, asked in large ranges ahead of the reads.
//!
//! Rule: it only saves reads. A range without an answer is data.

use std::{collections::VecDeque, sync::Arc};

use super::window::{ASK_GAP, ASK_REACH, Slice};
use crate::{
    disk::{DiskError, ErrorKind, Operation, ReadDisk},
    extents::coalesce,
    units::{BLOCK, Extent, Length, Offset},
};

/// A run with fewer pending bytes is read without asking: the query would cost as much as it saves.
const WORTH_ASKING: u64 = 256 << 10;
/// After this many queries about one window, answers must have covered [`SHORT`] bytes each, or asking ends.
const PATIENCE: u64 = 8;
const SHORT: u64 = 1 << 20;

/// The known holes of the source from the current window on.
pub(super) struct SourceHoles {
    source: Arc<dyn ReadDisk>,
    size: Length,
    zero: VecDeque<Extent>,
    known_to: Offset,
    refused: bool,
}

impl SourceHoles {
    pub(super) fn new(source: Arc<dyn ReadDisk>, size: Length) -> Self {
        Self { source, size, zero: VecDeque::new(), known_to: Offset(0), refused: false }
    }

    /// The blocks near the slice's extents of which every byte is known to be zero, as extents in order.
    pub(super) async fn within(&mut self, slice: &Slice) -> Result<Vec<Extent>, DiskError> {
        let Some(first) = slice.extents.first() else { return Ok(Vec::new()) };
        while self.zero.front().is_some_and(|zero| zero.end() <= first.start()) {
            self.zero.pop_front();
        }
        let mut asked = Asked::default();
        let runs: Vec<_> = coalesce(slice.extents.iter().copied(), ASK_GAP).collect();
        let mut extents = slice.extents.iter().peekable();
        for run in runs {
            let mut pending = 0;
            while let Some(extent) = extents.next_if(|extent| extent.start() < run.end()) {
                pending += extent.len().0;
            }
            let is_last = run.end() == slice.end();
            let reach = if is_last { slice.run_end.max(run.end()) } else { run.end() };
            if pending + (reach - run.end()).0 >= WORTH_ASKING {
                self.ask(run, reach, &mut asked).await?;
            }
        }
        let whole = self.zero.iter().filter_map(|zero| {
            let blocks = zero.covered_blocks(self.size);
            Extent::between(Offset(blocks.start * BLOCK), Offset((blocks.end * BLOCK).min(self.size.0)))
        });
        Ok(whole.take_while(|zero| zero.start() < slice.end()).collect())
    }

    async fn ask(&mut self, run: Extent, reach: Offset, asked: &mut Asked) -> Result<(), DiskError> {
        let mut at = run.start().max(self.known_to);
        while at < run.end() && !self.refused && !asked.is_in_vain() {
            let far = reach.min(Offset(at.0 + ASK_REACH));
            let Some(question) = Extent::between(at, far) else { break };
            match self.source.allocation(question).await {
                Ok(answer) => {
                    let end = self.take(question, &answer)?;
                    asked.count += 1;
                    asked.covered += (end - at).0;
                    at = end;
                    self.known_to = at;
                }
                Err(error) if error.kind == ErrorKind::Refused => self.refused = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, question: Extent, answer: &[crate::disk::Allocation]) -> Result<Offset, DiskError> {
        let mut at = question.start();
        for part in answer {
            if part.extent.start() != at {
                return Err(broken(question, "its parts do not follow each other"));
            }
            at = part.extent.end().min(question.end());
            let Some(zero) = part.extent.intersect(&question).filter(|_| part.zero) else { continue };
            match self.zero.back_mut() {
                Some(last) if last.end() == zero.start() => {
                    *last = Extent::between(last.start(), zero.end()).unwrap_or(*last);
                }
                _ => self.zero.push_back(zero),
            }
            if at == question.end() {
                break;
            }
        }
        if at == question.start() {
            return Err(broken(question, "it covers nothing"));
        }
        Ok(at)
    }
}

#[derive(Default)]
struct Asked {
    count: u64,
    covered: u64,
}

impl Asked {
    fn is_in_vain(&self) -> bool {
        self.count >= PATIENCE && self.covered / self.count < SHORT
    }
}

fn broken(question: Extent, cause: &'static str) -> DiskError {
    let cause = format!("the answer about holes is broken: {cause}");
    DiskError::new(ErrorKind::Protocol, Operation::Allocation, "source", Some(question), cause)
}
