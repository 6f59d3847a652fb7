//! Two runs over the same questions: paired tests, and the words for what may be said.

use crate::bootstrap::cluster_bootstrap;
use crate::open::paired::{is_open, read_both};
use crate::stats::{Interval, holm, mcnemar_exact, smallest_difference};
use crate::{Encoders, Error, EvalConfig, EvalResults, Result, Sample, read_samples, report};
use aloe_engine::EngineIdentity;
use aloe_task::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::path::{Path, PathBuf};

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
    /// The p-value by Holm's adjustment for all tests made together; none for a single one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p_holm: Option<f64>,
    /// The smallest difference that these questions would show in 80 % of such comparisons, at this many discordant questions.
    #[serde(default)]
    pub smallest: f64,
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
    /// The two figures do not mean the same; nothing may be said.
    NotComparable,
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
            Self::NotComparable => "not comparable",
        }
    }
}

/// The results of the finished evaluation in `folder`; refuses a folder that holds none.
pub(crate) fn results_of(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("results.json");
    match path.exists() {
        true => Ok(path),
        false => {
            let reason = format!("{} is not the output of an evaluation (no results.json)", folder.display());
            Err(Error::Unpaired(reason))
        }
    }
}

/// Refuses, before anything is computed, a run by `config` that could not be compared with the one in `earlier`: other tasks,
/// split, limit or protocol, all named at once, or other questions. Returns in words what else differs, which is
/// compared all the same: strategy, shots, samples, seed.
pub fn check_comparable(earlier: &Path, config: &EvalConfig) -> Result<Vec<String>> {
    let results: EvalResults = aloe_record::atomic::read_json(&results_of(earlier)?)?;
    let reasons = differences(&results, config);
    if !reasons.is_empty() {
        let text = format!("this evaluation and {} differ in {}", earlier.display(), reasons.join("; "));
        return Err(Error::Unpaired(text));
    }
    check_questions(earlier, &read_samples(&earlier.join("samples.jsonl"))?, config)?;
    // Which encoders this run will have, and how its letters are told, is not known here; `compare_runs` names them.
    let (mut there, mut here) = (results.settings, report::settings(config, Encoders::default(), None));
    for key in ["embedder", "reranker", "told"] {
        there.remove(key);
        here.remove(key);
    }
    Ok(settings_differences(&there, &here))
}

/// What differs between the settings of two runs, in words.
fn settings_differences(first: &Map<String, Value>, second: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let word = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), plain);
    let changed = keys.into_iter().filter(|key| first.get(*key) != second.get(*key));
    changed.map(|key| format!("{key} {} and {}", word(first.get(key)), word(second.get(key)))).collect()
}

/// What differs between the arithmetic of two runs, in words: number format and CPU path. Answers may differ by rounding alone
/// then, so it is said, not refused. Two servers' addresses say nothing about their arithmetic.
pub fn arithmetic_differences(first: &EngineIdentity, second: &EngineIdentity) -> Vec<String> {
    let mut differences = Vec::new();
    if first.dtype != second.dtype {
        differences.push(format!("dtype {} and {}", first.dtype, second.dtype));
    }
    let are_servers = [first, second].iter().all(|one| one.path.starts_with("http"));
    if first.path != second.path && !are_servers {
        differences.push(format!("CPU path {} and {}", first.path, second.path));
    }
    differences
}

/// What the comparison of two evaluations found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparisons {
    /// What was compared, and in what else the runs differ: settings, number format, CPU path.
    pub note: String,
    /// How many tests the verdicts hold for together; none for a single test.
    pub tests: Option<String>,
    /// One entry a task, and one over all tasks when there are several.
    pub rows: Vec<Comparison>,
    differences: Vec<String>,
}

/// Compares several evaluations with the one in `base`, question by question, in the order given. Where more than one test is made, each
/// has its p-value adjusted by Holm for all of them, and its verdict speaks by that.
pub fn compare_many(base: &Path, others: &[&Path], seed: u64) -> Result<Vec<Comparisons>> {
    let mut all = others.iter().map(|other| compare_runs(base, other, seed)).collect::<Result<Vec<_>>>()?;
    let tests = adjust(all.iter_mut().flat_map(|one| &mut one.rows).collect());
    if tests.is_some() {
        all.iter_mut().for_each(|one| one.tests.clone_from(&tests));
    }
    Ok(all)
}

