//! Names from the source determine no path, no argument and no terminal control; secrets are only
//! where they belong. With real libvirts, because the names come from there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{Libvirtd, Rig, RigSpec, TestDir, rig::WORK, run, tool, wait_until};

/// Names that libvirt may accept. Names that it refuses cannot reach warmd.
fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "--help",
        "-c",
        ".hidden",
        "$(touch pwned);`id`|'\"",
        "%s%n %2e%2e",
        "csi\u{9b}31m\u{202e}txt.exe",
        "two\nlines",
        "../../../etc/passwd",
        "<b>&amp;</b>",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(200));
    names
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('\n', "&#10;")
}

/// Defines a domain, shut off, with one small disk; false if libvirt refuses the name.
fn define(host: &Libvirtd, dir: &TestDir, name: &str, number: usize, more: &str) -> Result<bool> {
    let disk = dir.join(format!("odd-{number}.qcow2"));
    let disk = disk.to_str().context("no UTF-8")?;
    tool::call("qemu-img", ["create", "-q", "-f", "qcow2", disk, "1M"])?;
    tool::call("qemu-io", ["-f", "qcow2", "-c", "write -P 7 64k 100k", disk])?;
    let xml = format!(
        "<domain type='qemu'><name>{}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>\
         <target dev='vda' bus='virtio'/></disk>{more}</devices><seclabel type='none'/></domain>",
        escaped(name)
    );
    let file = dir.join(format!("odd-{number}.xml"));
    fs::write(&file, xml)?;
    Ok(host.try_virsh(["define", file.to_str().context("no UTF-8")?])?.code == Some(0))
}

fn plan(dir: &TestDir, name: &str, vms: &[String]) -> Result<PathBuf> {
    let vms: Vec<toml::Value> = vms.iter().map(|name| toml::Value::String(name.clone())).collect();
    let text = format!(
        "name = \"{name}\"\nsource = \"old\"\ntarget = \"new\"\nvms = {}\n[schedule]\ninterval = \"1h\"\n\
         [verify]\nmode = \"compare\"\n",
        toml::Value::Array(vms)
    );
    let path = dir.join(format!("{name}.toml"));
    fs::write(&path, text)?;
    Ok(path)
}

/// Waits until all migrations are in that state; their ids.
fn wait_for_all(rig: &Rig, state: &str) -> Result<Vec<String>> {
    wait_until(&format!("all to be {state}"), WORK, || {
        let list = rig.ctl().json(&["migration", "list"])?;
        let all = list["migrations"].as_array().context("no migrations")?.clone();
        for one in &all {
            ensure!(one["state"] != "failed", "it failed: {one}");
        }
        let ids = all.iter().filter(|one| one["state"] == state).filter_map(|one| one["id"].as_str());
        let ids: Vec<String> = ids.map(str::to_owned).collect();
        Ok((ids.len() == all.len()).then_some(ids))
    })
}

fn steers(character: char) -> bool {
    character != '\n' && (character.is_control() || matches!(character, '\u{202a}'..='\u{202e}'))
}

/// All output of warmctl, in both forms.
fn told(rig: &Rig, ids: &[String]) -> Result<String> {
    let mut asked: Vec<Vec<&str>> = vec![
        vec!["source", "list"],
        vec!["source", "check"],
        vec!["source", "vms", "old"],
        vec!["target", "check"],
        vec!["plan", "list"],
        vec!["migration", "list"],
        vec!["limit", "show"],
        vec!["events", "--limit", "1000"],
        vec!["report", "key"],
    ];
    for id in ids {
        asked.extend([vec!["migration", "show", id], vec!["migration", "report", id]]);
    }
    let mut all = String::new();
    for args in asked {
        all.push_str(&rig.ctl().text(&args)?);
        all.push_str(&rig.ctl().text(&[&args[..], &["-o", "json"]].concat())?);
    }
    Ok(all)
}

