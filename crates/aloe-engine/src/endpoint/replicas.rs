//! Several servers with the same model as one: each request goes to the healthy server with the fewest under way, and moves
//! to another when its server is busy, breaks off, answers garbage or falls silent. Each request has one answer or one error.
//!
//! A server that fails is not asked for a time that doubles with each failure in a row, or for the time it names itself. One
//! that falls silent while requests wait is asked for its list of models; when that too stays without an answer, what waits
//! there goes elsewhere and it is given half as many at once when it is back. A server that comes back must still list the same model
//! and answer the canary as at the start (`watch`). With 429 and 503 the requests sent to a server at once are halved where it must be left
//! alone for a while, else one fewer for each, and grow again with its answers.

use super::health::{LONGEST_PAUSE, State};
use super::journal::Journal;
use super::listing;
use super::senders::Senders;
use super::watch::Watch;
use crate::http::{Client, Outcome};
use crate::{Error, Result};
use aloe_record::Cancel;
use serde_json::Value;
use std::cell::RefCell;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a request is tried, times the number of servers; and after how many failures in a row a server is given up.
pub(super) const TRIES: u32 = 5;

/// The longest `Retry-After` that is waited for, and how long a request may be refused by busy servers.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How long a server may answer nothing while requests wait, before it is asked whether it is there.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

/// How long that question may take.
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_millis(2500);

/// What a server that is alive said to a request.
pub(super) enum Reply {
    /// Status 200 and JSON, and the server that said so.
    Json(Value, usize),
    /// A status that says the request itself is not taken.
    Refused(String),
}

/// A request on its way: who may stop it, whose it is, and which servers answered parts of it and when.
pub(super) struct Asking<'a> {
    pub(super) cancel: &'a Cancel,
    /// The request's id; empty where nobody gave it one.
    id: RefCell<String>,
    answered: RefCell<Vec<(usize, Instant)>>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(cancel: &'a Cancel) -> Self {
        Self { cancel, id: RefCell::default(), answered: RefCell::default() }
    }

    /// From now on a fault of an answer is one of the request `id`.
    pub(super) fn request(&self, id: &str) {
        id.clone_into(&mut self.id.borrow_mut());
    }

    pub(super) fn into_answered(self) -> Vec<(usize, Instant)> {
        self.answered.into_inner()
    }
}

/// The servers.
pub(super) struct Replicas {
    pub(super) shared: Arc<Shared>,
}

/// What callers and the threads that check servers share.
pub(super) struct Shared {
    /// Requests under way at once, per server.
    connections: usize,
    pub(super) clients: Vec<Arc<Client>>,
    pub(super) model: String,
    /// What every server must list.
    pub(super) listed: String,
    states: Mutex<Vec<State>>,
    senders: Arc<Senders>,
    changed: Condvar,
    /// What a server that comes back must still answer.
    pub(super) watches: Mutex<Vec<Arc<Watch>>>,
    pub(super) journal: Journal,
}

/// A request's place at a server, given back when dropped.
pub(super) struct Seat<'a> {
    shared: &'a Shared,
    pub(super) at: usize,
    epoch: u64,
    pub(super) started: Instant,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.lock()[self.at].in_flight -= 1;
        self.shared.changed.notify_one();
    }
}

