//! The keys of one VM's schedule that replace its plan's.
//!
//! Rule: a key that is given replaces the plan's, as if it stood in the plan's own `[schedule]`; an absent
//! key is the plan's. `every`, `cron` and `adaptive` are one: one of them replaces the plan's. Quotas and the
//! priority are what the VMs of a plan share, so they are the plan's alone.

use std::time::Duration;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::{
    adaptive::Adaptive,
    cron::Cron,
    quota::Quota,
    rules::Rules,
    schedule::{Problems, Schedule, Times},
    text::optional_duration,
    window::{Holidays, Window},
    zone::optional_zone,
};

/// The keys of a [`Schedule`], all of which may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleOverride {
    /// The zone of all windows and expressions that name none, also of those that are the plan's.
    #[serde(with = "optional_zone", skip_serializing_if = "Option::is_none")]
    pub zone: Option<Tz>,
    #[serde(alias = "interval", with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holidays: Option<Holidays>,
    #[serde(skip_serializing_if = "TimesOverride::is_empty")]
    pub copy: TimesOverride,
    #[serde(skip_serializing_if = "TimesOverride::is_empty")]
    pub cutover: TimesOverride,
    /// Read only to be refused with a reason.
    #[serde(alias = "budgets", skip_serializing_if = "Option::is_none")]
    quotas: Option<Vec<Quota>>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
}

/// Windows and blackouts, each in place of the plan's; an empty list is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimesOverride {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<Window>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blackouts: Option<Vec<Window>>,
}

impl TimesOverride {
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn applied_to(&self, plan: &Times) -> Times {
        Times {
            windows: self.windows.as_ref().unwrap_or(&plan.windows).clone(),
            blackouts: self.blackouts.as_ref().unwrap_or(&plan.blackouts).clone(),
        }
    }
}

impl ScheduleOverride {
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the VM's windows may differ from the plan's.
    pub fn moves_windows(&self) -> bool {
        self.zone.is_some() || self.holidays.is_some() || !self.copy.is_empty() || !self.cutover.is_empty()
    }

    /// The schedule of the VM, without quotas and priority.
    fn applied_to(&self, plan: &Schedule) -> Schedule {
        let is_paced = self.every.is_some() || self.cron.is_some() || self.adaptive.is_some();
        let (every, cron, adaptive) = if is_paced {
            (self.every, self.cron.clone(), self.adaptive)
        } else {
            (plan.every, plan.cron.clone(), plan.adaptive)
        };
        Schedule {
            zone: self.zone.or(plan.zone),
            every,
            cron,
            adaptive,
            holidays: self.holidays.as_ref().unwrap_or(&plan.holidays).clone(),
            copy: self.copy.applied_to(&plan.copy),
            cutover: self.cutover.applied_to(&plan.cutover),
            quotas: Vec::new(),
            priority: None,
        }
    }

    /// How old a target may be, if the VM's schedule sets it.
    pub fn rpo(&self, plan: &Schedule) -> Option<Duration> {
        self.applied_to(plan).adaptive.and_then(|adaptive| adaptive.rpo)
    }

    /// The faults of the VM's schedule that the plan's does not have already; each begins with a backquote,
    /// `at` and its key: `[vm."web".schedule] cron`.
    pub fn problems(&self, plan: &Schedule, at: &str) -> Vec<String> {
        let shared = [("quotas", self.quotas.is_some()), ("priority", self.priority.is_some())];
        let shared = shared.into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| {
            format!(
                "`{at}{key}` is shared by the VMs of a plan: remove it, or move the VM by a plan of its own"
            )
        });
        let known = Self::default().applied_to(plan).problems_at(at);
        let found = self.applied_to(plan).problems_at(at);
        shared.chain(found.into_iter().filter(|problem| !known.contains(problem))).collect()
    }
}

impl Schedule {
    /// The schedule of a VM with the keys of `over`, ready to be asked. Its quotas are these.
    pub fn rules_with(&self, over: &ScheduleOverride) -> Result<Rules, Problems> {
        let mut problems = self.quota_problems();
        problems.extend(over.applied_to(self).problems());
        if problems.is_empty() { Ok(over.applied_to(self).ready(self)) } else { Err(Problems(problems)) }
    }
}
