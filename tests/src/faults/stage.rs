//! The tools of a row: the rig, random numbers, and functions that bring the migration to a wanted moment.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, rngs::StdRng};
use serde_json::Value;

use super::shim::Shim;
use crate::{Rig, RigSpec, TestDir, rig::WORK, tool, wait_until};

/// Whether the cutover that a migration's view shows has begun this phase.
pub(super) fn phase_is_seen(view: &Value, phase: &str) -> bool {
    let phases = view["cutover"]["phases"].as_array();
    phases.is_some_and(|phases| phases.iter().any(|seen| seen["phase"] == phase))
}

/// How a row's migration ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultEnd {
    /// Done, after a cutover that the end makes if the row did not.
    #[default]
    Moved,
    /// Cancelled: nothing of it is left.
    Cancelled,
    /// No migration: the row had no rig, and has made its own checks.
    Elsewhere,
}

/// The environment of one run of a row.
#[derive(Debug)]
pub struct FaultStage<'a> {
    pub dir: &'a TestDir,
    pub random: StdRng,
    /// The short form: few repetitions.
    pub short: bool,
    pub ends: FaultEnd,
    /// The source VM does not exist any more, or is another one.
    pub source_gone: bool,
    rig: Option<Rig>,
    /// The guest was running when the row began.
    running: bool,
    /// Resources under the rig: dropped after it.
    kept: Vec<Box<dyn std::any::Any>>,
}

impl<'a> FaultStage<'a> {
    pub fn new(dir: &'a TestDir, random: StdRng, short: bool) -> Self {
        let (ends, kept) = (FaultEnd::default(), Vec::new());
        Self { dir, random, short, ends, source_gone: false, rig: None, running: false, kept }
    }

    /// A rig whose guest is off, with this much random data on each disk; `wish` can change it. It runs no
    /// verification: the final checks must find errors on the target.
    pub fn off(&mut self, noise_mib: u64, wish: impl FnOnce(&mut RigSpec)) -> Result<()> {
        let wish = |spec: &mut RigSpec| {
            spec.verify = "none";
            wish(spec);
        };
        self.make(noise_mib, wish, Rig::off)
    }

    /// A rig whose guest runs and writes.
    pub fn running(&mut self, noise_mib: u64, wish: impl FnOnce(&mut RigSpec)) -> Result<()> {
        self.running = true;
        self.make(noise_mib, wish, Rig::running)
    }

