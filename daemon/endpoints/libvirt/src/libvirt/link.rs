//! The path of calls to libvirt: lanes of long-lived connections, a thread per call, a deadline for the
//! caller.
//!
//! Rule: a blocking call is on a thread of its own, and the threads are counted: one that hangs keeps its
//! place in its lane until libvirt returns, so at most [`PER_LANE`] hang there, and the next caller gets an
//! error that says so. The lanes have connections of their own: an abort, a power cut or a query of the power
//! does not wait for descriptions or work. A call whose caller stops waiting before it was sent is not sent.
//! In the urgent lane a domain has one call at a time, and a power cut beside it: one QEMU that hangs takes
//! no other domain's place.
//!
//! libvirt sends a keepalive every few seconds; after half a minute of silence it closes the connection,
//! which ends all calls that hang in it. Such calls are [`LibvirtErrorKind::Unreachable`], whatever error
//! they return.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    error::{LibvirtError, LibvirtErrorKind},
    events::Record,
    ffi::{CallFailure, LibvirtConnection},
};

/// How long a call may take. libvirt itself waits 30 s for a domain that another job holds.
pub const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// Calls at the same time in one lane: libvirt's daemon takes five of one connection (`max_client_requests`)
/// and then stops reading it, also its keepalives.
pub(super) const PER_LANE: usize = 4;

const ALIVE_EVERY: i32 = 5;
const SILENCES: u32 = 5;

/// How long a domain's urgent call waits for another one of the same domain.
const TURN: Duration = Duration::from_secs(1);
const TURN_POLL: Duration = Duration::from_millis(20);

/// The purpose of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Descriptions.
    Look,
    /// Changes that may take long.
    Work,
    /// Urgent calls, which can still wait for the domain's own job or monitor: power, the end of a job, a
    /// job's start.
    Urgent,
    /// Calls that wait for no domain: the list, and the query whether one runs.
    Power,
}

/// One libvirt, by its URI.
#[derive(Debug)]
pub(super) struct CallLanes {
    uri: Box<str>,
    deadline: Duration,
    lanes: [LaneState; 4],
    /// Domains with an urgent call, and whether that is a power cut.
    turns: Arc<Mutex<HashSet<(Uuid, bool)>>>,
    record: Arc<Record>,
}

/// A domain's place in the urgent lane, until it is dropped.
#[derive(Debug)]
pub(super) struct CallTurn {
    turns: Arc<Mutex<HashSet<(Uuid, bool)>>>,
    whose: (Uuid, bool),
}

impl Drop for CallTurn {
    fn drop(&mut self) {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.whose);
    }
}

#[derive(Debug)]
struct LaneState {
    places: Arc<Semaphore>,
    /// Locked while it is opened: a daemon that accepts a connection and never answers blocks its callers,
    /// and keeps their places.
    connection: Mutex<Option<Arc<LibvirtConnection>>>,
}

