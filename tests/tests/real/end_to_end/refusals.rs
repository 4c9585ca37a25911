//! Invalid files through the real programs: a clear error with its position, an exit code, and no changes.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use warmd_tests::{
    Daemon, TestDir,
    daemon::program,
    run,
    tool::{self, ToolOutput},
};

fn config(dir: &TestDir) -> String {
    let here = dir.path().display();
    format!(
        "state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/warmd.sock\"\n\n\
         [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"qemu:///system?socket={here}/none\"\n\
         runtime_dir = \"{here}/run\"\nscratch_dir = \"{here}/scratch\"\n\n\
         [[target]]\nname = \"new\"\nkind = \"libvirt\"\nuri = \"qemu:///system?socket={here}/none\"\n\
         directory = \"{here}\"\n"
    )
}

fn warmd(verb: &str, config: &Path) -> Result<ToolOutput> {
    tool::outcome(Command::new(program("warmd")?).arg(verb).arg("--config").arg(config), tool::DEADLINE)
}

/// Every file below the directory, with its bytes.
fn contents(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            found.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    // The lock file is not state.
    found.remove("lock");
    Ok(found)
}

#[test]
fn wrong_configuration_names_its_line_and_opens_nothing() {
    run(|dir| {
        let good = config(dir);
        let path = dir.join("bad.toml");
        let cases: [(&str, Vec<u8>, &str); 5] = [
            ("noise", vec![0xff, 0xfe, 0, 1, 2], "bad.toml"),
            ("no TOML", format!("{good}\nwhat = = 1\n").into_bytes(), ":19:8:"),
            ("a key that nobody knows", good.replace("state_dir", "state_dri").into_bytes(), ":1:1:"),
            ("a kind that nobody knows", good.replace("\"libvirt\"", "\"abacus\"").into_bytes(), "abacus"),
            ("out of bounds", format!("{good}\n[engine]\nchunk = 5\n").into_bytes(), "64 KiB"),
        ];
        for (what, bytes, word) in cases {
            fs::write(&path, &bytes)?;
            for verb in ["serve", "check-config"] {
                let out = warmd(verb, &path)?;
                ensure!(out.code == Some(2), "{what}: {verb} ended with {:?}: {}", out.code, out.stderr);
                ensure!(out.stderr.contains("bad.toml"), "{what}: {verb} names no file: {}", out.stderr);
                ensure!(out.stderr.contains(word), "{what}: {verb} does not say {word:?}: {}", out.stderr);
            }
            ensure!(fs::read(&path)? == bytes, "{what}: the file was touched");
            ensure!(!dir.join("state").exists() && !dir.join("warmd.sock").exists(), "{what}: it began");
        }
        let tls = format!(
            "[listen]\ntcp = \"127.0.0.1:0\"\ntls = {{ cert = \"{0}/none.pem\", key = \"{0}/k\", client_ca = \"{0}/c\" }}",
            dir.path().display()
        );
        fs::write(&path, good.replace("[listen]", &tls))?;
        let out = warmd("check-config", &path)?;
        ensure!(out.code == Some(2), "TLS: check-config ended with {:?}: {}", out.code, out.stderr);
        ensure!(out.stderr.contains("none.pem"), "TLS: check-config names no file: {}", out.stderr);
        Ok(())
    });
}

#[test]
fn a_state_that_is_not_ours_stays_as_it_is() {
    run(|dir| {
        let mut daemon = Daemon::configure(dir, dir.join("warmd.sock"), &config(dir))?;
        daemon.start()?;
        daemon.stop()?;
        let mut ours = contents(&dir.join("state"))?;
        let key = ours.remove("report.key").context("the key that signs reports is not there")?;
        // The reserve for a cutover; without a state database it is not created again.
        ours.remove("reserve").context("no room is kept")?;
        fs::remove_file(dir.join("state/reserve"))?;
        ensure!(ours.len() == 1, "a daemon that ended leaves {:?}", ours.keys());
        for (name, bytes) in ours {
            let path = dir.join("state").join(&name);
            let mut newer = bytes.clone();
            // `user_version` of SQLite's header: a number of four bytes at 60.
            newer
                .get_mut(60..64)
                .into_iter()
                .for_each(|version| version.copy_from_slice(&99_u32.to_be_bytes()));
            let cut: Vec<u8> = bytes.iter().take(bytes.len() / 2).copied().collect();
            let noise = b"no database at all\n".repeat(1000);
            for (what, content, word) in [
                ("noise", noise, "not a warmd database"),
                ("newer", newer, "newer warmd"),
                ("cut", cut, "damaged"),
            ] {
                fs::write(&path, &content)?;
                let out = warmd("serve", daemon.config())?;
                ensure!(out.code == Some(1), "{what}: it ended with {:?}: {}", out.code, out.stderr);
                ensure!(out.stderr.contains(&name), "{what}: no file is named: {}", out.stderr);
                ensure!(out.stderr.contains(word), "{what}: it does not say {word:?}: {}", out.stderr);
                let left = contents(&dir.join("state"))?;
                ensure!(
                    left == BTreeMap::from([(name.clone(), content), ("report.key".to_owned(), key.clone())]),
                    "{what}: touched: {:?}",
                    left.keys()
                );
                ensure!(!dir.join("warmd.sock").exists(), "{what}: it listens");
            }
            fs::write(&path, &bytes)?;
        }
        daemon.start()?;
        daemon.stop().map(drop)
    });
}

#[test]
fn a_wrong_plan_is_told_by_its_place_and_nothing_is_kept_of_it() {
    run(|dir| {
        let mut daemon = Daemon::configure(dir, dir.join("warmd.sock"), &config(dir))?;
        daemon.start()?;
        let path = dir.join("plan.toml");
        let good = "name = \"move\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"shop\"]\n";
        let cases: [(String, &str); 4] = [
            (good.replace("vms = [", "vms = [["), "plan.toml:4:"),
            (format!("{good}colour = \"red\"\n"), "plan.toml:5:1:"),
            (format!("{good}[schedule]\ninterval = \"soon\"\n"), "plan.toml:6:12:"),
            (good.replace("\"old\"", "\"older\""), "older"),
        ];
        for (text, word) in cases {
            fs::write(&path, &text)?;
            for verb in ["apply", "validate"] {
                let out =
                    daemon.ctl().outcome(&["plan", verb, "-f", &path.to_string_lossy()], tool::DEADLINE)?;
                ensure!(
                    out.code == Some(5),
                    "{verb} ended with {:?}: {}{}\n{text}",
                    out.code,
                    out.stdout,
                    out.stderr
                );
                let said = format!("{}{}", out.stdout, out.stderr);
                ensure!(said.contains(word), "{verb} does not say {word:?}: {said}");
            }
            ensure!(fs::read_to_string(&path)? == text, "the file was touched");
        }
        let plans = daemon.ctl().json(&["plan", "list"])?;
        ensure!(plans["plans"].as_array().is_some_and(Vec::is_empty), "kept: {plans}");
        daemon.stop().map(drop)
    });
}
