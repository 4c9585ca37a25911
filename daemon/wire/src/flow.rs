//! How much is asked for at once, and whether it is packed.
//!
//! Rule: bytes in flight over all connections are about 1.5 × rate × round trip: less leaves the link idle,
//! more only fills its queue. Packing is used where it delivers more bytes of the disk a second, which is
//! measured, not computed: the link, both processors and the data have their part in it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Bounds of the bytes in flight.
pub(super) const LEAST: u64 = 2 << 20;
pub(super) const MOST: u64 = 64 << 20;
const FIRST: u64 = 4 << 20;
/// The part of rate × round trip that is in flight: what keeps the link busy through small pauses.
const FACTOR: f64 = 1.5;
/// The rate is measured over at least so long, and over as many round trips.
const MEASURE: Duration = Duration::from_millis(50);
const TRIPS: u32 = 2;
/// Rates of so many measurements count, the best of them.
const RECENT: usize = 8;
/// The shortest round trip is measured again after so long, with a nearly empty link.
const TRIP_AGE: Duration = Duration::from_secs(30);
/// Measurements in one way of sending before the other is tried, at first and at most.
const FIRST_TRIAL: u32 = 4;
const LAST_TRIAL: u32 = 256;
/// Measurements of a trial; the first of them still has data of the other way.
const TRIAL: u32 = 3;
/// The other way of sending must be better by this factor.
const BETTER: f64 = 1.1;

/// What was seen of one way of sending: packed, or as it is.
#[derive(Debug)]
struct Way {
    rates: [f64; RECENT],
    next: usize,
    limit: u64,
    /// The rate at the end of its last turn, 0 if it had none.
    rate: f64,
}

#[derive(Debug)]
struct State {
    in_flight: u64,
    /// Whether a request waited for room since the measurement began.
    is_full: bool,
    began: Instant,
    delivered: u64,
    shortest: Duration,
    shortest_at: Instant,
    /// The shortest round trip of a new measurement, with its end.
    probing: Option<(Instant, Duration)>,
    ways: [Way; 2],
    is_packing: bool,
    /// Measurements until the next trial; during one, until its end.
    left: u32,
    is_trial: bool,
    between_trials: u32,
}

/// The bytes in flight and the packing of one disk.
#[derive(Debug)]
pub(super) struct Flow {
    state: Mutex<State>,
    room: Notify,
    turn: tokio::sync::Mutex<()>,
}

/// Bytes that may be in flight; dropped, they may not.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    flow: &'a Flow,
    bytes: u64,
    began: Instant,
}

/// What a flow has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowView {
    /// Bytes of the disk that may be in flight.
    pub max_in_flight: u64,
    /// Bytes of the disk a second, as last measured.
    pub rate: f64,
    /// The shortest time of a request.
    pub round_trip: Duration,
    pub is_packing: bool,
}

impl Flow {
    pub(super) fn new() -> Self {
        let way = || Way { rates: [0.0; RECENT], next: 0, limit: FIRST, rate: 0.0 };
        let now = Instant::now();
        let state = State {
            in_flight: 0,
            is_full: false,
            began: now,
            delivered: 0,
            shortest: Duration::MAX,
            shortest_at: now,
            probing: None,
            ways: [way(), way()],
            is_packing: true,
            left: FIRST_TRIAL,
            is_trial: false,
            between_trials: FIRST_TRIAL,
        };
        Self { state: Mutex::new(state), room: Notify::new(), turn: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, in order, until so many bytes more may be in flight.
    pub(super) async fn enter(&self, bytes: u64) -> Ticket<'_> {
        let _turn = self.turn.lock().await;
        loop {
            let room = self.room.notified();
            {
                let mut state = self.state();
                if state.in_flight == 0 || state.in_flight + bytes <= state.limit() {
                    if state.in_flight == 0 && !state.is_full {
                        // An idle time is no measurement.
                        state.restart(Instant::now());
                    }
                    state.in_flight += bytes;
                    return Ticket { flow: self, bytes, began: Instant::now() };
                }
                state.is_full = true;
            }
            room.await;
        }
    }

    /// Whether data shall be packed now.
    pub(super) fn is_packing(&self) -> bool {
        self.state().is_packing
    }

    /// What was found until now.
    pub(super) fn view(&self) -> FlowView {
        let state = self.state();
        let way = &state.ways[usize::from(state.is_packing)];
        FlowView {
            max_in_flight: way.limit,
            rate: way.rate,
            round_trip: if state.shortest == Duration::MAX { Duration::ZERO } else { state.shortest },
            is_packing: state.is_packing,
        }
    }
}

impl Ticket<'_> {
    /// Its bytes came.
    pub(super) fn delivered(self) {
        let now = Instant::now();
        self.flow.state().deliver(self.bytes, now - self.began, now);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.flow.state().in_flight -= self.bytes;
        self.flow.room.notify_one();
    }
}

