//! Named points between durable steps, where a daemon that dies must be able to go on.
//!
//! Rule: a point is a line of the log, at level `trace`, and nothing else: the daemon that tests end at a
//! point is the one that ships. They end it when it writes the line, before it does anything further.

/// Names the point that the work has come to.
pub fn point(name: &str) {
    tracing::trace!(point = name, "a point between durable steps");
}
