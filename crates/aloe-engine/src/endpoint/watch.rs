//! When servers are asked the canary: each at the start, one that comes back before it is asked anything else, one that broke off a
//! connection, and each after its answers of a call, or [`EVERY`] of them, or [`HELD`]. So an answer is handed over when its server gave the canary's answer before and after
//! it, or died after it. Answers of a server that answers otherwise, since its last good canary, are refused, and the run ends.
//!
//! A call of one request (a chat) is followed by the canary only when the last one is [`A_WHILE`] ago.

use super::canary::{Answer, Canary, CanaryAnswers, difference};
use super::health::{LONGEST_PAUSE, State};
use super::replicas::{Asking, CHECK_TIMEOUT, LONGEST_WAIT, Replicas, Reply, SILENCE, Shared, TRIES};
use crate::engine::Take;
use crate::http::Outcome;
use crate::{Error, Result};
use aloe_record::Cancel;
use serde_json::Value;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Answers of one server after which it is asked the canary in the midst of a call.
const EVERY: u32 = 256;

/// How long answers are held, in the midst of a call, before their server is asked the canary: what a kill loses.
const HELD: Duration = Duration::from_secs(10);

/// How long calls of one request go on without a canary.
const A_WHILE: Duration = Duration::from_secs(60);

/// How often an interrupt is looked for.
const POLL: Duration = Duration::from_millis(100);

/// How long a server that comes back may take for one question, and how long one that fails is asked again.
const CANARY_TIMEOUT: Duration = Duration::from_secs(60);

/// The canary and the first answers to it.
pub(super) struct Watch {
    canary: Canary,
    first: Vec<Answer>,
}

impl Watch {
    /// For whoever keeps them.
    pub(super) fn first_answers(&self) -> CanaryAnswers {
        CanaryAnswers(self.first.clone())
    }

    /// The length of the vector that was answered; 0 where none was.
    pub(super) fn dim(&self) -> usize {
        match self.first.first() {
            Some(Answer::Vector(vector)) => vector.len(),
            _ => 0,
        }
    }
}

/// What another server answered: its place, when it was asked, and its answers or what is wrong with them.
type Others = (usize, Instant, Result<Vec<Answer>, String>);

/// The first answers to a canary, or why the servers do not take its questions.
pub(super) type FirstAnswers = std::result::Result<Arc<Watch>, String>;

impl Replicas {
    /// Puts the canary to one server and then holds the others against it.
    pub(super) fn watch(&self, canary: Canary, cancel: &Cancel) -> Result<FirstAnswers> {
        let mut reason = String::new();
        for _ in 0..TRIES {
            let (first, seen) = (&canary.questions[0], Asking::new(cancel));
            let (json, at) = match self.ask(first.path, &first.body, &seen)? {
                Reply::Json(json, at) => (json, at),
                Reply::Refused(reason) => return Ok(Err(reason)),
            };
            let wrong = |reason| self.error(at, format!("the answer to a known prompt cannot be used: {reason}"));
            let mut answers = vec![first.read(&json).map_err(wrong)?];
            match self.shared.ask_canary(at, &canary, 1, cancel)? {
                Said::All(more) => answers.extend(more),
                Said::Nonsense(reason) => return Err(wrong(reason)),
                Said::Refused(reason) => return Ok(Err(reason)),
                Said::Nothing(why) => {
                    reason = why;
                    continue;
                }
            }
            return self.establish(canary, answers, at, cancel).map(Ok);
        }
        Err(Error::Endpoint { url: self.bases(), reason: format!("{reason} (after {TRIES} tries)") })
    }

