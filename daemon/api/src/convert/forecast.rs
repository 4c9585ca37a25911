//! Forecasts of a cutover.

use warmd_core::model::forecast::ForecastView;
use warmd_proto::v1;

use super::{seconds, timestamp};

pub(super) fn forecast(view: ForecastView) -> v1::Forecast {
    let ForecastView { at, final_delta, downtime, against, remarks, converges, convergence } = view;
    v1::Forecast {
        at: Some(timestamp(at)),
        downtime_low: seconds(downtime.low),
        downtime_expected: seconds(downtime.expected),
        downtime_high: seconds(downtime.high),
        final_delta_low_bytes: final_delta.low as u64,
        final_delta_expected_bytes: final_delta.expected as u64,
        final_delta_high_bytes: final_delta.high as u64,
        against,
        remarks,
        converges,
        convergence,
    }
}
