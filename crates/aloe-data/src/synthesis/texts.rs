//! Texts of any kind that a model writes, one per item, kept by a check of their form: what Genstruct's questions, role-play variants and
//! rejections share. Spine: items -> attempts -> report and files.

use super::page;
use super::report::share;
use crate::asking::log::{AnswerLog, Answered};
use crate::asking::{self, Cost, Item, Run};
use crate::data::lines;
use crate::{Error, Result};
use aloe_engine::{EngineIdentity, GenerateRequest, Prompt, Sampling};
use aloe_record::{CounterRng, atomic, digest};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// How texts are asked for.
#[derive(Clone, Debug)]
pub struct TextsConfig {
    /// At most so many items, drawn by the seed.
    pub limit: Option<usize>,
    /// The most attempts at an item.
    pub attempts: usize,
    /// How attempts are drawn.
    pub sampling: Sampling,
    /// Decides the draw of items and attempts.
    pub seed: u64,
}

impl TextsConfig {
    /// Everything that can be known without reading a file.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = self.sampling.mistakes();
        if self.attempts == 0 || self.limit == Some(0) {
            mistakes.push("`attempts` and `limit` must be at least 1".to_owned());
        }
        if self.attempts > 1 && self.sampling.temperature == 0.0 {
            mistakes.push(
                "a second attempt at temperature 0 is the first one again: raise it, or set `attempts = 1`".into(),
            );
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config { mistakes }) }
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextVerdict {
    /// Kept.
    Accepted,
    /// The model did not end the text itself.
    Cut,
    /// Genstruct: no `[[[Assistant]]]`, or more than one.
    NoTurns,
    /// A side, or the whole, is empty.
    Empty,
    /// Role play: the model declines.
    Declined,
    /// Role play: no question stands in the last two sentences.
    NoQuestion,
    /// Role play: fewer than half of the telling words of the question are left.
    LostQuestion,
    /// Rejections: the better side itself, but for case and punctuation.
    Same,
    /// Rejections: it reaches the key of a multiple-choice row, so it is no worse side.
    Right,
}

/// What one text is wanted for.
pub(super) struct Wanted {
    pub(super) id: String,
    pub(super) prompt: Prompt,
    /// All that the prompt says of the item.
    pub(super) content: String,
}

/// The account; `results.json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextsReport {
    /// `genstruct`, `roleplay` or `rejections`.
    pub make: &'static str,
    /// The writer.
    pub model: EngineIdentity,
    /// What decided the texts beside the items.
    pub settings: Value,
    /// Items asked.
    pub n_items: usize,
    /// Items with a text that was kept.
    pub n_accepted: usize,
    /// Items that the model or its server refused.
    pub n_refused: usize,
    /// Texts kept at the first, second, .. attempt.
    pub accepted_at_attempt: Vec<usize>,
    /// Attempts by what became of them.
    pub attempts: BTreeMap<TextVerdict, usize>,
    /// Requests and tokens.
    pub cost: Cost,
    /// What the user must be told.
    pub notices: Vec<String>,
    /// Seconds of asking, over all sessions. Not in `results.json`.
    #[serde(skip)]
    pub seconds: f64,
}

impl TextsReport {
    /// Yield and cost in a sentence.
    pub fn summary(&self) -> String {
        let n_attempts: usize = self.attempts.values().sum();
        format!(
            "{}: {} items got a text in {n_attempts} attempts; {} requests, {} prompt and {} new tokens; {:.0} s of asking",
            self.make,
            share(self.n_accepted, self.n_items),
            self.cost.n_requests,
            self.cost.n_prompt_tokens,
            self.cost.n_tokens,
            self.seconds
        )
    }
}

/// The places of at most `limit` of `n` items, drawn by the seed, in order.
pub(super) fn drawn(n: usize, config: &TextsConfig, make: &str) -> Vec<usize> {
    let mut places: Vec<usize> = (0..n).collect();
    if let Some(limit) = config.limit.filter(|limit| *limit < n) {
        CounterRng::new(config.seed, &format!("synthesis-{make}"), 0).shuffle(&mut places);
        places.truncate(limit);
        places.sort_unstable();
    }
    places
}

