//! The last lines that a disk's children said on their error output.
//!
//! Rule: bounded in number and length. All lines explain a failure to people; only those of the present child
//! decide whether another one is tried.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use super::why::{Complaint, ReaderError};

const MAX_LINES: usize = 100;
const MAX_LINE: usize = 1000;

#[derive(Clone, Debug, Default)]
pub(super) struct Said(Arc<watch::Sender<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    all: VecDeque<String>,
    /// How many of them, at the end, are of the present child.
    fresh: usize,
}

impl Lines {
    fn complaint(&self) -> Option<ReaderError> {
        ReaderError::find(self.all.iter().map(String::as_str))
    }

    fn refusal(&self) -> Option<ReaderError> {
        let earlier = self.all.len().saturating_sub(self.fresh);
        let fresh = self.all.iter().skip(earlier).map(String::as_str);
        ReaderError::find(fresh).filter(|error| !error.complaint.is_mended_by_restart())
    }
}

impl Said {
    /// What is said from now on is of another child.
    pub(super) fn begin(&self) {
        self.0.send_modify(|lines| lines.fresh = 0);
    }

    pub(super) fn push(&self, line: &str) {
        self.0.send_modify(|lines| {
            if lines.all.len() >= MAX_LINES {
                lines.all.pop_front();
            }
            lines.all.push_back(line.chars().take(MAX_LINE).collect());
            lines.fresh = (lines.fresh + 1).min(MAX_LINES);
        });
    }

    pub(super) fn complaint(&self) -> Option<ReaderError> {
        self.0.borrow().complaint()
    }

    /// Waits until a complaint is a known one. The line that has the cause may follow one that does not.
    pub(super) async fn explained(&self) {
        let is_known = |error: ReaderError| error.complaint != Complaint::Unknown;
        // It cannot be closed: the sender is here.
        self.0.subscribe().wait_for(|lines| lines.complaint().is_some_and(is_known)).await.ok();
    }

    /// What the present child said, if no other child would read either.
    pub(super) fn refusal(&self) -> Option<ReaderError> {
        self.0.borrow().refusal()
    }

    /// Waits until the present child says such a thing.
    pub(super) async fn refused(&self) {
        // It cannot be closed: the sender is here.
        self.0.subscribe().wait_for(|lines| lines.refusal().is_some()).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_present_child_refuses_and_lines_are_bounded() {
        let said = Said::default();
        for number in 0..500 {
            said.push(&format!("nbdkit: debug: {number}"));
        }
        assert_eq!(said.0.borrow().all.len(), MAX_LINES);
        said.push("nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: incorrect user name or password");
        assert_eq!(said.refusal().map(|error| error.complaint), Some(Complaint::Login));
        said.begin();
        assert_eq!(said.refusal(), None);
        assert_eq!(said.complaint().map(|error| error.complaint), Some(Complaint::Login));
        said.push("nbdkit: vddk[2]: error: VixDiskLib_Read: Failed to connect to vc.example:443");
        assert_eq!(said.refusal(), None, "a server that is away comes back");
    }
}
