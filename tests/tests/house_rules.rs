//! The design rules for the code, checked by reading the sources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

#[path = "house_rules/documents.rs"]
mod documents;
#[path = "house_rules/source.rs"]
mod source;
#[path = "house_rules/words.rs"]
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Which of our packages each package of the product may depend on. Cargo enforces the layers; this table
/// prevents accidental dependencies. An entry marked as interim is removed together with its dependency.
const KNOWS: [(&str, &[&str]); 21] = [
    ("cbt", &[]),
    ("schedules", &[]),
    ("proto", &[]),
    ("daemon/threads", &[]),
    ("daemon/report", &["cbt"]),
    ("daemon/disks", &["cbt", "threads"]),
    ("daemon/core", &["cbt", "schedules"]),
    ("daemon/store", &["cbt", "core", "schedules", "threads"]),
    ("daemon/metrics", &["cbt", "core", "threads"]),
    ("daemon/transfer", &["cbt", "core"]),
    ("daemon/v2v", &["core"]),
    ("daemon/wire", &["cbt"]),
    ("daemon/migration", &["cbt", "core", "schedules", "store", "threads", "transfer", "v2v"]),
    ("daemon/endpoints/storage", &["cbt", "core", "disks", "threads"]),
    ("daemon/endpoints/libvirt", &["cbt", "core", "disks", "storage", "threads"]),
    ("daemon/endpoints/disk", &["cbt", "core", "disks", "proto", "storage"]),
    ("daemon/endpoints/vsphere", &["cbt", "core", "disks"]),
    // Interim: the engine's types for marks and limits.
    ("daemon/api", &["cbt", "core", "proto", "schedules"]),
    ("daemon/cli", &["core", "proto", "report"]),
    (
        "daemon/warmd",
        &[
            "api",
            "cbt",
            "core",
            "disks",
            "endpoint-disk",
            "endpoint-libvirt",
            "metrics",
            "migration",
            "proto",
            "report",
            "schedules",
            "store",
            "threads",
            "v2v",
            "vsphere",
        ],
    ),
    ("tests/fuzz", &["api", "daemon", "disks", "endpoint-libvirt", "report", "store"]),
];

