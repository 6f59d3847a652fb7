//! DEITA's scores of complexity and quality by any engine (Liu et al. 2312.15685; aloe.md 1.3): each turn's user message and answer are shown
//! to a scorer in the published prompts, the score is the mean of 1 to 6 under the scorer's probabilities of these six digits as its next
//! token, a row's `evol` score the sum over its turns of complexity x quality. The lowest share of the rows by evol is dropped; so are rows
//! that the scorer could not score, which DEITA's code gives 3.0 and Aloe drops.
//!
//! The prompts are the published ones, letter for letter: a scorer is trained on them. hkust-nlp/deita reads the scores of the first token
//! drawn after the prompt; here the six digits are scored as continuations, which gives the same six numbers up to what they share. Of a server
//! that tells no log-probabilities of prompts (llama-server, chat alone) the digits are read among the most probable tokens that it names with
//! one drawn token; the report says so, and how many prompts lacked a digit.

use crate::asking::Cost;
use crate::asking::log::{AnswerLog, Answered};
use crate::{Body, Item, Result};
use aloe_engine::{Call, Engine, FinishReason, NextRequest, NextResult, NextTold, Prompt, handed};
use aloe_record::{Cancel, Progress, digest};
use aloe_text::Role;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Which rows go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quality {
    /// Share of the scored rows with the lowest evol scores that is dropped.
    pub drop_lowest: f64,
    /// For a scorer behind an endpoint: folder or `.gguf` file whose tokenizer makes the prompts' tokens.
    pub tokenizer: Option<PathBuf>,
}

impl Default for Quality {
    fn default() -> Self {
        Self { drop_lowest: 0.1, tokenizer: None }
    }
}

impl Quality {
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let is_share = (0.0..1.0).contains(&self.drop_lowest);
        let text = format!("`quality.drop_lowest` is {}; it must be at least 0 and below 1", self.drop_lowest);
        (!is_share).then_some(text).into_iter().collect()
    }
}

/// The two scorers; one model may be both.
#[derive(Clone, Copy)]
pub struct Scorers<'a> {
    /// Of a user message.
    pub complexity: &'a Engine,
    /// Of an answer to it.
    pub quality: &'a Engine,
}

/// A row's scores: a line of `scores.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct RowScore {
    pub(crate) id: String,
    /// One a turn.
    pub(crate) complexity: Vec<f64>,
    /// One a turn.
    pub(crate) quality: Vec<f64>,
    /// Absent where the row could not be scored.
    pub(crate) evol: Option<f64>,
    /// `unscored` or `low_evol` where the row is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dropped: Option<&'static str>,
    /// Why it could not be scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// What came of scoring; the manifest holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QualityReport {
    /// Names of the two scorers.
    pub complexity_scorer: String,
    /// See above.
    pub quality_scorer: String,
    /// Where the complexity scorer's six log-probabilities are from.
    pub complexity_told: Option<NextTold>,
    /// See above.
    pub quality_told: Option<NextTold>,
    /// Prompts of which a server told some of the six digits alone (its most probable tokens), whose probabilities were made to sum to one;
    /// of those that told none the rows are unscored.
    pub n_partial: usize,
    /// Rows with scores.
    pub n_scored: usize,
    /// Rows without, dropped.
    pub n_unscored: usize,
    /// Rows dropped for the lowest evol scores.
    pub n_low: usize,
    /// The lowest evol score that was kept.
    pub lowest_kept: Option<f64>,
    /// Means over scored rows of complexity and quality of a turn.
    pub mean_complexity: Option<f64>,
    /// See above.
    pub mean_quality: Option<f64>,
    /// Requests and prompt tokens; nothing is drawn.
    pub cost: Cost,
}

impl QualityReport {
    fn note(&mut self, what: &str, told: NextTold) {
        if what == "complexity" { self.complexity_told = Some(told) } else { self.quality_told = Some(told) }
    }
}