/// Asks for every text and writes what is common: `attempts.jsonl`, `results.json`, `report.html`. Gives the items with their attempts.
pub(super) fn make(
    run: Run,
    make: &'static str,
    wanted: &[Wanted],
    config: &TextsConfig,
    out: &Path,
    judge: &dyn Fn(usize, &Answered) -> TextVerdict,
    notices: Vec<String>,
) -> Result<(Vec<Item>, TextsReport)> {
    let identity = run.engine.identity();
    let settings = json!({
        "make": make, "sampling": config.sampling, "seed": config.seed, "attempts": config.attempts, "limit": config.limit,
    });
    let mut hasher = digest::Hasher::default();
    hasher.field(
        json!({"model": identity, "make": make, "sampling": config.sampling, "seed": config.seed})
            .to_string()
            .as_bytes(),
    );
    let mut log = AnswerLog::begin(run.engine, out, &hasher.hex(), run.cancel)?;
    let known = asking::by_key(log.take());
    run.progress.set_total(wanted.len() as u64);
    let keys = wanted.iter().map(|one| format!("{}/{}", one.id, &digest::bytes(one.content.as_bytes())[..16]));
    let is_accepted = |place: usize, answered: &Answered| judge(place, answered) == TextVerdict::Accepted;
    let mut items = asking::items(keys, &known, config.attempts, &is_accepted);
    let request = |place: usize, number: usize| GenerateRequest {
        id: format!("{make}/{}/{number}", wanted[place].id),
        prompt: wanted[place].prompt.clone(),
        n: 1,
        sampling: Sampling { seed: config.seed, ..config.sampling.clone() },
    };
    asking::attempt(run, &mut log, &mut items, config.attempts, &request, &is_accepted)?;
    if let Some(reason) = asking::all_refused(&items) {
        return Err(Error::AllRefused { n: items.len(), reason });
    }
    let mut report = TextsReport {
        make,
        model: identity.clone(),
        settings,
        n_items: items.len(),
        n_accepted: items.iter().filter(|item| item.is_done).count(),
        n_refused: items.iter().filter(|item| item.refused.is_some()).count(),
        accepted_at_attempt: vec![0; config.attempts],
        attempts: BTreeMap::new(),
        cost: Cost::default(),
        notices,
        seconds: log.seconds,
    };
    let mut attempts = Vec::new();
    for (place, (item, wanted)) in items.iter().zip(wanted).enumerate() {
        if item.is_done {
            report.accepted_at_attempt[item.attempts.len() - 1] += 1;
        }
        for answered in &item.attempts {
            let verdict = judge(place, answered);
            *report.attempts.entry(verdict).or_default() += 1;
            report.cost.add(answered);
            attempts.push(json!({
                "id": wanted.id, "attempt": answered.number + 1, "verdict": verdict, "finish_reason": answered.finish_reason,
                "n_prompt_tokens": answered.n_prompt_tokens, "n_tokens": answered.n_tokens, "text": answered.text,
            }));
        }
        attempts.extend(item.refused.iter().map(|reason| json!({"id": wanted.id, "refused": reason})));
    }
    if report.n_accepted == 0 {
        report.notices.push("no attempt was kept, so there is no row".to_owned());
    }
    lines(&out.join("attempts.jsonl"), &attempts)?;
    atomic::write_json(&out.join("results.json"), &report)?;
    let kept = items.iter().zip(wanted).filter(|(item, _)| item.is_done);
    let shown = kept.filter_map(|(item, wanted)| {
        Some((wanted.id.as_str(), wanted.content.as_str(), item.attempts.last()?.text.as_str()))
    });
    page::draw_texts(&report, shown).write(&out.join("report.html"))?;
    Ok((items, report))
}
