//! Why a connection between movers ended, and what that is for the engine.
//!
//! Rule: a peer that is lost may come back; a refusal is final, until the order is another.

use std::{io, sync::Arc, time::Duration};

use warmd_cbt::disk::ErrorKind;

use super::{
    bytes::Malformed,
    message::{OLDEST, RefusalReason, VERSION},
    tls,
};

/// The end of a connection, or the reason why there is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WireError {
    #[error("{0} ({1})")]
    Tls(String, rustls::Error),
    #[error("{text}", text = tls::explain(.0))]
    Untrusted(rustls::Error),
    #[error("{0}: {1}")]
    Io(&'static str, Arc<io::Error>),
    #[error("{what} took longer than {after} s", what = .0, after = .1.as_secs_f32())]
    Late(&'static str, Duration),
    #[error("the peer sent nothing for {after} s, not even an answer to a ping", after = .0.as_secs_f32())]
    Silent(Duration),
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("{text}", text = explain(*.0, .1))]
    Refused(RefusalReason, String),
    #[error("the peer has no certificate of a mover (a URI `warmd://mover/NAME` in it)")]
    NoMover,
    #[error("the export changed from {0} to {1} bytes: it is another snapshot")]
    OtherSize(u64, u64),
    #[error(
        "data at {0} does not match the digest that came with it: a memory or a program at the peer is faulty"
    )]
    Digest(u64),
    #[error("the peer reports: {1}")]
    Peer(ErrorKind, String),
    #[error("the disk was closed")]
    Ended,
}

impl WireError {
    /// An I/O error, by its cause: TLS reports refusals as such errors.
    pub(super) fn io(doing: &'static str, error: io::Error) -> Self {
        if let Some(refused) = tls::refusal(&error) {
            return Self::Untrusted(refused.clone());
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Closed;
        }
        Self::Io(doing, Arc::new(error))
    }

    /// The kind for the engine.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tls(..) | Self::Untrusted(_) | Self::NoMover => ErrorKind::Refused,
            Self::Refused(RefusalReason::Version | RefusalReason::Export, _) => ErrorKind::Refused,
            Self::Refused(RefusalReason::Busy, _) => ErrorKind::Connection,
            Self::Io(..) | Self::Silent(_) | Self::Closed | Self::Ended => ErrorKind::Connection,
            Self::Late(..) => ErrorKind::Timeout,
            Self::Malformed(_) | Self::OtherSize(..) | Self::Digest(_) => ErrorKind::Protocol,
            Self::Peer(kind, _) => *kind,
        }
    }

    /// Whether the same request may succeed on another connection.
    pub(super) fn is_transient(&self) -> bool {
        !matches!(self, Self::Peer(..) | Self::Digest(_))
            && matches!(self.kind(), ErrorKind::Connection | ErrorKind::Timeout)
    }
}

fn explain(reason: RefusalReason, text: &str) -> String {
    match reason {
        RefusalReason::Version => format!(
            "the peer refused: {text}. This mover speaks versions {OLDEST} to {VERSION}: upgrade the older of the two"
        ),
        RefusalReason::Export => format!("the peer refused: {text}"),
        RefusalReason::Busy => format!("the peer is busy: {text}"),
    }
}
