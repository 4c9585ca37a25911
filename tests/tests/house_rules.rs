//! The rules that the design gives the code, held by reading it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    UseTree,
    visit::{self, Visit},
};

/// Who may import whom in the daemon; each layer also knows those below it, and itself.
const LAYERS: [(&str, u32); 25] = [
    ("model", 0),
    ("channel", 0),
    ("crash", 0),
    ("clock", 0),
    ("format", 0),
    ("process", 0),
    ("manifest_root", 0),
    ("seal", 0),
    ("span", 0),
    ("threads", 0),
    ("nbd", 1),
    ("libvirt", 1),
    ("store", 1),
    ("metrics", 1),
    ("systemd", 2),
    ("sources", 2),
    ("targets", 2),
    ("migration", 3),
    ("scheduler", 4),
    ("config", 6),
    ("api", 5),
    ("cli", 7),
    ("host", 7),
    ("app", 8),
    ("bin", 9),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All Rust files below `folder`, with their text.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// The first folder or file below `src` that a file belongs to.
fn layer_of(path: &Path, src: &Path) -> String {
    let inner = path.strip_prefix(src).unwrap();
    let first = inner.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// Collects the top-level modules that a file names by `crate::…`.
#[derive(Default)]
struct Imports(BTreeSet<String>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if let UseTree::Path(path) = &item.tree
            && path.ident == "crate"
        {
            heads(&path.tree, &mut self.0);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(head) = segments.next()
        {
            self.0.insert(head.ident.to_string());
        }
        visit::visit_path(self, path);
    }
}

/// The first name of every branch of a `use` tree.
fn heads(tree: &UseTree, into: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => drop(into.insert(path.ident.to_string())),
        UseTree::Name(name) => drop(into.insert(name.ident.to_string())),
        UseTree::Rename(rename) => drop(into.insert(rename.ident.to_string())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| heads(tree, into)),
        UseTree::Glob(_) => drop(into.insert("*".to_owned())),
    }
}

fn imports(text: &str) -> BTreeSet<String> {
    let file = syn::parse_file(text).expect("a file of this workspace parses");
    let mut imports = Imports::default();
    imports.visit_file(&file);
    imports.0
}

/// What breaks the rule of layers in `src`, in words.
fn violations(sources: &[(PathBuf, String)], src: &Path) -> Vec<String> {
    let ranks: BTreeMap<_, _> = LAYERS.into_iter().collect();
    let mut found = Vec::new();
    for (path, text) in sources {
        let own = layer_of(path, src);
        if own == "lib" {
            continue;
        }
        let Some(rank) = ranks.get(own.as_str()) else {
            found.push(format!("{}: `{own}` has no layer: name it in LAYERS", path.display()));
            continue;
        };
        for import in imports(text) {
            let Some(theirs) = ranks.get(import.as_str()) else { continue };
            if import != own && (theirs > rank || theirs == rank && *rank > 0) {
                found.push(format!("{}: `{own}` must not know `{import}`", path.display()));
            }
        }
    }
    found
}

#[test]
fn layers_of_the_daemon_know_only_those_below() {
    let src = root().join("daemon/src");
    let sources = files(&src);
    assert!(sources.len() > 20, "only {} files found in {}", sources.len(), src.display());
    let found = violations(&sources, &src);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_layer_check_sees_every_form_of_import() {
    let src = Path::new("src");
    let sees = |file: &str, text: &str| !violations(&[(src.join(file), text.to_owned())], src).is_empty();
    assert!(sees("store/mod.rs", "use crate::migration::driver;"));
    assert!(sees("sources/libvirt/mod.rs", "use crate::{model::id, targets::Target};"));
    assert!(sees("nbd/disk.rs", "fn f() { crate::store::open(); }"));
    assert!(sees("unheard_of.rs", ""));
    assert!(!sees("migration/driver.rs", "use crate::{model::state::State, store::{Store, Change}};"));
}

#[test]
fn the_engine_the_schedules_and_the_contract_know_nothing_of_ours() {
    for package in ["cbt", "schedules", "proto"] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let table: toml::Table = toml::from_str(&manifest).unwrap();
        let dependencies = table["dependencies"].as_table().unwrap();
        let ours: Vec<_> = dependencies.keys().filter(|name| name.starts_with("warmd-")).collect();
        assert!(ours.is_empty(), "{package} depends on {ours:?}");
        for foreign in ["rusqlite", "tonic"] {
            assert!(
                package == "proto" || !dependencies.contains_key(foreign),
                "{package} depends on {foreign}"
            );
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_daemon() {
    for package in ["cbt", "schedules"] {
        let lib = fs::read_to_string(root().join(package).join("src/lib.rs")).unwrap();
        assert!(lib.contains("#![forbid(unsafe_code)]"), "{package}/src/lib.rs does not forbid unsafe code");
    }
    let manifest = fs::read_to_string(root().join("proto/Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""), "proto/Cargo.toml does not forbid unsafe code");
}

#[test]
fn the_time_of_day_is_asked_of_the_clock_alone() {
    let src = root().join("daemon/src");
    for (path, text) in files(&src) {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let own = layer_of(&path, &src);
        // The screen of the command line tells people the time; the simulation does not see it.
        let may = ["clock", "cli"].contains(&own.as_str());
        assert!(may || !code.contains("Utc::now"), "{}: ask `clock::now` instead", path.display());
    }
}

#[test]
fn files_stay_rooms_with_one_purpose() {
    let mut long = Vec::new();
    for folder in ["cbt/src", "daemon/src", "schedules/src", "proto/src", "tests/src"] {
        for (path, text) in files(&root().join(folder)) {
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            if code.lines().count() > 500 {
                long.push(format!("{}: {} lines without its tests", path.display(), code.lines().count()));
            }
            if !text.starts_with("//!") {
                long.push(format!("{}: does not open with its job", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}
