//! Changed-block tracking: what may be believed of it, and when.
//!
//! Rule: these are pure decisions over what the server said; nothing here asks it. Since vSphere 6.5 tracking
//! that was switched on wrongly gives wrong answers without an error, so each known way to that is refused
//! beforehand or makes the answer "unknown", which leads to a comparison of the whole disk.
//!
//! ```text
//! switch   may it be switched on?                     VM ──▶ yes / why not
//! disks    can this disk be moved, and tracked?       disk ─▶ yes / what to do
//! judge    does the anchor still say something?       anchor, now ─▶ ask since … / unknown, because …
//! areas    the answers, page by page                  areas ─▶ a set of blocks / unknown, because …
//! note     was it switched on by warmd?               notes ─▶ for which migration
//! ```

mod areas;
mod disks;
mod judge;
mod marks;
mod note;
mod switch;

pub use areas::{Nonsense, Walk};
pub use disks::{Obstacle, obstacle};
pub use judge::{Since, TrackedDisk, after_fault, since};
pub use marks::{ChangeId, Mark, change_id_now};
pub use note::{switched_on_for, with_note, without_note};
pub use switch::{may_switch_on, snapshots_of_others};
