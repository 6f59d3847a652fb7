//! A task's accuracy in parts: by subject, by the length of the question, and apart for questions that a training set or an example
//! pool holds. A part says where a model is strong; many parts make some differ by chance, which the interval shows.

use crate::Sample;
use crate::metrics::Estimate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Some of a task's questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Which questions.
    pub part: String,
    /// How many.
    pub n: usize,
    /// Their accuracy.
    pub acc: Estimate,
}

impl Part {
    fn of(part: String, samples: &[&Sample]) -> Option<Self> {
        (!samples.is_empty()).then(|| Self { part, n: samples.len(), acc: Estimate::of(samples) })
    }

    /// What a row of the part is called beside its task's: `medqa_4options (clean)`. What follows a colon in the part explains it.
    pub(crate) fn name(&self, task: &str) -> String {
        format!("{task} ({})", self.part.split(':').next().unwrap_or_default())
    }
}

/// By subject, the largest first; empty where the set names fewer than two. Questions without a subject are `(none)`.
pub fn by_subject(samples: &[Sample]) -> Vec<Part> {
    by_name(samples, |sample| &sample.subject)
}

/// By the specialty that a classifier put each question into; empty without one.
pub fn by_specialty(samples: &[Sample]) -> Vec<Part> {
    by_name(samples, |sample| &sample.specialty)
}

fn by_name(samples: &[Sample], name_of: impl Fn(&Sample) -> &str) -> Vec<Part> {
    let mut named: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    samples.iter().for_each(|sample| named.entry(name_of(sample)).or_default().push(sample));
    if named.len() < 2 {
        return Vec::new();
    }
    let shown = |name: &str| if name.is_empty() { "(none)".to_owned() } else { name.to_owned() };
    let mut parts: Vec<Part> =
        named.into_iter().filter_map(|(name, samples)| Part::of(shown(name), &samples)).collect();
    parts.sort_by(|a, b| b.n.cmp(&a.n).then_with(|| a.part.cmp(&b.part)));
    parts
}

/// Fewer questions than this are not cut into quarters.
const MIN_QUARTERED: usize = 20;

/// By quarters of the question's length in characters (abstract, stem and options); equal lengths stay together. Empty for fewer than
/// 20 questions.
pub fn by_length(samples: &[Sample]) -> Vec<Part> {
    if samples.len() < MIN_QUARTERED || samples.iter().all(|sample| sample.n_chars == 0) {
        return Vec::new();
    }
    let mut lengths: Vec<usize> = samples.iter().map(|sample| sample.n_chars).collect();
    lengths.sort_unstable();
    let last = lengths.len() - 1;
    let mut ends: Vec<usize> = (1..=4).map(|quarter| lengths[(quarter * lengths.len() / 4).max(1) - 1]).collect();
    ends.dedup();
    let mut from = lengths[0];
    let mut parts = Vec::new();
    for end in ends {
        let within: Vec<&Sample> = samples.iter().filter(|sample| (from..=end).contains(&sample.n_chars)).collect();
        parts.extend(Part::of(format!("{from} to {} characters", end.min(lengths[last])), &within));
        from = end + 1;
    }
    parts
}

/// Apart for Medprompt: questions that the pool holds too, and those that it does not. Empty where the pool was not looked through.
pub fn by_pool(samples: &[Sample]) -> Vec<Part> {
    let (known, new): (Vec<&Sample>, Vec<&Sample>) = samples
        .iter()
        .filter(|sample| sample.n_same_in_pool.is_some())
        .partition(|sample| sample.n_same_in_pool.is_some_and(|n| n > 0));
    let parts = [("the example pool holds the question itself", known), ("the example pool does not", new)];
    parts.into_iter().filter_map(|(name, samples)| Part::of(name.to_owned(), &samples)).collect()
}

/// Apart for the questions that the model's training rows hold, and those that they do not; a part without questions is left out.
/// `is_whole` says whether all rows that the model has seen were compared.
pub fn by_training(samples: &[Sample], is_whole: bool) -> Vec<Part> {
    let (dirty, clean): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(|sample| sample.trained.is_some());
    let clean_name = match is_whole {
        true => "clean: no training row holds the question",
        false => "unknown: no row that was found holds the question, and some training data were not found",
    };
    let parts = [(clean_name, clean), ("dirty: a training row holds it", dirty)];
    parts.into_iter().filter_map(|(name, samples)| Part::of(name.to_owned(), &samples)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(subject: &str, n_chars: usize, correct: bool) -> Sample {
        serde_json::from_value(json!({
            "task": "", "id": "", "index": 0, "subject": subject, "n_chars": n_chars, "n_choices": 4, "key": 0,
            "predicted": 0, "correct": correct, "prompt_sha256": "",
        }))
        .unwrap()
    }

    fn told(parts: &[Part]) -> Vec<(&str, usize, f64)> {
        parts.iter().map(|part| (part.part.as_str(), part.n, part.acc.value)).collect()
    }

    #[test]
    fn subjects_come_by_size_and_then_by_name_and_one_subject_is_no_part() {
        let samples = [
            sample("b", 1, true),
            sample("a", 1, false),
            sample("", 1, true),
            sample("b", 1, false),
            sample("c", 1, true),
        ];
        assert_eq!(told(&by_subject(&samples)), [("b", 2, 0.5), ("(none)", 1, 1.0), ("a", 1, 0.0), ("c", 1, 1.0)]);
        assert_eq!(by_subject(&samples[..1]), []);
    }

    /// By hand: lengths 10, 20, .. 200 (each right where 100 or less): quarters end at 50, 100, 150, 200.
    #[test]
    fn lengths_are_cut_into_quarters_and_equal_ones_stay_together() {
        let samples: Vec<Sample> = (1..=20).map(|i| sample("", 10 * i, i <= 10)).collect();
        assert_eq!(
            told(&by_length(&samples)),
            [
                ("10 to 50 characters", 5, 1.0),
                ("51 to 100 characters", 5, 1.0),
                ("101 to 150 characters", 5, 0.0),
                ("151 to 200 characters", 5, 0.0)
            ]
        );
        assert_eq!(by_length(&samples[..19]), []);
        let alike: Vec<Sample> = (0..20).map(|i| sample("", if i < 15 { 7 } else { 9 }, true)).collect();
        assert_eq!(told(&by_length(&alike)), [("7 to 7 characters", 15, 1.0), ("8 to 9 characters", 5, 1.0)]);
    }

    #[test]
    fn questions_that_the_training_rows_hold_are_scored_apart() {
        let mut samples = vec![sample("", 1, true), sample("", 1, false), sample("", 1, true)];
        samples[0].trained = Some("data/train.jsonl:7 (options)".into());
        assert_eq!(
            told(&by_training(&samples, true)),
            [("clean: no training row holds the question", 2, 0.5), ("dirty: a training row holds it", 1, 1.0)]
        );
        assert!(by_training(&samples, false)[0].part.starts_with("unknown: "));
    }

    #[test]
    fn questions_that_the_pool_holds_are_scored_apart() {
        let mut samples = vec![sample("", 1, true), sample("", 1, false), sample("", 1, false)];
        assert_eq!(by_pool(&samples), []);
        for (sample, n) in samples.iter_mut().zip([2, 0, 0]) {
            sample.n_same_in_pool = Some(n);
        }
        assert_eq!(
            told(&by_pool(&samples)),
            [("the example pool holds the question itself", 1, 1.0), ("the example pool does not", 2, 0.0)]
        );
    }
}