/// Libraries that only these packages may use, with the reason.
const FOREIGN: [(&str, &[&str], &str); 5] = [
    ("rusqlite", &["daemon/store"], "one package keeps the state"),
    ("tonic", &["daemon/api", "daemon/cli", "daemon/endpoints/disk", "daemon/warmd", "proto"], "gRPC"),
    ("clap", &["daemon/warmd", "daemon/cli"], "command lines"),
    ("libloading", &["daemon/endpoints/libvirt"], "libvirt's C interface"),
    ("hyper-rustls", &["daemon/endpoints/vsphere"], "vSphere's SOAP over TLS"),
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

fn manifest(package: &str) -> toml::Table {
    toml::from_str(&fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap()).unwrap()
}

/// The dependencies in a package's manifest.
fn dependencies(package: &str) -> BTreeSet<String> {
    manifest(package)["dependencies"].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn packages_know_only_what_the_table_says() {
    for (package, knows) in KNOWS {
        let ours: Vec<_> = dependencies(package)
            .iter()
            .filter_map(|name| name.strip_prefix("warmd-").map(str::to_owned))
            .collect();
        assert_eq!(ours, knows, "{package}");
    }
    for (library, packages, why) in FOREIGN {
        for (package, _) in KNOWS {
            let has = dependencies(package).contains(library);
            assert!(!has || packages.contains(&package), "{package} depends on {library} ({why})");
        }
    }
}

/// What a package depends on in the end, of ours.
fn closure(package: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(name) = open.pop() {
        let is_it =
            |folder: &str| folder.trim_start_matches("daemon/").replace("endpoints/", "endpoint-") == name;
        let (folder, knows) = KNOWS.iter().find(|(folder, _)| is_it(folder)).unwrap();
        if found.insert(*folder) {
            open.extend(knows.iter().map(|name| (*name).to_owned()));
        }
    }
    found
}

#[test]
fn a_movers_library_has_neither_the_state_nor_grpc() {
    for library in ["transfer", "disks", "wire"] {
        let packages = closure(library);
        for package in &packages {
            for foreign in ["rusqlite", "tonic", "clap", "libloading"] {
                assert!(!dependencies(package).contains(foreign), "{library} needs {package}: {foreign}");
            }
        }
        assert!(packages.contains("cbt"), "{packages:?}");
    }
}

#[test]
fn every_package_of_the_product_is_in_the_table() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table: toml::Table = toml::from_str(&manifest).unwrap();
    let members = table["workspace"]["members"].as_array().unwrap();
    let known: BTreeSet<_> = KNOWS.iter().map(|(package, _)| *package).collect();
    for member in members.iter().map(|member| member.as_str().unwrap()) {
        let is_product = !["tests", "benches", "cbt/testing"].contains(&member);
        assert!(!is_product || known.contains(member), "{member} is not in KNOWS");
    }
}

/// Cargo builds no test harness of a program with `test = false`: a test in it would never run.
#[test]
fn programs_without_a_test_harness_have_no_tests() {
    for (manifest, program) in programs_without_harness() {
        let path = match program.get("path") {
            Some(path) => path.as_str().unwrap().to_owned(),
            None => format!("src/bin/{}.rs", program["name"].as_str().unwrap()),
        };
        let text = fs::read_to_string(manifest.with_file_name(&path)).unwrap();
        assert!(!text.contains("#[test]"), "{path} has tests, and {} builds none", manifest.display());
    }
}

/// The programs with `test = false` in any manifest of the workspace.
fn programs_without_harness() -> Vec<(PathBuf, toml::Table)> {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = toml::from_str(&workspace).unwrap();
    let mut found = Vec::new();
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        let manifest = root().join(member.as_str().unwrap()).join("Cargo.toml");
        let table: toml::Table = toml::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
        let programs = table.get("bin").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        for program in programs.into_iter().map(|program| program.as_table().unwrap().clone()) {
            if program.get("test") == Some(&toml::Value::Boolean(false)) {
                found.push((manifest.clone(), program));
            }
        }
    }
    found
}

