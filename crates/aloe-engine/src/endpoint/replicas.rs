//! Several servers with the same model as one: each request goes to the healthy server with the fewest under way, and moves
//! to another when its server is busy, breaks off, answers garbage or falls silent. Each request has one answer or one error.
//!
//! A server that fails is not asked for a time that doubles with each failure in a row, or for the time it names itself. One
//! that falls silent while requests wait is asked for its list of models; when that too stays without an answer, what waits
//! there goes elsewhere and it is given half as many at once when it is back. A server that comes back must still list the same model. With 429 and 503 the requests sent to a
//! server at once are halved, and grow again with its answers.

use super::listing;
use crate::http::{Client, Outcome};
use crate::{Error, Result};
use aloe_record::Cancel;
use serde_json::Value;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Requests under way at once, per server.
pub(super) const CONNECTIONS: usize = 16;

/// How often a request is tried, times the number of servers; and after how many failures in a row a server is given up.
const TRIES: u32 = 5;

/// The first wait after a failure; each further failure in a row doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait before a server that failed is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest `Retry-After` that is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How long a server may answer nothing while requests wait, before it is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(2);

/// How long that question may take.
const CHECK_TIMEOUT: Duration = Duration::from_millis(2500);

/// What a server that is alive said to a request.
pub(super) enum Reply {
    /// Status 200 and JSON, and the server that said so.
    Json(Value, usize),
    /// A status that says the request itself is not taken.
    Refused(String),
}

/// The servers.
pub(super) struct Replicas {
    shared: Arc<Shared>,
}

/// What callers and the threads that check servers share.
struct Shared {
    clients: Vec<Arc<Client>>,
    model: String,
    /// What every server must list.
    listed: String,
    states: Mutex<Vec<State>>,
    changed: Condvar,
}

/// One server's health.
struct State {
    in_flight: usize,
    /// Requests it is given at once, at most; grows with its answers up to `most`.
    limit: f64,
    most: f64,
    /// Whether the limit still doubles: until the first 429 or 503.
    is_starting: bool,
    /// Failures in a row.
    failures: u32,
    last_failure: Option<Instant>,
    not_before: Instant,
    /// Must list its model before it is asked again.
    is_out: bool,
    is_checked: bool,
    /// When it last showed life.
    last_sign: Instant,
    /// Grows when what waits there must go elsewhere.
    epoch: u64,
    reason: String,
    told: Option<Instant>,
    n_untold: u32,
    /// A fault that ends the run, such as another model than before.
    lie: Option<String>,
}

/// A request's place at a server, given back when dropped.
struct Seat<'a> {
    shared: &'a Shared,
    at: usize,
    epoch: u64,
    started: Instant,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.lock()[self.at].in_flight -= 1;
        self.shared.changed.notify_one();
    }
}

