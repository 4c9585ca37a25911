//! Deliberate bugs, one at a time, to see that a test catches each.
//!
//! Rule: it is in the copy of the tree that `tests/mutants` makes, never in the tree. The environment
//! variable `WARMD_MUTANT=NAME` selects one bug, and the file `WARMD_MUTANT_REACHED` is created when the code
//! reaches it.

use std::sync::OnceLock;

/// Whether the bug `name` is active.
pub fn mutant(name: &str) -> bool {
    static NAMED: OnceLock<Option<String>> = OnceLock::new();
    static REACHED: OnceLock<()> = OnceLock::new();

    let named = NAMED.get_or_init(|| std::env::var("WARMD_MUTANT").ok());
    let is_there = named.as_deref() == Some(name);
    if is_there {
        REACHED.get_or_init(|| {
            if let Some(path) = std::env::var_os("WARMD_MUTANT_REACHED") {
                std::fs::write(path, name).ok();
            }
        });
    }
    is_there
}
