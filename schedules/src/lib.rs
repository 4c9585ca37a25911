//! warmd's time rules: what is due, and when.
//!
//! Rule: pure. The caller passes the time in; nothing here reads a clock.
#![forbid(unsafe_code)]
