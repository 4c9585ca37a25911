//! A disk that changes past its hypervisor: no bitmap reports it, and the audit of change tracking finds it.

use std::{
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{Rig, RigSpec, image, run, tool};

#[test]
fn what_is_written_past_the_bitmap_is_found_out_and_made_good() {
    run(|dir| {
        let mut spec = RigSpec::new("past", 8);
        (spec.verify, spec.audit) = ("readback", "100%");
        let mut rig = Rig::off(dir, &spec)?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;
        rig.verb("sync")?;
        let view = rig.show()?;
        let disk = |view: &Value, at: &str| view.pointer(at).cloned().unwrap_or_default();
        for (number, one) in view["pass"]["disks"].as_array().context("no disks")?.iter().enumerate() {
            let audit = &one["audit"];
            ensure!(audit["checked_bytes"].as_u64() > Some(8 << 20), "disk {number} was not audited: {one}");
            ensure!(audit["mismatched_bytes"] == 0, "a truthful source is blamed: {one}");
        }

        write_past(rig.guest.disks.get(1).context("no second disk")?)?;
        rig.verb("sync")?;
        let view = rig.show()?;
        let fault = disk(&view, "/disks/1/tracking_fault");
        ensure!(fault.is_string() && disk(&view, "/disks/0/tracking_fault").is_null(), "{view}");
        ensure!(disk(&view, "/pass/disks/1/audit/mismatched_bytes") == 65_536, "{view}");
        let events = rig.ctl().text(&["events", "--limit", "1000"])?;
        ensure!(events.contains("CANNOT BE TRUSTED"), "the journal is silent: {events}");
        let shown = rig.ctl().text(&["migration", "show", &rig.guest.name])?;
        ensure!(shown.contains("CHANGE TRACKING CANNOT BE TRUSTED"), "nothing is shown: {shown}");

        // The pass that found the change copied it; later passes find such writes by comparing.
        rig.verb("verify")?;
        write_past(rig.guest.disks.get(1).context("no second disk")?)?;
        rig.verb("cutover")?;
        let report = rig.report()?;
        ensure!(
            report["verify_result"]["mode"] == "compare",
            "a readback was enough: {}",
            report["verify_result"]
        );
        ensure!(disk(&report, "/disks/1/audit/tracking_fault") == fault, "not in the report: {report}");
        let view = rig.show()?;
        for (number, source) in rig.guest.disks.iter().enumerate() {
            let target = disk(&view, &format!("/disks/{number}/location"));
            image::assert_equal(source, Path::new(target.as_str().context("no location")?))?;
        }
        // The guest was off, and is off on the target: no write happened there since.
        rig.verb("verify")
    });
}

/// Changes a byte of an image's data in its file, as a bug of the hypervisor would; its bitmaps stay
/// unchanged.
fn write_past(qcow2: &Path) -> Result<()> {
    let map = tool::call("qemu-img", [Path::new("map"), Path::new("--output=json"), qcow2])?;
    let map: Value = serde_json::from_str(&map)?;
    let runs = map.as_array().context("qemu-img map without runs")?;
    let data = runs.iter().rfind(|run| run["data"] == true && run["offset"].is_u64());
    let at = data.and_then(|run| run["offset"].as_u64()).context("no data in the image")?;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(qcow2)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at + 77))?;
    std::io::Read::read_exact(&mut file, &mut byte)?;
    file.seek(SeekFrom::Start(at + 77))?;
    file.write_all(&[!byte[0]])?;
    Ok(file.sync_all()?)
}
