//! ROUGE-1, ROUGE-2, ROUGE-L and BLEU of one answer against one reference, and their means over a task.
//!
//! They agree with what lm-evaluation-harness's `careqa_open` computes: `rouge_score` 0.1.2 without stemming (F-measures), and the BLEU
//! of huggingface/evaluate (13a tokens, orders 1 to 4, no smoothing). Held against golden values of those libraries in
//! `tests/open_overlap.rs`. No kept Rust crate has rouge_score's tokens; the one for this BLEU (bleuscore) brings a thread pool
//! and a cache of all texts for a page of arithmetic.

use crate::metrics::Estimate;
use crate::stats::{self, Interval};
use aloe_task::Protocol;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::LazyLock;

/// How far the words of an answer are those of its reference, each 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// F-measure of shared words.
    pub rouge1: f64,
    /// F-measure of shared pairs of words.
    pub rouge2: f64,
    /// F-measure of the longest common subsequence of words.
    #[serde(rename = "rougeL")]
    pub rouge_l: f64,
    /// Geometric mean of the n-gram precisions up to four, with the brevity penalty. It is 0 for every answer without a run of four
    /// tokens of its reference, so also for every reference of fewer than four. None where either text has no token.
    pub bleu: Option<f64>,
}

/// Compares an answer with its reference.
pub fn overlap(answer: &str, reference: &str) -> Overlap {
    let (found, expected) = (rouge_tokens(answer), rouge_tokens(reference));
    Overlap {
        rouge1: rouge_n(&found, &expected, 1),
        rouge2: rouge_n(&found, &expected, 2),
        rouge_l: rouge_l(&found, &expected),
        bleu: bleu(&bleu_tokens(answer), &bleu_tokens(reference)),
    }
}

