//! The stages of a pass.

use warmd_core::format;
use warmd_proto::v1::{DiskPass, Pass, StageFigures, Telemetry};

use super::super::{
    failure::CliFailure,
    labels,
    out::{Out, one_line},
};

/// A table for each disk with telemetry, and the whole daemon's CPU time meanwhile.
pub(super) fn telemetry(out: &Out, pass: &Pass) -> Result<(), CliFailure> {
    let kept = pass.disks.iter().filter_map(|disk| Some((disk, disk.telemetry.as_ref()?)));
    for (disk, telemetry) in kept.clone() {
        stages(out, disk, telemetry)?;
    }
    if kept.count() > 0
        && let Some(cpu) = labels::seconds(pass.daemon_cpu.as_ref())
    {
        out.text(&format!("CPU of all of warmd during the pass: {}", format::span(cpu)))?;
    }
    Ok(())
}

fn stages(out: &Out, disk: &DiskPass, telemetry: &Telemetry) -> Result<(), CliFailure> {
    let heads =
        ["STAGE", ">BYTES", ">RATE", ">REQUESTS", ">IN FLIGHT", ">P50", ">P99", ">MAX", ">WAITED FOR IT"];
    let took = labels::span(telemetry.elapsed.as_ref());
    out.text(&format!("\nSTAGES of {}  {took}", one_line(&disk.key)))?;
    out.table(heads, telemetry.stages.iter().map(row))?;
    out.text(&match &telemetry.bottleneck_text {
        Some(text) => one_line(text),
        None => "no bottleneck: no stage was waited for a tenth of the time".to_owned(),
    })
}

fn row(stage: &StageFigures) -> [String; 9] {
    let waited = format!("{:.0} %", stage.stalled_share * 100.0);
    let name = labels::name(stage.stage());
    if stage.in_flight_max == 0 {
        let none = || "-".to_owned();
        return [name, none(), none(), none(), none(), none(), none(), none(), waited];
    }
    let latency = |time| labels::seconds(time).map_or_else(|| "-".to_owned(), format::latency);
    [
        name,
        format::bytes(stage.bytes),
        format::rate(stage.rate_bytes_per_second),
        stage.requests.to_string(),
        stage.in_flight_max.to_string(),
        latency(stage.latency_p50.as_ref()),
        latency(stage.latency_p99.as_ref()),
        latency(stage.latency_max.as_ref()),
        waited,
    ]
}