/// Adjusts the p-values of several tests by Holm, and their verdicts with them: every comparison of evaluations comes through here, so that
/// two runs get one verdict whichever command holds them against each other. Returns in words how many tests there are; none, and nothing is
/// changed, for a single one. Tests that are adjusted already are adjusted anew, from their own p-values.
pub(crate) fn adjust(mut rows: Vec<&mut Comparison>) -> Option<String> {
    // The row over all tasks repeats its tasks' questions; it is one more way to be lucky and counts as a test.
    let p_values: Vec<f64> = rows.iter().map(|row| row.p_value).collect();
    if p_values.len() < 2 {
        return None;
    }
    for (row, p_holm) in rows.iter_mut().zip(holm(&p_values)) {
        row.p_holm = Some(p_holm);
        row.verdict = Verdict::of(row.interval, p_holm);
    }
    Some(held_together(p_values.len()))
}

/// What Holm's adjustment of `n_tests` tests means, in words.
pub fn held_together(n_tests: usize) -> String {
    format!("{n_tests} tests were made; verdicts hold for all of them together at the {ALPHA} level (Holm)")
}

/// Compares the evaluations in two output folders, `later` minus `earlier`. Of open answers those are right that the judges call so.
pub fn compare_runs(earlier: &Path, later: &Path, seed: u64) -> Result<Comparisons> {
    match (is_open(earlier)?, is_open(later)?) {
        (false, false) => {}
        (true, true) => return compare_open(earlier, later, seed),
        (first, _) => {
            let (open, other) = if first { (earlier, later) } else { (later, earlier) };
            let (open, other) = (open.display(), other.display());
            return Err(Error::Unpaired(format!("the questions of {open} are open, and those of {other} are not")));
        }
    }
    let results = |folder: &Path| aloe_record::atomic::read_json::<EvalResults>(&folder.join("results.json"));
    let (first, second) = (results(earlier)?, results(later)?);
    let samples = |folder: &Path| read_samples(&folder.join("samples.jsonl"));
    let (before, after) = (samples(earlier)?, samples(later)?);
    let mut rows =
        compare(&before, &after, seed).map_err(|error| of_runs(error, earlier.display(), later.display()))?;
    let mut differences = settings_differences(&first.settings, &second.settings);
    differences.extend(arithmetic_differences(&first.model, &second.model));
    for (a, b) in first.tasks.iter().flat_map(|a| second.tasks.iter().map(move |b| (a, b))) {
        if a.task == b.task && a.version != b.version {
            differences.push(format!(
                "version of {} {} and {}",
                a.task,
                plain_version(&a.version),
                plain_version(&b.version)
            ));
        }
    }
    let note = format!("accuracy, question by question ({}){}", after.len(), differ(&differences));
    Ok(Comparisons { note, tests: adjust(rows.iter_mut().collect()), rows, differences })
}

/// Names the two runs that cannot be paired.
pub(crate) fn of_runs(error: Error, first: impl Display, second: impl Display) -> Error {
    match error {
        Error::Unpaired(reason) => Error::Unpaired(format!("{reason} (the first run is {first}, the second {second})")),
        error => error,
    }
}

/// [`compare_runs`] of two runs of open answers, which one panel has judged.
fn compare_open(earlier: &Path, later: &Path, seed: u64) -> Result<Comparisons> {
    let (first, second) = read_both(earlier, later)?;
    let (before, after) = (first.samples(), second.samples());
    let mut rows =
        compare(&before, &after, seed).map_err(|error| of_runs(error, earlier.display(), later.display()))?;
    let mut differences = settings_differences(&first.results.settings, &second.results.settings);
    differences.extend(arithmetic_differences(&first.results.model, &second.results.model));
    let note = format!("{}, question by question ({}){}", second.words(), after.len(), differ(&differences));
    Ok(Comparisons { note, tests: adjust(rows.iter_mut().collect()), rows, differences })
}

fn plain_version(version: &str) -> &str {
    if version.is_empty() { "none" } else { version }
}

/// In brackets, when there is anything to say.
fn differ(differences: &[String]) -> String {
    if differences.is_empty() {
        return String::new();
    }
    format!(" (the runs differ in {})", differences.join("; "))
}

/// Of red-team rates: how many tests were made and how many would speak by chance alone; none for a single test. Nothing is corrected there,
/// because a warning that a model refuses less must not become rarer with every rate that is looked at.
pub fn chance(n_tests: usize) -> Option<String> {
    (n_tests > 1).then(|| {
        let expected = ALPHA * n_tests as f64;
        format!(
            "{n_tests} tests were made at the {ALPHA} level, without a correction: up to {expected:.2} of them would find a \
             difference by chance alone"
        )
    })
}