impl State {
    fn limit(&self) -> u64 {
        let limit = self.ways[usize::from(self.is_packing)].limit;
        if self.probing.is_some() { (limit / 4).max(1) } else { limit }
    }

    fn restart(&mut self, now: Instant) {
        (self.began, self.delivered, self.is_full) = (now, 0, false);
    }

    fn deliver(&mut self, bytes: u64, took: Duration, now: Instant) {
        self.delivered += bytes;
        self.shortest = self.shortest.min(took);
        if let Some((until, shortest)) = &mut self.probing {
            *shortest = (*shortest).min(took);
            if now >= *until {
                self.shortest = *shortest;
                (self.probing, self.shortest_at) = (None, now);
                self.restart(now);
            }
            return;
        }
        let span = now - self.began;
        if span < MEASURE.max(self.shortest * TRIPS) {
            return;
        }
        if self.is_full {
            self.measured(self.delivered as f64 / span.as_secs_f64());
            if now - self.shortest_at > TRIP_AGE {
                let long = (self.shortest * 6).max(MEASURE);
                self.probing = Some((now + long, Duration::MAX));
            }
        }
        self.restart(now);
    }

    /// A measurement in which as much was in flight as may be.
    fn measured(&mut self, rate: f64) {
        let trip = self.shortest.as_secs_f64();
        let way = &mut self.ways[usize::from(self.is_packing)];
        way.rates[way.next % RECENT] = rate;
        way.next += 1;
        let best = way.rates.iter().copied().fold(0.0, f64::max);
        way.limit = ((best * trip * FACTOR) as u64).clamp(LEAST, MOST);
        // The latest counts most: a way of sending is compared by what it does now.
        way.rate = if way.rate == 0.0 || self.is_trial { rate } else { way.rate * 0.7 + rate * 0.3 };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.change();
        }
    }

    /// Begins a trial of the other way of sending, or ends it with a decision.
    fn change(&mut self) {
        if !self.is_trial {
            (self.is_trial, self.is_packing, self.left) = (true, !self.is_packing, TRIAL);
            return;
        }
        let [tried, before] = [self.is_packing, !self.is_packing].map(|way| self.ways[usize::from(way)].rate);
        self.is_trial = false;
        if tried > before * BETTER {
            self.between_trials = FIRST_TRIAL;
        } else {
            self.is_packing = !self.is_packing;
            self.between_trials = (self.between_trials * 2).min(LAST_TRIAL);
        }
        self.left = self.between_trials;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `rate` that packing makes `packed` times as fast, for `seconds`; the mean rate in the end.
    async fn drive(flow: &Flow, rate: f64, packed: f64, trip: Duration, seconds: u64) {
        const REQUEST: u64 = 512 << 10;
        let begun = Instant::now();
        let mut free = Instant::now();
        let mut flying = std::collections::VecDeque::new();
        while begun.elapsed() < Duration::from_secs(seconds) {
            while let Some(ticket) = futures::FutureExt::now_or_never(flow.enter(REQUEST)) {
                let speed = if flow.is_packing() { rate * packed } else { rate };
                free = free.max(Instant::now()) + Duration::from_secs_f64(REQUEST as f64 / speed);
                flying.push_back((free + trip, ticket));
            }
            if let Some((due, ticket)) = flying.pop_front() {
                tokio::time::sleep_until(due).await;
                ticket.delivered();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_in_flight_follow_rate_and_round_trip() {
        let flow = Flow::new();
        let trip = Duration::from_millis(20);
        for seconds in [2, 100] {
            drive(&flow, 117e6, 1.0, trip, seconds).await;
            let view = flow.view();
            // A request is on the link for 4.5 ms of its time.
            let right = 117e6 * 0.0245 * 1.5;
            assert!((0.8..1.4).contains(&(view.max_in_flight as f64 / right)), "{view:?} after {seconds} s");
        }
        drive(&flow, 1170e6, 1.0, trip, 5).await;
        assert!(flow.view().max_in_flight > 30_000_000, "{:?}", flow.view());
    }

    #[tokio::test(start_paused = true)]
    async fn packing_stays_where_it_delivers_more_and_ends_where_not() {
        let trip = Duration::from_millis(20);
        let slow = Flow::new();
        drive(&slow, 30e6, 3.0, trip, 5).await;
        assert!(slow.is_packing() && slow.view().rate > 80e6, "{:?}", slow.view());
        let fast = Flow::new();
        drive(&fast, 1000e6, 0.5, trip, 5).await;
        assert!(!fast.is_packing() && fast.view().rate > 900e6, "{:?}", fast.view());
        // The data, or the link, is another now.
        drive(&fast, 30e6, 3.0, trip, 120).await;
        assert!(fast.is_packing(), "{:?}", fast.view());
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_requests_leave_room_and_a_large_one_passes_alone() {
        let flow = Flow::new();
        let first = flow.enter(MOST * 2).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), flow.enter(1)).await.is_err());
        drop(first);
        let _second = flow.enter(1).await;
    }
}