const COMPLEXITY: [&str; 2] = [
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n##Query: ",
    "  \n##Complexity: ",
];
const QUALITY: [&str; 3] = [
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n #Question#:\n",
    "\n#Response#:\n",
    " \n##Quality: ",
];

/// Turns of a row: each user message with the answer right behind it; DEITA scores an unanswered one with an empty answer.
fn turns(item: &Item) -> Vec<(&str, &str)> {
    let Body::Conversation(conversation) = &item.body else { return Vec::new() };
    let messages: Vec<_> = conversation.messages.iter().filter(|message| message.role != Role::System).collect();
    let mut turns = Vec::new();
    for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::User) {
        let answer = messages.get(at + 1).filter(|next| next.role == Role::Assistant);
        turns.push((message.content.as_str(), answer.map_or("", |answer| answer.content.as_str())));
    }
    turns
}

/// The mean of 1 to 6 under the softmax of six log-probabilities. By hand: equal ones give 3.5; ln 1 .. ln 6 give 91 / 21.
pub(crate) fn expected(logps: &[f64]) -> f64 {
    let most = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logps.iter().map(|logp| (logp - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().zip(1..).map(|(weight, score)| weight / sum * f64::from(score)).sum()
}

/// Scores every row, in row order, and marks those to drop. A killed run goes on: what a scorer said of a prompt stands in the hidden logs in
/// `out`, one a scorer, which the caller removes once the folder is complete.
pub(crate) fn score(
    items: &[Item],
    scorers: Scorers,
    config: &Quality,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(Vec<RowScore>, QualityReport)> {
    let turns: Vec<(usize, (&str, &str))> =
        items.iter().enumerate().flat_map(|(row, item)| turns(item).into_iter().map(move |turn| (row, turn))).collect();
    progress.message("scoring complexity and quality");
    progress.grow(2 * turns.len() as u64);
    let mut report = QualityReport {
        complexity_scorer: scorers.complexity.identity().name.clone(),
        quality_scorer: scorers.quality.identity().name.clone(),
        ..QualityReport::default()
    };
    let prompts = |text: &dyn Fn((&str, &str)) -> String| turns.iter().map(|(_, turn)| text(*turn)).collect::<Vec<_>>();
    let complexity = prompts(&|(asked, _)| [COMPLEXITY[0], asked, COMPLEXITY[1]].concat());
    let quality = prompts(&|(asked, answer)| [QUALITY[0], asked, QUALITY[1], answer, QUALITY[2]].concat());
    let asking = Asking { out, progress, cancel };
    let complexity = scored(scorers.complexity, "complexity", complexity, &mut report, asking)?;
    let quality = scored(scorers.quality, "quality", quality, &mut report, asking)?;
    let mut rows: Vec<RowScore> =
        items.iter().map(|item| RowScore { id: item.id.clone(), ..RowScore::default() }).collect();
    for ((row, _), pair) in turns.iter().zip(complexity.into_iter().zip(quality)) {
        let row = &mut rows[*row];
        match pair {
            (Ok(complexity), Ok(quality)) => {
                row.complexity.push(complexity);
                row.quality.push(quality);
            }
            (Err(reason), _) | (_, Err(reason)) => row.reason = Some(reason),
        }
    }
    settle(&mut rows, config, &mut report);
    Ok((rows, report))
}

/// Where scores are kept, and the handles of the run.
#[derive(Clone, Copy)]
struct Asking<'a> {
    out: &'a Path,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

/// What a scorer said of one prompt: the log-probability of each of the six digits, where told.
type Digits = Vec<Option<f64>>;

/// The score under what is told of the six digits, made to sum to one.
fn score_of(digits: &Digits) -> std::result::Result<f64, String> {
    match digits.iter().any(Option::is_some) {
        // A digit that is not told counts for nothing.
        true => Ok(expected(&digits.iter().map(|logp| logp.unwrap_or(f64::NEG_INFINITY)).collect::<Vec<_>>())),
        false => Err("the scorer's server names none of the six digits among its most probable tokens".to_owned()),
    }
}

/// Each prompt's score, or why there is none. A prompt that stands there twice is scored once.
fn scored(
    scorer: &Engine,
    what: &str,
    prompts: Vec<String>,
    report: &mut QualityReport,
    asking: Asking,
) -> Result<Vec<std::result::Result<f64, String>>> {
    let Asking { out, progress, cancel } = asking;
    let told = scorer.next_told(false, cancel)?;
    let is_exact = told == NextTold::Scored;
    let mut hasher = digest::Hasher::default();
    hasher.field(json!({"model": scorer.identity(), "scores": what, "exact": is_exact}).to_string().as_bytes());
    let mut log = AnswerLog::open(&out.join(format!(".{what}.log")), &hasher.hex())?;
    log.hold(scorer.canary(if is_exact { Call::Score } else { Call::Generate }, cancel)?, 0)?;
    let keys: Vec<String> = prompts.iter().map(|prompt| digest::bytes(prompt.as_bytes())).collect();
    let mut known: HashMap<String, std::result::Result<Digits, String>> = HashMap::new();
    for answered in log.take() {
        if let Ok(told) = serde_json::from_str::<(NextTold, Digits)>(&answered.text) {
            report.note(what, told.0);
            report.cost.add(&answered);
            known.insert(answered.key, Ok(told.1));
        }
    }
    let mut due: Vec<(&String, NextRequest)> = Vec::new();
    for (at, (key, prompt)) in keys.iter().zip(prompts).enumerate() {
        if !known.contains_key(key) {
            known.insert(key.clone(), Err("no answer came back".to_owned()));
            let wanted = (1..=6).map(|score| score.to_string()).collect();
            due.push((key, NextRequest { id: format!("{what}/{at}"), prompt: Prompt::Text(prompt), wanted }));
        }
    }
    progress.resume((keys.len() - due.len()) as u64);
    for window in due.chunks(scorer.window_requests()) {
        cancel.check()?;
        let requests: Vec<NextRequest> = window.iter().map(|(_, request)| request.clone()).collect();
        let asked = handed(
            |take| scorer.next_into(&requests, told, &Progress::silent(), cancel, take),
            |at, result: aloe_engine::Result<NextResult>| -> Result<()> {
                progress.advance(1);
                let key = window[at].0;
                let digits = match result {
                    Ok(result) => {
                        let answered = answered(key, &result);
                        log.append(&answered)?;
                        report.note(what, result.told);
                        report.cost.add(&answered);
                        Ok(result.logps)
                    }
                    Err(refused) => {
                        report.cost.n_requests += 1;
                        Err(refused.to_string())
                    }
                };
                known.insert(key.clone(), digits);
                Ok(())
            },
        );
        log.sync()?;
        asked?;
    }
    report.n_partial += known.values().flatten().filter(|digits| digits.iter().any(Option::is_none)).count();
    let score = |key: &String| match known.get(key) {
        Some(Ok(digits)) => score_of(digits),
        Some(Err(reason)) => Err(reason.clone()),
        None => Err("no answer came back".to_owned()),
    };
    Ok(keys.iter().map(score).collect())
}

/// What was told as an entry of the log; the shortest text of a float reads back as the same float.
fn answered(key: &str, result: &NextResult) -> Answered {
    Answered {
        key: key.to_owned(),
        number: 0,
        text: json!((result.told, &result.logps)).to_string(),
        finish_reason: FinishReason::Stop,
        n_prompt_tokens: result.n_prompt_tokens,
        n_tokens: Some(usize::from(result.told != NextTold::Scored)),
    }
}

/// Evol scores, and which rows are dropped: those without, and the lowest share of the others; of equal ones the later row.
fn settle(rows: &mut [RowScore], config: &Quality, report: &mut QualityReport) {
    for row in rows.iter_mut() {
        if row.reason.is_some() || row.complexity.is_empty() {
            row.reason.get_or_insert_with(|| "the row has no turn to score".to_owned());
            row.dropped = Some("unscored");
            continue;
        }
        row.evol =
            Some(row.complexity.iter().zip(&row.quality).map(|(complexity, quality)| complexity * quality).sum());
    }
    let mut order: Vec<(usize, f64)> = rows.iter().enumerate().filter_map(|(at, row)| Some((at, row.evol?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    let n_low = (config.drop_lowest * order.len() as f64).floor() as usize;
    order[..n_low].iter().for_each(|(at, _)| rows[*at].dropped = Some("low_evol"));
    let n_scored = order.len();
    let mean = |of: fn(&RowScore) -> &Vec<f64>| {
        let all: Vec<f64> = order.iter().flat_map(|(at, _)| of(&rows[*at]).iter().copied()).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    report.mean_complexity = mean(|row| &row.complexity);
    report.mean_quality = mean(|row| &row.quality);
    report.lowest_kept = order.get(n_low).map(|(_, evol)| *evol);
    (report.n_scored, report.n_unscored, report.n_low) = (n_scored, rows.len() - n_scored, n_low);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_mean_of_one_to_six_under_the_digits_probabilities() {
        assert!((expected(&[-9.0; 6]) - 3.5).abs() < 1e-12);
        let weighted: Vec<f64> = (1..=6).map(|k| f64::from(k).ln() - 700.0).collect();
        assert!((expected(&weighted) - 91.0 / 21.0).abs() < 1e-12);
        assert!((expected(&[-1e4, -1e4, -1e4, -1e4, 0.0, -1e4]) - 5.0).abs() < 1e-12);
    }

    /// By hand: of the digits 2 and 4 alone, with probabilities 0.3 and 0.1, the share of the 2 is 3/4: 2.5.
    #[test]
    fn digits_that_a_server_does_not_tell_count_for_nothing_and_none_told_is_no_score() {
        let told = vec![None, Some(0.3f64.ln()), None, Some(0.1f64.ln()), None, None];
        assert!((score_of(&told).unwrap() - 2.5).abs() < 1e-12);
        assert!(score_of(&vec![None; 6]).unwrap_err().contains("none of the six digits"));
    }

    fn row(complexity: &[f64], quality: &[f64]) -> RowScore {
        RowScore { complexity: complexity.to_vec(), quality: quality.to_vec(), ..RowScore::default() }
    }

    /// By hand: evol 2x3 = 6, 1x2 + 3x4 = 14, none, 1x1 = 1, 6. A share of 0.5 of four is two rows: the 1, and of the two 6 the later.
    #[test]
    fn the_lowest_share_by_evol_goes_and_rows_without_scores_go_too() {
        let mut rows = vec![
            row(&[2.0], &[3.0]),
            row(&[1.0, 3.0], &[2.0, 4.0]),
            row(&[], &[]),
            row(&[1.0], &[1.0]),
            row(&[3.0], &[2.0]),
        ];
        let mut report = QualityReport::default();
        settle(&mut rows, &Quality { drop_lowest: 0.5, tokenizer: None }, &mut report);
        let dropped: Vec<Option<&str>> = rows.iter().map(|row| row.dropped).collect();
        assert_eq!(dropped, [None, None, Some("unscored"), Some("low_evol"), Some("low_evol")]);
        assert_eq!(
            rows.iter().map(|row| row.evol).collect::<Vec<_>>(),
            [Some(6.0), Some(14.0), None, Some(1.0), Some(6.0)]
        );
        assert_eq!((report.n_scored, report.n_unscored, report.n_low, report.lowest_kept), (4, 1, 2, Some(6.0)));
        assert_eq!(report.mean_complexity, Some((2.0 + 1.0 + 3.0 + 1.0 + 3.0) / 5.0));
    }
}