#[test]
fn unsafe_code_is_where_the_kernel_and_libvirt_are_called() {
    let may = ["daemon/disks", "daemon/endpoints/libvirt"];
    for (package, _) in KNOWS.iter().filter(|(package, _)| !["proto", "tests/fuzz"].contains(package)) {
        let lib = fs::read_to_string(root().join(package).join("src/lib.rs")).unwrap();
        let wanted = if may.contains(package) { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        assert!(lib.contains(wanted), "{package}/src/lib.rs lacks {wanted}");
    }
    let manifest = fs::read_to_string(root().join("proto/Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""), "proto/Cargo.toml does not forbid unsafe code");
}

/// The folders with the product's sources.
fn product() -> Vec<PathBuf> {
    let packages = KNOWS.iter().filter(|(package, _)| *package != "tests/fuzz");
    packages.map(|(package, _)| root().join(package).join("src")).collect()
}

#[test]
fn the_time_of_day_is_asked_of_the_clock_alone() {
    for (path, text) in product().iter().flat_map(|src| files(src)) {
        let code = source::without_tests(&text);
        // The screen of the command line shows the time; the simulation does not see it. vSphere's package
        // knows no other clock, and the simulation does not know it.
        let may = ["daemon/core/src/clock.rs", "daemon/cli/src", "daemon/endpoints/vsphere/src"];
        let may = may.iter().any(|place| path.starts_with(root().join(place)));
        assert!(may || !code.contains("Utc::now"), "{}: ask `clock::now` instead", path.display());
    }
}

/// Code and features that only tests use would make the tested daemon another one than the one that ships.
#[test]
fn product_has_no_code_for_tests() {
    // Seams that a test hands something to; the daemon itself leaves them as they are.
    let seams = [
        ("clock::set(", "daemon/core/src/clock.rs"),
        ("clock::turn(", "daemon/core/src/clock.rs"),
        ("Store::in_memory(", "daemon/store/src/in_memory.rs"),
        ("open_intercepted(", "daemon/store/src/lib.rs"),
        ("time::pause(", "nowhere"),
        ("time::advance(", "nowhere"),
        ("start_paused =", "nowhere"),
    ];
    for (path, text) in product().iter().flat_map(|src| files(src)) {
        let code = source::without_tests(&text);
        let shown = path.display();
        for (nth, line) in code.lines().enumerate().map(|(nth, line)| (nth + 1, line.trim_start())) {
            let is_switch = line.contains("cfg") && line.contains("feature =");
            assert!(!is_switch, "{shown}:{nth}: a feature switches code of the product");
            assert!(!line.contains("debug_assertions"), "{shown}:{nth}: a debug build has other code");
            assert!(!line.contains("mutant("), "{shown}:{nth}: bugs are patches in tests/mutants.d");
            for (call, home) in seams {
                let is_used = line.contains(call) && !line.starts_with("//") && path != root().join(home);
                assert!(!is_used, "{shown}:{nth}: `{call}…)` is for simulations");
            }
        }
    }
    for (package, _) in KNOWS.iter().filter(|(package, _)| *package != "tests/fuzz") {
        assert!(manifest(package).get("features").is_none(), "{package}/Cargo.toml has features");
    }
    for package in KNOWS.iter().map(|(package, _)| *package).chain(["tests", "benches", "cbt/testing"]) {
        for kind in ["dependencies", "dev-dependencies"] {
            let table = manifest(package).get(kind).and_then(|table| table.as_table().cloned());
            for (name, entry) in table.unwrap_or_default() {
                let has = name.starts_with("warmd-") && entry.get("features").is_some();
                assert!(!has, "{package}/Cargo.toml: features of {name}");
            }
        }
    }
}

/// Features that packages of others have only beside the tests. They add functions that the daemon does not
/// call; none changes what it does.
const BESIDE_TESTS: [(&str, &[&str]); 8] = [
    ("getrandom", &["std", "sys_rng"]),
    ("libc", &["extra_traits"]),
    ("num-traits", &["std"]),
    ("regex-automata", &["meta", "nfa-pikevm"]),
    ("regex-syntax", &["default", "unicode"]),
    ("serde", &["alloc"]),
    ("tokio-stream", &["default", "time"]),
    ("zeroize", &["alloc", "default"]),
];

/// Cargo builds a package once for all that need it, with the features of them all: those of the tests too.
#[test]
fn tested_daemon_has_the_features_of_the_shipped_one() {
    let shipped = features(&["-p", "warmd-daemon", "-p", "warmd-cli", "-e", "normal"]);
    let tested = features(&["--workspace", "-e", "normal,dev"]);
    assert!(shipped.len() > 100, "{shipped:?}");
    for (package, has) in shipped {
        let name = package.split(' ').next().unwrap_or_default();
        let may = BESIDE_TESTS.iter().find(|(other, _)| *other == name).map_or(&[][..], |(_, may)| may);
        // A package with only dependencies of the platform's may have another name there.
        let Some(tested) = tested.get(&package) else {
            panic!("{package} is not among the tested: {tested:?}")
        };
        let more: Vec<_> = tested.difference(&has).collect();
        let odd = more.iter().any(|feature| !may.iter().any(|may| feature.starts_with(may)));
        assert!(!odd, "{package}: the tested daemon has {more:?} of it, the shipped one does not");
    }
}

/// The features of each package that cargo builds for these arguments.
fn features(args: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--offline", "--prefix", "none", "-f", "{p}|{f}"]).args(args);
    let told = command.current_dir(root()).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for line in String::from_utf8_lossy(&told.stdout).lines() {
        // An empty line is between two packages of ours.
        let Some((package, features)) = line.split_once('|') else { continue };
        let features = features.trim_end_matches(" (*)").split(',').filter(|feature| !feature.is_empty());
        found.entry(package.to_owned()).or_default().extend(features.map(str::to_owned));
    }
    found
}

#[test]
fn files_stay_rooms_with_one_purpose() {
    let mut long = Vec::new();
    for folder in product().into_iter().chain([root().join("tests/src")]) {
        for (path, text) in files(&folder) {
            let code = source::without_tests(&text);
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
