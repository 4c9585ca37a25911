//! One word, one meaning: names, texts and their width, in code, tests and documents.
//!
//! Rule: a finding names the file, the line and what to write instead. A list of exceptions gives a reason
//! for each, and an exception that is not needed any more is a finding too, so the lists can only shrink.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    files, product, root,
    source::{Lines, without_tests, words},
};

/// Columns of code and comments.
const WIDTH: usize = 110;
/// Letters of a test function's name.
const TEST_NAME: usize = 60;

/// Words that are not used, in names and in texts, and what to write instead. `daemon/docs/glossary.md` has
/// the terms.
const EVERYWHERE: [(&str, &str); 16] = [
    ("whoever", "the one who acts: the operator, the daemon, another program"),
    ("somebody", "the one who acts: an operator, a user, another program"),
    ("someone", "the one who acts: an operator, a user, another program"),
    ("it is told", "it is reported"),
    ("by itself", "automatically, alone, or without a request"),
    ("on its way", "queued, in flight, unfinished"),
    ("on their way", "queued, in flight, unfinished"),
    ("arbiter", "rate limiter, or admission queue"),
    ("nook", "runtime directories"),
    ("untold", "unreported"),
    ("verdict", "outcome, result, or decision"),
    ("overtaken", "stale"),
    ("appointed", "scheduled"),
    ("culprit", "error span"),
    ("witness", "change detector"),
    ("standing", "status"),
];

/// Words that the product's code and the documents do not use either; tests may.
const PRODUCT: [(&str, &str); 11] = [
    ("nobody", "no user, no program, no VM"),
    ("anew", "again"),
    ("given up", "cancelled, abandoned, or deleted"),
    ("gives up", "cancels, abandons, or deletes"),
    ("taken back", "undone, aborted, or reclaimed"),
    ("taken up", "started, or restarted"),
    ("tell of", "report, or name"),
    ("tells of", "reports, or names"),
    ("seal", "record, commit, or sign"),
    ("sealed", "recorded, committed, or signed"),
    ("sealing", "recording, committing, or signing"),
];

/// Where a word of the lists must stay: file, word, reason.
const KEPT: [(&str, &str, &str); 3] = [
    ("daemon/core/src/model/state.rs", "overtaken", "states that release 0.1 saved"),
    ("daemon/store/src/row.rs", "overtaken", "a state that release 0.1 saved"),
    ("daemon/docs/glossary.md", "", "it lists the words that are not used"),
];

/// Public types of two packages that have one name: the name and the reason.
const TWICE: [(&str, &str); 0] = [];

/// All texts that people or the compiler read, with their paths from the root.
fn texts() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", "corpus", ".git"].contains(&name.as_str()) {
                    walk(&path, found);
                }
            } else if [".rs", ".md", ".proto", ".toml"].iter().any(|ending| name.ends_with(ending)) {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    for top in ["cbt", "schedules", "proto", "daemon", "tests", "benches"] {
        walk(&root().join(top), &mut found);
    }
    found.push((root().join("README.md"), fs::read_to_string(root().join("README.md")).unwrap()));
    // Generated from the .proto files, and this list.
    let skipped = [root().join("proto/src"), root().join("tests/tests/house_rules")];
    found.retain(|(path, _)| !skipped.iter().any(|skip| path.starts_with(skip)));
    found.into_iter().map(|(path, text)| (path.strip_prefix(root()).unwrap().to_owned(), text)).collect()
}

