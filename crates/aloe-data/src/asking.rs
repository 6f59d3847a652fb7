//! Asks a model for one text per item, again where the text is not accepted, and logs each answer as it comes. What is asked and what is
//! accepted is the caller's. A result depends on (weights, item, attempt's number, seed) alone, not on windows, order or restart.

pub(crate) mod log;

use crate::Result;
use aloe_engine::{Engine, GenerateRequest, handed};
use aloe_record::{Cancel, Progress};
use log::{AnswerLog, Answered};
use serde::Serialize;
use std::collections::HashMap;

/// The model and the handles of a run.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) progress: &'a Progress,
    pub(crate) cancel: &'a Cancel,
}

/// What one text is wanted for.
#[derive(Debug, Default)]
pub(crate) struct Item {
    /// See [`Answered::key`].
    pub(crate) key: String,
    /// The attempts in their order; the last one is accepted where `is_done`.
    pub(crate) attempts: Vec<Answered>,
    pub(crate) is_done: bool,
    /// Why the model or its server does not take the request. A refused item is asked no more.
    pub(crate) refused: Option<String>,
}

/// Requests and tokens, as far as the model tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Answers of the model.
    pub n_requests: usize,
    /// Tokens of the prompts; what a local model shares between them is counted each time.
    pub n_prompt_tokens: usize,
    /// Tokens drawn.
    pub n_tokens: usize,
    /// Answers whose tokens an endpoint does not tell.
    pub n_untold: usize,
}

impl Cost {
    pub(crate) fn add(&mut self, answered: &Answered) {
        self.n_requests += 1;
        self.n_prompt_tokens += answered.n_prompt_tokens.unwrap_or(0);
        self.n_tokens += answered.n_tokens.unwrap_or(0);
        self.n_untold += usize::from(answered.n_prompt_tokens.is_none() || answered.n_tokens.is_none());
    }
}

/// The answers of each item in the order of their numbers.
pub(crate) fn by_key(answered: Vec<Answered>) -> HashMap<String, Vec<Answered>> {
    let mut known: HashMap<String, Vec<Answered>> = HashMap::new();
    for one in answered {
        known.entry(one.key.clone()).or_default().push(one);
    }
    known.values_mut().for_each(|all| all.sort_by_key(|one| one.number));
    known
}

/// The first reason where the model refused every item.
pub(crate) fn all_refused(items: &[Item]) -> Option<String> {
    let reason = items.first().and_then(|item| item.refused.clone())?;
    items.iter().all(|item| item.refused.is_some()).then_some(reason)
}

/// Items by their keys, with what the log holds of them up to `n_attempts`.
pub(crate) fn items(
    keys: impl Iterator<Item = String>,
    known: &HashMap<String, Vec<Answered>>,
    n_attempts: usize,
    is_accepted: &dyn Fn(usize, &Answered) -> bool,
) -> Vec<Item> {
    let item = |(place, key): (usize, String)| {
        let mut item = Item { key, ..Item::default() };
        for answered in known.get(&item.key).into_iter().flatten().take(n_attempts) {
            if item.is_done || answered.number != item.attempts.len() {
                break;
            }
            item.attempts.push(answered.clone());
            item.is_done = is_accepted(place, answered);
        }
        item
    };
    keys.enumerate().map(item).collect()
}

/// Attempts at every item until one is accepted or there were `n_attempts`.
pub(crate) fn attempt(
    run: Run,
    log: &mut AnswerLog,
    items: &mut [Item],
    n_attempts: usize,
    request: &dyn Fn(usize, usize) -> GenerateRequest,
    is_accepted: &dyn Fn(usize, &Answered) -> bool,
) -> Result<()> {
    let n_known = items.iter().filter(|item| item.is_done || item.attempts.len() >= n_attempts).count();
    run.progress.resume(n_known as u64);
    for number in 0..n_attempts {
        let is_due = |item: &Item| !item.is_done && item.refused.is_none() && item.attempts.len() == number;
        let due: Vec<usize> = (0..items.len()).filter(|&place| is_due(&items[place])).collect();
        for window in due.chunks(run.engine.window_requests()) {
            run.cancel.check()?;
            run.progress.message(&format!("attempt {} of {n_attempts}, {} items left", number + 1, due.len()));
            let requests: Vec<GenerateRequest> = window.iter().map(|&place| request(place, number)).collect();
            let asked = handed(
                |take| run.engine.generate_into(&requests, &Progress::silent(), run.cancel, take),
                |at, answered| -> Result<()> {
                    let (place, item) = (window[at], &mut items[window[at]]);
                    match answered.map(|result| (result.prompt_ids, result.completions.into_iter().next())) {
                        Ok((prompt_ids, Some(completion))) => {
                            let answered = Answered::of(&item.key, number, prompt_ids.as_ref(), completion);
                            log.append(&answered)?;
                            item.is_done = is_accepted(place, &answered);
                            item.attempts.push(answered);
                        }
                        Ok((_, None)) => item.refused = Some("no answer came back".to_owned()),
                        Err(refused) => item.refused = Some(refused.to_string()),
                    }
                    let is_last = item.is_done || item.refused.is_some() || item.attempts.len() >= n_attempts;
                    run.progress.advance(u64::from(is_last));
                    Ok(())
                },
            );
            log.sync()?;
            asked?;
            run.engine.forget_answers()?;
        }
    }
    Ok(())
}
