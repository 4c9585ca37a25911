//! The span of the log in which everything is done for a migration.
//!
//! Rule: every line that is written on behalf of a migration has its id, also where whoever writes it knows of none: the
//! owner's task is in this span, and each task that is begun for it goes on in the span that it was begun in
//! (`in_current_span`, and `threads` for calls that may hang).

use std::fmt::Display;

use tracing::Span;

/// That of a migration. It is of the highest level: whoever wants to see errors alone sees whose they are.
pub fn of(id: impl Display, vm: &str) -> Span {
    tracing::error_span!("migration", migration = %id, vm)
}
