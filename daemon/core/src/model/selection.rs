//! The VMs that a plan's `vms` select: names, ids, patterns, and exclusions.
//!
//! Rule: a VM's literal name wins, with any characters. Otherwise a leading `!` excludes, `*` stands for any
//! characters and `?` for one. An exclusion overrides every name and pattern, regardless of the order.

/// A VM that a plan selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedVms {
    /// Its name, or its id where other VMs have that name too; a name without a VM stays as written.
    pub vm: String,
    /// The pattern that selected it, if it is not named.
    pub pattern: Option<String>,
}

/// The VMs that `vms` selects on a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub chosen: Vec<SelectedVms>,
    /// Patterns and exclusions that match nothing.
    pub idle: Vec<String>,
}

/// Whether the entry may be more than a name: then its meaning depends on the list of all VMs.
pub fn is_pattern(entry: &str) -> bool {
    entry.starts_with('!') || entry.contains(['*', '?'])
}

/// Whether `entry` may select the VM of this name.
pub fn may_mean(entry: &str, vm: &str) -> bool {
    entry == vm || matches(entry, vm)
}

/// Selects among the `known` VMs (id, name), in the order of the entries.
pub fn select(entries: &[String], known: &[(String, String)]) -> Selection {
    let mut selection = Selection::default();
    let mut excluded = vec![false; known.len()];
    let is_called = |(id, name): &(String, String), text: &str| id == text || name == text;
    let is_literal = |entry: &str| known.iter().any(|vm| is_called(vm, entry));
    for entry in entries.iter().filter(|entry| !is_literal(entry)) {
        let Some(pattern) = entry.strip_prefix('!') else { continue };
        let mut hit = false;
        for (vm, excluded) in known.iter().zip(&mut excluded) {
            if is_called(vm, pattern) || !is_literal(pattern) && matches(pattern, &vm.1) {
                (*excluded, hit) = (true, true);
            }
        }
        if !hit {
            selection.idle.push(entry.clone());
        }
    }
    let mut taken = vec![false; known.len()];
    let mut choose = |entry: &str, by: &dyn Fn(&(String, String)) -> bool, is_pattern: bool| {
        let mut hit = false;
        for (at, vm) in known.iter().enumerate().filter(|(_, vm)| by(vm)) {
            hit = true;
            if excluded[at] || (taken[at] && is_pattern) {
                continue;
            }
            taken[at] = true;
            let alone = known.iter().filter(|(_, name)| *name == vm.1).count() == 1;
            let called = if alone { vm.1.clone() } else { vm.0.clone() };
            let (vm, pattern) =
                if is_pattern { (called, Some(entry.to_owned())) } else { (entry.to_owned(), None) };
            if selection.chosen.iter().all(|chosen| is_pattern || chosen.vm != vm) {
                selection.chosen.push(SelectedVms { vm, pattern });
            }
        }
        hit
    };
    // Names first, so that a pattern does not take a named VM.
    let mut idle = Vec::new();
    for entry in entries {
        if is_literal(entry) {
            choose(entry, &|vm| is_called(vm, entry), false);
        }
    }
    for entry in entries.iter().filter(|entry| !is_literal(entry) && !entry.starts_with('!')) {
        if !is_pattern(entry) {
            idle.push(SelectedVms { vm: entry.clone(), pattern: None });
        } else if !choose(entry, &|(_, name)| matches(entry, name), true) {
            selection.idle.push(entry.clone());
        }
    }
    selection.chosen.extend(idle);
    selection
}

/// Whether the whole `name` matches the pattern. Takes at most the product of their lengths.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of, mut star) = (0, 0, None);
    while at < name.len() {
        match pattern.get(of) {
            Some('*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(each) if *each == '?' || *each == name[at] => (at, of) = (at + 1, of + 1),
            _ => {
                // The last star takes one more character.
                let Some((starred, from)) = star else { return false };
                star = Some((starred, from + 1));
                (of, at) = (starred + 1, from + 1);
            }
        }
    }
    pattern.iter().skip(of).all(|each| *each == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(entries: &[&str], names: &[&str]) -> (String, String) {
        let known: Vec<_> =
            names.iter().enumerate().map(|(id, name)| (format!("id{id}"), (*name).to_owned())).collect();
        let entries: Vec<_> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let Selection { chosen, idle } = select(&entries, &known);
        let chosen: Vec<_> = chosen.into_iter().map(|chosen| chosen.vm).collect();
        (chosen.join(" "), idle.join(" "))
    }

    #[test]
    fn patterns_names_and_exclusions_choose() {
        let names = ["web-1", "web-2", "web-test", "db", "*", "!db"];
        for (entries, vms, idle) in [
            (&["web-*"][..], "web-1 web-2 web-test", ""),
            (&["web-?"], "web-1 web-2", ""),
            (&["web-*", "!web-test"], "web-1 web-2", ""),
            (&["!web-*", "web-*", "db"], "db", ""),
            (&["!web-1", "web-1"], "", ""),
            (&["web-2", "web-*"], "web-2 web-1 web-test", ""),
            (&["web-*", "web-*"], "web-1 web-2 web-test", ""),
            (&["id3", "d?"], "id3", ""),
            // A literal name wins.
            (&["*"], "*", ""),
            (&["!db"], "!db", ""),
            (&["**", "!!db", "!*"], "web-1 web-2 web-test db", ""),
            // A name without a VM is reported by the code that looks for the VM.
            (&["app", "app-*", "!app"], "app", "!app app-*"),
        ] {
            assert_eq!(chosen(entries, &names), (vms.to_owned(), idle.to_owned()), "{entries:?}");
        }
        assert_eq!(chosen(&["a*"], &["a", "a", "ab"]).0, "id0 id1 ab");
    }

    #[test]
    fn a_pattern_means_the_whole_name() {
        for (pattern, name, is) in [
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b", "abc", false),
            ("*ä?", "xäö", true),
            ("WEB*", "web1", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
        // Not exponential.
        assert!(!matches(&"*a".repeat(100), &"a".repeat(50)));
    }

    proptest! {
        #[test]
        fn stars_for_pieces_match(name in "[a-c]{0,12}", at in 0_usize..12, len in 0_usize..12) {
            let (start, end) = (at.min(name.len()), (at + len).min(name.len()));
            let pattern = [&name[..start], "*", &name[end..]].concat();
            prop_assert!(matches(&pattern, &name));
            let pattern = [&name[..start], &"?".repeat(end - start), &name[end..]].concat();
            prop_assert!(matches(&pattern, &name));
            let longer = [&pattern, "?"].concat();
            prop_assert!(!matches(&longer, &name));
        }
    }
}
