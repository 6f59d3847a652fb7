//! How an answer is got: each strategy prepares once per task, then hands many questions to the engine and gives each answer on as
//! it comes.
//!
//! `loglikelihood` scores options, `next_letter` asks the same of one token; `cot`, `sc_cot` and `medprompt` choose examples and orders and share `generate`.

mod cot;
mod generate;
mod loglikelihood;
mod medprompt;
mod next_letter;
mod retry;
mod sc_cot;

use crate::answers::AnswerLog;
use crate::{Encoders, Error, EvalConfig, Result, Sample, ScoredChoice, Strategy};
pub(crate) use aloe_engine::handed;
use aloe_engine::{Engine, NextTold};
use aloe_record::{Cancel, Progress, digest};
use aloe_task::wording::fixed_shots;
use aloe_task::{Question, Task};
use serde_json::{Map, Value};
use std::path::Path;

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

impl TaskRun<'_> {
    /// The ids of the questions' requests, and where each question stands.
    pub(crate) fn places(&self) -> impl Iterator<Item = (String, &str)> {
        places(self.task.name(), self.questions)
    }
}

/// As [`TaskRun::places`], of questions whose requests have `prefix` before a stroke.
pub(crate) fn places(prefix: String, questions: &[Question]) -> impl Iterator<Item = (String, &str)> {
    questions.iter().map(move |question| (format!("{prefix}/{}", question.id), question.source.as_str()))
}

/// What a strategy knows after preparing.
pub(crate) enum Plan {
    /// Prompts and options.
    Loglikelihood(loglikelihood::Plan),
    /// The same, and how the letters are told.
    NextLetter(loglikelihood::Plan, NextTold),
    /// Examples and orders.
    Generate(generate::Plan),
}

/// Refuses what a strategy can know to fail before anything is asked of any task.
pub(crate) fn check(run: &TaskRun) -> Result<()> {
    match run.config.strategy {
        Strategy::Loglikelihood | Strategy::NextLetter => Ok(()),
        Strategy::Cot | Strategy::ScCot => check_fixed(run, run.questions, run.config.shots),
        Strategy::Medprompt if run.config.examples.is_some() => Ok(()),
        Strategy::Medprompt => medprompt::check(run),
    }
}

/// Refuses, before anything is asked, a question for which there are fewer than `k` fixed worked examples.
fn check_fixed(run: &TaskRun, questions: &[Question], k: usize) -> Result<()> {
    for question in questions {
        if let Err(error) = fixed_shots(run.config.protocol, question, k) {
            return Err(Error::Config(format!("{}: {error}; shots = 0 asks without examples", question.source)));
        }
    }
    Ok(())
}

/// Prepares: examples, neighbours, Medprompt's self-generated answers, which are written into `out`.
pub(crate) fn prepare(run: &TaskRun, log: &mut AnswerLog, out: &Path) -> Result<Plan> {
    let mut plan = chosen(run, log, out)?;
    if let Plan::Generate(plan) = &mut plan
        && generate::falls_back(run)?
    {
        let words = "ChatML, because the model's own template does not take the conversation (prompt_engine's rule)";
        plan.notes.insert("chat_template".into(), Value::from(words));
    }
    Ok(plan)
}

/// How `next-letter` is told of its letters, before anything is asked; `None` for the other strategies.
pub(crate) fn told(engine: &Engine, config: &EvalConfig, cancel: &Cancel) -> Result<Option<NextTold>> {
    Ok(match config.strategy {
        Strategy::NextLetter => Some(engine.next_told(config.chat_template, cancel)?),
        _ => None,
    })
}

fn chosen(run: &TaskRun, log: &mut AnswerLog, out: &Path) -> Result<Plan> {
    Ok(match run.config.strategy {
        Strategy::Loglikelihood => Plan::Loglikelihood(loglikelihood::prepare(run)?),
        Strategy::NextLetter => {
            let told = run.engine.next_told(run.config.chat_template, run.cancel)?;
            Plan::NextLetter(loglikelihood::prepare(run)?, told)
        }
        Strategy::Cot | Strategy::ScCot => {
            let is_single = run.config.strategy == Strategy::Cot;
            Plan::Generate(if is_single { cot::prepare(run) } else { sc_cot::prepare(run) })
        }
        Strategy::Medprompt => Plan::Generate(medprompt::prepare(run, log, out)?),
    })
}

impl Plan {
    /// How many questions to hand to the engine at once: answers do not depend on it.
    pub(crate) fn window_len(&self, engine: &Engine) -> usize {
        (engine.window_requests() / self.n_requests()).max(1)
    }

    /// Requests that a question takes.
    pub(crate) fn n_requests(&self) -> usize {
        match self {
            Self::Loglikelihood(_) | Self::NextLetter(..) => 1,
            Self::Generate(plan) => plan.n_requests(),
        }
    }

    /// Answers the questions at `indices` and hands each answer to `take` as it comes, a refused question as such.
    pub(crate) fn answer(
        &self,
        run: &TaskRun,
        indices: &[usize],
        take: &mut dyn FnMut(Sample) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Loglikelihood(plan) => plan.answer(run, indices, take),
            Self::NextLetter(plan, told) => next_letter::answer(plan, *told, run, indices, take),
            Self::Generate(plan) => plan.answer(run, indices, take),
        }
    }

    /// What the results should say about the preparation.
    pub(crate) fn notes(&self) -> Map<String, Value> {
        match self {
            Self::Loglikelihood(_) | Self::NextLetter(..) => Map::new(),
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

/// The option with the highest log-probability of those that have one, the first of equal ones; `None` where none has.
pub(crate) fn best_told(choices: &[ScoredChoice]) -> Option<usize> {
    let is_any = choices.iter().any(|choice| choice.logp.is_some());
    is_any.then(|| first_best(choices.iter().map(|choice| choice.logp.unwrap_or(f64::NEG_INFINITY))))
}

/// A question's item number for random streams: from its task and id, not its place, so that a limit changes nothing.
pub(crate) fn item(task: Task, id: &str) -> u64 {
    let digest = digest::bytes(format!("{}/{id}", task.name()).as_bytes());
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}
