//! `source vms`.

use warmd_core::{format, model::selection::matches};
use warmd_proto::v1::{PowerState, SourcesListVmsRequest, VmSummary};

use super::{
    args::{Power, TrackingFilter, VmFilter},
    client::{Client, asked},
    failure::CliFailure,
    labels,
    out::Out,
    table::Column,
};

const COLUMNS: [Column; 8] = [
    Column::text("NAME").cut(2, 14),
    Column::text("POWER"),
    Column::figure("DISKS"),
    Column::figure("SIZE"),
    Column::figure("TRACKED").leave(4),
    Column::figure("SNAPSHOTS").leave(3),
    Column::text("ID").cut(1, 13),
    Column::text("WARNINGS").wrap(24),
];

pub(super) async fn list(
    client: &Client,
    out: &Out,
    name: String,
    filter: &VmFilter,
    refresh: bool,
) -> Result<(), CliFailure> {
    let request = asked(SourcesListVmsRequest { name, refresh });
    let mut answer = client.sources().list_vms(request).await?.into_inner();
    answer.vms.retain(|vm| filter.passes(vm));
    if out.is_json() {
        return out.json(&answer);
    }
    let rows = answer.vms.into_iter().map(|vm| {
        let warnings = labels::or_dash(&vm.warnings.join("; "));
        let (power, size) = (labels::name(vm.power()), format::bytes(vm.size_bytes));
        let (disks, snapshots) = (vm.disks.to_string(), vm.snapshots.to_string());
        [vm.name, power, disks, size, vm.tracked.to_string(), snapshots, vm.id, warnings]
    });
    out.table(&COLUMNS, rows)?;
    let seen = labels::moment(answer.seen.as_ref());
    let age = labels::at(answer.seen.as_ref())
        .map_or_else(|| "-".to_owned(), |seen| format::between(seen, chrono::Utc::now()));
    let stale = answer.stale.map_or_else(String::new, |why| format!("; it was not refreshed: {why}"));
    out.prose(&format!("as of {seen} UTC, {age} ago (--refresh asks again){stale}"))
}

impl VmFilter {
    fn passes(&self, vm: &VmSummary) -> bool {
        let has_name = self.glob.as_ref().is_none_or(|glob| *glob == vm.name || matches(glob, &vm.name));
        let has_state = self.state.is_none_or(|state| {
            vm.power()
                == match state {
                    Power::Running => PowerState::Running,
                    Power::Paused => PowerState::Paused,
                    Power::Off => PowerState::Off,
                }
        });
        let has_tracking = self.tracking.is_none_or(|tracking| {
            let is = match vm.tracked {
                all if all >= vm.disks => TrackingFilter::All,
                0 => TrackingFilter::None,
                _ => TrackingFilter::Some,
            };
            is == tracking
        });
        has_name && has_state && has_tracking
    }
}
