//! Worked solutions to the train questions of benchmarks, written by any model: the synthetic chains of thought of the reference (aloe.md
//! 1.4). The spine: questions -> attempts until one is right -> what a second reader makes of them -> files.
//!
//! Writes into `out`: `train.jsonl` (the published columns `question, response`, with what is known of each row; a data stage reads it as a
//! source), `attempts.jsonl` (every attempt with its verdict), `examples.json` (the same solutions as Medprompt's database; one file a task
//! where there are several), `results.json` and `report.html`. The same model, questions and settings give the same bytes.
//!
//! Reading order: `config`, `crate::asking` (asks until accepted), `verdict` (what an attempt is worth), `report`, `page`; `texts` with
//! `genstruct`, `roleplay` and `rejections` for what is no solution. The wording is `aloe_task::wording::synthesis`.
//!
//! Never written: a row whose answer is not the key by the parser that evaluations use. Only train splits are read.

mod config;
mod genstruct;
mod page;
mod rejections;
mod report;
mod roleplay;
mod texts;
mod verdict;

pub use config::SynthesisConfig;
pub use genstruct::{GENSTRUCT_STOP, genstruct, genstruct_prompt};
pub use rejections::rejections;
pub use report::{BlindCounts, SynthesisReport, SynthesisYield};
pub use roleplay::roleplay;
pub use texts::{TextVerdict, TextsConfig, TextsReport};
pub(crate) use verdict::betrayal;
pub use verdict::{LEAST_WORDS, RESTATED, Verdict};

use crate::asking::log::{AnswerLog, Answered};
use crate::asking::{self, Item, Run};
use crate::{Error, Result};
use aloe_engine::{Engine, FinishReason, GenerateRequest, Prompt, Sampling};
use aloe_record::{Cancel, CounterRng, Progress, digest};
use aloe_task::extract::{Reading, extract};
use aloe_task::wording::synthesis::{blind_messages, messages};
use aloe_task::{Answer, AnswerRule, ChoiceOrder, Question, Split, Task};
use std::collections::HashMap;
use std::path::Path;
use verdict::{Judged, judge};

/// A question with its attempts and the second reader's reply.
pub(crate) struct Case {
    pub(crate) task: Task,
    pub(crate) question: Question,
    pub(crate) item: Item,
    /// In the order of the item's attempts.
    pub(crate) judged: Vec<Judged>,
    pub(crate) blind: Option<Item>,
}

impl Case {
    /// The right attempt.
    pub(crate) fn accepted(&self) -> Option<&Judged> {
        self.judged.last().filter(|judged| judged.verdict == Verdict::Accepted)
    }

    /// The option that the second reader picked; `None` inside where none could be read.
    pub(crate) fn picked(&self) -> Option<Option<usize>> {
        let answered = self.blind.as_ref()?.attempts.first()?;
        let order = ChoiceOrder::natural(self.question.choices.len());
        let is_cut = answered.finish_reason != FinishReason::Stop;
        let reading = Reading { text: &answered.text, choices: &self.question.choices, order: &order, is_cut };
        Some(match extract(reading, AnswerRule::Aloe).answer {
            Answer::Choice(index) => Some(index),
            Answer::Unparsed => bare_letter(&answered.text, self.question.choices.len()),
        })
    }
}

/// The option of a reply that is nothing but its letter, as `B`, `(B)` or `**B**.`: who is asked to pick an option may name it so.
fn bare_letter(reply: &str, n_choices: usize) -> Option<usize> {
    match reply.trim_matches(|c: char| c.is_whitespace() || "*()[].:".contains(c)).as_bytes() {
        [letter] => ('A'..='Z').take(n_choices).position(|name| name as u8 == letter.to_ascii_uppercase()),
        _ => None,
    }
}

