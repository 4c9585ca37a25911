//! The line in a VM's notes that says that warmd switched tracking on.
//!
//! Rule: it is written in the same call as the switch, so that neither is there without the other after a
//! crash; and it names the migration at whose end tracking is switched off again.

use crate::snapshot::Owner;

const NOTE: &str = "[warmd] changed-block tracking was switched on for migration ";
const END: &str = "; it is switched off again when that ends";

fn read(line: &str) -> Option<Owner> {
    let owner = line.trim_end().strip_prefix(NOTE)?.strip_suffix(END)?;
    (!owner.is_empty()).then(|| Owner::new(owner))
}

/// For whom tracking was switched on, by a VM's notes.
pub fn switched_on_for(notes: &str) -> Option<Owner> {
    notes.lines().find_map(read)
}

/// The notes with the line.
pub fn with_note(notes: &str, owner: &Owner) -> String {
    let (rest, line) = (without_note(notes), format!("{NOTE}{owner}{END}"));
    if rest.trim().is_empty() { line } else { format!("{rest}\n{line}") }
}

/// The notes without it.
pub fn without_note(notes: &str) -> String {
    let lines: Vec<&str> = notes.lines().filter(|line| read(line).is_none()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_in_notes_and_leaves_them_as_they_were() {
        let owner = Owner::new("m-1");
        for notes in ["", "web server\nask Ann", "a\n\nb"] {
            let noted = with_note(&with_note(notes, &Owner::new("m-0")), &owner);
            assert_eq!(switched_on_for(&noted), Some(owner.clone()), "{noted}");
            assert_eq!(noted.matches(NOTE).count(), 1, "{noted}");
            assert_eq!(without_note(&noted), notes);
        }
    }

    #[test]
    fn what_is_like_the_line_is_none() {
        let empty = format!("{NOTE}{END}");
        for line in ["", "changed-block tracking was switched on", NOTE, &empty, &format!("{NOTE}m-1")] {
            assert_eq!(switched_on_for(line), None, "{line}");
        }
    }
}
