//! Rows that ask in other words what an evaluation question asks: nearest neighbours by sentence embedding, and a judge's word (aloe.md 1.3,
//! the method of Yang et al. 2311.04850).
//!
//! Without a judge a row is a hit when one of its user messages lies at `threshold` or nearer to a question. With a judge each question's
//! `neighbours` nearest rows from `judge_from` on, and every row at `threshold` or nearer, are shown to it beside their question, and a row
//! is a hit when it says `True`. A reply that is neither `True` nor `False` is asked for again, up to `judge_attempts`; then the row is named in
//! `unjudged.jsonl` and the threshold decides. llm-decontaminator takes such a row for clean.
//!
//! What is embedded: the question's words without its options; with them where it has at most twelve words, since "Which is true?" alone means
//! nothing. An embedder cuts long texts, which is counted.

use crate::asking::log::{AnswerLog, Answered};
use crate::asking::{self, Cost, Run};
use crate::decontaminate::{Evidence, Index, IsKept, OPTION_LINE, Overlap, rounded};
use crate::{Error, Item, Result, parallel, vectors};
use aloe_engine::{Embedder, Engine, GenerateRequest, Prompt, Sampling};
use aloe_record::{Cancel, Progress, digest};
use aloe_text::{Message, Role};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// How near is the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meaning {
    /// Cosine from which on a row is a hit without a judge.
    pub threshold: f64,
    /// Nearest rows of each question that a judge sees.
    pub neighbours: usize,
    /// Cosine from which on it sees them.
    pub judge_from: f64,
    /// The most replies asked for a pair.
    pub judge_attempts: usize,
}

impl Default for Meaning {
    fn default() -> Self {
        Self { threshold: 0.85, neighbours: 1, judge_from: 0.6, judge_attempts: 5 }
    }
}

impl Meaning {
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (name, value) in [("threshold", self.threshold), ("judge_from", self.judge_from)] {
            if !(value > 0.0 && value <= 1.0) {
                mistakes.push(format!("`meaning.{name}` is {value}; a cosine above 0 and at most 1 is meant"));
            }
        }
        for (name, value) in [("neighbours", self.neighbours), ("judge_attempts", self.judge_attempts)] {
            if value == 0 {
                mistakes.push(format!("`meaning.{name}` must be at least 1"));
            }
        }
        mistakes
    }
}

/// The models that compare.
#[derive(Clone, Copy)]
pub(crate) struct Readers<'a> {
    pub(crate) embedder: &'a Embedder,
    pub(crate) judge: Option<&'a Engine>,
    /// Decides the judge's draws.
    pub(crate) seed: u64,
    /// For the search of neighbours; results do not depend on it.
    pub(crate) n_threads: usize,
}

/// What came of the comparison; the manifest holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MeaningReport {
    /// The embedder's name.
    pub embedder: String,
    /// The judge's name; empty without one.
    pub judge: String,
    /// User messages compared.
    pub n_texts: usize,
    /// Texts whose end the embedder did not read.
    pub n_cut: usize,
    /// Rows dropped.
    pub n_hits: usize,
    /// Pairs that the judge called the same.
    pub n_same: usize,
    /// Pairs that it called different.
    pub n_different: usize,
    /// Pairs on which it said neither, or which it refused.
    pub n_unjudged: usize,
    /// What the judge cost.
    pub cost: Cost,
}

/// A pair on which the judge gave no verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Unjudged {
    pub(crate) row: String,
    pub(crate) question_at: String,
    /// Its last reply, or why it was refused.
    pub(crate) reply: String,
    pub(crate) cosine: f64,
    /// Whether the threshold made it a hit.
    pub(crate) is_dropped: bool,
}

/// Everything found.
#[derive(Default)]
pub(crate) struct Found {
    /// In row order, with those that verdicts keep.
    pub(crate) overlaps: Vec<(usize, Overlap)>,
    pub(crate) unjudged: Vec<Unjudged>,
    pub(crate) report: MeaningReport,
}

/// What one of a row's messages asks.
struct Asked {
    row: usize,
    /// The message's number.
    message: usize,
    /// As it is compared.
    text: String,
}

/// A row's text near a question.
#[derive(Clone, Debug, PartialEq)]
struct Pair {
    row: usize,
    text: usize,
    held: usize,
    cosine: f64,
}

/// The most words of a question that are compared together with its options.
const SHORT: usize = 12;