    /// The required state of the source guest, in libvirt's words, when no cutover runs.
    pub(super) fn source_state(&self) -> &'static str {
        if self.running { "running" } else { "shut off" }
    }

    fn make(
        &mut self,
        noise_mib: u64,
        wish: impl FnOnce(&mut RigSpec),
        how: fn(&TestDir, &RigSpec) -> Result<Rig>,
    ) -> Result<()> {
        let mut spec = RigSpec::new("guest", noise_mib);
        wish(&mut spec);
        self.rig = Some(how(self.dir, &spec)?);
        Ok(())
    }

    /// The library of faults; with its environment set in a row's `wish`, the daemon has the faults.
    pub(super) fn shim(&self) -> Result<Shim> {
        Shim::build(self.dir)
    }

    /// A rig with an off guest whose daemon has the faults of [`FaultStage::shim`].
    pub(super) fn off_with_shim(&mut self, noise_mib: u64) -> Result<Shim> {
        let shim = self.shim()?;
        self.off(noise_mib, |spec| spec.env = shim.env())?;
        Ok(shim)
    }

    /// Keeps a resource that the rig needs during its life.
    pub fn keep(&mut self, thing: impl std::any::Any) {
        self.kept.push(Box::new(thing));
    }

    pub fn rig(&self) -> Result<&Rig> {
        self.rig.as_ref().context("the row made no rig")
    }

    pub fn rig_mut(&mut self) -> Result<&mut Rig> {
        self.rig.as_mut().context("the row made no rig")
    }

    /// Starts the daemon and applies the plan.
    pub fn begin(&mut self) -> Result<()> {
        let rig = self.rig_mut()?;
        rig.daemon.start()?;
        rig.apply()
    }

    /// The same, up to the end of the full pass.
    pub fn seed(&mut self) -> Result<()> {
        self.begin()?;
        self.rig()?.wait_for("synced").map(drop)
    }

    /// The same, slowly enough for many batches in the pass, on a fast machine too.
    pub fn seed_slowly(&mut self) -> Result<()> {
        self.rig_mut()?.begin_slowly()?;
        self.rig()?.wait_for("synced")?;
        self.rig()?.lift()
    }

    /// [`Rig::freeze`].
    pub fn freeze(&mut self, bytes: u64) -> Result<()> {
        self.rig_mut()?.freeze(bytes)
    }

    /// [`Rig::thaw`].
    pub fn thaw(&self) -> Result<()> {
        self.rig()?.thaw()
    }

    /// Changes the disks of a guest that is off, `count` times, like its own writes: bitmaps in the images
    /// record them.
    pub fn scribble(&mut self, count: u32) -> Result<()> {
        let images = self.rig()?.guest.disks.clone();
        for (at, image) in images.iter().enumerate() {
            let mut commands = Vec::new();
            for nth in 0..count {
                // Behind the part that the guest needs to boot.
                let place = self.random.random_range(200..255_u64) << 20;
                let len = self.random.random_range(1..128_u64) * 4096;
                let byte = self.random.random_range(1..=255_u8);
                // Never only zeroes: they may be there already and change nothing.
                commands.push(if nth > 0 && self.random.random_bool(0.2) {
                    format!("write -z {place} {len}")
                } else {
                    format!("write -P {byte} {place} {len}")
                });
            }
            self.disk_io(at, &commands).with_context(|| image.display().to_string())?;
        }
        Ok(())
    }

    /// `qemu-io` on a disk of a guest that is off.
    pub fn disk_io(&self, disk: usize, commands: &[String]) -> Result<()> {
        let image = self.rig()?.guest.disks.get(disk).context("no such disk")?;
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", if image.extension().is_some_and(|e| e == "raw") { "raw" } else { "qcow2" }]);
        for command in commands {
            qemu_io.args(["-c", command]);
        }
        let out = tool::output(qemu_io.arg(image), tool::DEADLINE)?;
        ensure!(out.matches("wrote ").count() == commands.len(), "qemu-io: {out}");
        Ok(())
    }

    /// Waits until the migration has failed with this word in the reason, and can be resumed.
    pub fn wait_for_failure(&self, word: &str) -> Result<String> {
        let rig = self.rig()?;
        let view = wait_until("the fault to be noticed", WORK, || {
            let view = rig.show()?;
            Ok((view["state"] == "failed").then_some(view))
        })?;
        let reason = view["reason"].as_str().unwrap_or_default().to_owned();
        ensure!(view["resumable"] == true, "it cannot be resumed: {view}");
        ensure!(reason.contains(word), "the reason does not say {word:?}: {reason}");
        Ok(reason)
    }

    /// Waits until the journal has a line with all of these words.
    pub fn wait_for_words(&self, words: &[&str]) -> Result<()> {
        let rig = self.rig()?;
        let mut last = String::new();
        wait_until(&format!("the journal to say {words:?}"), WORK, || {
            last = rig.ctl().text(&["events"])?;
            Ok(last.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(()))
        })
        .with_context(|| format!("the journal: {last}"))
    }

    /// A delta that must fail with this word in the reason.
    pub fn sync_fails(&self, word: &str) -> Result<String> {
        let out = self.rig()?.try_verb("sync", &[])?;
        ensure!(out.code == Some(1), "the sync ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        self.wait_for_failure(word)
    }

    /// A delta that must wait, with this word in the reason, until `mend` has removed it, and then ends.
    pub fn sync_waits(&self, word: &str, mend: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.rig()?.passes()?.len();
        let out = self.rig()?.try_verb("sync", &["--no-wait"])?;
        ensure!(out.code == Some(0), "the sync ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        self.wait_for_view(&format!("a wait for {word:?}"), WORK, |view| {
            view["waiting"]["reason"].as_str().is_some_and(|reason| reason.contains(word))
        })?;
        mend()?;
        self.rig()?.wait_for("synced")?;
        let passes = self.rig()?.passes()?.len();
        ensure!(passes > before, "after the wait there are {passes} passes, as before it");
        Ok(())
    }

    /// `resume`, up to synced.
    pub fn resume(&self) -> Result<()> {
        self.rig()?.verb("resume")?;
        self.rig()?.wait_for("synced").map(drop)
    }

    /// Requests a delta and waits for its end; returns the passes since then, at least one.
    pub fn sync(&self) -> Result<Vec<crate::rig::Pass>> {
        let before = self.rig()?.passes()?.len();
        self.rig()?.verb("sync")?;
        let mut passes = self.rig()?.passes()?;
        ensure!(passes.len() > before, "after a sync there are {} passes, as before it", passes.len());
        Ok(passes.split_off(before))
    }

    /// The migration, once its cutover has begun this phase.
    pub fn wait_for_phase(&self, phase: &str) -> Result<Value> {
        self.wait_for_view(&format!("the phase {phase}"), WORK, |view| phase_is_seen(view, phase))
    }

    /// The migration, once the condition holds.
    pub fn wait_for_view(
        &self,
        what: &str,
        deadline: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let rig = self.rig()?;
        let mut last = Value::Null;
        wait_until(what, deadline, || {
            last = rig.show()?;
            Ok(is_so(&last).then(|| last.clone()))
        })
        .with_context(|| format!("it is {last}"))
    }
}