impl Comparisons {
    /// The table for the terminal.
    pub fn table(&self) -> String {
        let adjusted = self.rows.iter().any(|row| row.p_holm.is_some());
        let holm = if adjusted { format!(" {:>9}", "p (Holm)") } else { String::new() };
        let columns =
            format!("{:<36} {:>6} {:>8} {:>8} {:>16} {:>9}", "task", "n", "before", "after", "95 % interval", "p");
        let mut text = format!("{}\n{columns}{holm} {:>9}  what may be said\n", self.note, "smallest");
        for row in &self.rows {
            let (first, second) = (100.0 * row.first, 100.0 * row.second);
            let holm = row.p_holm.map_or_else(String::new, |p| format!(" {p:>9.4}"));
            text += &format!(
                "{:<36} {:>6} {first:>8.2} {second:>8.2} {:>16} {:>9.4}{holm} {:>9.2}  {}\n",
                row.task,
                row.n,
                row.interval.percent(2),
                row.p_value,
                100.0 * row.smallest,
                row.verdict.words()
            );
        }
        text += "smallest: the difference in points that these questions would show in 80 % of such comparisons\n";
        self.tests.iter().for_each(|tests| text += &format!("{tests}\n"));
        text
    }

    /// The verdict over all tasks, in what the runs differ, and how many tests were made.
    pub fn summary(&self) -> String {
        let verdict = self.rows.last().map_or("nothing was compared", |row| row.verdict.words());
        let tests = self.tests.as_ref().map_or_else(String::new, |tests| format!("; {tests}"));
        format!("{verdict}{}{tests}", differ(&self.differences))
    }
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
    let mut settings = report::settings(config, Encoders::default(), None);
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

/// The questions that will be asked are those of the run in `folder`, whose samples are `earlier`.
fn check_questions(folder: &Path, earlier: &[Sample], config: &EvalConfig) -> Result<()> {
    let key = |sample: &Sample| (sample.task.clone(), sample.id.clone());
    let mut known: HashMap<(String, String), &Sample> = earlier.iter().map(|sample| (key(sample), sample)).collect();
    let (n_known, mut n_asked) = (known.len(), 0);
    let mut other: Option<(String, String)> = None;
    for (task, questions, _) in crate::eval::load(config)? {
        n_asked += questions.len();
        for (index, question) in questions.iter().enumerate() {
            let asked = Sample::unanswered(task.name(), index, question);
            let reason = match known.remove(&key(&asked)) {
                Some(sample) => sample.other_question(&asked),
                None => Some("it is not there".to_owned()),
            };
            other = other.or_else(|| Some((format!("{}/{}", asked.task, asked.id), reason?)));
        }
    }
    let gone = || earlier.iter().find(|sample| known.contains_key(&key(sample)));
    let other = other.or_else(|| gone().map(|one| (format!("{}/{}", one.task, one.id), "it is not here".to_owned())));
    let Some((question, reason)) = other else { return Ok(()) };
    Err(Error::Unpaired(format!(
        "{question} is not the same question in {} and here: {reason} ({n_known} questions there, {n_asked} here); the data files differ",
        folder.display()
    )))
}

/// Compares two runs task by task, in the order of the first, and over all tasks together when there are several. Both must
/// hold the same questions.
pub fn compare(first: &[Sample], second: &[Sample], seed: u64) -> Result<Vec<Comparison>> {
    Ok(compare_pairs(&pair(first, second)?, seed))
}

/// [`compare`] of questions that are paired already, at least one.
pub(crate) fn compare_pairs(pairs: &[(&Sample, &Sample)], seed: u64) -> Vec<Comparison> {
    let mut tasks: Vec<&str> = Vec::new();
    for (sample, _) in pairs {
        if !tasks.contains(&sample.task.as_str()) {
            tasks.push(&sample.task);
        }
    }
    // A question that two tasks ask (MedQA with four options and with five) counts in the first of them only.
    let mut first_task: HashMap<&str, &str> = HashMap::new();
    for (sample, _) in pairs.iter().filter(|(sample, _)| !sample.asked().is_empty()) {
        first_task.entry(sample.asked()).or_insert(&sample.task);
    }
    let of = |name: &str, keep: &dyn Fn(&Sample) -> bool| {
        let right: Vec<(bool, bool, &str)> =
            pairs.iter().filter(|(a, _)| keep(a)).map(|(a, b)| (a.correct, b.correct, a.cluster.as_str())).collect();
        clustered_comparison(name, &right, seed)
    };
    let mut found: Vec<Comparison> = tasks.iter().map(|&task| of(task, &|sample| sample.task == task)).collect();
    if tasks.len() > 1 {
        let counts = |sample: &Sample| first_task.get(sample.asked()).is_none_or(|task| *task == sample.task);
        found.push(of("all tasks", &counts));
    }
    found
}

fn pair<'a>(first: &'a [Sample], second: &'a [Sample]) -> Result<Vec<(&'a Sample, &'a Sample)>> {
    if first.is_empty() || first.len() != second.len() {
        let reason = format!("the runs hold {} and {} questions", first.len(), second.len());
        return Err(Error::Unpaired(reason));
    }
    let mut by_id: HashMap<(&str, &str), &Sample> = HashMap::new();
    for sample in second {
        if by_id.insert((sample.task.as_str(), sample.id.as_str()), sample).is_some() {
            return Err(Error::Unpaired(format!("{}/{} is twice in the second run", sample.task, sample.id)));
        }
    }
    first
        .iter()
        .map(|a| match by_id.get(&(a.task.as_str(), a.id.as_str())) {
            Some(b) => match a.other_question(b) {
                None => Ok((a, *b)),
                Some(reason) => Err(not_the_same(a, &reason)),
            },
            None => Err(Error::Unpaired(format!("{}/{} is in the first run only", a.task, a.id))),
        })
        .collect()
}

