//! Migrations at work: the driver that owns each one, its passes, its cutover, its verification.
//!
//! Rule: one task owns a migration. Everybody else asks through [`control::Control`] and looks at views.

pub mod control;
