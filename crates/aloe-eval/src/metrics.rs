//! From samples to numbers: accuracy with its standard error per task, and the published ways of averaging tasks.

use crate::Sample;
use crate::stats::{self, Interval};
use aloe_task::Task;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A rate with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value, 0 to 1.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
    /// Wilson's 95 % interval of a task's share; none for an average over tasks, whose interval is that of its standard error
    /// ([`Self::normal_interval`]). Unlike the standard error it is not zero where every answer or none is right.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval: Option<Interval>,
}

impl Estimate {
    /// The share of `n_right` in `n`.
    pub fn share(n_right: usize, n: usize) -> Self {
        let value = n_right as f64 / n as f64;
        let interval = Some(stats::wilson(value, n as f64));
        Self { value, stderr: stats::proportion_stderr(n_right, n), interval }
    }

    /// The accuracy of `samples`. Questions that share an abstract are one cluster: the standard error is then cluster-robust and
    /// the interval that of [`stats::clustered_rate_interval`]; where each stands alone this is [`Self::share`].
    pub fn of(samples: &[&Sample]) -> Self {
        Self::of_those(samples, |sample| sample.correct)
    }

    /// The 95 % interval of a share of `n` questions: its own, and Wilson's for results of versions that wrote none.
    pub(crate) fn interval_of(self, n: usize) -> Interval {
        self.interval.unwrap_or_else(|| stats::wilson(self.value, n as f64))
    }

    /// The 95 % interval of an average over tasks, from its standard error; none where that is 0.
    pub fn normal_interval(self) -> Option<Interval> {
        stats::normal(self.value, self.stderr)
    }

    /// That interval in percent, with what it is made from: `62.71 to 63.97 (normal)`; empty where there is none.
    pub(crate) fn normal_words(self) -> String {
        self.normal_interval().map_or_else(String::new, |one| format!("{} (normal)", one.percent(2)))
    }

    fn of_those(samples: &[&Sample], is_right: impl Fn(&Sample) -> bool) -> Self {
        Self::clustered(samples, |sample| (f64::from(u8::from(is_right(sample))), 1.0))
            .unwrap_or_else(|| Self::share(samples.iter().filter(|sample| is_right(sample)).count(), samples.len()))
    }

    /// The share of right ones among single answers, all samples of a question being one cluster.
    fn single(samples: &[Sample]) -> Self {
        let right = |sample: &Sample| sample.votes.iter().filter(|vote| vote.answer == Some(sample.key)).count();
        let asked: Vec<(f64, f64)> = samples
            .iter()
            .filter(|sample| !sample.votes.is_empty())
            .map(|sample| (right(sample) as f64, sample.votes.len() as f64))
            .collect();
        Self::over(&asked)
    }

    /// `None` where no two samples share a cluster. `count` gives what is right and of how many.
    fn clustered(samples: &[&Sample], count: impl Fn(&Sample) -> (f64, f64)) -> Option<Self> {
        let mut clusters: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        let mut alone = Vec::new();
        for sample in samples {
            let (right, n) = count(sample);
            if sample.cluster.is_empty() {
                alone.push((right, n));
            } else {
                let sum = clusters.entry(&sample.cluster).or_default();
                *sum = (sum.0 + right, sum.1 + n);
            }
        }
        let n_clusters = clusters.len() + alone.len();
        alone.extend(clusters.into_values());
        (n_clusters < samples.len()).then(|| Self::over(&alone))
    }

    fn over(clusters: &[(f64, f64)]) -> Self {
        let (value, stderr) = stats::clustered_mean(clusters);
        // One cluster has no spread; as for a single question its standard error is 0 and the interval says what is not known.
        let stderr = if stderr.is_finite() { stderr } else { 0.0 };
        Self { value, stderr, interval: Some(stats::clustered_rate_interval(clusters)) }
    }
}