/// Two questions of one name.
pub(crate) fn not_the_same(one: &Sample, reason: &str) -> Error {
    Error::Unpaired(format!("{}/{} is not the same question in both runs: {reason}", one.task, one.id))
}

/// Compares paired outcomes (right in the first run, right in the second).
pub fn comparison(name: &str, right: &[(bool, bool)], seed: u64) -> Comparison {
    let alone: Vec<(bool, bool, &str)> = right.iter().map(|&(a, b)| (a, b, "")).collect();
    clustered_comparison(name, &alone, seed)
}

/// [`comparison`] of questions that may share an abstract: the interval draws abstracts, not questions. McNemar's test takes questions as
/// independent; a verdict needs both.
fn clustered_comparison(name: &str, right: &[(bool, bool, &str)], seed: u64) -> Comparison {
    let n = right.len();
    let share = |count: usize| count as f64 / n as f64;
    let n_only_first = right.iter().filter(|(a, b, _)| *a && !*b).count();
    let n_only_second = right.iter().filter(|(a, b, _)| !*a && *b).count();
    let interval = cluster_bootstrap(&difference_clusters(right), N_DRAWS, seed, "paired-bootstrap");
    let p_value = mcnemar_exact(n_only_first, n_only_second);
    let first = share(right.iter().filter(|(a, ..)| *a).count());
    let second = share(right.iter().filter(|(_, b, _)| *b).count());
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
        p_holm: None,
        smallest: smallest_difference(n, n_only_first + n_only_second),
        verdict,
    }
}

