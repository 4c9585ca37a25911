//! From kinds of refusal to gRPC status codes: the one place where this is decided.

use tonic::{Code, Status, metadata::MetadataValue};
use warmd_core::control::{ControlError, ControlErrorKind};
use warmd_proto::KIND_TRAILER;

/// The longest message of a status, in bytes. It travels in a header, percent-encoded to up to three times
/// its length, and clients refuse headers above 16 KiB.
const MAX_MESSAGE: usize = 4 << 10;

/// The status for `error`.
pub(super) fn status(error: &ControlError) -> Status {
    let (code, kind) = match error.kind {
        ControlErrorKind::NotFound => (Code::NotFound, "not-found"),
        ControlErrorKind::Invalid => (Code::InvalidArgument, "invalid"),
        ControlErrorKind::Refused => (Code::FailedPrecondition, "refused"),
        ControlErrorKind::Forbidden => (Code::PermissionDenied, "forbidden"),
        ControlErrorKind::Unavailable => (Code::Unavailable, "unavailable"),
        ControlErrorKind::Internal => (Code::Internal, "internal"),
    };
    let mut status = Status::new(code, shortened(&error.message));
    status.metadata_mut().insert(KIND_TRAILER, MetadataValue::from_static(kind));
    status
}

/// A status for a request that is wrong in itself.
pub(super) fn invalid(message: impl Into<String>) -> Status {
    status(&ControlError::new(ControlErrorKind::Invalid, message))
}

fn shortened(message: &str) -> String {
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MAX_MESSAGE);
    format!("{}… (shortened)", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_code_and_name() {
        use ControlErrorKind as K;
        let statuses: Vec<_> =
            [K::NotFound, K::Invalid, K::Refused, K::Forbidden, K::Unavailable, K::Internal]
                .map(|kind| status(&ControlError::new(kind, "why")))
                .into();
        for (at, one) in statuses.iter().enumerate() {
            assert_eq!(one.message(), "why");
            for other in &statuses[at + 1..] {
                assert_ne!(one.code(), other.code());
                assert_ne!(one.metadata().get(KIND_TRAILER), other.metadata().get(KIND_TRAILER));
            }
        }
    }

    #[test]
    fn a_long_message_fits_into_a_header() {
        let long = "ü".repeat(100_000);
        let status = invalid(long);
        assert!(status.message().len() < MAX_MESSAGE + 32);
        assert!(status.message().ends_with("(shortened)"));
    }
}
