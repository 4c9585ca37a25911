//! Cutover requests for all migrations of a plan.
//!
//! Rule: a group that cannot begin completely is refused completely, with each VM that prevents it; nothing
//! has been stopped then.

use warmd_core::{
    clock,
    control::{Control as _, ControlError, ControlErrorKind, PlanCutover, PlanRequestOutcome},
    model::{
        event_kind::EventKind,
        group::{GroupMember, GroupView},
        plan::Plan,
        request::{Request, RequestOutcome, check_request},
        scheduled_cutover::{CutoverOrder, CutoverTime},
        view::EventView,
    },
};
use warmd_store::NewGroup;

use super::coordinator;
use crate::{
    forecast,
    manager::{DriverHandle, Manager, internal},
    scheduled_cutover, timing,
};

impl Manager {
    /// See [`warmd_core::control::Control::cut_over_plan`].
    pub(crate) async fn ask_plan(
        &self,
        plan: &Plan,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<PlanCutover, ControlError> {
        if let (None, Some(running)) = (order, self.groups.of_plan(&plan.name)) {
            return self.abort_group(plan, &running, by).await;
        }
        match order {
            Some(CutoverOrder { when: CutoverTime::Now, force, .. }) if plan.is_grouped() => {
                let running = self.groups.of_plan(&plan.name).is_some();
                let already = running || !self.begin_group(plan, force, by).await?;
                Ok(PlanCutover { outcomes: Vec::new(), group: self.group_view(plan).await?, already })
            }
            order => {
                let outcomes = self.ask_each(plan, order, by).await?;
                let already = outcomes.iter().all(|each| each.outcome == RequestOutcome::NoChange);
                Ok(PlanCutover { outcomes, group: None, already })
            }
        }
    }

    /// Asks each of the plan's migrations separately.
    async fn ask_each(
        &self,
        plan: &Plan,
        order: Option<CutoverOrder>,
        by: &str,
    ) -> Result<Vec<PlanRequestOutcome>, ControlError> {
        let open = self.open_of(plan);
        if open.is_empty() {
            return Err(none_left(plan));
        }
        let mut outcomes = Vec::new();
        for handle in open {
            let migration = handle.context.id;
            let outcome = match order {
                Some(order) => self.cut_over(migration, order, by).await?,
                None => self.request(migration, Request::AbortCutover, by).await?,
            };
            let vm = handle.context.machine.name.clone();
            outcomes.push(PlanRequestOutcome { migration, vm, outcome });
        }
        Ok(outcomes)
    }

    async fn abort_group(
        &self,
        plan: &Plan,
        running: &super::Running,
        by: &str,
    ) -> Result<PlanCutover, ControlError> {
        let already = running.board.look(|board| board.halted.is_some());
        let members = &running.group.members;
        let why = format!("aborted by {by}");
        running
            .abort(why, |open| !already && members.iter().all(|member| open.contains(&member.migration)))
            .map_err(|_| {
                let told = "all VMs of it are started on the target; to go back, and lose what they wrote since, use \
                            `migration rollback` for each";
                ControlError::new(ControlErrorKind::Refused, told)
            })?;
        Ok(PlanCutover { outcomes: Vec::new(), group: self.group_view(plan).await?, already })
    }

    /// The unfinished migrations of the plan.
    fn open_of(&self, plan: &Plan) -> Vec<DriverHandle> {
        let theirs = |handle: &DriverHandle| {
            handle.context.plan().name == plan.name && !handle.context.state().is_final()
        };
        self.handles().into_iter().filter(theirs).collect()
    }

    /// The members of a group that begins now, by tier.
    pub(super) fn members_of(&self, plan: &Plan) -> Vec<GroupMember> {
        let open = self.open_of(plan);
        let known: Vec<_> = open
            .iter()
            .map(|handle| (handle.context.machine.id.0.clone(), handle.context.machine.name.clone()))
            .collect();
        let mut members: Vec<_> = open
            .iter()
            .zip(plan.tiers_of(&known))
            .filter_map(|(handle, tier)| {
                let context = &handle.context;
                let (migration, vm) = (context.id, context.machine.name.clone());
                Some(GroupMember { migration, vm, tier: tier?, attempt: context.cutover().attempt })
            })
            .collect();
        members.sort_by_key(|member| member.tier);
        members
    }

    /// Begins the group cutover of the plan's VMs. Returns whether this call began one: `false` if one was
    /// saved already by a caller who got an error; the journal names that caller.
    pub(super) async fn begin_group(
        &self,
        plan: &Plan,
        forced: bool,
        by: &str,
    ) -> Result<bool, ControlError> {
        let _one_at_a_time = self.applying.lock().await;
        let members = self.members_of(plan);
        if members.is_empty() {
            return Err(none_left(plan));
        }
        // An unreadable migration may be a member: the others do not begin without it.
        let unreadable = self.all_unreadable().into_iter();
        let mut against: Vec<_> = unreadable
            .filter(|it| it.may_be_of(&plan.name))
            .map(|it| format!("VM {}: {}", it.vm_name, it.reason()))
            .collect();
        for member in &members {
            let Some(handle) = self.handle(member.migration) else { continue };
            if let Some(why) = against_one(&handle, forced).await {
                against.push(format!("VM {}: {why}", member.vm));
            }
        }
        if !against.is_empty() {
            let told =
                format!("the VMs of plan {} cannot be cut over together: {}", plan.name, against.join("; "));
            return Err(ControlError::new(ControlErrorKind::Refused, told));
        }
        let names: Vec<_> = members.iter().map(|member| member.vm.clone()).collect();
        let new = NewGroup {
            plan: plan.name.clone(),
            by: by.to_owned(),
            forced,
            all_or_nothing: plan.cutover.all_or_nothing,
            begun: clock::now(),
            members,
        };
        let text =
            format!("the cutover of plan {} begins, asked for by {by}: {}", plan.name, names.join(", "));
        let line =
            EventView { at: new.begun, migration: None, by: by.to_owned(), kind: EventKind::Request, text };
        let (group, is_new) = self.store.begin_group(new, line).await.map_err(internal)?;
        // A group whose creation failed, but was saved, has no coordinator yet.
        if is_new || self.groups.of_plan(&plan.name).is_none() {
            let running = self.groups.add(group);
            if let Some(self_ref) = self.self_ref.upgrade() {
                self_ref.coordinate(running);
            }
        }
        Ok(is_new)
    }

    /// The status of the plan's last group cutover.
    pub(crate) async fn group_view(&self, plan: &Plan) -> Result<Option<GroupView>, ControlError> {
        let Some(mut group) = self.store.last_group(&plan.name).await.map_err(internal)? else {
            return Ok(None);
        };
        let board =
            self.groups.of_plan(&plan.name).map(|running| running.board.look(super::GroupChannel::clone));
        let board = board.unwrap_or_default();
        if group.halted.is_none() {
            group.halted.clone_from(&board.halted);
        }
        let facts = self.store.member_facts(group.id).await.map_err(internal)?;
        let statuses = coordinator::statuses(&group.members, &facts, &board);
        Ok(Some(GroupView { group, statuses }))
    }
}

/// Why the migration's cutover would not begin now.
async fn against_one(handle: &DriverHandle, forced: bool) -> Option<String> {
    let context = &handle.context;
    let order = CutoverOrder { when: CutoverTime::Now, force: forced, in_group: true };
    match check_request(&context.state(), &order.request()) {
        RequestOutcome::Accepted => {}
        RequestOutcome::NoChange => return Some("it is being cut over alone".to_owned()),
        RequestOutcome::Refused(why) => return Some(why),
    }
    if let Some(why) = scheduled_cutover::refusal(timing::asked(context).as_ref(), order, clock::now()) {
        return Some(why);
    }
    if forced { None } else { forecast::veto(context).await }
}

fn none_left(plan: &Plan) -> ControlError {
    let told = format!(
        "plan {} has no unfinished migration: all are done or cancelled; see `migration list --plan {}`",
        plan.name, plan.name
    );
    ControlError::new(ControlErrorKind::Refused, told)
}
