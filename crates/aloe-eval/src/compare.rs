//! Two runs over the same questions: paired tests, and the words for what may be said.

use crate::stats::{Interval, cluster_bootstrap, mcnemar_exact};
use crate::{Error, EvalConfig, EvalResults, Result, Sample, read_samples, report};
use aloe_task::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Draws of the paired bootstrap.
pub const N_DRAWS: usize = 10_000;
/// The level of the tests.
pub const ALPHA: f64 = 0.05;

/// The difference of two runs on one task (`second` minus `first`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The task, or `all tasks`.
    pub task: String,
    /// Questions in both.
    pub n: usize,
    /// Accuracy of the first run.
    pub first: f64,
    /// Accuracy of the second run.
    pub second: f64,
    /// `second - first`.
    pub difference: f64,
    /// Its 95 % interval by a paired bootstrap over questions.
    pub interval: Interval,
    /// Questions only the first run has right.
    pub n_only_first: usize,
    /// Questions only the second run has right.
    pub n_only_second: usize,
    /// Two-sided exact McNemar test.
    pub p_value: f64,
    /// What may be said.
    pub verdict: Verdict,
}

/// What may be said of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Test and interval agree that the second run is better.
    SecondIsBetter,
    /// Test and interval agree that the first run is better.
    FirstIsBetter,
    /// Anything else.
    NoDifferenceCanBeConcluded,
}

impl Verdict {
    /// The verdict of an interval and a p-value: both must speak.
    pub fn of(interval: Interval, p_value: f64) -> Self {
        if p_value < ALPHA && interval.low > 0.0 {
            Self::SecondIsBetter
        } else if p_value < ALPHA && interval.high < 0.0 {
            Self::FirstIsBetter
        } else {
            Self::NoDifferenceCanBeConcluded
        }
    }

    /// In words, for tables and cards.
    pub fn words(self) -> &'static str {
        match self {
            Self::SecondIsBetter => "higher",
            Self::FirstIsBetter => "lower",
            Self::NoDifferenceCanBeConcluded => "no difference can be concluded",
        }
    }
}

/// Refuses, before anything is computed, a run by `config` that could not be compared with the one in `earlier`: other tasks,
/// split, limit or protocol, all named at once, or other questions. Returns in words what else differs, which is
/// compared all the same: strategy, shots, samples, seed.
pub fn check_comparable(earlier: &Path, config: &EvalConfig) -> Result<Vec<String>> {
    let path = earlier.join("results.json");
    if !path.exists() {
        let reason = format!("{} is not the output of an evaluation (no results.json)", earlier.display());
        return Err(Error::Unpaired(reason));
    }
    let results: EvalResults = aloe_record::atomic::read_json(&path)?;
    let reasons = differences(&results, config);
    if !reasons.is_empty() {
        let text = format!("this evaluation and {} differ in {}", earlier.display(), reasons.join("; "));
        return Err(Error::Unpaired(text));
    }
    check_questions(&read_samples(&earlier.join("samples.jsonl"))?, config)?;
    let (first, second) = (&results.settings, &report::settings(config, None));
    let keys: BTreeSet<&String> = first.keys().chain(second.keys()).filter(|key| *key != "embedder").collect();
    let word = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), plain);
    let changed = keys.into_iter().filter(|key| first.get(*key) != second.get(*key));
    Ok(changed.map(|key| format!("{key} {} and {}", word(first.get(key)), word(second.get(key)))).collect())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What must be alike and is not.
fn differences(results: &EvalResults, config: &EvalConfig) -> Vec<String> {
    let mut reasons = Vec::new();
    let earlier: BTreeSet<String> = results.tasks.iter().map(|task| task.task.clone()).collect();
    let asked: BTreeSet<String> = config.tasks.iter().map(|&task: &Task| task.name()).collect();
    if earlier != asked {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        reasons.push(format!("tasks: {} there, {} here", list(&earlier), list(&asked)));
    }
    if let Some(task) = results.tasks.iter().find(|task| task.split != config.split) {
        reasons.push(format!("split: {} there, {} here", task.split.name(), config.split.name()));
    }
    let mut settings = report::settings(config, None);
    for key in ["protocol", "limit"] {
        let here = settings.remove(key).unwrap_or_default();
        let there = results.settings.get(key).cloned().unwrap_or_default();
        if here != there {
            let word = |value: &Value| if value.is_null() { "none".to_owned() } else { plain(value) };
            reasons.push(format!("{key}: {} there, {} here", word(&there), word(&here)));
        }
    }
    reasons
}

/// The questions that will be asked are those of the earlier run.
fn check_questions(earlier: &[Sample], config: &EvalConfig) -> Result<()> {
    let mut asked = BTreeSet::new();
    for (task, questions, _) in crate::eval::load(config)? {
        asked.extend(questions.into_iter().map(|question| (task.name(), question.id, question.key)));
    }
    let known = earlier.iter().map(|sample| (sample.task.clone(), sample.id.clone(), sample.key));
    let known: BTreeSet<(String, String, usize)> = known.collect();
    match known.symmetric_difference(&asked).next() {
        None => Ok(()),
        Some((task, id, _)) => {
            let reason = format!(
                "{task}/{id} is not the same question in both runs ({} there, {} here); the data files differ",
                known.len(),
                asked.len()
            );
            Err(Error::Unpaired(reason))
        }
    }
}

