//! One server's health: how many requests it is given, when it may be asked again, and what its answers since the last good canary
//! are worth.

use std::time::{Duration, Instant};

/// The first wait after a failure; each further failure in a row doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait before a server that failed is asked again.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Answers after which a server that fell silent is given one request more at once.
const ANSWERS_PER_SEAT: f64 = 100.0;

/// One server's health.
pub(super) struct State {
    pub(super) in_flight: usize,
    /// Requests it is given at once, at most; grows with its answers up to `most`.
    pub(super) limit: f64,
    /// What refusals of requests that were under way together leave of it, and when the first of them came.
    least: f64,
    refused: Option<Instant>,
    pub(super) most: f64,
    /// The most that it may be sent at once.
    connections: f64,
    /// Whether the limit still doubles: until the first 429 or 503.
    pub(super) is_starting: bool,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) last_failure: Option<Instant>,
    pub(super) not_before: Instant,
    /// Must list its model before it is asked again.
    pub(super) is_out: bool,
    pub(super) is_checked: bool,
    /// When it last showed life.
    pub(super) last_sign: Instant,
    /// Grows when what waits there must go elsewhere.
    pub(super) epoch: u64,
    pub(super) reason: String,
    pub(super) told: Option<Instant>,
    pub(super) n_untold: u32,
    /// When the last canary that it answered as at the start was sent.
    pub(super) proven: Option<Instant>,
    /// Its answers since.
    pub(super) n_since: u32,
    pub(super) is_proving: bool,
    /// Whether it broke off a connection since.
    pub(super) is_suspect: bool,
    /// A fault that ends the run, such as another model than before.
    pub(super) lie: Option<String>,
}

impl State {
    pub(super) fn new(now: Instant, connections: usize) -> Self {
        Self {
            in_flight: 0,
            limit: connections as f64,
            least: 1.0,
            refused: None,
            most: connections as f64,
            connections: connections as f64,
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
            proven: None,
            n_since: 0,
            is_proving: false,
            is_suspect: false,
            lie: None,
        }
    }

    /// Whether an answer that came at `answered` is not vouched for: the server lies, and no good canary came after it.
    pub(super) fn disowns(&self, answered: Instant) -> bool {
        self.lie.is_some() && self.proven.is_none_or(|proven| answered > proven)
    }

    /// Whether an answer that came at `answered` is vouched for: a good canary came after it.
    pub(super) fn vouches(&self, answered: Instant) -> bool {
        self.proven.is_some_and(|proven| answered <= proven)
    }

    /// It answered a canary sent at `sent`, after `n_before` answers, as at the start.
    pub(super) fn prove(&mut self, sent: Instant, n_before: u32) {
        self.proven = Some(sent);
        self.is_suspect &= self.last_failure.is_some_and(|failed| failed > sent);
        self.n_since = self.n_since.saturating_sub(n_before);
    }

    /// Counts an answer: a server that fell silent once gets back what it was given at once, one request more with each
    /// [`ANSWERS_PER_SEAT`] answers.
    pub(super) fn recover(&mut self) {
        self.most = (self.most + 1.0 / ANSWERS_PER_SEAT).min(self.connections);
    }

    /// Counts a 429 or 503 to a request sent at `started`. Where it costs a pause, half of what is sent at once is left, so that few come. Else one
    /// less for each, and no less than half for those that were under way together: with one more for each round of answers that settles one above
    /// what a server takes, and one that refuses one in thirty whatever it is sent keeps its sixteen, where halving would leave it seven.
    pub(super) fn refuse(&mut self, started: Instant, pauses: bool) {
        self.is_starting = false;
        if self.refused.is_none_or(|first| first < started) {
            self.refused = Some(Instant::now());
            self.least = (self.limit / 2.0).max(1.0);
        }
        let left = if pauses { self.least } else { (self.limit - 1.0).max(self.least) };
        self.limit = self.limit.min(left);
    }

    /// Counts an answer for what it is given at once.
    pub(super) fn grow(&mut self) {
        let growth = if self.is_starting { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + growth).min(self.most);
    }

    /// Whether it can be given a request now.
    pub(super) fn is_free(&self, now: Instant) -> bool {
        !self.is_out && self.not_before <= now && (self.in_flight as f64) < self.limit.floor()
    }