/// What is counted over the samples of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Questions asked.
    pub n: usize,
    /// Share of right answers; unparsed ones are wrong. lm-evaluation-harness's `acc`.
    pub acc: Estimate,
    /// The harness's `acc_norm` (log-likelihood strategy only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acc_norm: Option<Estimate>,
    /// Questions without any readable answer.
    pub n_unparsed: usize,
    /// Questions of which a server did not tell every letter's log-probability, those without any included (next-letter only).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub n_partial: usize,
    /// Questions that the model or its server refused: no answer, and wrong.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub n_refused: usize,
    /// Samples without a readable answer (generation only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub n_unparsed_samples: Option<usize>,
    /// Samples in all (generation only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub n_samples: Option<usize>,
    /// Share of single answers that are right, before any vote, the answers to one question being a cluster (several samples only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acc_single: Option<Estimate>,
    /// Votes that were tied and went to the first seen (generation only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub n_ties: Option<usize>,
    /// Samples whose reasoning block was cut out (generation only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub n_reasoning_removed: Option<usize>,
    /// Accuracy of guessing.
    pub chance: f64,
    /// Accuracy of always naming the most frequent key.
    pub majority_key: f64,
    /// How often each position was chosen, as shown: first option first. Samples, not questions, are counted where options
    /// are shuffled.
    pub chosen_positions: Vec<usize>,
    /// How often each position held the right option, over the same.
    pub key_positions: Vec<usize>,
}

impl Counts {
    /// Counts `samples`, which must not be empty.
    pub fn of(samples: &[Sample]) -> Self {
        let n = samples.len();
        let all: Vec<&Sample> = samples.iter().collect();
        let generated = samples.iter().any(|sample| !sample.votes.is_empty());
        let taken = || samples.iter().filter(|sample| sample.refused.is_none());
        let scored = taken().all(|sample| sample.correct_norm.is_some());
        let votes = || samples.iter().flat_map(|sample| &sample.votes);
        let (chosen_positions, key_positions) = positions(samples);
        let mut keys = vec![0; width(samples)];
        samples.iter().for_each(|sample| keys[sample.key] += 1);
        Self {
            n,
            acc: Estimate::of(&all),
            acc_norm: scored.then(|| Estimate::of_those(&all, |sample| sample.correct_norm == Some(true))),
            n_unparsed: taken().filter(|sample| sample.predicted.is_none()).count(),
            n_partial: taken().filter(|sample| sample.choices.iter().any(|choice| choice.logp.is_none())).count(),
            n_refused: n - taken().count(),
            n_unparsed_samples: generated.then(|| votes().filter(|vote| vote.answer.is_none()).count()),
            n_samples: generated.then(|| votes().count()),
            acc_single: samples.iter().any(|sample| sample.votes.len() > 1).then(|| Estimate::single(samples)),
            n_ties: generated.then(|| samples.iter().filter(|sample| sample.tie).count()),
            n_reasoning_removed: generated.then(|| votes().filter(|vote| vote.reasoning_removed).count()),
            chance: samples.iter().map(|sample| 1.0 / sample.n_choices as f64).sum::<f64>() / n as f64,
            majority_key: keys.iter().copied().max().unwrap_or(0) as f64 / n as f64,
            chosen_positions,
            key_positions,
        }
    }
}

impl Counts {
    /// What the single answers were, in words; `None` without generated answers.
    pub(crate) fn sample_words(&self) -> Option<String> {
        let (n, n_unparsed) = (self.n_samples?, self.n_unparsed_samples?);
        let mut words = format!("{n_unparsed} of {n} answers unparsed");
        if let Some(single) = self.acc_single {
            words += &format!("; single answers {:.2} % +- {:.2}", 100.0 * single.value, 100.0 * single.stderr);
        }
        for (n, what) in [(self.n_ties, "tied votes"), (self.n_reasoning_removed, "answers with reasoning cut out")] {
            if let Some(n) = n.filter(|n| *n > 0) {
                words += &format!("; {n} {what}");
            }
        }
        Some(words)
    }

    /// How many questions lack a letter's log-probability, in words; `None` where none does. Their unparsed ones lack all.
    pub(crate) fn partial_words(&self) -> Option<String> {
        let (n, n_none) = (self.n_partial, self.n_unparsed);
        let none = if n_none > 0 { format!(", of these without any: {n_none} (counted wrong)") } else { String::new() };
        let words = "questions without the log-probability of every letter";
        (n > 0).then(|| format!("{words}: {n} (left out of the calibration){none}"))
    }