/// Fails with all findings, one a line.
fn report(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn public_types_have_a_name_of_their_own() {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let packages: Vec<_> = product().into_iter().filter(|src| !src.ends_with("proto/src")).collect();
    for (path, text) in packages.iter().flat_map(|src| files(src)) {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let Some(item) = line.trim_start().strip_prefix("pub ") else { continue };
            let mut parts = item.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            let kind = parts.next().unwrap_or_default();
            if ["struct", "enum", "trait", "type", "union"].contains(&kind) {
                let name = parts.next().unwrap_or_default().to_owned();
                types.entry(name).or_default().push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(types.len() > 300, "only {} public types were found", types.len());
    let allowed: BTreeSet<_> = TWICE.iter().map(|(name, _)| *name).collect();
    let mut findings = Vec::new();
    for (name, places) in &types {
        if places.len() > 1 && !allowed.contains(name.as_str()) {
            findings.push(format!("{name} is the name of {} types: {}", places.len(), places.join(", ")));
        }
    }
    for name in allowed {
        if types.get(name).is_none_or(|places| places.len() < 2) {
            findings.push(format!("{name} is the name of one type now: remove it from TWICE"));
        }
    }
    report(&findings);
}

/// The places of a word or phrase of `list` in `text`: line, word, and what to write instead.
fn forbidden(text: &str, list: &[(&'static str, &'static str)]) -> Vec<(usize, &'static str, &'static str)> {
    let words = words(text);
    let mut found = Vec::new();
    for (phrase, instead) in list {
        let wanted: Vec<_> = phrase.split(' ').collect();
        for at in words.windows(wanted.len()) {
            let is_it = at.iter().zip(&wanted).all(|(word, wanted)| word.text == *wanted);
            if is_it && at[1..].iter().all(|word| word.continues) {
                found.push((at[0].line, *phrase, *instead));
            }
        }
    }
    found
}

#[test]
fn words_that_are_not_used_are_not_there() {
    let (mut findings, mut kept) = (Vec::new(), BTreeSet::new());
    for (path, text) in texts() {
        let is_test = path.starts_with("tests") || path.starts_with("benches");
        let is_test = is_test
            || path
                .components()
                .any(|part| ["tests", "examples"].contains(&&*part.as_os_str().to_string_lossy()));
        let is_rust = path.extension().is_some_and(|ending| ending == "rs");
        let mut found = forbidden(&text, &EVERYWHERE);
        if !is_test {
            found.extend(forbidden(if is_rust { without_tests(&text) } else { &text }, &PRODUCT));
        }
        for (line, word, instead) in found {
            let exception = KEPT
                .iter()
                .position(|(file, kept, _)| path == Path::new(file) && (*kept == word || kept.is_empty()));
            match exception {
                Some(number) => {
                    kept.insert(number);
                }
                None => findings
                    .push(format!("{}:{line}: \"{word}\" is not used: write {instead}", path.display())),
            }
        }
    }
    for (number, (file, word, _)) in KEPT.iter().enumerate() {
        if !kept.contains(&number) {
            findings.push(format!("{file} lacks \"{word}\" now: remove it from KEPT"));
        }
    }
    report(&findings);
}

#[test]
fn code_and_comments_keep_to_the_width() {
    let mut findings = Vec::new();
    for (path, text) in
        texts().iter().filter(|(path, _)| path.extension().is_some_and(|ending| ending == "rs"))
    {
        for (line, written) in Lines::of(text).into_iter().zip(text.lines()) {
            // A line is longer only for a text literal, which rustfmt cannot break, or as a row of a table.
            if written.starts_with("//! |") {
                continue;
            }
            let columns = if line.has_literal { line.comment_end } else { line.columns };
            if columns > WIDTH {
                findings.push(format!(
                    "{}:{}: {columns} columns, more than {WIDTH}",
                    path.display(),
                    line.number
                ));
            }
        }
    }
    report(&findings);
}

#[test]
fn test_names_are_short() {
    let (mut findings, mut tests) = (Vec::new(), 0);
    for (path, text) in
        texts().iter().filter(|(path, _)| path.extension().is_some_and(|ending| ending == "rs"))
    {
        let lines: Vec<_> = text.lines().map(str::trim_start).collect();
        for (number, line) in lines.iter().enumerate() {
            if !line.starts_with("#[test]") && !line.starts_with("#[tokio::test") {
                continue;
            }
            let name = lines[number + 1..].iter().take(6).find_map(|line| line.split("fn ").nth(1));
            let name = name.and_then(|rest| rest.split(['(', '<']).next()).unwrap_or_default();
            tests += 1;
            let (at, letters) = (format!("{}:{}", path.display(), number + 1), name.chars().count());
            if letters > TEST_NAME {
                findings
                    .push(format!("{at}: {name} has {letters} letters: name subject, condition and result"));
            }
        }
    }
    assert!(tests > 1000, "only {tests} tests were found");
    report(&findings);
}

#[test]
fn a_wrapped_or_joined_phrase_is_found_and_a_longer_word_is_not() {
    let list = [("by itself", "alone"), ("standing", "status")];
    let lines = |text| forbidden(text, &list).iter().map(|(line, ..)| *line).collect::<Vec<_>>();
    assert_eq!(lines("//! it ends by\n//! itself\n"), [1]);
    assert_eq!(lines("let DomainStanding { .. } = ends_by_itself();\n"), [1, 1]);
    assert_eq!(lines("an outstanding bystander. By. Itself\n"), [0_usize; 0]);
}
