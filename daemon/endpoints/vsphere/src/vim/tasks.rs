//! Tasks: what a server does in the background.
//!
//! Rule: a task is waited for until it says that it has succeeded or failed; anything else it says is
//! neither. A server that does not answer meanwhile is waited for too. A task that the server does not know
//! any more may have succeeded: the caller looks.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    client::{Client, Repeat},
    error::{Kind, Result, VsphereError},
    soap::{Element, Fault, MoRef, SoapRequest},
};

use super::{
    properties::{self, Object, Wanted},
    server::time,
};

const FIRST_POLL: Duration = Duration::from_millis(50);
const LAST_POLL: Duration = Duration::from_secs(1);
/// After this, a task that is waited for is told once.
const TELL: Duration = Duration::from_secs(20);

const PATHS: [&str; 8] = [
    "info.state",
    "info.descriptionId",
    "info.progress",
    "info.error",
    "info.result",
    "info.startTime",
    "info.completeTime",
    "info.reason",
];

/// What to do with a task that takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtDeadline {
    /// It goes on.
    Leave,
    /// It is asked to stop.
    Cancel,
}

/// A task that has succeeded.
#[derive(Clone, Debug)]
pub struct Done {
    pub result: Option<Element>,
    /// From its start to its end, by the server's clock.
    pub took: Option<Duration>,
}

/// A task that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it does, by the API's name: `VirtualMachine.createSnapshot`.
    pub what: String,
    pub progress: Option<u8>,
    /// Who began it.
    pub by: Option<String>,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a task runs on it: {}", self.what)?;
        if let Some(by) = &self.by {
            write!(f, ", begun by {by}")?;
        }
        self.progress.map_or(Ok(()), |percent| write!(f, ", at {percent} %"))
    }
}

/// Where a task is.
#[derive(Debug)]
enum TaskStatus {
    Open(Running),
    Done(Done),
    Failed(Fault),
}

