//! The passes' performance: the times of both sides' disks, and what the passes waited for.

use warmd_cbt::telemetry::{Stage, StageView, Telemetry};
use warmd_core::{
    format::{latency, rate},
    model::view::PassView,
};

use super::{
    kind_name,
    table::{Table, code, inline},
};

/// A section of its own, if there is any telemetry. All of it is in the report's JSON form.
pub(super) fn performance(passes: &[PassView]) -> String {
    let mut table = Table::new([
        "Pass",
        "Disk",
        "Reading",
        "Reads p50 / p99 / max",
        "Writing",
        "Writes p50 / p99 / max",
        "Flushes p99",
        "In flight (read, write)",
        "Bottleneck",
    ]);
    let mut any = false;
    for pass in passes {
        for disk in &pass.disks {
            let Some(telemetry) = &disk.telemetry else { continue };
            any = true;
            let [name, key] = [format!("{} {}", pass.number, kind_name(pass.kind)), code(&disk.key.0)];
            table.row(row(name, key, telemetry));
        }
    }
    if any { format!("\n## Performance\n\n{}", table.finish()) } else { String::new() }
}

fn row(pass: String, disk: String, telemetry: &Telemetry) -> [String; 9] {
    let [read, write, flush] = [Stage::Read, Stage::Write, Stage::Flush].map(|stage| telemetry.stage(stage));
    let speed = |stage: Option<&StageView>| {
        stage.map_or_else(|| "-".to_owned(), |stage| rate(stage.rate(telemetry.elapsed)))
    };
    let times = |stage: Option<&StageView>| {
        let shown = |stage: &StageView| {
            let [p50, p99, max] = [stage.latency.p50, stage.latency.p99, stage.latency.max].map(latency);
            format!("{p50} / {p99} / {max}")
        };
        stage.map_or_else(|| "-".to_owned(), shown)
    };
    let in_flight = |stage: Option<&StageView>| stage.map_or(0, |stage| stage.in_flight_max);
    [
        pass,
        disk,
        speed(read),
        times(read),
        speed(write),
        times(write),
        flush.map_or_else(|| "-".to_owned(), |stage| latency(stage.latency.p99)),
        format!("{}, {}", in_flight(read), in_flight(write)),
        inline(&telemetry.bottleneck().map_or_else(|| "none".to_owned(), |found| found.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use warmd_cbt::{store::PassFigures, telemetry::LatencyFigures};

    use super::*;
    use warmd_core::model::{
        id::DiskKey,
        view::{DiskPassView, PassKind},
    };

    #[test]
    fn a_pass_has_a_row_for_each_disk_that_was_measured() {
        let stage = |stage, latency, stalled| StageView {
            stage,
            bytes: 40 << 20,
            requests: 80,
            in_flight: 0,
            in_flight_max: 9,
            busy: 1.0,
            latency,
            cpu: 0.0,
            stalled,
        };
        let latency = LatencyFigures { p50: 0.001, p90: 0.002, p99: 0.0125, max: 0.2 };
        let read = stage(Stage::Read, latency, 1.5);
        let measured = Telemetry { elapsed: 2.0, stages: vec![read], waits: Vec::new() };
        let disk = |key: &str, telemetry| DiskPassView {
            key: DiskKey(key.to_owned()),
            pending: 0,
            changed: 0,
            extents: 0,
            unknown: None,
            mark: String::new(),
            figures: PassFigures::default(),
            telemetry,
            audit: None,
        };
        let pass = PassView {
            number: 2,
            kind: PassKind::Delta,
            started: chrono::DateTime::UNIX_EPOCH,
            ended: None,
            error: None,
            cpu: None,
            snapshot: None,
            disks: vec![disk("vda", Some(measured)), disk("vdb", None)],
        };
        let told = performance(std::slice::from_ref(&pass));
        let row = "| 2 delta | `vda` | 20.0 MiB/s | 1.00 ms / 12.5 ms / 200 ms | - | - | - | 9, 0 | the source is the \
                   bottleneck: the pass waited 75 % of its time for reads |";
        assert!(told.starts_with("\n## Performance\n\n| Pass |") && told.contains(row), "{told}");
        assert_eq!(told.lines().count(), 6, "{told}");
        assert_eq!(performance(&[PassView { disks: vec![disk("vdb", None)], ..pass }]), "");
    }
}
