//! The documents say what the code does: phases, metrics, paths and links.
//!
//! Rule: what a document lists is compared with the code in both directions.

use std::{collections::BTreeSet, fs, path::PathBuf};

use warmd_core::model::phase::Phase;

use super::{files, root, source::without_tests};

/// The README is read in one go.
const README_LINES: usize = 200;

fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All documents, as paths from the root.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("daemon/docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.map(|path| path.strip_prefix(root()).unwrap().to_owned());
    let others = ["README.md", "tests/README.md", "tests/vsphere/README.md", "benches/README.md"];
    docs.chain(others.map(PathBuf::from)).collect()
}

/// What stands in the first column of tables, in `…`; several of a row are several.
fn first_column(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2)).collect()
}

#[test]
fn phases_are_those_of_the_documents() {
    let phases: Vec<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
    let cutover = document("daemon/docs/cutover.md");
    let section = cutover.split("\n## ").find(|section| section.starts_with("Phases")).unwrap_or_default();
    assert_eq!(first_column(section), phases, "the table of phases in daemon/docs/cutover.md");
    // A test beside the list of phases holds those of the glossary, with their summaries.
    let all = phases.join(", ");
    assert!(document("daemon/docs/hooks.md").contains(&all), "daemon/docs/hooks.md does not list {all}");
}

#[test]
fn metrics_are_those_of_the_document() {
    let is_name = |text: &&str| {
        (text.starts_with("warmd_") || text.starts_with("process_"))
            && text.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
    };
    let mut registered = BTreeSet::new();
    for (_, text) in files(&root().join("daemon/metrics/src")) {
        let code = without_tests(&text);
        registered.extend(code.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
    }
    assert!(registered.len() > 30, "only {registered:?} were found in daemon/metrics");
    let text = document("daemon/docs/metrics.md");
    let base = |name: &str| name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    let listed: BTreeSet<_> = first_column(&text).into_iter().filter(is_name).map(base).collect();
    assert_eq!(listed, registered, "daemon/docs/metrics.md, and what daemon/metrics registers");
}

#[test]
fn the_readme_is_short_and_names_every_document() {
    let readme = document("README.md");
    assert!(readme.lines().count() <= README_LINES, "README.md has {} lines", readme.lines().count());
    for path in documents().iter().filter(|path| path.starts_with("daemon/docs")) {
        assert!(
            readme.contains(&format!("({})", path.display())),
            "README.md does not link {}",
            path.display()
        );
    }
}

/// How GitHub names a heading's anchor.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

/// The text outside of code blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let (mut wrong, mut links) = (Vec::new(), 0);
    for path in documents() {
        let text = prose(&document(&path.to_string_lossy()));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(&path).parent().unwrap().to_owned();
            let file = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            let is_there = match fs::read_to_string(&file) {
                Ok(text) if !heading.is_empty() => text
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == heading),
                _ => file.exists() && heading.is_empty(),
            };
            if !is_there {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(links > 40, "only {links} links were found");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn paths_that_documents_name_exist() {
    let (mut wrong, mut paths) = (Vec::new(), 0);
    let tops = ["daemon/", "tests/", "cbt/", "schedules/", "proto/", "benches/"];
    for path in documents() {
        let text = prose(&document(&path.to_string_lossy()));
        for span in text.split('`').skip(1).step_by(2) {
            let named = span.split_whitespace().next().unwrap_or_default();
            if tops.iter().any(|top| named.starts_with(top))
                && !named.contains(['*', '{', '…', 'X'])
                && ![".cache", "artifacts", "NAME"].iter().any(|made| named.contains(made))
            {
                paths += 1;
                if !root().join(named).exists() {
                    wrong.push(format!("{}: {named}", path.display()));
                }
            }
        }
    }
    assert!(paths > 30, "only {paths} paths were found");
    assert!(wrong.is_empty(), "paths that are not there:\n{}", wrong.join("\n"));
}