    /// How many questions were refused, in words; `None` where all were taken.
    pub(crate) fn refused_words(&self) -> Option<String> {
        let questions = if self.n_refused == 1 { "question was" } else { "questions were" };
        (self.n_refused > 0)
            .then(|| format!("{} {questions} refused by the model or its server and counted wrong", self.n_refused))
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn width(samples: &[Sample]) -> usize {
    samples.iter().map(|sample| sample.n_choices).max().unwrap_or(0)
}

fn positions(samples: &[Sample]) -> (Vec<usize>, Vec<usize>) {
    let mut chosen = vec![0; width(samples)];
    let mut keys = chosen.clone();
    for sample in samples {
        let natural: Vec<usize> = (0..sample.n_choices).collect();
        let mut count = |order: &[usize], answer: Option<usize>| {
            let shown = |index: usize| order.iter().position(|&original| original == index);
            if let Some(position) = answer.and_then(shown) {
                chosen[position] += 1;
            }
            if let Some(position) = shown(sample.key) {
                keys[position] += 1;
            }
        };
        if sample.votes.is_empty() && sample.refused.is_none() {
            count(&natural, sample.predicted);
        }
        sample.votes.iter().for_each(|vote| count(&vote.order, vote.answer));
    }
    (chosen, keys)
}

/// An average over tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What is averaged, and how.
    pub name: String,
    /// The average of `acc`.
    pub acc: Estimate,
    /// Questions in all.
    pub n: usize,
    /// The tasks.
    pub tasks: Vec<String>,
}

/// The averages whose tasks are all there:
/// `mmlu_medical (macro mean)` over the six subjects (the card's MMLU);
/// `multimedqa (size-weighted)` as lm-evaluation-harness's group (the card's MultiMedQA score; 7,045 questions when whole);
/// `arithmetic mean (all sets)` of MedQA, MedMCQA, PubMedQA, MMLU and CareQA (the Alpha card's average);
/// `arithmetic mean (without PubMedQA)` (the Beta paper's "Avg").
pub fn groups(results: &[(Task, &Counts)]) -> Vec<Group> {
    let find = |task: Task| results.iter().find(|(known, _)| *known == task).map(|(_, counts)| *counts);
    let mut groups = Vec::new();
    let subjects = aloe_task::Subject::ALL.map(Task::Mmlu);
    let mmlu = subjects.iter().map(|&task| find(task)).collect::<Option<Vec<_>>>().map(|counts| {
        let stderrs: Vec<f64> = counts.iter().map(|one| one.acc.stderr).collect();
        Group {
            name: "mmlu_medical (macro mean)".into(),
            acc: Estimate {
                value: counts.iter().map(|one| one.acc.value).sum::<f64>() / 6.0,
                stderr: stats::macro_stderr(&stderrs),
                interval: None,
            },
            n: counts.iter().map(|one| one.n).sum(),
            tasks: subjects.map(Task::name).to_vec(),
        }
    });
    groups.extend(mmlu.clone());
    let mut nine = vec![Task::Pubmedqa, Task::Medmcqa, Task::Medqa4];
    nine.extend(subjects);
    groups
        .extend(nine.iter().map(|&task| find(task)).collect::<Option<Vec<_>>>().map(|counts| weighted(&nine, &counts)));
    let sets = |tasks: &[Task], name: &str| -> Option<Group> {
        let counts = tasks.iter().map(|&task| find(task)).collect::<Option<Vec<_>>>()?;
        let mmlu = mmlu.as_ref()?;
        let mut parts: Vec<Estimate> = counts.iter().map(|one| one.acc).collect();
        parts.push(mmlu.acc);
        let stderrs: Vec<f64> = parts.iter().map(|part| part.stderr).collect();
        Some(Group {
            name: name.into(),
            acc: Estimate {
                value: parts.iter().map(|part| part.value).sum::<f64>() / parts.len() as f64,
                stderr: stats::macro_stderr(&stderrs),
                interval: None,
            },
            n: counts.iter().map(|one| one.n).sum::<usize>() + mmlu.n,
            tasks: tasks.iter().map(|task| task.name()).chain([mmlu.name.clone()]).collect(),
        })
    };
    let four = [Task::Medqa4, Task::Medmcqa, Task::Pubmedqa, Task::CareqaEn];
    groups.extend(sets(&four, "arithmetic mean (all sets)"));
    groups.extend(sets(&[Task::Medqa4, Task::Medmcqa, Task::CareqaEn], "arithmetic mean (without PubMedQA)"));
    groups
}

fn weighted(tasks: &[Task], counts: &[&Counts]) -> Group {
    let n: usize = counts.iter().map(|one| one.n).sum();
    let stderrs: Vec<f64> = counts.iter().map(|one| one.acc.stderr).collect();
    let sizes: Vec<usize> = counts.iter().map(|one| one.n).collect();
    let sum: f64 = counts.iter().map(|one| one.acc.value * one.n as f64).sum();
    Group {
        name: "multimedqa (size-weighted)".into(),
        acc: Estimate { value: sum / n as f64, stderr: stats::pooled_stderr(&stderrs, &sizes), interval: None },
        n,
        tasks: tasks.iter().map(|task| task.name()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vote;
    use aloe_engine::FinishReason;

    fn vote(order: &[usize], answer: Option<usize>) -> Vote {
        Vote {
            order: order.to_vec(),
            shots: vec![],
            prompt_ids: vec![],
            text: String::new(),
            ids: None,
            logp: None,
            finish_reason: FinishReason::Stop,
            answer,
            n_retries: 0,
            reasoning_removed: false,
        }
    }

    fn sample(key: usize, predicted: Option<usize>, votes: Vec<Vote>) -> Sample {
        Sample {
            task: "t".into(),
            id: "1".into(),
            index: 0,
            subject: String::new(),
            specialty: String::new(),
            cluster: String::new(),
            stem_sha256: String::new(),
            question_sha256: String::new(),
            n_chars: 0,
            n_choices: 4,
            key,
            predicted,
            correct: predicted == Some(key),
            correct_norm: votes.is_empty().then_some(predicted == Some(key)),
            prompt_sha256: String::new(),
            prompt_ids: vec![],
            choices: vec![],
            votes,
            tie: false,
            n_same_in_pool: None,
            trained: None,
            refused: None,
        }
    }

    #[test]
    fn unparsed_answer_counts_as_wrong() {
        let samples =
            [sample(0, Some(0), vec![vote(&[0, 1, 2, 3], Some(0))]), sample(0, None, vec![vote(&[0, 1, 2, 3], None)])];
        let counts = Counts::of(&samples);
        assert_eq!((counts.acc.value, counts.n_unparsed, counts.n_unparsed_samples), (0.5, 1, Some(1)));
        assert_eq!(counts.acc_norm, None);
    }

    /// By hand: two abstracts of two questions each, one all right, one all wrong: mean 0.5, standard error 0.5 (stats.rs), where
    /// independent questions would have sqrt(0.25 / 3) = 0.289. An abstract of its own changes nothing.
    #[test]
    fn questions_about_one_abstract_count_as_one() {
        let mut samples: Vec<Sample> = (0..4).map(|i| sample(0, Some(usize::from(i >= 2)), vec![])).collect();
        assert!((Counts::of(&samples).acc.stderr - (0.25f64 / 3.0).sqrt()).abs() < 1e-12);
        for (sample, cluster) in samples.iter_mut().zip(["a", "b", "c", "d"]) {
            sample.cluster = cluster.into();
        }
        assert!((Counts::of(&samples).acc.stderr - (0.25f64 / 3.0).sqrt()).abs() < 1e-12);
        for (sample, cluster) in samples.iter_mut().zip(["a", "a", "b", "b"]) {
            sample.cluster = cluster.into();
        }
        let acc = Counts::of(&samples).acc;
        assert!((acc.value, acc.stderr) == (0.5, 0.5), "{acc:?}");
        // Two clusters that differ wholly: stats.rs has the sum.
        assert_eq!(acc.interval.unwrap().percent(1), "0.2 to 99.8");
    }

    /// By hand: 2 of 2 and 0 of 2 single answers are right, unread ones among the wrong: 0.5 +- 0.5, whatever the votes elect.
    #[test]
    fn single_answers_are_told_beside_the_vote_and_clustered_by_question() {
        let natural = [0, 1, 2, 3];
        let samples = [
            sample(0, Some(0), vec![vote(&natural, Some(0)), vote(&natural, Some(0))]),
            sample(0, Some(1), vec![vote(&natural, Some(1)), vote(&natural, None)]),
        ];
        let single = Counts::of(&samples).acc_single.unwrap();
        assert_eq!((single.value, single.stderr), (0.5, 0.5));
        let one = [sample(0, Some(0), vec![vote(&natural, Some(0))])];
        assert_eq!(Counts::of(&one).acc_single, None);
    }

    #[test]
    fn answers_whose_reasoning_was_cut_out_are_counted_and_said() {
        let cut = || Vote { reasoning_removed: true, ..vote(&[0, 1, 2, 3], Some(0)) };
        let samples =
            [sample(0, Some(0), vec![cut(), vote(&[0, 1, 2, 3], None), cut()]), sample(0, Some(0), vec![cut()])];
        let counts = Counts::of(&samples);
        assert_eq!(counts.n_reasoning_removed, Some(3));
        let words = counts.sample_words().unwrap();
        assert!(
            words.starts_with("1 of 4 answers unparsed") && words.ends_with("; 3 answers with reasoning cut out"),
            "{words}"
        );
    }

    /// By hand: order [2, 0, 1, 3] shows the key 0 second; the answer 2 was shown first.
    #[test]
    fn positions_are_counted_as_shown() {
        let counts = Counts::of(&[sample(0, Some(2), vec![vote(&[2, 0, 1, 3], Some(2))])]);
        assert_eq!(counts.chosen_positions, [1, 0, 0, 0]);
        assert_eq!(counts.key_positions, [0, 1, 0, 0]);
    }

    fn counts(n: usize, n_right: usize) -> Counts {
        let samples: Vec<Sample> = (0..n).map(|i| sample(0, Some(usize::from(i >= n_right)), vec![])).collect();
        Counts::of(&samples)
    }

    /// By hand (stats.rs): Wilson's 95 % interval of 0 of 20 is 0 to 16.11 %; an average over tasks has none.
    #[test]
    fn a_task_with_nothing_right_has_a_standard_error_of_zero_and_an_interval_that_is_not() {
        let acc = counts(20, 0).acc;
        let interval = acc.interval.unwrap();
        assert_eq!((acc.value, acc.stderr, interval.low), (0.0, 0.0, 0.0));
        assert!((interval.high - 0.161125).abs() < 1e-6, "{interval:?}");
        let json = serde_json::to_value(acc).unwrap();
        assert!(json["interval"]["high"].is_number(), "{json}");
        let old: Estimate = serde_json::from_str(r#"{"value": 0.5, "stderr": 0.1}"#).unwrap();
        assert_eq!(old.interval, None, "results of earlier versions are still read");
    }

    /// Aloe-Alpha's fp32 row of the Open Medical-LLM leaderboard (aloe.md 7(b)): the six subjects average to 72.65 and the
    /// nine tasks, weighted by size, to 62.84.
    #[test]
    fn the_averages_reproduce_the_leaderboard_row_of_the_reference_model() {
        let rows: Vec<(Task, Counts)> = [
            (Task::Pubmedqa, 77.0),
            (Task::Medqa4, 62.45),
            (Task::Medmcqa, 58.76),
            (Task::Mmlu(aloe_task::Subject::Anatomy), 68.15),
            (Task::Mmlu(aloe_task::Subject::ClinicalKnowledge), 74.72),
            (Task::Mmlu(aloe_task::Subject::CollegeBiology), 77.08),
            (Task::Mmlu(aloe_task::Subject::CollegeMedicine), 64.16),
            (Task::Mmlu(aloe_task::Subject::MedicalGenetics), 79.0),
            (Task::Mmlu(aloe_task::Subject::ProfessionalMedicine), 72.79),
        ]
        .into_iter()
        .map(|(task, percent)| {
            let n = task.published_test_len().unwrap();
            (task, counts(n, (percent / 100.0 * n as f64).round() as usize))
        })
        .collect();
        let rows: Vec<(Task, &Counts)> = rows.iter().map(|(task, counts)| (*task, counts)).collect();
        let groups = groups(&rows);
        assert_eq!(groups.len(), 2);
        assert!((groups[0].acc.value - 0.7265).abs() < 5e-5, "{:?}", groups[0].acc);
        assert!((groups[1].acc.value - 0.6284).abs() < 5e-5, "{:?}", groups[1].acc);
        assert_eq!(groups[1].n, 7045);
        assert!((groups[1].acc.stderr - 0.0057).abs() < 1e-4, "{:?}", groups[1].acc);
    }

    #[test]
    fn the_two_arithmetic_means_differ_by_pubmedqa_and_need_all_their_sets() {
        let subjects = aloe_task::Subject::ALL.map(Task::Mmlu);
        let (half, whole) = (counts(10, 5), counts(10, 10));
        let mut rows: Vec<(Task, &Counts)> = subjects.iter().map(|&task| (task, &half)).collect();
        rows.extend([(Task::Medqa4, &half), (Task::Medmcqa, &half), (Task::CareqaEn, &half)]);
        let names =
            |rows: &[(Task, &Counts)]| groups(rows).into_iter().map(|g| (g.name, g.acc.value)).collect::<Vec<_>>();
        assert_eq!(names(&rows)[1], ("arithmetic mean (without PubMedQA)".to_string(), 0.5));
        rows.push((Task::Pubmedqa, &whole));
        assert_eq!(names(&rows)[2], ("arithmetic mean (all sets)".to_string(), 0.6));
    }
}
