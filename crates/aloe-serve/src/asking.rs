//! From a request to jobs of the engine's queue, and back: an ear for what is told of them, whose end is theirs too.

use crate::app::{App, BodyRoom};
use crate::refusal::Refusal;
use aloe_engine::{Ask, FinishReason, Gained, Job, NotTaken, ScoredPrompt, Told};
use aloe_record::Cancel;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Hears what is told of a request's jobs. When it is dropped, nobody waits for them any more and they end at the next token.
pub(crate) struct Ear {
    /// Each with the number of its job. What is told is bounded by the lengths asked for.
    told: UnboundedReceiver<(usize, Told)>,
    cancel: Cancel,
    n_jobs: usize,
    /// The request's body counts as held until it is answered.
    _room: BodyRoom,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.cancel.request(1);
    }
}

impl Ear {
    /// Submits the jobs, all or none.
    pub(crate) fn ask(app: &App, asks: Vec<Ask>, room: BodyRoom) -> Result<Self, Refusal> {
        let (send, told) = unbounded_channel();
        let cancel = Cancel::default();
        let job = |(number, ask): (usize, Ask)| {
            let send = send.clone();
            // A closed ear has asked for the end already.
            let tell = Box::new(move |told: Told| drop(send.send((number, told))));
            Job { ask, cancel: cancel.clone(), tell }
        };
        let n_jobs = asks.len();
        let jobs = asks.into_iter().enumerate().map(job).collect();
        match app.queue.submit(jobs) {
            Ok(()) => Ok(Self { told, cancel, n_jobs, _room: room }),
            Err(NotTaken::Closed) => Err(Refusal::stopping()),
            Err(NotTaken::Full) => Err(Refusal::full(format!(
                "{} requests wait or run and {} may; try again later",
                app.queue.n_held(),
                app.queue.max_held()
            ))),
        }
    }

    /// How many jobs it hears of.
    pub(crate) fn n_jobs(&self) -> usize {
        self.n_jobs
    }

    /// What is told next; an error where there is no answer.
    pub(crate) async fn hear(&mut self) -> Result<(usize, Told), Refusal> {
        heard(self.told.recv().await)
    }

    pub(crate) fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Result<(usize, Told), Refusal>> {
        self.told.poll_recv(context).map(heard)
    }
}

fn heard(told: Option<(usize, Told)>) -> Result<(usize, Told), Refusal> {
    match told {
        Some((_, Told::Failed { is_request: true, reason })) => Err(Refusal::bad(reason)),
        Some((_, Told::Failed { is_request: false, reason })) => Err(Refusal::broken(reason)),
        Some(told) => Ok(told),
        // The worker let go of the job without an answer.
        None => Err(Refusal::stopping()),
    }
}

/// Refuses more prompts than there may ever be jobs, `n_jobs` for each, before anything is made of them.
pub(crate) fn check_count(app: &App, name: &str, n_prompts: usize, n_jobs: usize) -> Result<(), Refusal> {
    let most = app.queue.max_held() / n_jobs.max(1);
    if n_prompts > most {
        return Err(Refusal::field(name, format!("{n_prompts} prompts in one request, {most} are taken at most")));
    }
    Ok(())
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) gained: Gained,
    pub(crate) finish_reason: FinishReason,
    pub(crate) prompt_ids: Arc<Vec<u32>>,
}

/// All that is told of one job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// In the order of the samples.
    pub(crate) answers: Vec<Option<Answer>>,
    pub(crate) scored: Option<ScoredPrompt>,
    /// With the number of tokens read.
    pub(crate) vector: Option<(Vec<f32>, usize)>,
}

/// Waits for everything that is told of jobs with so many answers each; one without is a scoring or an embedding.
pub(crate) async fn hear_all(ear: &mut Ear, n_answers: &[usize]) -> Result<Vec<Heard>, Refusal> {
    let empty = |&n: &usize| Heard { answers: vec![None; n], scored: None, vector: None };
    let mut heard: Vec<Heard> = n_answers.iter().map(empty).collect();
    let mut n_due: usize = n_answers.iter().map(|&n| n.max(1)).sum();
    while n_due > 0 {
        let (job, told) = ear.hear().await?;
        match told {
            Told::Ended { sample, gained, finish_reason, prompt_ids } => {
                heard[job].answers[sample] = Some(Answer { gained, finish_reason, prompt_ids });
                n_due -= 1;
            }
            Told::Scored(scored) => {
                heard[job].scored = Some(scored);
                n_due -= 1;
            }
            Told::Embedded { vector, n_tokens } => {
                heard[job].vector = Some((vector, n_tokens));
                n_due -= 1;
            }
            Told::Grew { .. } | Told::Failed { .. } => {}
        }
    }
    Ok(heard)
}

/// OpenAI's word for why an answer ended.
pub(crate) fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Context | FinishReason::Other => "length",
    }
}