impl CallLanes {
    pub(super) fn new(uri: &str, deadline: Duration) -> Self {
        let lane = || LaneState { places: Arc::new(Semaphore::new(PER_LANE)), connection: Mutex::new(None) };
        Self {
            uri: uri.into(),
            deadline,
            lanes: [lane(), lane(), lane(), lane()],
            turns: Arc::default(),
            record: Arc::default(),
        }
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The domain's turn for an urgent call. While an earlier one of it does not return,
    /// [`LibvirtErrorKind::Busy`]: one domain must not take all of the lane's places. A power cut has a turn
    /// of its own: it helps where the other calls hang.
    pub(super) async fn turn(
        &self,
        domain: Uuid,
        call: &str,
        cuts_power: bool,
    ) -> Result<CallTurn, LibvirtError> {
        let whose = (domain, cuts_power);
        let deadline = Instant::now() + TURN.min(self.deadline);
        while !self.turns.lock().unwrap_or_else(PoisonError::into_inner).insert(whose) {
            if Instant::now() >= deadline {
                let why =
                    "an earlier call about this domain has not returned; the next one is begun when it has";
                return Err(LibvirtError::new(LibvirtErrorKind::Busy, call, why));
            }
            tokio::time::sleep(TURN_POLL).await;
        }
        Ok(CallTurn { turns: Arc::clone(&self.turns), whose })
    }

    /// Runs `ask` on the lane's connection, which is opened if needed, and answers within the deadline.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        call: String,
        ask: impl FnOnce(&LibvirtConnection) -> Result<T, CallFailure> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let deadline = Instant::now() + self.deadline;
        let places = Arc::clone(&self.lane(lane).places);
        let place = match timeout_at(deadline, places.acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(closed)) => return Err(LibvirtError::new(LibvirtErrorKind::Failed, call, closed)),
            Err(_) => {
                let why = format!(
                    "{PER_LANE} earlier calls have not returned within {} s; no more are begun until they do: is \
                     libvirt's daemon hanging?",
                    self.deadline.as_secs_f32()
                );
                return Err(LibvirtError::new(LibvirtErrorKind::Timeout, call, why));
            }
        };
        let (tell, told) = oneshot::channel();
        let (endpoint, name) = (Arc::clone(self), call.clone());
        let thread = std::thread::Builder::new().name("libvirt-call".to_owned());
        let begun = thread.spawn(move || {
            let answer = endpoint.ask(lane, &name, &tell, ask);
            // Before the answer is sent: the next caller finds a place.
            drop(place);
            if let Some(answer) = answer {
                // The caller has stopped waiting: the answer came after the deadline.
                tell.send(answer).ok();
            }
        });
        if let Err(error) = begun {
            let why = format!("no thread for the call: {error}");
            return Err(LibvirtError::new(LibvirtErrorKind::Failed, call, why));
        }
        match timeout_at(deadline, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(LibvirtError::new(LibvirtErrorKind::Failed, call, "the call's thread died")),
            Err(_) => {
                let why = format!("no answer within {} s", self.deadline.as_secs_f32());
                Err(LibvirtError::new(LibvirtErrorKind::Timeout, call, why))
            }
        }
    }

    /// The call itself, on its thread; `None` if its caller has stopped waiting.
    fn ask<T>(
        &self,
        lane: Lane,
        call: &str,
        tell: &oneshot::Sender<Result<T, LibvirtError>>,
        ask: impl FnOnce(&LibvirtConnection) -> Result<T, CallFailure>,
    ) -> Option<Result<T, LibvirtError>> {
        let connection = match self.connection(lane, || tell.is_closed()) {
            Ok(connection) => connection?,
            Err(failure) => {
                let error = LibvirtError::of(call, failure);
                return Some(Err(match error.kind {
                    LibvirtErrorKind::MissingTool | LibvirtErrorKind::Denied => error,
                    _ => LibvirtError { kind: LibvirtErrorKind::Unreachable, ..error },
                }));
            }
        };
        if tell.is_closed() {
            return None;
        }
        Some(ask(&connection).map_err(|failure| {
            let error = LibvirtError::of(call, failure);
            // An error over a connection that broke meanwhile is no answer of libvirt.
            if connection.is_alive() {
                error
            } else {
                LibvirtError { kind: LibvirtErrorKind::Unreachable, ..error }
            }
        }))
    }

    fn connection(
        &self,
        lane: Lane,
        is_over: impl Fn() -> bool,
    ) -> Result<Option<Arc<LibvirtConnection>>, CallFailure> {
        let mut place = self.lane(lane).connection.lock().unwrap_or_else(PoisonError::into_inner);
        if is_over() {
            return Ok(None);
        }
        if let Some(open) = place.as_ref().filter(|open| open.is_alive()) {
            return Ok(Some(Arc::clone(open)));
        }
        *place = None;
        let open = LibvirtConnection::open(&self.uri)?;
        if let Err(failure) = open.keep_alive(ALIVE_EVERY, SILENCES) {
            // For drivers inside this process, which need no keepalive.
            tracing::debug!(uri = %self.uri, ?failure, "the connection is not kept alive");
        }
        let open = Arc::new(open);
        if lane == Lane::Power {
            self.record.follow(&open);
        }
        *place = Some(Arc::clone(&open));
        Ok(Some(open))
    }

    fn lane(&self, lane: Lane) -> &LaneState {
        let [look, work, urgent, power] = &self.lanes;
        match lane {
            Lane::Look => look,
            Lane::Work => work,
            Lane::Urgent => urgent,
            Lane::Power => power,
        }
    }
}

