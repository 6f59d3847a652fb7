//! Requests that come one by one, from any thread, and wait for the worker of [`crate::Engine::serve`]: the queue is bounded, and
//! whoever asked hears of each answer as it grows.

use crate::score::ScoredPrompt;
use crate::sequence::Gained;
use crate::{FinishReason, Prompt, Sampling};
use aloe_record::Cancel;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the worker sleeps at most before it looks for an interrupt.
const POLL: Duration = Duration::from_millis(50);

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Answers to a prompt.
    Generate {
        /// What comes before.
        prompt: Prompt,
        /// How many answers, at least 1. Answer `i` is drawn as the only one of the seed plus `i`.
        n: usize,
        /// How they are drawn; the prompts of a request share it.
        sampling: Arc<Sampling>,
        /// The model's own stop ids do not end an answer.
        ignores_eos: bool,
        /// How many of the most probable tokens are told beside each drawn one.
        n_top: usize,
        /// Each answer is told token by token, and not only whole.
        streams: bool,
    },
    /// The log-probabilities of a prompt's own tokens, from the second on.
    Score {
        /// The prompt.
        prompt: Prompt,
        /// How many of the most probable tokens are told at each place.
        n_top: usize,
        /// The most probable token after the prompt is told too.
        wants_next: bool,
    },
    /// The embedding of a text: the state of its last token, of unit length.
    Embed {
        /// The text.
        prompt: Prompt,
    },
}

/// What is told of a request. The last of it is `Scored`, `Embedded`, `Failed`, or as many `Ended` as answers were asked for.
#[derive(Clone, Debug)]
pub enum Told {
    /// An answer grew.
    Grew {
        /// The answer's number.
        sample: usize,
        /// By what.
        gained: Gained,
    },
    /// An answer ended.
    Ended {
        /// The answer's number.
        sample: usize,
        /// What it gained since the last time it was told of: all of it where it does not stream.
        gained: Gained,
        /// Why.
        finish_reason: FinishReason,
        /// The prompt's ids.
        prompt_ids: Arc<Vec<u32>>,
    },
    /// The prompt's scores.
    Scored(ScoredPrompt),
    /// The text's embedding.
    Embedded {
        /// Of unit length.
        vector: Vec<f32>,
        /// Tokens read.
        n_tokens: usize,
    },
    /// There is no answer.
    Failed {
        /// Whether another request could be answered: this one is wrong.
        is_request: bool,
        /// Why.
        reason: String,
    },
}

/// One request, and who hears of it.
pub struct Job {
    /// What is asked for.
    pub ask: Ask,
    /// Set when nobody waits for the answer any more.
    pub cancel: Cancel,
    /// Hears everything, in order, on the worker's thread: it must not wait.
    pub tell: Box<dyn FnMut(Told) + Send>,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// As many wait or run as may.
    Full,
    /// No more are taken.
    Closed,
}

/// A job and its place among those that the queue holds.
pub(crate) struct Held {
    pub(crate) job: Job,
    _place: Place,
}

/// Free again when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Requests that wait for one model.
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// Jobs that wait or run.
    n_held: Arc<AtomicUsize>,
    max_held: usize,
}

#[derive(Default)]
struct Waiting {
    generate: VecDeque<Held>,
    score: VecDeque<Held>,
    embed: VecDeque<Held>,
    is_closed: bool,
}

