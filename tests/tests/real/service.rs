//! The daemon as a service of systemd: what it reports to the service manager, and its unit.

use std::{
    os::unix::net::UnixDatagram,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use warmd_tests::{Daemon, TestDir};

const PATIENCE: Duration = Duration::from_mins(2);

/// Receives messages until one has `line`.
fn told(manager: &UnixDatagram, line: &str) -> Result<()> {
    let begun = Instant::now();
    let mut message = [0; 4096];
    while begun.elapsed() < PATIENCE {
        let length = manager.recv(&mut message).with_context(|| format!("waiting for {line}"))?;
        if String::from_utf8_lossy(&message[..length]).lines().any(|each| each == line) {
            return Ok(());
        }
    }
    anyhow::bail!("the service manager was not told {line}")
}

#[test]
fn the_service_manager_is_told_of_start_life_and_end() -> Result<()> {
    let dir = TestDir::new()?;
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let env = vec![
        ("NOTIFY_SOCKET".to_owned(), socket.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "3000000".to_owned()),
    ];
    let here = dir.path().display();
    let config = format!("state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/warmd.sock\"\n");
    let mut daemon = Daemon::configure(&dir, dir.join("warmd.sock"), &config)?.with_env(env);
    daemon.start()?;
    told(&manager, "READY=1")?;
    // Again and again, not once.
    for _ in 0..3 {
        told(&manager, "WATCHDOG=1")?;
    }
    let ended = daemon.stop()?;
    ensure!(ended.success(), "{ended}");
    told(&manager, "STOPPING=1")
}

/// Fails on sandbox settings that this systemd does not know, or that were removed.
#[test]
fn the_unit_is_sound_and_hardened() -> Result<()> {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/deploy/warmd.service");
    let looked = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=30", "--no-pager", unit])
        .output()
        .context("systemd-analyze")?;
    let said = String::from_utf8_lossy(&looked.stdout);
    ensure!(looked.status.success(), "exposed more than 3.0: {said}");
    ensure!(looked.stderr.is_empty(), "{}", String::from_utf8_lossy(&looked.stderr));
    Ok(())
}

/// With the drop-in for conversions the unit is still valid and hardened, and allows writable, executable
/// memory.
#[test]
fn the_unit_for_conversions_is_sound_and_hardened() -> Result<()> {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/deploy");
    let dir = TestDir::new()?;
    let unit = dir.join("warmd.service");
    let whole = std::fs::read_to_string(format!("{deploy}/warmd.service"))?;
    let drop_in = std::fs::read_to_string(format!("{deploy}/warmd-conversion.conf"))?;
    std::fs::write(&unit, format!("{whole}\n{drop_in}"))?;
    let looked = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=35", "--no-pager"])
        .arg(&unit)
        .output()
        .context("systemd-analyze")?;
    let said = String::from_utf8_lossy(&looked.stdout);
    ensure!(looked.status.success(), "exposed more than 3.5: {said}");
    ensure!(looked.stderr.is_empty(), "{}", String::from_utf8_lossy(&looked.stderr));
    let denies = said.lines().find(|line| line.contains("MemoryDenyWriteExecute="));
    ensure!(denies.is_some_and(|line| line.contains('✗')), "{denies:?} of {said}");
    Ok(())
}