/// Rows that come near an evaluation question. `out` is where embeddings and a judge's replies are logged.
pub(crate) fn find(
    items: &[Item],
    index: &Index,
    is_kept: &IsKept<'_>,
    readers: Readers,
    config: &Meaning,
    out: &Path,
    (progress, cancel): (&Progress, &Cancel),
) -> Result<Found> {
    let held: Vec<String> = index.held_texts().map(|(stem, options)| compared(stem, options)).collect();
    let of_row =
        |(row, item): (usize, &Item)| asked(item).into_iter().map(move |(message, text)| Asked { row, message, text });
    let texts: Vec<Asked> = items.iter().enumerate().flat_map(of_row).collect();
    let mut found = Found::default();
    found.report.embedder = readers.embedder.name().to_owned();
    found.report.n_texts = texts.len();
    progress.message("comparing by meaning");
    progress.grow((held.len() + texts.len()) as u64);
    let mut embed = |texts: &[String]| -> Result<Vec<Vec<f32>>> {
        let all = vectors::embed(readers.embedder, texts, out, progress, cancel)?;
        found.report.n_cut += all.iter().filter(|one| one.n_cut_tokens > 0).count();
        Ok(all.into_iter().map(|one| one.vector).collect())
    };
    let held_vectors = embed(&held)?;
    let row_vectors = embed(&texts.iter().map(|one| one.text.clone()).collect::<Vec<_>>())?;
    let floor = if readers.judge.is_some() { config.judge_from.min(config.threshold) } else { config.threshold };
    let near = pairs(&row_vectors, &held_vectors, floor, readers.n_threads);
    let near: Vec<Pair> =
        near.into_iter().map(|(text, held, cosine)| Pair { row: texts[text].row, text, held, cosine }).collect();
    // Of a reader's verdict no judge is asked, and what it keeps takes no other row's place among a question's neighbours.
    let kept = |pair: &Pair| is_kept(&items[pair.row].id, index.at(pair.held));
    let (kept, near): (Vec<Pair>, Vec<Pair>) = near.into_iter().partition(kept);
    let mut hits: BTreeMap<usize, (Pair, &'static str)> = BTreeMap::new();
    match readers.judge {
        None => near.into_iter().for_each(|pair| keep_nearest(&mut hits, pair, "embedding")),
        Some(judge) => {
            let shown = candidates(near, config);
            let run = Run { engine: judge, progress, cancel };
            let words: Vec<(&str, &str)> =
                shown.iter().map(|pair| (held[pair.held].as_str(), texts[pair.text].text.as_str())).collect();
            let verdicts =
                judged(run, (config, readers.seed), out, &words, &mut found.report).map_err(|error| match error {
                    // The judge knows a pair by its digest, which names no row to a reader.
                    Error::AllRefused { n, reason } => {
                        let (row, at) = (&items[shown[0].row].id, index.at(shown[0].held));
                        Error::AllRefused { n, reason: format!("{row} beside {at}: {reason}") }
                    }
                    other => other,
                })?;
            for (pair, verdict) in shown.into_iter().zip(verdicts) {
                let is_near = pair.cosine >= config.threshold;
                match verdict {
                    Ok(true) => keep_nearest(&mut hits, pair, "judge"),
                    Ok(false) => {}
                    Err(reply) => {
                        let question_at = index.at(pair.held).to_owned();
                        let (row, cosine) = (items[pair.row].id.clone(), rounded(pair.cosine));
                        found.unjudged.push(Unjudged { row, question_at, reply, cosine, is_dropped: is_near });
                        if is_near {
                            keep_nearest(&mut hits, pair, "embedding");
                        }
                    }
                }
            }
        }
    }
    found.report.n_hits = hits.len();
    let kept = kept.into_iter().map(|pair| (pair.row, (pair, "embedding")));
    let mut all: Vec<(usize, (Pair, &'static str))> = hits.into_iter().chain(kept).collect();
    all.sort_by_key(|(row, _)| *row);
    found.overlaps = all
        .into_iter()
        .map(|(row, (pair, test))| {
            let evidence = Evidence { test, shared: String::new(), score: rounded(pair.cosine) };
            let overlap = Overlap {
                row: items[row].id.clone(),
                question_at: index.at(pair.held).to_owned(),
                question: index.shown(pair.held),
                row_text: items[row].messages()[texts[pair.text].message].content.clone(),
                evidence,
            };
            (row, overlap)
        })
        .collect();
    Ok(found)
}

fn keep_nearest(hits: &mut BTreeMap<usize, (Pair, &'static str)>, pair: Pair, test: &'static str) {
    let known = hits.get(&pair.row).map_or(f64::NEG_INFINITY, |(known, _)| known.cosine);
    if pair.cosine > known {
        hits.insert(pair.row, (pair, test));
    }
}

/// A question's words, with its options where it has few.
fn compared(stem: &str, options: &[String]) -> String {
    let stem = stem.trim();
    if options.is_empty() || stem.split_whitespace().count() > SHORT {
        return stem.to_owned();
    }
    let mut sorted: Vec<&str> = options.iter().map(|option| option.trim()).collect();
    sorted.sort_unstable();
    format!("{stem} {}", sorted.join(", "))
}

/// What a row's user messages ask, one text each, behind the message's number.
fn asked(item: &Item) -> Vec<(usize, String)> {
    let messages = item.messages();
    let mut messages = messages.into_iter().enumerate().filter(|(_, message)| message.role == Role::User);
    if let Some(question) = &item.question {
        let first = messages.next().map_or(0, |(at, _)| at);
        return vec![(first, compared(&question.stem, &question.choices))];
    }
    let texts = messages.map(|(at, message)| {
        let options: Vec<String> =
            OPTION_LINE.captures_iter(&message.content).map(|found| found[1].to_owned()).collect();
        let stem = OPTION_LINE.replace_all(&message.content, "");
        let stem = stem.trim();
        (at, compared(stem.strip_prefix("Question:").unwrap_or(stem), &options))
    });
    texts.filter(|(_, text)| !text.is_empty()).collect()
}

/// Every (row, held, cosine) at `floor` or nearer, by row and then by held.
fn pairs(rows: &[Vec<f32>], held: &[Vec<f32>], floor: f64, n_threads: usize) -> Vec<(usize, usize, f64)> {
    let numbered: Vec<(usize, &Vec<f32>)> = rows.iter().enumerate().collect();
    let of_row = |&(row, vector): &(usize, &Vec<f32>)| -> Vec<(usize, usize, f64)> {
        let near = held.iter().enumerate().map(|(at, other)| (row, at, cosine(vector, other)));
        near.filter(|(_, _, cosine)| *cosine >= floor).collect()
    };
    parallel::map(n_threads, &numbered, of_row).into_iter().flatten().collect()
}

/// Of unit vectors, in eight chains of fixed order.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().map(|sum| f64::from(*sum)).sum()
}

/// What a judge is shown: every pair at the threshold, and of each question the nearest rows.
fn candidates(near: Vec<Pair>, config: &Meaning) -> Vec<Pair> {
    let mut by_held: BTreeMap<usize, Vec<Pair>> = BTreeMap::new();
    for pair in near {
        by_held.entry(pair.held).or_default().push(pair);
    }
    let chosen = by_held.into_values().flat_map(|mut pairs| {
        pairs.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)).then(a.text.cmp(&b.text)));
        let is_shown = |&(at, ref pair): &(usize, Pair)| {
            pair.cosine >= config.threshold || (at < config.neighbours && pair.cosine >= config.judge_from)
        };
        pairs.into_iter().enumerate().filter(is_shown).map(|(_, pair)| pair).collect::<Vec<_>>()
    });
    chosen.collect()
}