/// Compares two runs task by task, in the order of the first, and over all tasks together when there are several. Both must
/// hold the same questions.
pub fn compare(first: &[Sample], second: &[Sample], seed: u64) -> Result<Vec<Comparison>> {
    let pairs = pair(first, second)?;
    let mut tasks: Vec<&str> = Vec::new();
    for (sample, _) in &pairs {
        if !tasks.contains(&sample.task.as_str()) {
            tasks.push(&sample.task);
        }
    }
    let of = |name: &str, keep: &dyn Fn(&Sample) -> bool| {
        let right: Vec<(bool, bool)> =
            pairs.iter().filter(|(a, _)| keep(a)).map(|(a, b)| (a.correct, b.correct)).collect();
        comparison(name, &right, seed)
    };
    let mut found: Vec<Comparison> = tasks.iter().map(|&task| of(task, &|sample| sample.task == task)).collect();
    if tasks.len() > 1 {
        found.push(of("all tasks", &|_| true));
    }
    Ok(found)
}

fn pair<'a>(first: &'a [Sample], second: &'a [Sample]) -> Result<Vec<(&'a Sample, &'a Sample)>> {
    if first.is_empty() || first.len() != second.len() {
        let reason = format!("the runs hold {} and {} questions", first.len(), second.len());
        return Err(Error::Unpaired(reason));
    }
    let by_id: std::collections::HashMap<(&str, &str), &Sample> =
        second.iter().map(|sample| ((sample.task.as_str(), sample.id.as_str()), sample)).collect();
    first
        .iter()
        .map(|a| match by_id.get(&(a.task.as_str(), a.id.as_str())) {
            Some(b) if b.key == a.key => Ok((a, *b)),
            Some(_) => Err(Error::Unpaired(format!("{}/{} has two different keys", a.task, a.id))),
            None => Err(Error::Unpaired(format!("{}/{} is in the first run only", a.task, a.id))),
        })
        .collect()
}

/// Compares paired outcomes (right in the first run, right in the second).
pub fn comparison(name: &str, right: &[(bool, bool)], seed: u64) -> Comparison {
    let n = right.len();
    let share = |count: usize| count as f64 / n as f64;
    let n_only_first = right.iter().filter(|(a, b)| *a && !*b).count();
    let n_only_second = right.iter().filter(|(a, b)| !*a && *b).count();
    let differences: Vec<(f64, f64)> =
        right.iter().map(|&(a, b)| (f64::from(i8::from(b) - i8::from(a)), 1.0)).collect();
    let interval = cluster_bootstrap(&differences, N_DRAWS, seed, "paired-bootstrap");
    let p_value = mcnemar_exact(n_only_first, n_only_second);
    let first = share(right.iter().filter(|(a, _)| *a).count());
    let second = share(right.iter().filter(|(_, b)| *b).count());
    let difference = (n_only_second as f64 - n_only_first as f64) / n as f64;
    let verdict = Verdict::of(interval, p_value);
    Comparison {
        task: name.into(),
        n,
        first,
        second,
        difference,
        interval,
        n_only_first,
        n_only_second,
        p_value,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(both: usize, only_first: usize, only_second: usize, neither: usize) -> Vec<(bool, bool)> {
        let parts = [
            ((true, true), both),
            ((true, false), only_first),
            ((false, true), only_second),
            ((false, false), neither),
        ];
        parts.into_iter().flat_map(|(outcome, n)| vec![outcome; n]).collect()
    }

    /// scipy 1.17: binomtest(4, 9).pvalue = 1 for 4 against 5; binomtest(5, 35).pvalue = 2.3e-5 for 5 against 30.
    #[test]
    fn a_small_difference_is_not_concluded_and_a_large_one_is() {
        let small = comparison("t", &outcomes(40, 4, 5, 51), 1);
        assert_eq!((small.p_value, small.verdict), (1.0, Verdict::NoDifferenceCanBeConcluded));
        assert!((small.difference - 0.01).abs() < 1e-12);
        let large = comparison("t", &outcomes(40, 5, 30, 25), 1);
        assert!(large.p_value < 1e-4 && large.interval.low > 0.0);
        assert_eq!(large.verdict, Verdict::SecondIsBetter);
        assert_eq!(comparison("t", &outcomes(40, 30, 5, 25), 1).verdict, Verdict::FirstIsBetter);
    }

    /// scipy 1.17: stats.bootstrap of the mean difference, 50,000 resamples, percentile method: 0.15 to 0.36; the ends of a
    /// bootstrap over 100 questions move in steps of 0.01.
    #[test]
    fn the_paired_interval_agrees_with_scipys_bootstrap() {
        let interval = comparison("t", &outcomes(40, 5, 30, 25), 1).interval;
        assert!((interval.low - 0.15).abs() < 0.0101 && (interval.high - 0.36).abs() < 0.0101, "{interval:?}");
    }

    #[test]
    fn a_run_compared_with_itself_never_differs() {
        let same = comparison("t", &outcomes(60, 0, 0, 40), 3);
        assert_eq!((same.difference, same.p_value), (0.0, 1.0));
        assert_eq!(same.interval, Interval { low: 0.0, high: 0.0 });
        assert_eq!(same.verdict.words(), "no difference can be concluded");
    }
}
