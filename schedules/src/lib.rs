//! warmd's time rules: what is due, when, and how much of it at a time.
//!
//! Rule: pure. The caller passes the time in; nothing here reads a clock, a file or the network, and the same
//! facts give the same answer. Every answer can say why in words.
//!
//! | module | job |
//! | --- | --- |
//! | [`schedule`] | a plan's `[schedule]` as an operator writes it, and what is wrong with it |
//! | [`schedule_override`] | what one VM's schedule has in place of its plan's |
//! | [`rules`] | may a pass start now, and if not, when? |
//! | [`adaptive`], [`change_rate`] | spacing passes by the change rates that were learned |
//! | [`cron`], [`window`], [`calendar`], [`zone`], [`when`] | times of the wall clock, also when clocks are put forward or back |
//! | [`quota`] | how much may be done, by the time of day |
//! | [`admission_queue`] | whose pass is next where many wait |
//! | [`forecast`] | how long a VM will be down, and whether that fits |
//! | [`explain`] | the next decisions and their reasons |
#![forbid(unsafe_code)]

pub mod adaptive;
pub mod admission_queue;
pub mod calendar;
pub mod change_rate;
pub mod cron;
pub mod error;
pub mod explain;
pub mod forecast;
pub mod quota;
pub mod rules;
pub mod schedule;
pub mod schedule_override;
pub mod text;
pub mod when;
pub mod window;
pub mod zone;

pub use chrono_tz::Tz;
pub use schedule::Schedule;
