//! `plan cutover`, and the progress of VMs that move together.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::interval;
use warmd_proto::v1::{
    Group, MemberStatus, Migration, PlanCutoverAnswer, PlansCutoverRequest, PlansCutoverResponse,
    PlansGetRequest, RequestOutcome,
};

use super::{
    address::DaemonAddress,
    client::{Client, asked},
    failure::{CliFailure, Exit, is_connection},
    labels,
    migration_stream::{MigrationStream, StreamItem},
    out::{Out, one_line},
    screen::{Screen, interrupted},
    show::Phases,
};

/// How often the group is queried.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Requests the cutovers of a plan and, if they go together and `wait` is set, follows them to the end.
pub(super) async fn cut_over(
    daemon: &DaemonAddress,
    out: &Out,
    request: PlansCutoverRequest,
    wait: bool,
) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let (plan, abort) = (request.name.clone(), request.abort);
    let is_later = !request.at.is_empty() || request.hold || request.unhold;
    // Before the request, so that no change is missed.
    let feed = MigrationStream::open(&client, daemon.clone(), None, false).await?;
    let PlansCutoverResponse { answer, migrations, group } =
        client.plans().cutover(asked(request.clone())).await?.into_inner();
    let what = labels::answer(RequestOutcome::try_from(answer).unwrap_or(RequestOutcome::Unspecified));
    let Some(group) = group else {
        return asked_each(out, &plan, migrations);
    };
    if !wait || is_later {
        return if out.is_json() { out.json(&group) } else { print_state(out, &group) };
    }
    if !out.is_json() {
        let asked = if abort { "abort of the cutover" } else { "cutover" };
        out.text(&format!("{asked} of plan {plan}: {what}"))?;
    }
    let mut follower = Follower::new(&group);
    let mut screen = Screen::new(out, true);
    let mut looks = interval(LOOK_EVERY);
    // Not dropped between queries: it may be about to find the daemon again.
    let mut coming = Box::pin(next(feed));
    let group = loop {
        tokio::select! {
            (feed, news) = &mut coming => {
                coming.set(next(feed));
                match news? {
                    StreamItem::Migration(now) if !out.is_json() => {
                        for line in follower.phases(&now) {
                            screen.say(&line)?;
                        }
                    }
                    StreamItem::Lost(why) => screen.aside(&why)?,
                    StreamItem::Back => screen.aside("the daemon is back")?,
                    StreamItem::Migration(_) | StreamItem::Ended => {}
                }
            }
            _ = looks.tick() => match look(daemon, &plan).await {
                Ok(group) => {
                    if !out.is_json() {
                        for line in follower.news(&group) {
                            screen.say(&line)?;
                        }
                    }
                    if group.ended.is_some() {
                        break group;
                    }
                }
                // The stream waits for it, and ends.
                Err(failure) if failure.exit == Exit::Unreachable => {}
                Err(failure) => return Err(failure),
            },
            () = interrupted() => {
                screen.finish(false)?;
                let told = format!(
                    "interrupted: the cutover of plan {plan} goes on in the daemon; see `warmctl plan show {plan}`, or stop \
                     it with `warmctl plan cutover {plan} --abort`"
                );
                return Err(CliFailure::new(Exit::Interrupted, told));
            }
        }
    };
    screen.finish(true)?;
    ended(out, &group, abort)
}

async fn next(mut feed: MigrationStream) -> (MigrationStream, Result<StreamItem, CliFailure>) {
    let news = feed.next().await;
    (feed, news)
}

async fn look(daemon: &DaemonAddress, plan: &str) -> Result<Group, CliFailure> {
    let client = Client::connect(daemon).await?;
    let request = asked(PlansGetRequest { name: plan.to_owned() });
    match client.plans().get(request).await {
        Ok(answer) => Ok(answer.into_inner().group.unwrap_or_default()),
        Err(status) if is_connection(&status) => Err(CliFailure::new(Exit::Unreachable, status.message())),
        Err(status) => Err(status.into()),
    }
}