    /// Counts a failure of an exchange begun at `started`, and returns how long the server is left alone. Failures of what was
    /// under way together count once. With other servers at hand the first in a row costs no pause.
    pub(super) fn fail(&mut self, started: Instant, reason: &str, pauses_at_once: bool) -> Duration {
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

    /// By hand: halved from 16 to 8, one more with each hundred answers, never above 16.
    #[test]
    fn a_silence_does_not_cost_a_server_its_requests_for_good() {
        let mut state = State::new(Instant::now(), 16);
        state.most = 8.0;
        (0..250).for_each(|_| state.recover());
        assert_eq!(state.most.floor(), 10.0);
        (0..2000).for_each(|_| state.recover());
        assert_eq!(state.most, 16.0);
    }

    /// A server that takes eight at once and refuses the rest of each round: by hand, 16 sent, 8 refused, so 8; eight answers make it
    /// nine; of nine one is refused. One that refuses each thirtieth request keeps nearly all it was given.
    #[test]
    fn refusals_leave_a_server_what_it_takes_and_few_at_random_nearly_all() {
        let mut state = State::new(Instant::now(), 16);
        let mut most = 0.0_f64;
        for round in 0..50 {
            let (started, sent) = (Instant::now(), state.limit.floor() as usize);
            for _ in 8..sent {
                state.refuse(started, false);
                state.fail(started, "429", false);
            }
            (0..sent.min(8)).for_each(|_| state.grow());
            if round > 0 {
                assert!((8.0..10.0).contains(&state.limit), "round {round}: {}", state.limit);
            }
            most = most.max(state.limit);
        }
        assert!(most > 8.9, "it tries one more from time to time: {most}");
        let mut state = State::new(Instant::now(), 16);
        let mut sum = 0.0;
        for request in 1..=3000 {
            if request % 30 == 7 {
                let started = Instant::now();
                state.refuse(started, false);
                state.fail(started, "429", false);
            } else {
                state.grow();
            }
            sum += state.limit.floor();
        }
        assert!(sum / 3000.0 > 15.0, "{}", sum / 3000.0);
    }

    /// Sixteen refusals at once, as of a server that starts: by hand, half is left, also behind a connection that broke off, and where each costs a
    /// pause; a late refusal raises nothing.
    #[test]
    fn refusals_of_what_was_under_way_together_leave_half() {
        for (pauses, n_broken) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let (mut state, started) = (State::new(Instant::now(), 16), Instant::now());
            for _ in 0..n_broken {
                state.fail(started, "reset", false);
            }
            for _ in n_broken..16 {
                state.refuse(started, pauses);
                state.fail(started, "503", false);
            }
            assert_eq!(state.limit, 8.0, "{pauses} {n_broken}");
            (state.most, state.limit) = (4.0, 4.0);
            state.refuse(started, pauses);
            assert!(state.limit <= 4.0, "{}", state.limit);
        }
        let mut state = State::new(Instant::now(), 16);
        state.refuse(Instant::now(), true);
        assert_eq!(state.limit, 8.0, "one is enough where it costs a pause");
    }

    /// By hand: 0.25 s, doubled with each failure in a row; two that were under way together are one.
    #[test]
    fn the_pause_doubles_with_each_failure_in_a_row_and_failures_together_count_once() {
        let start = Instant::now();
        let mut state = State::new(start, 16);
        let about = |wait: Duration, ms: u128| assert!(wait.as_millis().abs_diff(ms) <= 20, "{wait:?} for {ms} ms");
        about(state.fail(start, "x", true), 250);
        about(state.fail(start, "x", true), 250);
        assert_eq!(state.failures, 1, "both began before the first failed");
        about(state.fail(Instant::now(), "x", true), 500);
        about(state.fail(Instant::now(), "x", true), 1000);
        let mut state = State::new(start, 16);
        assert_eq!(state.fail(start, "x", false), Duration::ZERO, "another server can take the request at once");
        about(state.fail(Instant::now(), "x", false), 250);
        for _ in 0..20 {
            state.fail(Instant::now(), "x", false);
        }
        assert!(state.not_before <= Instant::now() + LONGEST_PAUSE);
    }
}