    /// Takes the `first` answers to the canary, by server `at`, and holds those of the others that answer at once against them.
    pub(super) fn establish(
        &self,
        canary: Canary,
        first: Vec<Answer>,
        at: usize,
        cancel: &Cancel,
    ) -> Result<Arc<Watch>> {
        let watch = Arc::new(Watch { canary, first });
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watch));
        self.shared.lock()[at].prove(Instant::now(), u32::MAX);
        for (other, sent, said) in self.ask_others(at, &watch, cancel)? {
            let answers = said.map_err(|reason| {
                self.error(other, format!("the answer to a known prompt cannot be used: {reason}"))
            })?;
            if let Some(difference) = difference(&watch.first, &answers) {
                return Err(Error::Open {
                    model: format!("{}#{}", self.bases(), self.shared.model),
                    reason: format!(
                        "the servers do not serve the same weights: {difference} between {} and {}",
                        self.base(at),
                        self.base(other)
                    ),
                });
            }
            self.shared.lock()[other].prove(sent, u32::MAX);
        }
        Ok(watch)
    }

    /// The answers of all other servers than `but` to the canary, of those that answer at once.
    fn ask_others(&self, but: usize, watch: &Arc<Watch>, cancel: &Cancel) -> Result<Vec<Others>> {
        let (send, receive) = mpsc::channel();
        for (at, client) in self.shared.clients.iter().enumerate().filter(|&(at, _)| at != but) {
            let (send, client, watch, sent) = (send.clone(), Arc::clone(client), Arc::clone(watch), Instant::now());
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                for question in &watch.canary.questions {
                    let Outcome::Json(json) = client.post(question.path, &question.body) else { return };
                    answers.push(question.read(&json));
                }
                let _ = send.send((at, sent, answers.into_iter().collect()));
            });
        }
        drop(send);
        let until = Instant::now() + SILENCE + CHECK_TIMEOUT;
        let mut answers = Vec::new();
        loop {
            let wait = until.saturating_duration_since(Instant::now()).min(POLL);
            match receive.recv_timeout(wait) {
                Ok(answer) => answers.push(answer),
                Err(RecvTimeoutError::Timeout) if !wait.is_zero() => cancel.check()?,
                Err(_) => break,
            }
        }
        answers.sort_by_key(|(at, _, _)| *at);
        Ok(answers)
    }

    /// Runs `work` for every request over the connections, and hands each result over once good canaries vouch for its answers. After
    /// a fault of the servers, an interrupt or a `Break` no further request is begun. Answers that no good canary vouches for become the
    /// call's error, as does a fault.
    pub(super) fn for_each<Q: Sync, R: Send>(
        &self,
        requests: &[Q],
        watch: Option<&Watch>,
        cancel: &Cancel,
        take: &mut Take<R>,
        work: impl Fn(&Q, &Asking) -> Result<R> + Sync,
    ) -> Result<()> {
        let (next, work, is_many) = (AtomicUsize::new(0), &work, requests.len() > 1);
        let mut held = Vec::new();
        let mut fault = None;
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            for _ in 0..self.connections().min(requests.len()) {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        let Some(request) = requests.get(at) else { break };
                        let asking = Asking::new(cancel);
                        let result = work(request, &asking);
                        let answered = asking.into_answered();
                        if result.as_ref().is_err_and(ends_the_run) {
                            next.store(requests.len(), Ordering::SeqCst);
                        }
                        let is_due = |state: &State, last: Duration| {
                            state.n_since >= EVERY || state.is_suspect || (is_many && last >= HELD)
                        };
                        for &(server, _) in &answered {
                            self.prove(server, watch, is_due, cancel);
                        }
                        let _ = send.send(Asked { at, result, answered });
                    }
                });
            }
            drop(send);
            for asked in receive {
                held.push(asked);
                if self.hand_over(&mut held, watch.is_none(), &mut fault, take).is_break() {
                    next.store(requests.len(), Ordering::SeqCst);
                }
            }
        });
        cancel.check()?;
        let is_due = |state: &State, last| state.n_since > 0 && (is_many || last > A_WHILE);
        std::thread::scope(|scope| {
            for server in 0..self.len() {
                scope.spawn(move || self.prove(server, watch, is_due, cancel));
            }
        });
        cancel.check()?;
        let _ = self.hand_over(&mut held, true, &mut fault, take);
        fault.map_or(Ok(()), Err)
    }

    /// Hands over what good canaries vouch for; with `all` everything that is not disowned. The first fault goes to `fault`.
    fn hand_over<R>(
        &self,
        held: &mut Vec<Asked<R>>,
        all: bool,
        fault: &mut Option<Error>,
        take: &mut Take<R>,
    ) -> ControlFlow<()> {
        let is_vouched = |asked: &Asked<R>| {
            let states = self.shared.lock();
            asked.answered.iter().all(|&(server, when)| states[server].vouches(when))
        };
        for asked in held.extract_if(.., |asked| all || is_vouched(asked)) {
            match self.vouch(&asked.answered).and(asked.result) {
                Err(error) if ends_the_run(&error) => {
                    fault.get_or_insert(error);
                }
                result => take(asked.at, result)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// The error of a server that lies, where one of the answers is its and not vouched for.
    fn vouch(&self, answered: &[(usize, Instant)]) -> Result<()> {
        let states = self.shared.lock();
        let disowned = answered.iter().find(|&&(server, when)| states[server].disowns(when));
        match disowned.and_then(|&(server, _)| Some((server, states[server].lie.as_deref()?))) {
            Some((server, lie)) => Err(self.error(server, lie)),
            None => Ok(()),
        }
    }

    /// Asks server `at` the canary, if `is_due` of the number of its answers and the time since the last one; one that is out is
    /// asked when it comes back.
    fn prove(&self, at: usize, watch: Option<&Watch>, is_due: impl Fn(&State, Duration) -> bool, cancel: &Cancel) {
        let Some(watch) = watch else { return };
        let sent = Instant::now();
        let n_before = {
            let state = &mut self.shared.lock()[at];
            let last = state.proven.map_or(Duration::MAX, |proven| sent.saturating_duration_since(proven));
            if state.is_out || state.is_proving || state.lie.is_some() || !is_due(state, last) {
                return;
            }
            state.is_proving = true;
            state.n_since
        };
        let mark = self.shared.journal.mark();
        let said = self.shared.ask_canary(at, &watch.canary, 0, cancel);
        let state = &mut self.shared.lock()[at];
        state.is_proving = false;
        let lie = match said {
            Ok(Said::All(answers)) => difference(&watch.first, &answers),
            Ok(Said::Nonsense(reason) | Said::Refused(reason)) => Some(reason),
            Ok(Said::Nothing(reason)) => {
                let (base, n) = (self.base(at), state.n_since);
                let text = format!("its last {n} answers stand unless it comes back with others");
                aloe_record::tell(&format!(
                    "{base}: {reason}; it could not be asked whether it is still the same: {text}"
                ));
                return;
            }
            Err(_) => return,
        };
        match lie {
            Some(difference) => {
                self.shared.journal.disown(self.base(at));
                state.lie = Some(other_weights(&difference));
            }
            None => {
                self.shared.journal.prove(self.base(at), mark);
                state.prove(sent, n_before);
            }
        }
    }
}

/// What came of a request: its place in the call, the result, and which servers answered parts of it and when.
struct Asked<R> {
    at: usize,
    result: Result<R>,
    answered: Vec<(usize, Instant)>,
}

/// What a server said to a canary.
enum Said {
    /// Its answers.
    All(Vec<Answer>),
    /// An answer that cannot be used.
    Nonsense(String),
    /// That it does not take the question.
    Refused(String),
    /// Nothing, several times.
    Nothing(String),
}

impl Shared {
    /// Puts the questions from the `from`-th on to server `at`, each several times where it is busy or breaks off.
    fn ask_canary(self: &Arc<Self>, at: usize, canary: &Canary, from: usize, cancel: &Cancel) -> Result<Said> {
        let (mut answers, started) = (Vec::new(), Instant::now());
        'questions: for question in &canary.questions[from..] {
            let (mut last, mut turn) = (String::new(), 0);
            while turn < TRIES && started.elapsed() < LONGEST_WAIT {
                turn += 1;
                let mut is_busy = false;
                let seat = self.seat(at);
                match self.exchange(&seat, question.path, &question.body, cancel)? {
                    Outcome::Json(json) => match question.read(&json) {
                        Ok(answer) => {
                            self.alive(at);
                            answers.push(answer);
                            continue 'questions;
                        }
                        Err(reason) => return Ok(Said::Nonsense(reason)),
                    },
                    Outcome::Refused(reason) | Outcome::Final(reason) => return Ok(Said::Refused(reason)),
                    Outcome::Busy { reason, retry_after } => {
                        self.busy(&seat, &reason, retry_after)?;
                        // Alone it is waited for as long as it lives; beside others it may be asked again later.
                        is_busy = self.is_alone();
                        turn -= u32::from(is_busy);
                        last = reason;
                    }
                    Outcome::Broken(reason) => {
                        self.broken(&seat, &reason, false, turn);
                        last = reason;
                    }
                    Outcome::Lost(reason) => {
                        self.broken(&seat, &reason, true, turn);
                        return Ok(Said::Nothing(reason));
                    }
                }
                drop(seat);
                let is_late = started.elapsed() > CANARY_TIMEOUT && !is_busy;
                if is_late || !self.wait_for(at, cancel)? {
                    break;
                }
            }
            return Ok(Said::Nothing(last));
        }
        Ok(Said::All(answers))
    }

    /// Sleeps until server `at` may be asked again; not when that is far, nor when it is out beside others: `check` then looks after it.
    fn wait_for(&self, at: usize, cancel: &Cancel) -> Result<bool> {
        loop {
            let (is_out, not_before) = {
                let state = &self.lock()[at];
                (state.is_out && !self.is_alone(), state.not_before)
            };
            let wait = not_before.saturating_duration_since(Instant::now());
            if is_out || wait.is_zero() || wait > LONGEST_PAUSE {
                return Ok(!is_out && wait.is_zero());
            }
            cancel.check()?;
            std::thread::sleep(wait.min(Duration::from_millis(20)));
        }
    }

    /// Whether server `at`, which comes back, answers every canary as at the start: what differs, or why it does not answer.
    pub(super) fn still_the_same(&self, at: usize) -> std::result::Result<Option<String>, String> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for watch in watches {
            let mut answers = Vec::new();
            for question in &watch.canary.questions {
                let json: Value = match self.clients[at].post_within(question.path, &question.body, CANARY_TIMEOUT) {
                    Outcome::Json(json) => json,
                    Outcome::Refused(reason) | Outcome::Final(reason) => return Ok(Some(other_weights(&reason))),
                    Outcome::Busy { reason, .. } | Outcome::Broken(reason) | Outcome::Lost(reason) => {
                        return Err(reason);
                    }
                };
                match question.read(&json) {
                    Ok(answer) => answers.push(answer),
                    Err(reason) => return Ok(Some(other_weights(&reason))),
                }
            }
            if let Some(difference) = difference(&watch.first, &answers) {
                return Ok(Some(other_weights(&difference)));
            }
        }
        Ok(None)
    }
}

fn other_weights(difference: &str) -> String {
    format!(
        "it no longer answers as at the start: {difference}. What it answered since it last did is not kept; see whether other weights \
         were loaded there"
    )
}

/// Whether an error is the servers' or ours and not one request's.
fn ends_the_run(error: &Error) -> bool {
    !matches!(error, Error::Request { .. } | Error::Text(_))
}