impl Replicas {
    /// `clients` in the order given; those in `out` did not answer yet and are asked again later.
    pub(super) fn new(clients: Vec<Arc<Client>>, model: &str, listed: &str, out: &[(usize, String)]) -> Self {
        let now = Instant::now();
        let mut states: Vec<State> = clients.iter().map(|_| State::new(now)).collect();
        for (at, reason) in out {
            states[*at].is_out = true;
            states[*at].fail(now, reason, true);
        }
        let (states, changed) = (Mutex::new(states), Condvar::new());
        let shared = Shared { clients, model: model.to_owned(), listed: listed.to_owned(), states, changed };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn len(&self) -> usize {
        self.shared.clients.len()
    }

    /// How many requests are sent at once, at most.
    pub(super) fn connections(&self) -> usize {
        CONNECTIONS * self.shared.clients.len()
    }

    /// An error about server `at`.
    pub(super) fn error(&self, at: usize, reason: impl Into<String>) -> Error {
        self.shared.clients[at].error(reason)
    }

    /// The address of server `at`.
    pub(super) fn base(&self, at: usize) -> &str {
        self.shared.clients[at].base()
    }

    /// The answers of all other servers than `but` to the same request, of those that answer at once.
    pub(super) fn ask_others(&self, but: usize, path: &str, body: &Value) -> Vec<(usize, Value)> {
        let (send, receive) = mpsc::channel();
        for (at, client) in self.shared.clients.iter().enumerate().filter(|&(at, _)| at != but) {
            let (send, client, path, body) = (send.clone(), Arc::clone(client), path.to_owned(), body.clone());
            std::thread::spawn(move || {
                if let Outcome::Json(answer) = client.post(&path, &body) {
                    let _ = send.send((at, answer));
                }
            });
        }
        drop(send);
        let until = Instant::now() + SILENCE + CHECK_TIMEOUT;
        let mut answers = Vec::new();
        while let Ok(answer) = receive.recv_timeout(until.saturating_duration_since(Instant::now())) {
            answers.push(answer);
        }
        answers.sort_by_key(|(at, _)| *at);
        answers
    }

    /// The servers' addresses.
    pub(super) fn bases(&self) -> String {
        self.shared.bases()
    }

    /// One request through to its answer, by whichever server.
    pub(super) fn ask(&self, path: &str, body: &Value, cancel: &Cancel) -> Result<Reply> {
        let shared = &self.shared;
        let tries = TRIES * shared.clients.len() as u32;
        let mut last = None;
        for turn in 1..=tries {
            let seat = shared.take(last, cancel)?;
            let at = seat.at;
            match shared.exchange(&seat, path, body, cancel)? {
                Outcome::Json(value) => {
                    shared.answered(at);
                    return Ok(Reply::Json(value, at));
                }
                Outcome::Refused(reason) => {
                    shared.answered(at);
                    return Ok(Reply::Refused(reason));
                }
                Outcome::Final(reason) => return Err(self.error(at, reason)),
                Outcome::Busy { reason, retry_after } => shared.busy(&seat, &reason, retry_after, turn)?,
                Outcome::Broken(reason) => shared.broken(&seat, &reason, turn),
            }
            if turn == tries {
                let reason = shared.lock()[at].reason.clone();
                return Err(self.error(at, format!("{reason} (after {turn} tries)")));
            }
            last = Some(at);
        }
        Err(self.error(0, "no try was made"))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bases(&self) -> String {
        self.clients.iter().map(|client| client.base()).collect::<Vec<_>>().join(",")
    }

    fn is_alone(&self) -> bool {
        self.clients.len() == 1
    }

    /// Waits for a place: at the server with the fewest requests under way, rather not at the one that just failed.
    fn take(self: &Arc<Self>, last: Option<usize>, cancel: &Cancel) -> Result<Seat<'_>> {
        let mut states = self.lock();
        loop {
            cancel.check()?;
            let now = Instant::now();
            self.give_up(&states, now)?;
            for at in 0..states.len() {
                let state = &mut states[at];
                if state.is_out && !state.is_checked && state.not_before <= now {
                    self.check(at, state);
                }
            }
            let free = (0..states.len()).filter(|&at| states[at].is_free(now));
            if let Some(at) = free.min_by_key(|&at| (last == Some(at), states[at].in_flight, at)) {
                let state = &mut states[at];
                if state.in_flight == 0 {
                    state.last_sign = now;
                }
                state.in_flight += 1;
                let epoch = state.epoch;
                return Ok(Seat { shared: self, at, epoch, started: now });
            }
            let opens = states.iter().map(|state| state.not_before.saturating_duration_since(now));
            let wait = opens.filter(|wait| !wait.is_zero()).min().unwrap_or(LONGEST_PAUSE);
            let wait = wait.min(Duration::from_millis(100));
            states = self.changed.wait_timeout(states, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the run when a server lied, when all have failed often in a row, or when all ask for a long time.
    fn give_up(&self, states: &[State], now: Instant) -> Result<()> {
        if let Some((at, lie)) = states.iter().enumerate().find_map(|(at, state)| Some((at, state.lie.as_ref()?))) {
            return Err(self.clients[at].error(lie));
        }
        if states.iter().all(|state| state.not_before > now + LONGEST_WAIT) {
            let least =
                states.iter().map(|state| state.not_before - now).min().unwrap_or_default().as_secs_f64().ceil();
            return Err(self.all(states, &format!("it asks to come back in {least} s")));
        }
        let is_lost = |state: &State| state.is_out && state.failures >= TRIES;
        if states.iter().all(|state| is_lost(state) || state.not_before > now + LONGEST_WAIT) {
            return Err(self.all(states, &format!("(after {TRIES} tries)")));
        }
        Ok(())
    }

    fn all(&self, states: &[State], end: &str) -> Error {
        let mut reasons: Vec<&str> = states.iter().map(|state| state.reason.as_str()).collect();
        reasons.dedup();
        Error::Endpoint { url: self.bases(), reason: format!("{}; {end}", reasons.join("; ")) }
    }

    /// Sends the request from a thread of its own, so that it can be left behind when its server falls silent.
    fn exchange(self: &Arc<Self>, seat: &Seat, path: &str, body: &Value, cancel: &Cancel) -> Result<Outcome> {
        let (send, receive) = mpsc::channel();
        let (client, path, body) = (Arc::clone(&self.clients[seat.at]), path.to_owned(), body.clone());
        std::thread::spawn(move || {
            let _ = send.send(client.post(&path, &body));
        });
        loop {
            match receive.recv_timeout(Duration::from_millis(100)) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Outcome::Broken("the connection was lost".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => cancel.check()?,
            }
            let mut states = self.lock();
            let state = &mut states[seat.at];
            if state.epoch != seat.epoch {
                return Ok(Outcome::Broken(state.reason.clone()));
            }
            let silent = seat.started.elapsed() > SILENCE && state.last_sign.elapsed() > SILENCE;
            if silent && !self.is_alone() && !state.is_checked {
                self.check(seat.at, state);
            }
        }
    }

    fn answered(&self, at: usize) {
        let mut states = self.lock();
        let state = &mut states[at];
        state.failures = 0;
        state.is_out = false;
        state.last_sign = Instant::now();
        let growth = if state.is_starting { 1.0 } else { 1.0 / state.limit };
        state.limit = (state.limit + growth).min(state.most);
        self.changed.notify_one();
    }

    fn busy(&self, seat: &Seat, reason: &str, retry_after: Option<Duration>, turn: u32) -> Result<()> {
        let mut states = self.lock();
        let state = &mut states[seat.at];
        state.last_sign = Instant::now();
        if state.last_failure.is_none_or(|last| last < seat.started) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.is_starting = false;
        }
        let wait = state.fail(seat.started, reason, self.is_alone());
        if let Some(asked) = retry_after {
            // A day is as good as for ever, and no sum of it overflows.
            state.not_before = Instant::now() + asked.min(Duration::from_secs(86_400));
        }
        if self.is_alone() && retry_after.is_some_and(|asked| asked > LONGEST_WAIT) {
            return self.give_up(&states, Instant::now());
        }
        self.tell(seat.at, state, reason, retry_after.unwrap_or(wait), turn);
        Ok(())
    }

    fn broken(&self, seat: &Seat, reason: &str, turn: u32) {
        let mut states = self.lock();
        let state = &mut states[seat.at];
        let wait = state.fail(seat.started, reason, self.is_alone());
        state.is_out |= !wait.is_zero();
        self.tell(seat.at, state, reason, wait, turn);
        self.changed.notify_all();
    }

    /// A failure is never silent; the library has no other way to a person. Of several servers' failures one line each ten
    /// seconds is told, with their number.
    fn tell(&self, at: usize, state: &mut State, reason: &str, wait: Duration, turn: u32) {
        let (base, seconds) = (self.clients[at].base(), (wait.as_secs_f64() * 100.0).round() / 100.0);
        if self.is_alone() {
            if turn < TRIES {
                let next = turn + 1;
                aloe_record::tell(&format!("{base}: {reason}; trying again in {seconds} s ({next} of {TRIES})"));
            }
            return;
        }
        if state.told.is_some_and(|told| told.elapsed() < Duration::from_secs(10)) {
            state.n_untold += 1;
            return;
        }
        let more = match std::mem::take(&mut state.n_untold) {
            0 => String::new(),
            n => format!(" ({n} more failures since the last line)"),
        };
        aloe_record::tell(&format!("{base}: {reason}; its requests go to the other servers{more}"));
        state.told = Some(Instant::now());
    }

    /// Asks server `at` for its list of models, in a thread of its own.
    fn check(self: &Arc<Self>, at: usize, state: &mut State) {
        state.is_checked = true;
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let asked = Instant::now();
            let outcome = shared.clients[at].get("/models", CHECK_TIMEOUT);
            let mut states = shared.lock();
            let (now, state) = (Instant::now(), &mut states[at]);
            state.is_checked = false;
            match outcome {
                Outcome::Json(listing) => {
                    let found = listing::describe(&listing, &shared.model);
                    if found == shared.listed {
                        state.is_out = false;
                        state.last_sign = now;
                    } else {
                        let was = &shared.listed;
                        state.lie = Some(format!("it now serves {found:?} where {was:?} was found at the start"));
                    }
                }
                // It answered something else meanwhile: its connections are taken, it is not dead.
                _ if state.last_sign > asked => {}
                Outcome::Refused(reason)
                | Outcome::Final(reason)
                | Outcome::Busy { reason, .. }
                | Outcome::Broken(reason) => {
                    let reason = format!("no answer for {SILENCE:?}, nor to the question for its models: {reason}");
                    let reason = if state.is_out { state.reason.clone() } else { reason };
                    if !state.is_out {
                        // A living server whose few connections our requests take up looks the same: it gets fewer from now on.
                        state.most = (state.most / 2.0).max(1.0);
                        state.limit = state.limit.min(state.most);
                    }
                    state.is_out = true;
                    state.epoch += 1;
                    let (wait, turn) = (state.fail(now, &reason, true), state.failures);
                    shared.tell(at, state, &reason, wait, turn);
                }
            }
            shared.changed.notify_all();
        });
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            limit: CONNECTIONS as f64,
            most: CONNECTIONS as f64,
            is_starting: true,
            failures: 0,
            last_failure: None,
            not_before: now,
            is_out: false,
            is_checked: false,
            last_sign: now,
            epoch: 0,
            reason: String::new(),
            told: None,
            n_untold: 0,
            lie: None,
        }
    }

