//! Plans' windows as metrics, and the plans' SLOs; also those of VMs with a schedule of their own.

use std::fmt;

use warmd_core::metrics_view::{OverdueView, SloView, WindowView};

use super::exposition::{Labels, Sink};

/// The targets that are older than their RPO, and those that are not.
pub(super) fn encode_overdue(overdue: &[OverdueView], to: &mut Sink) -> fmt::Result {
    let labels = |of: &OverdueView| vec![("plan", of.plan.clone()), ("vm", of.vm.clone())];
    to.gauge(
        "warmd_rpo_exceeded",
        "1 if the target is older than the plan promises, whatever is in the way.",
        overdue.iter().map(|of| (labels(of), f64::from(u8::from(of.is_overdue)))),
    )
}

pub(super) fn encode(windows: &[WindowView], promises: &[SloView], to: &mut Sink) -> fmt::Result {
    let of_whom = |plan: &str, vm: &Option<String>| -> Labels {
        let plan = ("plan", plan.to_owned());
        std::iter::once(plan).chain(vm.clone().map(|vm| ("vm", vm))).collect()
    };
    let labels = |window: &WindowView| -> Labels {
        let mut labels = of_whom(&window.plan, &window.vm);
        labels.push(("kind", window.kind.to_owned()));
        labels
    };
    to.gauge(
        "warmd_window_open",
        "1 if the plan's windows let data be copied, or a cutover begin, now.",
        windows.iter().map(|window| (labels(window), f64::from(u8::from(window.is_open)))),
    )?;
    let until = |opens: bool| {
        let those = windows.iter().filter(move |window| window.is_open != opens);
        those.filter_map(move |window| Some((labels(window), window.changes_in?)))
    };
    to.gauge(
        "warmd_window_opens_in_seconds",
        "Until the plan's windows open; absent while they are open, and if they do not open any more.",
        until(true),
    )?;
    to.gauge(
        "warmd_window_closes_in_seconds",
        "Until the plan's windows close; absent while they are closed, and if they do not close.",
        until(false),
    )?;
    let of = |promised: fn(&SloView) -> Option<f64>| {
        promises
            .iter()
            .filter_map(move |promise| Some((of_whom(&promise.plan, &promise.vm), promised(promise)?)))
    };
    to.gauge(
        "warmd_rpo_target_seconds",
        "How old the plan lets a target be; absent if it says nothing of that.",
        of(|promise| promise.rpo),
    )?;
    to.gauge(
        "warmd_downtime_allowed_seconds",
        "How long the plan lets a VM be down; absent if it says nothing of that.",
        of(|promise| promise.max_downtime),
    )
}
