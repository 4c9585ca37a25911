//! The stages of a pass.

use warmd_core::format;
use warmd_proto::v1::{DiskPass, Pass, Stage, StageFigures, Telemetry};

use super::super::{
    failure::CliFailure,
    labels,
    out::{Out, one_line},
    table::Column,
};

/// A pass that was shorter, or moved less, says nothing about the stages' speed.
const LEAST_TIME: f64 = 1.0;
const LEAST_BYTES: u64 = 1 << 20;

const COLUMNS: [Column; 9] = [
    Column::text("STAGE"),
    Column::figure("BYTES"),
    Column::figure("RATE"),
    Column::figure("REQUESTS").leave(2),
    Column::figure("IN FLIGHT").leave(3),
    Column::figure("P50").leave(1),
    Column::figure("P99"),
    Column::figure("MAX"),
    Column::figure("WAITED FOR IT"),
];

/// What the pass on a disk waited for most; `None` if for nothing much, or if the pass was too small to tell.
pub(crate) fn bottleneck(disk: &DiskPass) -> Option<&str> {
    let telemetry = disk.telemetry.as_ref().filter(|telemetry| is_telling(telemetry))?;
    telemetry.bottleneck_text.as_deref()
}

fn is_telling(telemetry: &Telemetry) -> bool {
    let moved = telemetry.stages.iter().filter(|stage| stage.stage() != Stage::Plan);
    let moved = moved.map(|stage| stage.bytes).max().unwrap_or_default();
    labels::seconds(telemetry.elapsed.as_ref()) >= Some(LEAST_TIME) && moved >= LEAST_BYTES
}

/// The bottleneck of each disk that has one.
pub(super) fn bottlenecks(out: &Out, pass: &Pass) -> Result<(), CliFailure> {
    for disk in &pass.disks {
        if let Some(text) = bottleneck(disk) {
            out.prose(&format!("{}: {text}", disk.key))?;
        }
    }
    Ok(())
}

/// A table for each disk with telemetry, and the whole daemon's CPU time meanwhile.
pub(super) fn stages(out: &Out, pass: &Pass) -> Result<(), CliFailure> {
    let kept = pass.disks.iter().filter_map(|disk| Some((disk, disk.telemetry.as_ref()?)));
    for (disk, telemetry) in kept.clone() {
        of_disk(out, disk, telemetry)?;
    }
    if kept.clone().count() == 0 {
        return out.text("no stages: this pass was not measured");
    }
    match labels::seconds(pass.daemon_cpu.as_ref()) {
        Some(cpu) => out.text(&format!("CPU of all of warmd during the pass: {}", format::span(cpu))),
        None => Ok(()),
    }
}

fn of_disk(out: &Out, disk: &DiskPass, telemetry: &Telemetry) -> Result<(), CliFailure> {
    let took = labels::span(telemetry.elapsed.as_ref());
    out.text(&format!("\nSTAGES of {}  {took}", one_line(&disk.key)))?;
    let is_telling = is_telling(telemetry);
    out.table(&COLUMNS, telemetry.stages.iter().map(|stage| row(stage, is_telling)))?;
    match bottleneck(disk) {
        Some(text) => out.prose(text),
        None if is_telling => out.prose("no bottleneck: no stage was waited for a tenth of the time"),
        None => Ok(()),
    }
}

fn row(stage: &StageFigures, is_telling: bool) -> [String; 9] {
    let waited = if is_telling { format!("{:.0} %", stage.stalled_share * 100.0) } else { "-".to_owned() };
    let name = labels::name(stage.stage());
    if stage.in_flight_max == 0 {
        let none = || "-".to_owned();
        return [name, none(), none(), none(), none(), none(), none(), none(), waited];
    }
    let latency = |time| labels::seconds(time).map_or_else(|| "-".to_owned(), format::latency);
    [
        name,
        format::bytes(stage.bytes),
        if stage.bytes > 0 { format::rate(stage.rate_bytes_per_second) } else { "-".to_owned() },
        stage.requests.to_string(),
        stage.in_flight_max.to_string(),
        latency(stage.latency_p50.as_ref()),
        latency(stage.latency_p99.as_ref()),
        latency(stage.latency_max.as_ref()),
        waited,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_moved_next_to_nothing_has_no_bottleneck() {
        let text = "the source is the bottleneck: the pass waited 15 % of its time for reads";
        let pass = |seconds, nanos, bytes| {
            let mut read = StageFigures { bytes, ..StageFigures::default() };
            read.set_stage(Stage::Read);
            // Planning a pass of nothing looks at the whole disk.
            let mut plan = StageFigures { bytes: 1 << 40, ..StageFigures::default() };
            plan.set_stage(Stage::Plan);
            let telemetry = Telemetry {
                elapsed: Some(prost_types::Duration { seconds, nanos }),
                stages: vec![plan, read],
                bottleneck_text: Some(text.to_owned()),
                ..Telemetry::default()
            };
            DiskPass { telemetry: Some(telemetry), ..DiskPass::default() }
        };
        assert_eq!(bottleneck(&pass(1, 0, 1 << 20)), Some(text));
        assert_eq!(bottleneck(&pass(0, 999_000_000, 1 << 20)), None);
        assert_eq!(bottleneck(&pass(60, 0, (1 << 20) - 1)), None);
        assert_eq!(bottleneck(&pass(60, 0, 0)), None);
        assert_eq!(bottleneck(&DiskPass::default()), None);
    }
}