/// rouge_score's default tokenizer: lower case, everything but a-z and 0-9 separates.
fn rouge_tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn counts(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(order) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// n-grams that both have, each at most as often as it stands in the other.
fn n_shared(found: &[String], expected: &[String], order: usize) -> usize {
    let expected = counts(expected, order);
    counts(found, order).iter().map(|(gram, n)| *n.min(expected.get(gram).unwrap_or(&0))).sum()
}

fn f_measure(n_shared: usize, n_found: usize, n_expected: usize) -> f64 {
    let precision = n_shared as f64 / n_found.max(1) as f64;
    let recall = n_shared as f64 / n_expected.max(1) as f64;
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

fn rouge_n(found: &[String], expected: &[String], order: usize) -> f64 {
    let n_grams = |tokens: &[String]| (tokens.len() + 1).saturating_sub(order);
    f_measure(n_shared(found, expected, order), n_grams(found), n_grams(expected))
}

fn rouge_l(found: &[String], expected: &[String]) -> f64 {
    // One row of the table of longest common subsequences at a time.
    let mut row = vec![0usize; expected.len() + 1];
    for word in found {
        let mut above_left = 0;
        for (at, other) in expected.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other { above_left + 1 } else { above.max(row[at]) };
            above_left = above;
        }
    }
    f_measure(row[expected.len()], found.len(), expected.len())
}

/// mteval's 13a tokens as huggingface/evaluate's copy splits them.
fn bleu_tokens(text: &str) -> Vec<String> {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        // The patterns are constants: one that does not compile is our bug.
        let rule = |pattern: &str| Regex::new(pattern).unwrap_or_else(|error| panic!("{error}"));
        [
            (rule(r"([{-~\[-` -&(-+:-@/])"), " $1 "),
            (rule(r"([^0-9])([.,])"), "$1 $2 "),
            (rule(r"([.,])([^0-9])"), " $1 $2"),
            (rule(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, character);
    }
    line = format!(" {line} ");
    for (pattern, to) in RULES.iter() {
        line = pattern.replace_all(&line, *to).into_owned();
    }
    // Python's str.split() also splits at the four separators U+001C to U+001F.
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    line.split(is_space).filter(|token| !token.is_empty()).map(str::to_owned).collect()
}

/// tensorflow/nmt's `compute_bleu` of one pair.
fn bleu(found: &[String], expected: &[String]) -> Option<f64> {
    if found.is_empty() || expected.is_empty() {
        return None;
    }
    let mut log_sum = 0.0;
    for order in 1..=4 {
        let n_shared = n_shared(found, expected, order);
        if n_shared == 0 {
            return Some(0.0);
        }
        log_sum += (n_shared as f64 / (found.len() + 1 - order) as f64).ln() / 4.0;
    }
    let ratio = found.len() as f64 / expected.len() as f64;
    let penalty = if ratio > 1.0 { 1.0 } else { (1.0 - 1.0 / ratio).exp() };
    Some(log_sum.exp() * penalty)
}

/// A mean over questions with its standard error and 95 % interval (Student's t, within 0 and 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Answers that count; the harness's rule leaves out those without a figure.
    pub n: usize,
    /// Mean F-measure.
    pub rouge1: Estimate,
    /// Mean F-measure.
    pub rouge2: Estimate,
    /// Mean F-measure.
    #[serde(rename = "rougeL")]
    pub rouge_l: Estimate,
    /// Mean BLEU of single answers, which is not the BLEU of a corpus.
    pub bleu: Estimate,
}

/// What lm-evaluation-harness's `careqa_open` gives for a BLEU of 0, so that its standard error does not break.
const HARNESS_ZERO_BLEU: f64 = 1e-5;

/// The means over a task's questions; none where no question counts. Under the harness's protocol an empty answer (`None`) does not
/// count and a BLEU of 0 is 1e-5, as there; under ours an answer that is empty or was refused counts as 0.
pub fn means(protocol: Protocol, overlaps: &[Option<Overlap>]) -> Option<Means> {
    let none = Overlap { rouge1: 0.0, rouge2: 0.0, rouge_l: 0.0, bleu: Some(0.0) };
    let is_harness = protocol == Protocol::LmEval;
    let counted: Vec<Overlap> = match is_harness {
        true => overlaps.iter().flatten().copied().collect(),
        false => overlaps.iter().map(|overlap| overlap.unwrap_or(none)).collect(),
    };
    let of = |get: fn(&Overlap) -> f64| mean(&counted.iter().map(get).collect::<Vec<_>>());
    let bleus: Vec<f64> = match is_harness {
        // Two texts of which one has no token have no BLEU there, and their ROUGE counts.
        true => {
            counted.iter().filter_map(|one| one.bleu).map(|b| if b == 0.0 { HARNESS_ZERO_BLEU } else { b }).collect()
        }
        false => counted.iter().map(|one| one.bleu.unwrap_or(0.0)).collect(),
    };
    Some(Means {
        n: counted.len(),
        rouge1: of(|one| one.rouge1)?,
        rouge2: of(|one| one.rouge2)?,
        rouge_l: of(|one| one.rouge_l)?,
        bleu: mean(&bleus)?,
    })
}

/// Mean, standard error (sample standard deviation over the root of n) and interval.
fn mean(values: &[f64]) -> Option<Estimate> {
    let n = values.len() as f64;
    let value = match values {
        [] => return None,
        values => values.iter().sum::<f64>() / n,
    };
    if values.len() < 2 {
        return Some(Estimate { value, stderr: 0.0, interval: None });
    }
    let squares: f64 = values.iter().map(|one| (one - value).powi(2)).sum();
    let stderr = (squares / (n - 1.0) / n).sqrt();
    let half = stats::t_975(values.len() - 1) * stderr;
    let interval = Interval { low: (value - half).max(0.0), high: (value + half).min(1.0) };
    Some(Estimate { value, stderr, interval: Some(interval) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    /// By hand: 2 of 5 words shared with a reference of 2: P 2/8, R 1, F 0.4.
    #[test]
    fn rouge_is_the_f_measure_of_shared_words() {
        let found = overlap("The median nerve is compressed at the wrist.", "Median nerve");
        close(found.rouge1, 2.0 * 0.25 / 1.25);
        assert_eq!(overlap("", "x").bleu, None);
        assert_eq!(overlap("", "x").rouge1, 0.0);
    }

    /// By hand: under ours the empty answer is a 0; careqa_open leaves it out and makes the BLEU of 0 a 1e-5.
    #[test]
    fn an_empty_answer_counts_as_nothing_shared_and_under_the_harness_not_at_all() {
        let half = Overlap { rouge1: 0.5, rouge2: 0.25, rouge_l: 0.5, bleu: Some(0.0) };
        let ours = means(Protocol::Aloe, &[Some(half), None]).unwrap();
        assert_eq!(ours.n, 2);
        close(ours.rouge1.value, 0.25);
        // Deviations 0.25 and -0.25: variance 0.125, standard error sqrt(0.125 / 2) = 0.25.
        close(ours.rouge1.stderr, 0.25);
        close(ours.bleu.value, 0.0);
        let harness = means(Protocol::LmEval, &[Some(half), None]).unwrap();
        assert_eq!(harness.n, 1);
        close(harness.rouge1.value, 0.5);
        close(harness.bleu.value, 1e-5);
        assert!(means(Protocol::LmEval, &[None]).is_none());
    }
}
