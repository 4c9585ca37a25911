//! A pass as messages: the order that goes to whatever moves the bytes, and the events that come back.
//!
//! Rule: a message is plain data. What is read from one is checked where it is read, so an impossible run of
//! bytes or set of blocks never gets further than the decoder. The state commits a [`LedgerChange`] before
//! the mover gets its acknowledgement, and a mover writes to a trusted block only after its claim was
//! acknowledged: with that the ledger's rules hold on any host.
//!
//! ```text
//! daemon                                      mover (in this process, or on another host)
//! advance, committed ─▶ PassOrder ──────────▶ audit ─▶ drain
//! ledger.claim, ledger.drain ◀─ LedgerChange ─┤          each waits for its acknowledgement
//! metrics, view, journal, state ◀─ PassEvent ─┘
//! ```

mod event;
mod observer;
mod order;
#[cfg(test)]
mod tests;

pub use self::{
    event::{
        BlockChange, CopySide, DiskAudit, DiskFigures, LedgerChange, PassEvent, PassFailureCause, PassFault,
        PassResult,
    },
    observer::{LiveFigures, Observers, PassLedger, PassObserver, TransferObserver, Unobserved},
    order::{AuditOrder, DiskOrder, PassLabels, PassOrder, RateCeiling},
};