impl Replicas {
    /// `clients` in the order given; those in `out` did not answer yet and are asked again later.
    pub(super) fn new(
        clients: Vec<Arc<Client>>,
        model: &str,
        listed: &str,
        connections: usize,
        out: &[(usize, String)],
    ) -> Self {
        let now = Instant::now();
        let mut states: Vec<State> = clients.iter().map(|_| State::new(now, connections)).collect();
        for (at, reason) in out {
            states[*at].is_out = true;
            states[*at].fail(now, reason, true);
        }
        let (states, changed) = (Mutex::new(states), Condvar::new());
        let (model, listed, watches) = (model.to_owned(), listed.to_owned(), Mutex::default());
        let (senders, journal) = (Arc::default(), Journal::default());
        let shared = Shared { connections, clients, model, listed, states, senders, changed, watches, journal };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn len(&self) -> usize {
        self.shared.clients.len()
    }

    /// How many requests are sent at once, at most.
    pub(super) fn connections(&self) -> usize {
        self.shared.connections * self.shared.clients.len()
    }

    /// An error about what server `at` answered to the request that is asked.
    pub(super) fn unusable(&self, at: usize, asking: &Asking, reason: impl Into<String>) -> Error {
        of_request(self.error(at, reason), asking)
    }

    /// An error about server `at`.
    pub(super) fn error(&self, at: usize, reason: impl Into<String>) -> Error {
        self.shared.clients[at].error(reason)
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// The address of server `at`.
    pub(super) fn base(&self, at: usize) -> &str {
        self.shared.clients[at].base()
    }

    /// The servers' addresses.
    pub(super) fn bases(&self) -> String {
        self.shared.bases()
    }

    /// One request through to its answer, by whichever server.
    pub(super) fn ask(&self, path: &str, body: &Value, asking: &Asking) -> Result<Reply> {
        let shared = &self.shared;
        let tries = TRIES * shared.clients.len() as u32;
        let (mut last, mut turn, mut busy_since) = (None, 0, None);
        // Whether what this request got last was no answer to it, rather than no connection.
        let mut is_unusable = false;
        let named = |error, is_unusable| if is_unusable { of_request(error, asking) } else { error };
        loop {
            turn += 1;
            // A server that lies is no fault of one request.
            let is_named = || is_unusable && shared.lock().iter().all(|state| state.lie.is_none());
            let seat = shared.take(last, asking.cancel).map_err(|error| named(error, is_named()))?;
            let at = seat.at;
            match shared.exchange(&seat, path, body, asking.cancel)? {
                Outcome::Json(value) => {
                    shared.answered(at);
                    asking.answered.borrow_mut().push((at, Instant::now()));
                    return Ok(Reply::Json(value, at));
                }
                Outcome::Refused(reason) => {
                    shared.answered(at);
                    return Ok(Reply::Refused(reason));
                }
                Outcome::Final(reason) => return Err(self.error(at, reason)),
                // A busy server lives: not the number of refusals counts but how long it has refused.
                Outcome::Busy { reason, retry_after } => {
                    shared.busy(&seat, &reason, retry_after)?;
                    let since: &Instant = busy_since.get_or_insert(seat.started);
                    if since.elapsed() > LONGEST_WAIT {
                        return Err(self.error(at, format!("{reason} (for {} s)", since.elapsed().as_secs())));
                    }
                    turn -= 1;
                }
                Outcome::Broken(reason) => {
                    is_unusable = true;
                    shared.broken(&seat, &reason, false, turn);
                }
                Outcome::Lost(reason) => {
                    is_unusable = false;
                    shared.broken(&seat, &reason, true, turn);
                }
            }
            if turn >= tries {
                let reason = shared.lock()[at].reason.clone();
                return Err(named(self.error(at, format!("{reason} (after {turn} tries)")), is_unusable));
            }
            last = Some(at);
        }
    }
}

/// A server's fault as one of the request that is asked, where that has a name.
fn of_request(error: Error, asking: &Asking) -> Error {
    let id = asking.id.borrow().clone();
    match error {
        Error::Endpoint { url, reason } if !id.is_empty() => Error::Answer { url, id, reason },
        error => error,
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bases(&self) -> String {
        self.clients.iter().map(|client| client.base()).collect::<Vec<_>>().join(",")
    }

    pub(super) fn is_alone(&self) -> bool {
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

    /// A place at server `at`, however many are taken.
    pub(super) fn seat(&self, at: usize) -> Seat<'_> {
        let mut states = self.lock();
        states[at].in_flight += 1;
        Seat { shared: self, at, epoch: states[at].epoch, started: Instant::now() }
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
    pub(super) fn exchange(
        self: &Arc<Self>,
        seat: &Seat,
        path: &str,
        body: &Value,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let receive = self.senders.post(&self.clients[seat.at], path, body.to_string().into_bytes());
        loop {
            match receive.recv_timeout(Duration::from_millis(100)) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Outcome::Lost("the connection was lost".to_owned()));
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
            let quiet = seat.started.elapsed().min(state.last_sign.elapsed());
            if self.is_alone() && quiet > LONGEST_PAUSE && state.told.is_none_or(|told| told.elapsed() > LONGEST_PAUSE)
            {
                let text = format!("no answer for {} s; waiting", quiet.as_secs());
                self.tell_sparsely(seat.at, state, &text);
            }
        }
    }

    fn answered(&self, at: usize) {
        self.alive(at);
        self.lock()[at].n_since += 1;
    }

    /// Server `at` answered well.
    pub(super) fn alive(&self, at: usize) {
        let mut states = self.lock();
        let state = &mut states[at];
        state.failures = 0;
        state.is_out = false;
        state.last_sign = Instant::now();
        state.recover();
        state.grow();
        self.changed.notify_one();
    }

    /// A server that is busy is left alone for the pause that doubles, or longer where it asks for longer.
    pub(super) fn busy(&self, seat: &Seat, reason: &str, retry_after: Option<Duration>) -> Result<()> {
        let mut states = self.lock();
        let state = &mut states[seat.at];
        state.last_sign = Instant::now();
        let pauses = self.is_alone() || retry_after.is_some_and(|asked| !asked.is_zero());
        state.refuse(seat.started, pauses);
        let wait = state.fail(seat.started, reason, self.is_alone());
        if let Some(asked) = retry_after {
            // A day is as good as for ever, and no sum of it overflows.
            state.not_before = state.not_before.max(Instant::now() + asked.min(Duration::from_secs(86_400)));
        }
        if self.is_alone() && retry_after.is_some_and(|asked| asked > LONGEST_WAIT) {
            return self.give_up(&states, Instant::now());
        }
        let wait = wait.max(retry_after.unwrap_or_default());
        if self.is_alone() {
            self.tell_sparsely(seat.at, state, &format!("{reason}; asked again in {} s", seconds(wait)));
        } else {
            self.tell(seat.at, state, reason, wait, 0);
        }
        Ok(())
    }

    /// Counts a failure. A server whose connection `is_lost` may be another when it takes the next one, so it is asked the canary soon.
    pub(super) fn broken(&self, seat: &Seat, reason: &str, is_lost: bool, turn: u32) {
        let mut states = self.lock();
        let state = &mut states[seat.at];
        let wait = state.fail(seat.started, reason, self.is_alone());
        state.is_out |= !wait.is_zero();
        state.is_suspect |= is_lost;
        self.tell(seat.at, state, reason, wait, turn);
        self.changed.notify_all();
    }

    /// A failure is never silent; the library has no other way to a person. Of several servers' failures one line each ten
    /// seconds is told, with their number.
    fn tell(&self, at: usize, state: &mut State, reason: &str, wait: Duration, turn: u32) {
        if self.is_alone() {
            if turn < TRIES {
                let (base, next) = (self.clients[at].base(), turn + 1);
                let seconds = seconds(wait);
                aloe_record::tell(&format!("{base}: {reason}; trying again in {seconds} s ({next} of {TRIES})"));
            }
            return;
        }
        self.tell_sparsely(at, state, &format!("{reason}; its requests go to the other servers"));
    }

    /// One line each ten seconds, with the number of those not shown.
    fn tell_sparsely(&self, at: usize, state: &mut State, text: &str) {
        if state.told.is_some_and(|told| told.elapsed() < Duration::from_secs(10)) {
            state.n_untold += 1;
            return;
        }
        let more = match std::mem::take(&mut state.n_untold) {
            0 => String::new(),
            n => format!(" ({n} more failures since the last line)"),
        };
        aloe_record::tell(&format!("{}: {text}{more}", self.clients[at].base()));
        state.told = Some(Instant::now());
    }

    /// Asks server `at` for its list of models, in a thread of its own, and the canary of one that comes back.
    fn check(self: &Arc<Self>, at: usize, state: &mut State) {
        state.is_checked = true;
        let (shared, was_out, n_before) = (Arc::clone(self), state.is_out, state.n_since);
        std::thread::spawn(move || {
            let (asked, mark) = (Instant::now(), shared.journal.mark());
            let mut outcome = shared.clients[at].get("/models", CHECK_TIMEOUT);
            let mut lie = match &outcome {
                Outcome::Json(listing) => shared.other_listing(listing),
                _ => None,
            };
            if was_out && lie.is_none() && matches!(outcome, Outcome::Json(_)) {
                match shared.still_the_same(at) {
                    Ok(difference) => lie = difference,
                    Err(reason) => outcome = Outcome::Broken(reason),
                }
            }
            let mut states = shared.lock();
            let (now, state) = (Instant::now(), &mut states[at]);
            state.is_checked = false;
            match outcome {
                Outcome::Json(_) => match lie {
                    Some(_) => {
                        shared.journal.disown(shared.clients[at].base());
                        state.lie = lie;
                    }
                    None => {
                        if was_out {
                            shared.journal.prove(shared.clients[at].base(), mark);
                            state.prove(asked, n_before);
                        }
                        state.is_out = false;
                        state.last_sign = now;
                    }
                },
                // It answered something else meanwhile: its connections are taken, it is not dead.
                _ if state.last_sign > asked => {}
                Outcome::Refused(reason)
                | Outcome::Final(reason)
                | Outcome::Busy { reason, .. }
                | Outcome::Broken(reason)
                | Outcome::Lost(reason) => {
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

    /// What a list of models says that was not said at the start.
    fn other_listing(&self, listing: &Value) -> Option<String> {
        let (found, was) = (listing::describe(listing, &self.model), &self.listed);
        (found != *was).then(|| format!("it now serves {found:?} where {was:?} was found at the start"))
    }
}

fn seconds(wait: Duration) -> f64 {
    (wait.as_secs_f64() * 100.0).round() / 100.0
}
