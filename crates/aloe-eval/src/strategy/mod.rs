//! How an answer is got: each strategy prepares once per task, then answers questions in order, a chunk at a time.
//!
//! `loglikelihood` scores options; `cot`, `sc_cot` and `medprompt` choose examples and orders and share `generate`.

mod cot;
mod generate;
mod loglikelihood;
mod medprompt;
mod sc_cot;

use crate::answers::AnswerLog;
use crate::noise::{self, NoiseFloor};
use crate::{Encoders, Error, EvalConfig, Result, Sample, Strategy};
use aloe_engine::Engine;
use aloe_record::{Cancel, Progress, digest};
use aloe_task::{Question, Task};
use serde_json::{Map, Value};
use std::ops::Range;

/// One task under evaluation.
pub(crate) struct TaskRun<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) config: &'a EvalConfig,
    pub(crate) encoders: Encoders<'a>,
    pub(crate) task: Task,
    pub(crate) questions: &'a [Question],
    pub(crate) progress: &'a Progress,
    pub(crate) cancel: &'a Cancel,
}

/// Answers in the order of the questions, and the fault that kept the engine from answering the rest.
pub(crate) type Answered = (Vec<Sample>, Option<Error>);

/// What a strategy knows after preparing.
pub(crate) enum Plan {
    /// Prompts and options.
    Loglikelihood(loglikelihood::Plan),
    /// Examples and orders.
    Generate(generate::Plan),
}

/// Prepares: examples, neighbours, Medprompt's self-generated answers.
pub(crate) fn prepare(run: &TaskRun, log: &mut AnswerLog) -> Result<Plan> {
    Ok(match run.config.strategy {
        Strategy::Loglikelihood => Plan::Loglikelihood(loglikelihood::prepare(run)?),
        Strategy::Cot => Plan::Generate(cot::prepare(run)),
        Strategy::ScCot => Plan::Generate(sc_cot::prepare(run)),
        Strategy::Medprompt => Plan::Generate(medprompt::prepare(run, log)?),
    })
}

impl Plan {
    /// How many questions to hand to the engine at once: answers do not depend on it, only how much an interrupt repeats.
    pub(crate) fn chunk_len(&self, engine: &Engine) -> usize {
        let n_answers = 64 * engine.n_servers();
        match self {
            Self::Loglikelihood(_) => n_answers,
            Self::Generate(plan) => (n_answers / plan.n_samples).max(1),
        }
    }

    /// The answers to `questions[range]`: all, or those before the first question without one, and the fault.
    pub(crate) fn answer(&self, run: &TaskRun, range: Range<usize>) -> Result<Answered> {
        match self {
            Self::Loglikelihood(plan) => plan.answer(run, range),
            Self::Generate(plan) => plan.answer(run, range),
        }
    }

    /// How far an endpoint's second scoring of the same questions lies from the first. None where nothing is scored, and for a
    /// local model, whose scores repeat bit for bit.
    pub(crate) fn noise_floor(&self, run: &TaskRun, samples: &[Sample]) -> Result<Option<NoiseFloor>> {
        // A cache would give the first scoring back.
        let engine = run.engine.without_cache();
        let (Self::Loglikelihood(plan), Engine::Endpoint(_)) = (self, engine) else { return Ok(None) };
        let indices = noise::twice(samples.len());
        let again = plan.score(&TaskRun { engine, ..*run }, &indices)?;
        let first: Vec<&Sample> = indices.iter().map(|&index| &samples[index]).collect();
        Ok(Some(NoiseFloor::of(&first, &again)))
    }

    /// What the results should say about the preparation.
    pub(crate) fn notes(&self) -> Map<String, Value> {
        match self {
            Self::Loglikelihood(_) => Map::new(),
            Self::Generate(plan) => plan.notes.clone(),
        }
    }
}

/// The index of the largest value; the first of equal ones.
pub(crate) fn first_best(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// A question's item number for random streams: from its task and id, not its place, so that a limit changes nothing.
pub(crate) fn item(task: Task, id: &str) -> u64 {
    let digest = digest::bytes(format!("{}/{id}", task.name()).as_bytes());
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}