impl Drop for CallLanes {
    fn drop(&mut self) {
        // Closing is a call too, which may hang.
        let open: Vec<_> = self
            .lanes
            .iter_mut()
            .filter_map(|lane| lane.connection.get_mut().unwrap_or_else(PoisonError::into_inner).take())
            .collect();
        if !open.is_empty() {
            let leave = std::thread::Builder::new().name("libvirt-leave".to_owned());
            leave.spawn(move || drop(open)).map(drop).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(connection: &LibvirtConnection) -> Result<usize, CallFailure> {
        Ok(connection.domains()?.len())
    }

    #[tokio::test]
    async fn an_endpoint_that_is_not_there_is_unreachable() {
        let endpoint = CallLanes::new("qemu:///system?socket=/nonexistent/warmd-test", CALL_DEADLINE);
        let error = Arc::new(endpoint).run(Lane::Look, "list".to_owned(), domains).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("/nonexistent/warmd-test"), "{error}");
    }

    #[tokio::test]
    async fn silent_listener_costs_one_deadline_and_few_threads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deaf");
        let deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let uri = format!("qemu:///system?socket={}", path.display());
        let endpoint = Arc::new(CallLanes::new(&uri, Duration::from_millis(300)));
        let ask = |lane| endpoint.run(lane, "list".to_owned(), domains);
        for _ in 0..PER_LANE {
            let error = ask(Lane::Look).await.unwrap_err();
            assert!(error.kind == LibvirtErrorKind::Timeout && error.to_string().contains("no answer"));
        }
        // No more threads than places; the error says why. The other lanes are not affected.
        let error = ask(Lane::Look).await.unwrap_err();
        assert!(error.to_string().contains("4 earlier calls"), "{error}");
        assert_eq!(endpoint.lane(Lane::Look).places.available_permits(), 0);
        assert!(ask(Lane::Urgent).await.unwrap_err().to_string().contains("no answer"));
        // The hanging calls return when the daemon ends, without an effect.
        drop(deaf);
        while endpoint.lane(Lane::Look).places.available_permits() < PER_LANE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn hanging_domain_takes_one_urgent_lane_and_is_powered_off() {
        let endpoint = CallLanes::new("test:///default", Duration::from_millis(100));
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let hangs = endpoint.turn(one, "domjobabort", false).await.unwrap();
        let error = endpoint.turn(one, "domjobabort", false).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::Busy, "{error}");
        let cut = endpoint.turn(one, "destroy", true).await.unwrap();
        assert!(endpoint.turn(one, "destroy", true).await.is_err());
        endpoint.turn(other, "domjobabort", false).await.unwrap();
        drop((hangs, cut));
        endpoint.turn(one, "domjobabort", false).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_kept() {
        let endpoint = Arc::new(CallLanes::new("test:///default", CALL_DEADLINE));
        assert_eq!(endpoint.run(Lane::Look, "list".to_owned(), domains).await.unwrap(), 1);
        let open = || endpoint.lane(Lane::Look).connection.lock().unwrap().clone().unwrap();
        let before = open();
        assert_eq!(endpoint.run(Lane::Look, "list".to_owned(), domains).await.unwrap(), 1);
        assert!(Arc::ptr_eq(&before, &open()));
    }
}