    fn is_free(&self, now: Instant) -> bool {
        !self.is_out && self.not_before <= now && (self.in_flight as f64) < self.limit.floor()
    }

    /// Counts a failure of an exchange begun at `started`, and returns how long the server is left alone. Failures of what was
    /// under way together count once. With other servers at hand the first in a row costs no pause.
    fn fail(&mut self, started: Instant, reason: &str, pauses_at_once: bool) -> Duration {
        let now = Instant::now();
        reason.clone_into(&mut self.reason);
        if self.last_failure.is_none_or(|last| last <= started) {
            self.failures += 1;
            self.last_failure = Some(now);
            let n_doublings = if pauses_at_once { self.failures } else { self.failures - 1 };
            let wait = match n_doublings {
                0 => Duration::ZERO,
                n => (FIRST_WAIT * 2u32.pow((n - 1).min(10))).min(LONGEST_PAUSE),
            };
            self.not_before = self.not_before.max(now + wait);
        }
        self.not_before.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 0.25 s, doubled with each failure in a row; two that were under way together are one.
    #[test]
    fn the_pause_doubles_with_each_failure_in_a_row_and_failures_together_count_once() {
        let start = Instant::now();
        let mut state = State::new(start);
        let about = |wait: Duration, ms: u128| assert!(wait.as_millis().abs_diff(ms) <= 20, "{wait:?} for {ms} ms");
        about(state.fail(start, "x", true), 250);
        about(state.fail(start, "x", true), 250);
        assert_eq!(state.failures, 1, "both began before the first failed");
        about(state.fail(Instant::now(), "x", true), 500);
        about(state.fail(Instant::now(), "x", true), 1000);
        let mut state = State::new(start);
        assert_eq!(state.fail(start, "x", false), Duration::ZERO, "another server can take the request at once");
        about(state.fail(Instant::now(), "x", false), 250);
        for _ in 0..20 {
            state.fail(Instant::now(), "x", false);
        }
        assert!(state.not_before <= Instant::now() + LONGEST_PAUSE);
    }
}