fn ended(out: &Out, group: &Group, abort: bool) -> Result<(), CliFailure> {
    if out.is_json() {
        out.json(group)?;
    } else {
        out.text(&format!("cutover of plan {}: {}", group.plan, one_line(&group.outcome)))?;
    }
    if group.done || abort {
        return Ok(());
    }
    if out.is_json() {
        return Err(CliFailure::already_printed(Exit::Failed));
    }
    let why = if group.halted.is_empty() { "not all of it moved" } else { &group.halted };
    Err(CliFailure::new(Exit::Failed, format!("cutover of plan {} failed: {}", group.plan, one_line(why))))
}

/// The VMs that move alone.
fn asked_each(out: &Out, plan: &str, answers: Vec<PlanCutoverAnswer>) -> Result<(), CliFailure> {
    let refused = answers.iter().filter(|each| !each.refusal.is_empty()).count();
    if out.is_json() {
        out.json(&PlansCutoverResponse { migrations: answers, ..PlansCutoverResponse::default() })?;
    } else {
        for each in &answers {
            let answer = if each.refusal.is_empty() {
                labels::answer(each.answer()).to_owned()
            } else {
                format!("refused: {}", one_line(&each.refusal))
            };
            out.text(&format!(
                "cutover of {} ({}): {answer}",
                each.vm_name,
                labels::short(&each.migration_id)
            ))?;
        }
        out.text(&format!("follow them with `warmctl migration list --plan {plan}` or `warmctl top`"))?;
    }
    if refused == 0 { Ok(()) } else { Err(CliFailure::already_printed(Exit::Refused)) }
}

fn print_state(out: &Out, group: &Group) -> Result<(), CliFailure> {
    lines(group).try_for_each(|line| out.text(&line))
}

/// The group's state: one line for the group and one for each VM.
pub(super) fn lines(group: &Group) -> impl Iterator<Item = String> {
    let begun = labels::moment(group.begun.as_ref());
    let how = if group.ended.is_some() {
        one_line(&group.outcome)
    } else if group.halted.is_empty() {
        "it runs".to_owned()
    } else {
        format!("group halted: {}", one_line(&group.halted))
    };
    let first = format!("cutover begun {begun} UTC by {}: {how}", one_line(&group.by));
    let rest: Vec<_> = group
        .members
        .iter()
        .map(|member| {
            let status = labels::name(member.status());
            let why =
                if member.why.is_empty() { String::new() } else { format!(": {}", one_line(&member.why)) };
            format!("tier {}  {}  {status}{why}", member.tier, one_line(&member.vm_name))
        })
        .collect();
    std::iter::once(first).chain(rest)
}

/// What was printed of a group.
struct Follower {
    /// By migration, with the VM's name.
    phases: BTreeMap<String, (String, Phases)>,
    statuses: BTreeMap<String, MemberStatus>,
    begun: Option<DateTime<Utc>>,
    halted: bool,
}

impl Follower {
    fn new(group: &Group) -> Self {
        let each = |member: &warmd_proto::v1::GroupMember| {
            (member.migration_id.clone(), (member.vm_name.clone(), Phases::default()))
        };
        let phases = group.members.iter().map(each).collect();
        let begun = labels::at(group.begun.as_ref());
        Self { phases, statuses: BTreeMap::new(), begun, halted: false }
    }

    /// Lines for phases that have ended, of a member's cutover in this group.
    fn phases(&mut self, now: &Migration) -> Vec<String> {
        let Some((vm, phases)) = self.phases.get_mut(&now.id) else { return Vec::new() };
        let started = now.cutover.as_ref().and_then(|cutover| labels::at(cutover.started.as_ref()));
        if started < self.begun {
            return Vec::new();
        }
        phases.news(now).into_iter().map(|line| format!("{vm}  {line}")).collect()
    }

    /// Lines for new changes.
    fn news(&mut self, group: &Group) -> Vec<String> {
        let mut lines = Vec::new();
        if !group.halted.is_empty() && !self.halted {
            self.halted = true;
            lines.push(format!("group halted: {}", one_line(&group.halted)));
        }
        for member in &group.members {
            let status = member.status();
            if self.statuses.insert(member.migration_id.clone(), status) != Some(status) {
                let why = if member.why.is_empty() {
                    String::new()
                } else {
                    format!(": {}", one_line(&member.why))
                };
                lines.push(format!(
                    "{}  tier {}, {}{why}",
                    member.vm_name,
                    member.tier,
                    labels::name(status)
                ));
            }
        }
        lines
    }
}