impl Queue {
    /// A queue that holds `max_held` requests, waiting and running ones counted.
    pub fn new(max_held: usize) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), n_held: Arc::default(), max_held }
    }

    /// The most requests held.
    pub fn max_held(&self) -> usize {
        self.max_held
    }

    /// Requests that wait or run now.
    pub fn n_held(&self) -> usize {
        self.n_held.load(Ordering::SeqCst)
    }

    /// Takes all of these requests, or none.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), NotTaken> {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err(NotTaken::Closed);
        }
        if self.n_held() + jobs.len() > self.max_held {
            return Err(NotTaken::Full);
        }
        self.n_held.fetch_add(jobs.len(), Ordering::SeqCst);
        for job in jobs {
            let held = Held { _place: Place(Arc::clone(&self.n_held)), job };
            match held.job.ask {
                Ask::Generate { .. } => waiting.generate.push_back(held),
                Ask::Score { .. } => waiting.score.push_back(held),
                Ask::Embed { .. } => waiting.embed.push_back(held),
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Takes no more; what waits is answered.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Takes no more and lets go of what waits: nobody is left to answer it.
    pub fn abandon(&self) {
        let mut waiting = self.lock();
        *waiting = Waiting { is_closed: true, ..Waiting::default() };
        self.changed.notify_all();
    }

    /// Takes `most` generations out.
    pub(crate) fn take_generate(&self, most: usize) -> Vec<Held> {
        take(&mut self.lock().generate, most)
    }

    /// Takes `most` scorings out.
    pub(crate) fn take_score(&self, most: usize) -> Vec<Held> {
        take(&mut self.lock().score, most)
    }

    /// Takes one embedding out.
    pub(crate) fn take_embed(&self) -> Option<Held> {
        take(&mut self.lock().embed, 1).pop()
    }

    /// Lets go of what nobody waits for any more, so that it takes no place from others however long it would have waited.
    pub(crate) fn drop_gone(&self) {
        let mut waiting = self.lock();
        let Waiting { generate, score, embed, .. } = &mut *waiting;
        for kind in [generate, score, embed] {
            kind.retain(|held| !held.job.cancel.is_requested());
        }
    }

    /// Waits until there is something to take, or [`POLL`] is over. `false` when nothing is left and no more comes.
    pub(crate) fn wait(&self) -> bool {
        let mut waiting = self.lock();
        if waiting.is_empty() && !waiting.is_closed {
            waiting = self.changed.wait_timeout(waiting, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        !(waiting.is_empty() && waiting.is_closed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes `most` out, those that nobody waits for not counted.
fn take(waiting: &mut VecDeque<Held>, most: usize) -> Vec<Held> {
    let mut taken = Vec::new();
    while taken.len() < most
        && let Some(held) = waiting.pop_front()
    {
        if !held.job.cancel.is_requested() {
            taken.push(held);
        }
    }
    taken
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.generate.is_empty() && self.score.is_empty() && self.embed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: usize) -> Job {
        let (prompt, sampling) = (Prompt::Ids(vec![1]), Arc::new(Sampling::greedy(1)));
        let ask = Ask::Generate { prompt, n, sampling, ignores_eos: false, n_top: 0, streams: false };
        Job { ask, cancel: Cancel::default(), tell: Box::new(|_| ()) }
    }

    #[test]
    fn a_group_is_taken_whole_or_not_at_all_and_a_place_is_free_when_its_job_is_gone() {
        let queue = Queue::new(3);
        queue.submit(vec![job(1), job(1)]).unwrap();
        assert_eq!(queue.submit(vec![job(1), job(1)]), Err(NotTaken::Full));
        let running = queue.take_generate(9);
        assert_eq!((running.len(), queue.n_held()), (2, 2), "running ones keep their places");
        drop(running);
        queue.submit(vec![job(1), job(1), job(1)]).unwrap();
        queue.close();
        assert_eq!(queue.submit(vec![job(1)]), Err(NotTaken::Closed));
        assert!(queue.wait(), "what waits is still to be answered");
        drop(queue.take_generate(9));
        assert!(!queue.wait());
    }

    #[test]
    fn what_waits_may_be_let_go_of() {
        let queue = Queue::new(3);
        queue.submit(vec![job(1), job(1)]).unwrap();
        queue.abandon();
        assert_eq!((queue.n_held(), queue.wait()), (0, false));
        assert_eq!(queue.submit(vec![job(1)]), Err(NotTaken::Closed));
    }

    #[test]
    fn requests_are_taken_in_their_order_and_one_that_nobody_waits_for_never() {
        let queue = Queue::new(9);
        let gone = job(7);
        gone.cancel.request(1);
        queue.submit(vec![job(3), gone, job(2), job(1)]).unwrap();
        assert!(queue.take_generate(0).is_empty());
        let taken = queue.take_generate(2);
        let n_asked = |held: &Held| if let Ask::Generate { n, .. } = held.job.ask { n } else { 0 };
        assert_eq!(taken.iter().map(n_asked).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(queue.n_held(), 3, "the place of the one that is gone is free");
        assert_eq!(queue.take_generate(9).len(), 1);
    }
}
