//! Why a command failed, and its exit code.

use std::{error::Error, fmt, io, process::ExitCode};

use tonic::{Code, Status};
use warmd_proto::KIND_TRAILER;

/// What a script learns from the exit code. Documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The reader of our output has closed it: no failure at all.
    OutputClosed,
    Failed,
    Usage,
    Unreachable,
    NotFound,
    Refused,
    Interrupted,
}

impl Exit {
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::OutputClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
            Self::Refused => 5,
            Self::Interrupted => 130,
        })
    }
}

/// The end of a command that failed.
#[derive(Debug)]
pub(super) struct CliFailure {
    pub(super) exit: Exit,
    /// For the user; empty if all was printed already.
    pub(super) message: String,
}

impl CliFailure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A failure that was reported already.
    pub(super) fn already_printed(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }
}

impl fmt::Display for CliFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliFailure {}

impl From<io::Error> for CliFailure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::already_printed(Exit::OutputClosed);
        }
        Self::new(Exit::Failed, format!("cannot write the output: {error}"))
    }
}

/// Whether the connection failed, not the daemon's operation.
pub(super) fn is_connection(status: &Status) -> bool {
    let from_daemon = status.metadata().contains_key(KIND_TRAILER);
    !from_daemon && (status.code() == Code::Unavailable || status.source().is_some())
}

impl From<Status> for CliFailure {
    fn from(status: Status) -> Self {
        if is_connection(&status) {
            let why = status.source().map_or_else(|| status.message().to_owned(), root_cause);
            let message = format!(
                "the connection to the daemon broke ({why}); whether it got the request is not known: see \
                 `warmctl migration list` when it is back"
            );
            return Self::new(Exit::Unreachable, message);
        }
        let exit = match status.code() {
            Code::NotFound => Exit::NotFound,
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated => Exit::Refused,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::AlreadyExists
            | Code::Aborted
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Exit::Failed,
        };
        let message = match status.code() {
            Code::Unimplemented => {
                "the daemon does not know this request: it is older than this warmctl".to_owned()
            }
            Code::DeadlineExceeded => "the daemon did not answer in time".to_owned(),
            // tonic's own deadline on the client's side.
            Code::Cancelled => format!("the daemon did not answer: {}", status.message()),
            _ => status.message().to_owned(),
        };
        Self::new(exit, message)
    }
}

/// The text of the deepest cause.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