/// (Sum of differences, questions) of each question or, where several share a cluster, of each cluster; in the order of first sight.
fn difference_clusters(right: &[(bool, bool, &str)]) -> Vec<(f64, f64)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut clusters: Vec<(f64, f64)> = Vec::new();
    for &(a, b, cluster) in right {
        let next = clusters.len();
        let place = if cluster.is_empty() { next } else { *places.entry(cluster).or_insert(next) };
        if place == next {
            clusters.push((0.0, 0.0));
        }
        clusters[place].0 += f64::from(i8::from(b) - i8::from(a));
        clusters[place].1 += 1.0;
    }
    clusters
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

    fn identity(dtype: &str, path: &str) -> EngineIdentity {
        let text = String::new;
        EngineIdentity { name: text(), weights: text(), text: text(), dtype: dtype.into(), path: path.into() }
    }

    #[test]
    fn another_number_format_or_cpu_path_is_said_and_two_addresses_are_not() {
        let differ =
            |a: (&str, &str), b: (&str, &str)| arithmetic_differences(&identity(a.0, a.1), &identity(b.0, b.1));
        let found = differ(("f32", "avx512-bf16"), ("bf16", "avx2"));
        assert_eq!(found, ["dtype f32 and bf16", "CPU path avx512-bf16 and avx2"]);
        assert!(differ(("bf16", "avx2"), ("bf16", "avx2")).is_empty());
        assert!(differ(("unknown", "http://a:1/v1"), ("unknown", "http://b:2/v1")).is_empty());
        assert_eq!(differ(("bf16", "avx2"), ("bf16", "http://b:2/v1")).len(), 1);
    }

    /// Two tasks of ten questions in two folders; the later run is in another number format, on another CPU path, with a shot.
    #[test]
    fn runs_in_folders_are_compared_with_a_note_on_all_that_differs_and_the_number_of_tests() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, dtype: &str, path: &str, shots: usize, is_right: bool| {
            let out = dir.path().join(name);
            std::fs::create_dir(&out).unwrap();
            let settings = serde_json::json!({ "shots": shots, "embedder": name });
            let model = identity(dtype, path);
            let results = serde_json::json!({ "model": model, "settings": settings, "tasks": [], "groups": [] });
            std::fs::write(out.join("results.json"), results.to_string()).unwrap();
            let line = |i: usize| {
                serde_json::json!({ "task": if i.is_multiple_of(2) { "a" } else { "b" }, "id": i.to_string(), "index": i, "subject": "", "n_choices": 4,
                    "key": 0, "predicted": 0, "correct": is_right, "prompt_sha256": "" })
                .to_string()
            };
            let lines: Vec<String> = (0..20).map(line).collect();
            std::fs::write(out.join("samples.jsonl"), lines.join("\n") + "\n").unwrap();
            out
        };
        let before = folder("before", "f32", "avx512-bf16", 0, false);
        let found = compare_runs(&before, &folder("after", "bf16", "avx2", 1, true), 1).unwrap();
        let differ = "(the runs differ in embedder before and after; shots 0 and 1; dtype f32 and bf16; CPU path avx512-bf16 and avx2)";
        assert_eq!(found.note, format!("accuracy, question by question (20) {differ}"));
        let tests = "3 tests were made; verdicts hold for all of them together at the 0.05 level (Holm)";
        assert_eq!(found.tests.as_deref(), Some(tests), "two tasks and all together");
        assert_eq!(found.summary(), format!("higher {differ}; {tests}"));
        assert!(found.table().starts_with(&found.note) && found.table().ends_with(&format!("{tests}\n")));
        let alike = compare_runs(&before, &before, 1).unwrap();
        assert_eq!(alike.note, "accuracy, question by question (20)");
        assert_eq!(chance(1), None, "a single test needs no such line");
    }

    /// Two tasks of eight and nine questions, none right in the first run; in the later one six of the first task: by hand p is 2 / 2^6 =
    /// 0.03125, 1, and of all together 0.03125; Holm's 0.09375, so that nothing is concluded. With eight 2 / 2^8, times three 0.0234375.
    #[test]
    fn one_run_against_one_is_adjusted_for_its_rows_as_several_are() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, n_right: usize| {
            let out = dir.path().join(name);
            std::fs::create_dir(&out).unwrap();
            let results =
                serde_json::json!({ "model": identity("f32", "avx2"), "settings": {}, "tasks": [], "groups": [] });
            std::fs::write(out.join("results.json"), results.to_string()).unwrap();
            let line = |i: usize| {
                serde_json::json!({ "task": if i < 8 { "a" } else { "b" }, "id": i.to_string(), "index": i, "subject": "", "n_choices": 4,
                    "key": 0, "predicted": 0, "correct": i < n_right, "prompt_sha256": "" })
                .to_string()
            };
            let lines: Vec<String> = (0..17).map(line).collect();
            std::fs::write(out.join("samples.jsonl"), lines.join("\n") + "\n").unwrap();
            out
        };
        let (none, six, eight) = (folder("none", 0), folder("six", 6), folder("eight", 8));
        for (later, p_values, verdict) in [
            (&six, [0.09375, 1.0, 0.09375], Verdict::NoDifferenceCanBeConcluded),
            (&eight, [0.0234375, 1.0, 0.0234375], Verdict::SecondIsBetter),
        ] {
            let found = compare_runs(&none, later, 1).unwrap();
            for (row, p_value) in found.rows.iter().zip(p_values) {
                assert!((row.p_holm.unwrap() - p_value).abs() < 1e-12, "{row:?}");
            }
            assert_eq!((found.rows[0].verdict, found.rows[2].verdict), (verdict, verdict));
            assert_eq!(compare_many(&none, &[later], 1).unwrap(), [found], "the two commands agree");
        }
    }

    /// Two questions that both runs call `q`; the second run's record of it is changed in one thing.
    #[test]
    fn questions_of_one_name_that_are_not_the_same_are_refused_with_the_first_of_them() {
        let sample = |id: &str, more: serde_json::Value| -> Sample {
            let mut row = serde_json::json!({ "task": "t", "id": id, "index": 0, "subject": "", "stem_sha256": "aa", "n_choices": 4, "key": 1,
                "predicted": 0, "correct": false, "prompt_sha256": "" });
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(row).unwrap()
        };
        let run = |more: serde_json::Value| vec![sample("p", serde_json::json!({})), sample("q", more)];
        let first = run(serde_json::json!({}));
        for (more, words) in [
            (serde_json::json!({ "stem_sha256": "bb" }), "its text differs"),
            (serde_json::json!({ "n_choices": 5 }), "it has 4 and 5 options"),
            (serde_json::json!({ "key": 2 }), "it has two different keys"),
        ] {
            let error = compare(&first, &run(more), 1).unwrap_err().to_string();
            assert_eq!(error, format!("cannot compare: t/q is not the same question in both runs: {words}"));
        }
        assert!(compare(&first, &run(serde_json::json!({ "stem_sha256": "" })), 1).is_ok(), "of an earlier version");
    }

    /// Rows of the starter set as a run of it would leave them; then one is changed, one is gone and one is another's.
    #[test]
    fn a_run_over_other_questions_is_refused_before_anything_is_asked() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter");
        let mut config =
            EvalConfig::new(vec![Task::StarterMcqa], data, aloe_task::Protocol::Aloe, crate::Strategy::Cot);
        config.limit = Some(3);
        let (task, questions, _) = crate::eval::load(&config).unwrap().remove(0);
        let asked = |at: usize| Sample::unanswered(task.name(), at, &questions[at]);
        let run = || vec![asked(0), asked(1), asked(2)];
        let found =
            |earlier: &[Sample]| check_questions(Path::new("runs/a"), earlier, &config).map_err(|e| e.to_string());
        assert_eq!(found(&run()), Ok(()));
        let mut reworded = run();
        reworded[1].stem_sha256 = "0".into();
        let error = found(&reworded).unwrap_err();
        let start = format!(
            "cannot compare: starter_mcqa/{} is not the same question in runs/a and here: its text differs",
            questions[1].id
        );
        assert!(error.starts_with(&start), "{error}");
        assert!(found(&run()[..2]).unwrap_err().contains("it is not there (2 questions there, 3 here)"));
        let mut renamed = run();
        renamed[2].id = "x".into();
        assert!(found(&renamed).unwrap_err().contains("it is not there (3 questions there, 3 here)"));
        let longer: Vec<Sample> = run().into_iter().chain([Sample { id: "x".into(), ..asked(0) }]).collect();
        assert!(
            found(&longer)
                .unwrap_err()
                .contains("starter_mcqa/x is not the same question in runs/a and here: it is not here")
        );
    }

    /// Ten questions that two tasks ask, right in the second run only: ten differ, not twenty.
    #[test]
    fn a_question_that_two_tasks_ask_counts_once_over_all_tasks() {
        let run = |is_right: bool| -> Vec<Sample> {
            let one = |i: usize| {
                serde_json::from_value(serde_json::json!({
                    "task": if i < 10 { "four" } else { "five" }, "id": i.to_string(), "index": i, "subject": "", "n_choices": 4,
                    "key": 0, "predicted": 0, "correct": is_right, "prompt_sha256": "", "stem_sha256": (i % 10).to_string(),
                }))
                .unwrap()
            };
            (0..20).map(one).collect()
        };
        let rows = compare(&run(false), &run(true), 1).unwrap();
        let counts: Vec<(&str, usize)> = rows.iter().map(|row| (row.task.as_str(), row.n_only_second)).collect();
        assert_eq!(counts, [("four", 10), ("five", 10), ("all tasks", 10)]);
    }

    #[test]
    fn a_run_compared_with_itself_never_differs() {
        let same = comparison("t", &outcomes(60, 0, 0, 40), 3);
        assert_eq!((same.difference, same.p_value), (0.0, 1.0));
        assert_eq!(same.interval, Interval { low: 0.0, high: 0.0 });
        assert_eq!(same.verdict.words(), "no difference can be concluded");
    }
}
