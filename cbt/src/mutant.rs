//! Deliberate bugs, one at a time, to see that a test catches each.
//!
//! Rule: it is absent from a release build, nor in one without the feature `mutants`; with it, the
//! environment variable `WARMD_MUTANT=NAME` selects one, and the file `WARMD_MUTANT_REACHED` is created when
//! the code reaches it.

/// Whether the bug `name` is active.
#[cfg(all(feature = "mutants", debug_assertions))]
pub fn mutant(name: &str) -> bool {
    use std::sync::OnceLock;

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

/// Never: the feature is off.
#[cfg(not(all(feature = "mutants", debug_assertions)))]
#[inline]
pub fn mutant(_name: &str) -> bool {
    false
}
