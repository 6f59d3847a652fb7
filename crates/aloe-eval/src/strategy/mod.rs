//! How an answer is got: each strategy prepares once per task, then answers questions in order, a chunk at a time.
//!
//! `loglikelihood` scores options; `cot`, `sc_cot` and `medprompt` choose examples and orders and share `generate`.

mod cot;
mod generate;
mod loglikelihood;
mod medprompt;
mod sc_cot;

use crate::answers::AnswerLog;
use crate::{EvalConfig, Result, Sample, Strategy};
use aloe_engine::{Embedder, Engine};
use aloe_record::{Cancel, Progress, digest};
use aloe_task::{Question, Task};
use serde_json::{Map, Value};
use std::ops::Range;

/// One task under evaluation.
pub(crate) struct TaskRun<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) config: &'a EvalConfig,
    pub(crate) embedder: Option<&'a Embedder>,
    pub(crate) task: Task,
    pub(crate) questions: &'a [Question],
    pub(crate) progress: &'a Progress,
    pub(crate) cancel: &'a Cancel,
}

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
    pub(crate) fn chunk_len(&self) -> usize {
        match self {
            Self::Loglikelihood(_) => 64,
            Self::Generate(plan) => (64 / plan.n_samples).max(1),
        }
    }

    /// The answers to `questions[range]`.
    pub(crate) fn answer(&self, run: &TaskRun, range: Range<usize>) -> Result<Vec<Sample>> {
        match self {
            Self::Loglikelihood(plan) => plan.answer(run, range),
            Self::Generate(plan) => plan.answer(run, range),
        }
    }

    /// What the results should say about the preparation.
    pub(crate) fn notes(&self) -> Map<String, Value> {
        match self {
            Self::Loglikelihood(_) => Map::new(),
            Self::Generate(plan) => plan.notes.clone(),
        }
    }
}

/// A question's item number for random streams: from its task and id, not its place, so that a limit changes nothing.
pub(crate) fn item(task: Task, id: &str) -> u64 {
    let digest = digest::bytes(format!("{}/{id}", task.name()).as_bytes());
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}