fn below(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            below(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

#[test]
fn names_from_the_source_do_no_harm() {
    run(|dir| {
        let mut rig = Rig::off(dir, &RigSpec::new("plain", 0))?;
        let mut taken = Vec::new();
        for (number, name) in names().into_iter().enumerate() {
            if define(&rig.old, dir, &name, number, "")? {
                taken.push(name);
            }
        }
        ensure!(taken.len() >= 6, "libvirt takes only {taken:?}");
        let before: BTreeSet<PathBuf> =
            fs::read_dir(dir.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        rig.daemon.start()?;
        // By their ids, with sanitised names for the target: a plan refuses most of these names.
        let seen = rig.ctl().json(&["source", "vms", "old"])?;
        let seen = seen["vms"].as_array().context("no VMs")?;
        let known: Vec<&Value> =
            seen.iter().filter(|vm| taken.iter().any(|name| vm["name"] == name.as_str())).collect();
        ensure!(known.len() == taken.len(), "of {taken:?} the source shows only {known:?}");
        let vms: Vec<String> = known.iter().filter_map(|vm| vm["id"].as_str()).map(str::to_owned).collect();
        let plan = plan(dir, "odd", &vms)?;
        let apply = ["plan", "apply", "-f", plan.to_str().context("no UTF-8")?];
        let out = rig.ctl().outcome(&apply, WORK)?;
        ensure!(
            out.code == Some(5)
                && out.stderr.contains("--help\" on the target")
                && out.stderr.contains("(name-unusable)"),
            "{}",
            out.stderr
        );
        ensure!(!out.stderr.chars().any(steers), "a refusal steers the terminal");
        let fit = fs::read_to_string(&plan)? + "[names]\nsanitise = true\n";
        fs::write(&plan, fit)?;
        rig.ctl().text(&apply)?;
        let ids = wait_for_all(&rig, "synced")?;
        ensure!(ids.len() == taken.len(), "{} of {} VMs are moved", ids.len(), taken.len());
        for id in &ids {
            let out = rig.ctl().outcome(&["migration", "cutover", id], WORK)?;
            ensure!(out.code == Some(0), "{id}: {}{}", out.stdout, out.stderr);
            ensure!(!(out.stdout + &out.stderr).chars().any(steers), "{id} steers the terminal");
        }
        let all = told(&rig, &ids)?;
        ensure!(all.contains("--help"), "nothing was told of them");
        let found = all.chars().find(|each| steers(*each));
        ensure!(found.is_none(), "{found:?} is printed as it is");
        // A user requested each of these, and the kernel reported who.
        let events = rig.ctl().json(&["events", "--limit", "1000"])?;
        let events = events["events"].as_array().context("no events")?;
        let asked: Vec<&Value> =
            events.iter().filter(|line| line["kind"] == "request" || line["kind"] == "plan").collect();
        ensure!(asked.len() > 2 * ids.len(), "only {} requests are in the journal", asked.len());
        for line in asked {
            ensure!(
                line["by"].as_str().is_some_and(|by| by.starts_with("operator uid=0 pid=")),
                "asked by: {line}"
            );
        }
        // The domains are there; of the files none has their names.
        let arrived = rig.new.virsh(["list", "--all", "--uuid"])?;
        ensure!(
            arrived.lines().filter(|line| !line.trim().is_empty()).count() == ids.len(),
            "arrived: {arrived:?}"
        );
        for entry in fs::read_dir(&rig.volumes)? {
            let name = entry?.file_name().into_string().ok().context("no UTF-8")?;
            ensure!(ids.contains(&name) || name == ".claims", "{name:?} is no migration's folder");
        }
        let after: BTreeSet<PathBuf> =
            fs::read_dir(dir.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let ours = ["state", "run", "scratch", "api", "warmd.log", "odd.toml"].map(|name| dir.join(name));
        let strange: Vec<_> = after.difference(&before).filter(|path| !ours.contains(path)).collect();
        ensure!(strange.is_empty(), "these were not there before: {strange:?}");
        Ok(())
    });
}

/// Reads the arguments of every process again and again; returns where a secret was seen.
fn watch_arguments(secrets: Vec<String>, over: Arc<AtomicBool>) -> thread::JoinHandle<(u64, Vec<String>)> {
    thread::spawn(move || {
        let (mut looks, mut seen) = (0, Vec::new());
        while !over.load(Relaxed) {
            for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
                let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                looks += u64::from(line.contains("qemu-img") || line.starts_with("qemu-system"));
                if secrets.iter().any(|secret| line.contains(secret.as_str())) {
                    seen.push(line.replace('\0', " "));
                }
            }
        }
        (looks, seen)
    })
}

#[test]
fn secrets_are_nowhere_but_where_they_belong() {
    run(|dir| {
        // A secret of the source's machine, and one of warmd's.
        let password = "Xq7secr";
        let graphics =
            format!("<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='{password}'/>");
        let mut rig = Rig::off(dir, &RigSpec::new("plain", 0))?;
        ensure!(define(&rig.old, dir, "guarded", 0, &graphics)?, "libvirt refuses the domain");
        rig.daemon.start()?;
        let key = fs::read_to_string(dir.join("state/report.key"))?;
        let key = key.split_whitespace().last().context("an empty key")?.to_owned();
        let secrets = vec![password.to_owned(), key];
        let over = Arc::new(AtomicBool::new(false));
        let watcher = watch_arguments(secrets.clone(), Arc::clone(&over));
        let plan = plan(dir, "guarded", &["guarded".to_owned()])?;
        rig.ctl().text(&["plan", "apply", "-f", plan.to_str().context("no UTF-8")?])?;
        let ids = wait_for_all(&rig, "synced")?;
        let out = rig.ctl().outcome(&["migration", "cutover", "guarded"], WORK)?;
        ensure!(out.code == Some(0), "{}{}", out.stdout, out.stderr);
        // An error that quotes the operation.
        let refused = rig.ctl().refusal(&["migration", "sync", "guarded"])?;
        let all = told(&rig, &ids)? + &out.stdout + &out.stderr + &refused;
        rig.daemon.stop()?;
        over.store(true, Relaxed);
        let (looks, seen) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher died"))?;
        ensure!(looks > 0, "no child of the daemon's work was ever seen: the watcher sees nothing");
        ensure!(seen.is_empty(), "in the arguments of: {seen:?}");
        for secret in &secrets {
            ensure!(!all.contains(secret.as_str()), "{secret} is told by warmctl");
        }
        let mut files = vec![dir.join("warmd.log")];
        for folder in ["state", "run", "scratch"] {
            below(&dir.join(folder), &mut files).with_context(|| folder.to_owned())?;
        }
        for entry in fs::read_dir(&rig.volumes)? {
            let path = entry?.path();
            if path.is_dir() {
                below(&path, &mut files)?;
            }
        }
        ensure!(files.len() >= 3, "only {files:?}");
        for file in files.iter().filter(|file| !file.ends_with("state/report.key")) {
            let bytes = fs::read(file)?;
            for secret in &secrets {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                ensure!(!found, "{secret} is in {}", file.display());
            }
        }
        // The secret was there to be found.
        let xml = tool::output(
            Command::new("virsh").args([
                "-c",
                rig.old.uri(),
                "dumpxml",
                "guarded",
                "--security-info",
                "--inactive",
            ]),
            tool::DEADLINE,
        )?;
        ensure!(xml.contains(password), "libvirt has no such password");
        Ok(())
    });
}
