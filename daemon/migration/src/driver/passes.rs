//! When the driver runs a pass.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;
use warmd_core::{
    clock,
    model::{decide::PassLeave, plan::Plan},
};
use warmd_schedules::{
    Tz,
    rules::{NotBefore, PassHistory},
};
use warmd_store::ChangeRates;

use super::{
    super::{
        pass_history::{Known, known},
        timing,
    },
    Driver, Happened,
};

/// A longer wait is a rest: leftovers on the source are removed before it.
const REST: TimeDelta = TimeDelta::hours(1);

impl Driver {
    /// Waits for a request, or until the schedule must be asked again.
    pub(super) async fn wait_for(
        &mut self,
        mut plans: watch::Receiver<Arc<Plan>>,
        wait: NotBefore,
    ) -> Happened {
        let until = wait.until;
        self.show_next_pass(until, Some(wait.why));
        let is_rest = until.is_none_or(|until| until - clock::now() > REST);
        self.idle(async move { timing::until(&mut plans, until).await }, is_rest).await
    }

    pub(super) fn show_next_pass(&self, next_pass: Option<DateTime<Utc>>, why: Option<String>) {
        let view = self.context.live.view();
        if (view.next_pass, &view.next_pass_why) != (next_pass, &why) {
            self.context.live.update(|view| (view.next_pass, view.next_pass_why) = (next_pass, why));
        }
    }

    /// Why the started pass is suspended, unless an operator requested it; and the channel of plan changes.
    pub(super) fn suspended(&self) -> Option<(watch::Receiver<Arc<Plan>>, NotBefore)> {
        if self.record.pass == PassLeave::Requested {
            return None;
        }
        let plans = self.context.plans();
        timing::suspended(&self.context, clock::now()).map(|wait| (plans, wait))
    }

    /// The migration's pass history; empty if it cannot be read.
    pub(super) async fn facts(&self) -> PassHistory {
        let zone = self.zone();
        let mut facts =
            self.known(zone).await.map_or_else(|| PassHistory::unknown(zone), |known| known.facts);
        facts.last = facts.last.map(|last| self.context.monotonic_pass.at_wall_clock(last, clock::now()));
        facts
    }

    /// What was learnt from the passes that ended, if it is new.
    pub(super) async fn change_rates(&self) -> Option<ChangeRates> {
        self.known(self.zone()).await.filter(|known| known.is_new).map(|known| known.learned)
    }

    fn zone(&self) -> Tz {
        self.context.rules().map_or(Tz::UTC, |rules| rules.zone)
    }

    async fn known(&self, zone: Tz) -> Option<Known> {
        match known(&self.context.store, self.context.id, zone, self.cutover_at()).await {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::error!(migration = %self.context.id, %error, "what its passes taught is not read");
                None
            }
        }
    }
}
