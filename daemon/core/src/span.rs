//! The log span of all work for a migration.
//!
//! Rule: every log line on behalf of a migration has its id, also from code that does not know the migration:
//! the driver's task is in this span, and each task that is started for it stays in the span in which it was
//! started (`in_current_span`, and `threads` for calls that may hang).

use std::fmt::Display;

use tracing::Span;

/// The span of a migration. It has the highest level, so that a log of errors alone still names their
/// migrations.
pub fn migration_span(id: impl Display, vm: &str) -> Span {
    tracing::error_span!("migration", migration = %id, vm)
}
