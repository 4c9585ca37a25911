//! The stages of a pass.

use warmd_cbt::telemetry::{Stage, StageView, Telemetry, Wait, WaitView};
use warmd_proto::v1;

use super::seconds;

pub(super) fn telemetry(telemetry: &Telemetry) -> v1::Telemetry {
    let bottleneck = telemetry.bottleneck();
    v1::Telemetry {
        elapsed: seconds(telemetry.elapsed),
        stages: telemetry.stages.iter().map(|view| figures(telemetry, view)).collect(),
        waits: telemetry.waits.iter().map(wait).collect(),
        bottleneck: bottleneck.map_or(v1::Stage::Unspecified, |found| stage(found.stage)).into(),
        bottleneck_text: bottleneck.map(|found| found.to_string()),
    }
}

fn figures(telemetry: &Telemetry, view: &StageView) -> v1::StageFigures {
    v1::StageFigures {
        stage: stage(view.stage).into(),
        bytes: view.bytes,
        requests: view.requests,
        rate_bytes_per_second: view.rate(telemetry.elapsed),
        in_flight: view.in_flight,
        in_flight_max: view.in_flight_max,
        busy: seconds(view.busy),
        latency_p50: seconds(view.latency.p50),
        latency_p90: seconds(view.latency.p90),
        latency_p99: seconds(view.latency.p99),
        latency_max: seconds(view.latency.max),
        cpu: seconds(view.cpu),
        stalled: seconds(view.stalled),
        stalled_share: telemetry.share_of(view.stalled),
    }
}

fn wait(view: &WaitView) -> v1::WaitFigures {
    let wait = match view.wait {
        Wait::Plan => v1::Wait::Plan,
        Wait::Room => v1::Wait::Room,
        Wait::Limit => v1::Wait::Limit,
        Wait::ReadSlot => v1::Wait::ReadSlot,
        Wait::Buffer => v1::Wait::Buffer,
        Wait::Memory => v1::Wait::Memory,
        Wait::WriteSlot => v1::Wait::WriteSlot,
        Wait::LastPieces => v1::Wait::LastPieces,
        Wait::LastBatch => v1::Wait::LastBatch,
    };
    v1::WaitFigures { wait: wait.into(), count: view.count, time: seconds(view.time) }
}

fn stage(stage: Stage) -> v1::Stage {
    match stage {
        Stage::Plan => v1::Stage::Plan,
        Stage::Limit => v1::Stage::Limit,
        Stage::Memory => v1::Stage::Memory,
        Stage::Read => v1::Stage::Read,
        Stage::Digest => v1::Stage::Digest,
        Stage::Write => v1::Stage::Write,
        Stage::Zero => v1::Stage::Zero,
        Stage::Flush => v1::Stage::Flush,
        Stage::Commit => v1::Stage::Commit,
    }
}