/// llm-decontaminator's instruction for questions of knowledge, as aloe.md 1.3 gives it.
const INSTRUCTION: &str = "I will now give you two questions. I will enclose the two questions in curly braces. Please help me determine if the \
following two questions are the same. Disregard the names and minor changes in word order that appear within. If they are, please answer 'True', \
otherwise answer 'False'. Do not respond with anything else.";

/// The most tokens of a judge's reply.
const JUDGE_TOKENS: usize = 8;

fn judge_messages(question: &str, row: &str) -> Vec<Message> {
    vec![Message::system(INSTRUCTION), Message::user(format!("part1: {{\n{question}\n}}\npart2: {{\n{row}\n}}"))]
}

/// `True` or `False` alone, white space, quotes and a stop aside.
fn verdict(reply: &str) -> Option<bool> {
    match reply.trim().trim_matches(['\'', '"', '.']) {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// The judge's word on each pair of question and row, or its last reply where that is none.
fn judged(
    run: Run,
    (config, seed): (&Meaning, u64),
    out: &Path,
    pairs: &[(&str, &str)],
    report: &mut MeaningReport,
) -> Result<Vec<std::result::Result<bool, String>>> {
    let identity = run.engine.identity();
    report.judge.clone_from(&identity.name);
    let mut hasher = digest::Hasher::default();
    hasher.field(serde_json::to_string(identity).unwrap_or_default().as_bytes());
    hasher.field(format!("{INSTRUCTION}{seed}").as_bytes());
    let mut log = AnswerLog::begin(run.engine, out, &hasher.hex(), run.cancel)?;
    let known: HashMap<String, Vec<Answered>> = asking::by_key(log.take());
    let key =
        |(question, row): &(&str, &str)| format!("judge/{}", digest::bytes(format!("{question}\0{row}").as_bytes()));
    let keys: Vec<String> = pairs.iter().map(key).collect();
    let is_said = |_: usize, answered: &Answered| verdict(&answered.text).is_some();
    let mut items = asking::items(keys.iter().cloned(), &known, config.judge_attempts, &is_said);
    let request = |place: usize, number: usize| {
        let (question, row) = pairs[place];
        let sampling = Sampling { temperature: 0.3, seed, ..Sampling::greedy(JUDGE_TOKENS) };
        GenerateRequest {
            id: format!("{}/{number}", keys[place]),
            prompt: Prompt::Messages(judge_messages(question, row)),
            n: 1,
            sampling,
        }
    };
    run.progress.grow(items.len() as u64);
    asking::attempt(run, &mut log, &mut items, config.judge_attempts, &request, &is_said)?;
    if let Some(reason) = asking::all_refused(&items) {
        return Err(Error::AllRefused { n: items.len(), reason });
    }
    let mut verdicts = Vec::new();
    for item in &items {
        item.attempts.iter().for_each(|answered| report.cost.add(answered));
        let last = item.attempts.last();
        let said = last.and_then(|answered| verdict(&answered.text));
        match said {
            Some(true) => report.n_same += 1,
            Some(false) => report.n_different += 1,
            None => report.n_unjudged += 1,
        }
        let reply = || item.refused.clone().or_else(|| last.map(|answered| answered.text.clone())).unwrap_or_default();
        verdicts.push(said.ok_or_else(reply));
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests;