/// Runs the stage into the folder `out`. An interrupted run is taken up where it stopped: answers stand in the hidden `.answers.log`, which
/// the caller removes once the folder is complete.
pub fn run(
    engine: &Engine,
    config: &SynthesisConfig,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<SynthesisReport> {
    config.check()?;
    let questions = load(config)?;
    let mut log = AnswerLog::begin(engine, out, &config.fingerprint(engine.identity()), cancel)?;
    let known = asking::by_key(log.take());
    progress.set_total(questions.len() as u64);
    let run = Run { engine, progress, cancel };
    let mut cases = attempts(run, &mut log, config, questions, &known)?;
    if config.blind {
        progress.grow(cases.iter().filter(|case| case.accepted().is_some()).count() as u64);
        read_blindly(run, &mut log, config, &mut cases, &known)?;
    }
    let report = SynthesisReport::of(engine.identity(), config, &cases, log.seconds);
    report::write(out, config, &cases, &report)?;
    progress.finish();
    Ok(report)
}

/// The train questions of every task, up to the limit, in file order.
fn load(config: &SynthesisConfig) -> Result<Vec<(Task, Question)>> {
    let mut all = Vec::new();
    for &task in &config.tasks {
        let questions = task.load(&config.data_dir, Split::Train)?;
        let mut places: Vec<usize> = (0..questions.len()).collect();
        if let Some(limit) = config.limit.filter(|limit| *limit < questions.len()) {
            CounterRng::new(config.seed, &format!("synthesis-questions/{}", task.name()), 0).shuffle(&mut places);
            places.truncate(limit);
            places.sort_unstable();
        }
        all.extend(places.into_iter().map(|place| (task, questions[place].clone())));
    }
    Ok(all)
}

/// Task, id and a digest of all in the question but where it stood.
fn key(task: Task, question: &Question) -> String {
    let text = serde_json::to_string(&Question { source: String::new(), ..question.clone() }).unwrap_or_default();
    format!("{}/{}/{}", task.name(), question.id, &digest::bytes(text.as_bytes())[..16])
}

fn attempts(
    run: Run,
    log: &mut AnswerLog,
    config: &SynthesisConfig,
    questions: Vec<(Task, Question)>,
    known: &HashMap<String, Vec<Answered>>,
) -> Result<Vec<Case>> {
    let judged = |place: usize, answered: &Answered| {
        judge(&questions[place].1, &answered.text, answered.finish_reason, config.in_parts)
    };
    let is_accepted = |place: usize, answered: &Answered| judged(place, answered).verdict == Verdict::Accepted;
    let keys = questions.iter().map(|(task, question)| key(*task, question));
    let mut items = asking::items(keys, known, config.attempts, &is_accepted);
    let request = |place: usize, number: usize| {
        let (task, question) = &questions[place];
        GenerateRequest {
            id: format!("synthesis/{}/{}/{number}", task.name(), question.id),
            prompt: Prompt::Messages(messages(question, config.mode, config.shots)),
            n: 1,
            sampling: Sampling { seed: config.seed, ..config.sampling.clone() },
        }
    };
    asking::attempt(run, log, &mut items, config.attempts, &request, &is_accepted)?;
    if let Some(reason) = asking::all_refused(&items) {
        return Err(Error::AllRefused { n: items.len(), reason });
    }
    let case = |(place, item): (usize, Item)| {
        let (task, question) = questions[place].clone();
        let judged = item.attempts.iter().map(|answered| judged(place, answered)).collect();
        Case { task, question, item, judged, blind: None }
    };
    Ok(items.into_iter().enumerate().map(case).collect())
}

/// Another call sees each kept reasoning without its answer and picks an option, greedily.
fn read_blindly(
    run: Run,
    log: &mut AnswerLog,
    config: &SynthesisConfig,
    cases: &mut [Case],
    known: &HashMap<String, Vec<Answered>>,
) -> Result<()> {
    let places: Vec<usize> = (0..cases.len()).filter(|&place| cases[place].accepted().is_some()).collect();
    let reasoning = |at: usize| cases[places[at]].accepted().map(|judged| judged.reasoning.clone()).unwrap_or_default();
    // The attempt that is read is part of the key: another number of attempts may keep another one.
    let keys = places.iter().enumerate().map(|(at, &place)| {
        format!("blind/{}/{}", cases[place].item.key, &digest::bytes(reasoning(at).as_bytes())[..16])
    });
    let mut items = asking::items(keys, known, 1, &|_, _| true);
    let request = |at: usize, _: usize| {
        let case = &cases[places[at]];
        GenerateRequest {
            id: format!("blind/{}/{}", case.task.name(), case.question.id),
            prompt: Prompt::Messages(blind_messages(&case.question, &reasoning(at))),
            n: 1,
            sampling: Sampling { seed: config.seed, ..Sampling::greedy(config.sampling.max_new_tokens) },
        }
    };
    asking::attempt(run, log, &mut items, 1, &request, &|_, _| true)?;
    for (place, item) in places.into_iter().zip(items) {
        cases[place].blind = Some(item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::bare_letter;

    #[test]
    fn a_reply_of_one_letter_is_a_pick_and_a_word_or_a_letter_beyond_the_options_is_none() {
        for (reply, picked) in [
            ("B", Some(1)),
            (" (b).\n", Some(1)),
            ("**D**", Some(3)),
            ("E", None),
            ("B or C", None),
            ("", None),
            ("4", None),
        ] {
            assert_eq!(bare_letter(reply, 4), picked, "{reply:?}");
        }
    }
}