/// Waits until the task has ended.
pub async fn wait(client: &Client, task: &MoRef, within: Duration, at_deadline: AtDeadline) -> Result<Done> {
    let begun = Instant::now();
    let mut pause = FIRST_POLL;
    let mut told = false;
    loop {
        let context = || format!("{task}: waiting for its end");
        let left = within.saturating_sub(begun.elapsed());
        match look(client, task).await {
            Ok(TaskStatus::Done(done)) => return Ok(done),
            Ok(TaskStatus::Failed(fault)) => return Err(VsphereError::of_fault(context(), fault)),
            Ok(TaskStatus::Open(running)) => {
                if !told && begun.elapsed() > TELL {
                    told = true;
                    tracing::info!(%task, what = running.what, progress = ?running.progress, "waiting for a task");
                }
                if left.is_zero() {
                    if at_deadline == AtDeadline::Cancel {
                        cancel(client, task).await;
                    }
                    let why = format!(
                        "{} has not ended within {} s{}",
                        running.what,
                        within.as_secs(),
                        running.progress.map(|percent| format!(", it is at {percent} %")).unwrap_or_default()
                    );
                    return Err(VsphereError::new(Kind::Timeout, context(), why));
                }
            }
            Err(error) if error.is_gone(task) => {
                let why = "the server does not know the task any more (was it restarted?); what became of it is looked at";
                return Err(VsphereError::new(Kind::Unreachable, context(), why));
            }
            Err(error) if matches!(error.kind, Kind::Unreachable | Kind::Timeout) && !left.is_zero() => {
                tracing::warn!(%task, %error, "a task cannot be looked at; trying again");
                pause = LAST_POLL;
            }
            Err(error) => return Err(error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_POLL);
    }
}

/// Asks the task to stop. That it cannot, or has ended, is no failure.
pub async fn cancel(client: &Client, task: &MoRef) {
    let request = SoapRequest::new("CancelTask", task, |arguments| arguments);
    if let Err(error) = client.call(&request, Repeat::Safe).await {
        tracing::info!(%task, %error, "a task could not be cancelled");
    }
}

async fn look(client: &Client, task: &MoRef) -> Result<TaskStatus> {
    status(&properties::read_properties(client, task, &PATHS).await?)
}

fn status(object: &Object) -> Result<TaskStatus> {
    let state = object.need_text("info.state")?;
    Ok(match state {
        "queued" | "running" => TaskStatus::Open(what(object)),
        "success" => {
            let at = |name: &str| object.get(name).and_then(time);
            let took = at("info.completeTime").zip(at("info.startTime")).map(|(end, start)| end - start);
            TaskStatus::Done(Done {
                result: object.get("info.result").cloned(),
                took: took.and_then(|took| took.to_std().ok()),
            })
        }
        "error" => TaskStatus::Failed(Fault::of_task(object.need("info.error")?)),
        other => {
            let context = format!("{}: reading `info.state`", object.of);
            return Err(VsphereError::failed(context, format!("it is `{other}`, which no task's state is")));
        }
    })
}

/// The task; `None` if the server has forgotten it. One by one: a single one that is gone fails a call for
/// all.
async fn known(client: &Client, task: &MoRef) -> Result<Option<Object>> {
    let wanted = Wanted { kind: "Task", paths: &PATHS };
    match properties::of_all(client, std::slice::from_ref(task), &[wanted]).await {
        Ok(mut objects) => Ok(objects.pop()),
        Err(error) if error.is_gone(task) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What these tasks are and by whom, whether they have ended or not. Tasks that the server has forgotten are
/// left out.
pub async fn recent(client: &Client, tasks: &[MoRef]) -> Result<Vec<Running>> {
    let mut found = Vec::new();
    for task in tasks {
        found.extend(known(client, task).await?.as_ref().map(what));
    }
    Ok(found)
}

fn what(object: &Object) -> Running {
    Running {
        what: object.text("info.descriptionId").unwrap_or("a task").to_owned(),
        progress: object.text("info.progress").and_then(|text| text.parse().ok()),
        by: object.get("info.reason").and_then(|reason| reason.text_at("userName")).map(str::to_owned),
    }
}

/// The first of the tasks that has not ended. Tasks that the server has forgotten have.
pub async fn first_open(client: &Client, tasks: &[MoRef]) -> Result<Option<Running>> {
    for task in tasks {
        let Some(object) = known(client, task).await? else { continue };
        if let TaskStatus::Open(running) = status(&object)? {
            return Ok(Some(running));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::FaultKind;

    fn task(properties: &[(&str, &str)]) -> Object {
        let mut object = Object::new(MoRef::new("Task", "task-7"));
        for (name, value) in properties {
            let text = format!("<val xmlns:xsi='u'>{value}</val>");
            object.set(name, Element::read(text.as_bytes()).unwrap());
        }
        object
    }

    #[test]
    fn a_task_succeeds_fails_or_runs() {
        let done = task(&[
            ("info.state", "success"),
            ("info.startTime", "2026-01-01T00:00:01.5Z"),
            ("info.completeTime", "2026-01-01T00:00:03Z"),
        ]);
        let TaskStatus::Done(done) = status(&done).unwrap() else { panic!() };
        assert_eq!(done.took, Some(Duration::from_millis(1500)));

        let fault = "<fault xsi:type='TaskInProgress'/><localizedMessage>busy</localizedMessage>";
        let failed = task(&[("info.state", "error"), ("info.error", fault)]);
        let TaskStatus::Failed(fault) = status(&failed).unwrap() else { panic!() };
        assert_eq!(fault.kind, FaultKind::TaskInProgress);

        let open = task(&[
            ("info.state", "running"),
            ("info.descriptionId", "VirtualMachine.removeSnapshot"),
            ("info.progress", "42"),
            ("info.reason", "<userName>backup</userName>"),
        ]);
        let TaskStatus::Open(open) = status(&open).unwrap() else { panic!() };
        assert_eq!((open.progress, open.by.as_deref()), (Some(42), Some("backup")));
    }

    #[test]
    fn a_state_that_is_not_known_is_never_success() {
        assert!(status(&task(&[("info.state", "mostlyDone")])).is_err());
        assert!(status(&task(&[])).is_err());
        // It failed, and does not say why: no success either.
        assert!(status(&task(&[("info.state", "error")])).is_err());
    }
}
