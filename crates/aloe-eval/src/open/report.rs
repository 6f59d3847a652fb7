//! `results.json` of open answers and its table. Holds no time, host or path.

use super::labels::{JudgeError, Label, Said, judge_error, refused};
use super::overlap::{Means, means};
use super::panel::{PanelResult, Row, panel};
use super::{OpenConfig, OpenRun, OpenSample, PanelJudge};
use crate::Result;
use crate::metrics::Estimate;
use crate::report::{COMPARABLE, of_another_kind};
use aloe_engine::{EngineIdentity, FinishReason, Sampling};
use aloe_record::digest;
use aloe_task::open::OpenTask;
use aloe_task::wording::open::OpenVerdict;
use aloe_task::{Protocol, Split};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Everything an evaluation of open answers found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenResults {
    /// What decides the answers beside the requests.
    pub model: EngineIdentity,
    /// The settings, without folders.
    pub settings: Map<String, Value>,
    /// Digest of questions, references and answers: two panels of one digest judged the same.
    pub answers_sha256: String,
    /// The panel, in its order; empty without judges.
    pub judges: Vec<PanelJudge>,
    /// One entry a task.
    pub tasks: Vec<OpenTaskResult>,
}

/// A task's name and what it may be compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskHead {
    /// The task's name.
    pub task: String,
    /// The split.
    pub split: Split,
    /// Whether the figures may be set beside published ones, in words.
    pub comparability: String,
}

/// One task's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenTaskResult {
    /// Name and comparability.
    #[serde(flatten)]
    pub head: TaskHead,
    /// Questions asked.
    pub n: usize,
    /// Empty answers, refused questions included: wrong without asking the judges.
    pub n_empty: usize,
    /// Questions that the model or its server refused.
    pub n_refused: usize,
    /// Answers cut at the limit of tokens.
    pub n_cut: usize,
    /// Words in common with the references; none where no answer counts.
    pub overlap: Option<Means>,
    /// The judges' verdicts; none without judges.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub panel: Option<PanelResult>,
    /// Each judge's error and the majority's, by a person's labels; none without labels.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub judge_errors: Vec<JudgeError>,
    /// Labels whose row repeats the labelled answer, which is this run's.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub n_labels_with_answer: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl TaskHead {
    /// The head of a task of which `n` questions of a file of `n_whole` are asked.
    pub(crate) fn new(task: OpenTask, n: usize, n_whole: usize, config: &OpenConfig) -> Self {
        let comparability = match task.published_len() {
            None if n < n_whole => format!(
                "not comparable: the first {n} of {n_whole} starter questions, not clinically reviewed; the score checks the program"
            ),
            None => {
                "not comparable: starter questions, not clinically reviewed; the score checks the program".to_owned()
            }
            Some(_) if n < n_whole => format!("not comparable: the first {n} of {n_whole} questions"),
            Some(published) if n != published => {
                format!("not comparable: {n} of the published set's {published} questions")
            }
            Some(_) => asked_otherwise(config).unwrap_or_else(|| COMPARABLE.to_owned()),
        };
        Self { task: task.name().to_owned(), split: Split::Test, comparability }
    }
}

/// What makes the figures of a whole set others than the published ones: the wording, as of questions with options, or how answers are drawn.
fn asked_otherwise(config: &OpenConfig) -> Option<String> {
    of_another_kind(config.protocol, "answers in free text").or_else(|| {
        let ours = &config.sampling;
        let theirs = OpenConfig::new(Vec::new(), config.data_dir.clone(), config.protocol).sampling;
        let is_same = Sampling { seed: theirs.seed, ..ours.clone() } == theirs;
        (!is_same).then(|| {
            format!(
                "not comparable with published figures, which are of greedy answers of {} tokens at most: temperature {}, top_p {}, {} tokens at \
                 most",
                theirs.max_new_tokens, ours.temperature, ours.top_p, ours.max_new_tokens
            )
        })
    })
}

/// Digest of what is judged.
pub(crate) fn answers_sha256(samples: &[OpenSample]) -> String {
    let mut hasher = digest::Hasher::default();
    for sample in samples {
        for text in [&sample.task, &sample.id, &sample.question, &sample.reference, &sample.answer] {
            hasher.field(text.as_bytes());
        }
    }
    hasher.hex()
}

/// The labels by the places of their answers; a label of another question or another answer is refused.
pub(crate) fn labelled<'a>(samples: &[OpenSample], labels: &'a [Label]) -> Result<HashMap<usize, &'a Label>> {
    let places: HashMap<(&str, &str), usize> =
        samples.iter().enumerate().map(|(at, sample)| ((sample.task.as_str(), sample.id.as_str()), at)).collect();
    let mut found = HashMap::new();
    for label in labels {
        let Some(&at) = places.get(&(label.task.as_str(), label.id.as_str())) else {
            return Err(refused(&label.at, format!("the run has no question {} of task {}", label.id, label.task)));
        };
        if label.answer.as_ref().is_some_and(|answer| *answer != samples[at].answer) {
            return Err(refused(&label.at, format!("the label is of another answer to {} than the run's", label.id)));
        }
        found.insert(at, label);
    }
    Ok(found)
}

impl OpenResults {
    /// Counts a run.
    pub(crate) fn new(run: &OpenRun, labels: &[Label]) -> Result<Self> {
        let labels = labelled(&run.samples, labels)?;
        let names: Vec<String> = run.judges.iter().map(|judge| judge.name.clone()).collect();
        let tasks = run.tasks.iter().map(|head| task_result(run, head, &names, &labels)).collect();
        Ok(Self {
            model: run.model.clone(),
            settings: run.settings.clone(),
            answers_sha256: answers_sha256(&run.samples),
            judges: run.judges.clone(),
            tasks,
        })
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.settings.get("protocol").and_then(Value::as_str).and_then(Protocol::parse).unwrap_or(Protocol::Aloe)
    }
}

fn task_result(run: &OpenRun, head: &TaskHead, names: &[String], labels: &HashMap<usize, &Label>) -> OpenTaskResult {
    let of_task: Vec<(usize, &OpenSample)> =
        run.samples.iter().enumerate().filter(|(_, sample)| sample.task == head.task).collect();
    let count = |keep: &dyn Fn(&OpenSample) -> bool| of_task.iter().filter(|(_, sample)| keep(sample)).count();
    let overlaps: Vec<_> = of_task.iter().map(|(_, sample)| sample.overlap).collect();
    let judged: Vec<(usize, Row)> = of_task
        .iter()
        .filter(|(_, sample)| !sample.verdicts.is_empty())
        .map(|(at, sample)| (*at, sample.verdicts.iter().map(|reply| reply.verdict).collect()))
        .collect();
    let rows: Vec<Row> = judged.iter().map(|(_, row)| row.clone()).collect();
    let panel = (!names.is_empty()).then(|| panel(names, of_task.len(), &rows));
    let has_labels = panel.is_some() && of_task.iter().any(|(at, _)| labels.contains_key(at));
    let judge_errors = if has_labels { errors(names, &judged, of_task.len(), labels) } else { Vec::new() };
    let n_refused = count(&|sample| sample.refused.is_some());
    let mut head = head.clone();
    if n_refused > 0 && head.comparability == COMPARABLE {
        head.comparability = format!("not comparable: {n_refused} questions were refused");
    }
    OpenTaskResult {
        head,
        n: of_task.len(),
        n_empty: count(&OpenSample::is_empty),
        n_refused,
        n_cut: count(&|sample| sample.finish_reason == Some(FinishReason::Length)),
        overlap: means(run.protocol, &overlaps),
        panel,
        judge_errors,
        n_labels_with_answer: of_task
            .iter()
            .filter(|(at, _)| has_labels && labels.get(at).is_some_and(|label| label.answer.is_some()))
            .count(),
    }
}

/// The error of each judge and, of several, of their majority. A label of an answer that was not judged counts for nobody.
fn errors(names: &[String], judged: &[(usize, Row)], n: usize, labels: &HashMap<usize, &Label>) -> Vec<JudgeError> {
    let said = |calls_right: &dyn Fn(&Row) -> bool| {
        let mut said = Said { n: judged.len(), ..Said::default() };
        for (at, row) in judged {
            let is_positive = usize::from(calls_right(row));
            said.n_positive += is_positive;
            match labels.get(at).map(|label| label.is_right) {
                Some(true) => {
                    (said.n_right, said.n_right_positive) = (said.n_right + 1, said.n_right_positive + is_positive)
                }
                Some(false) => {
                    (said.n_wrong, said.n_wrong_positive) = (said.n_wrong + 1, said.n_wrong_positive + is_positive)
                }
                None => {}
            }
        }
        said
    };
    let n_unanswered = n - judged.len();
    let each = names.iter().enumerate();
    let mut errors: Vec<JudgeError> =
        each.map(|(at, name)| judge_error(name, said(&|row| row[at] == OpenVerdict::Right), n_unanswered)).collect();
    if names.len() > 1 {
        errors.push(judge_error("majority", said(&|row| super::panel::majority(row)), n_unanswered));
    }
    errors
}

/// A share with its interval, in per cent.
pub(crate) fn percent(estimate: Estimate) -> String {
    let interval = estimate.interval.map_or_else(String::new, |one| format!(" (95 %: {})", one.percent(1)));
    format!("{:.1} %{interval}", 100.0 * estimate.value)
}

/// From this share of answers on, missing verdicts could make another figure of a judge's or the majority's, and none is told in words
/// (as red-teaming does).
const TOO_MANY: f64 = 0.1;

/// What `estimate` could be at most, where too much of it hangs on missing verdicts; `at_most` is what it is if they all meant right.
pub(crate) fn hangs_on_missing(estimate: Estimate, at_most: Option<f64>) -> Option<f64> {
    at_most.filter(|most| most - estimate.value > TOO_MANY)
}

/// A share of right answers in words.
pub(crate) fn right(estimate: Estimate, at_most: Option<f64>) -> String {
    match hangs_on_missing(estimate, at_most) {
        Some(most) => format!(
            "not stated: {:.1} to {:.1} % as the missing verdicts mean wrong or right",
            100.0 * estimate.value,
            100.0 * most
        ),
        None => percent(estimate),
    }
}

impl OpenTaskResult {
    /// The figure that stands for the task in summaries: the judges' where there are any, else ROUGE-L.
    pub fn words(&self) -> String {
        let name = &self.head.task;
        match (&self.panel, &self.overlap) {
            (Some(panel), _) if panel.judges.len() > 1 => {
                format!(
                    "{name} right by majority of {} judges {}",
                    panel.judges.len(),
                    right(panel.majority, panel.majority_at_most)
                )
            }
            (Some(panel), _) => {
                format!(
                    "{name} right by judge {} {}",
                    panel.judges[0].judge,
                    right(panel.majority, panel.majority_at_most)
                )
            }
            (None, Some(overlap)) => {
                format!("{name} ROUGE-L {:.1} +- {:.1}", 100.0 * overlap.rouge_l.value, 100.0 * overlap.rouge_l.stderr)
            }
            (None, None) => format!("{name}: no answer counts"),
        }
    }

    /// What stands under the task's line of the table and of the card: one sentence a judge, the panel, the judges' error.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (n, what) in [
            (self.n_empty, "empty answers, wrong and not judged"),
            (self.n_refused, "questions refused by the model or its server"),
            (self.n_cut, "answers cut at the limit of tokens"),
        ] {
            if n > 0 {
                notes.push(format!("{what}: {n}"));
            }
        }
        let Some(panel) = &self.panel else { return notes };
        for judge in &panel.judges {
            let missing = match judge.n_unparsed {
                0 => String::new(),
                n => format!("; no verdict on {n} of {}, which count as wrong", panel.n_judged),
            };
            let agrees = judge.with_majority.map_or_else(String::new, |share| {
                format!("; its verdicts are the majority's in {:.1} %", 100.0 * share.value)
            });
            notes.push(format!(
                "judge {}: right {}{missing}{agrees}",
                judge.judge,
                right(judge.accuracy, judge.at_most)
            ));
        }
        if panel.judges.len() > 1 {
            notes.extend(panel_notes(panel));
        }
        notes.extend(self.judge_errors.iter().map(error_words));
        notes
    }
}

fn panel_notes(panel: &PanelResult) -> Vec<String> {
    let n = panel.judges.len();
    let ties = if panel.n_ties == 0 { String::new() } else { format!("; {} ties, which are wrong", panel.n_ties) };
    let kappa = |kappa: Option<f64>| {
        kappa.map_or_else(|| "undefined, all verdicts are alike".to_owned(), |k| format!("{k:.3}"))
    };
    let mut notes = vec![
        format!("majority of {n} judges: right {}{ties}", right(panel.majority, panel.majority_at_most)),
        format!("all {n} judges: right {}", percent(panel.full_agreement)),
    ];
    match panel.fleiss_kappa {
        Some(fleiss) => notes.push(format!("Fleiss' kappa {} over {} answers", kappa(fleiss.kappa), fleiss.n)),
        None => notes.extend(panel.cohens_kappa.iter().map(|pair| {
            let found = kappa(pair.kappa.kappa);
            format!("Cohen's kappa of {} and {}: {found} over {} answers", pair.first, pair.second, pair.kappa.n)
        })),
    }
    notes
}

fn error_words(error: &JudgeError) -> String {
    let who = if error.judge == "majority" { "the majority".to_owned() } else { format!("judge {}", error.judge) };
    let share = |estimate: Option<Estimate>| estimate.map_or_else(|| "not known".to_owned(), percent);
    let corrected = match (&error.corrected, &error.not_corrected) {
        (Some(corrected), _) => format!(
            "corrected for this error (Rogan-Gladen) {:.1} % are right (95 %: {})",
            100.0 * corrected.value,
            corrected.interval.percent(1)
        ),
        (None, why) => format!("no corrected accuracy: {}", why.as_deref().unwrap_or("not known")),
    };
    format!(
        "{who} on {} labelled answers ({} right): sensitivity {}, specificity {}; {corrected}",
        error.n_labelled,
        error.n_right,
        share(error.sensitivity),
        share(error.specificity)
    )
}

impl OpenResults {
    /// The table for the terminal: percentages with their standard errors.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<18} {:>6} {:>14} {:>14} {:>14} {:>14}  {}\n",
            "task", "n", "ROUGE-1 %", "ROUGE-2 %", "ROUGE-L %", "BLEU %", ""
        );
        for task in &self.tasks {
            let cells = match &task.overlap {
                Some(means) => [means.rouge1, means.rouge2, means.rouge_l, means.bleu]
                    .map(|one| format!("{:.2} +- {:.2}", 100.0 * one.value, 100.0 * one.stderr)),
                None => ["-"; 4].map(str::to_owned),
            };
            let comparability = &task.head.comparability;
            let note = if comparability == COMPARABLE { "" } else { comparability };
            text += &format!("{:<18} {:>6}", task.head.task, task.n);
            for cell in cells {
                text += &format!(" {cell:>14}");
            }
            text += &format!("  {note}\n");
            for note in task.notes() {
                text += &format!("{:<18} {note}\n", "");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of the answers could be either way: no figure, but its ends. A tenth is told as it is.
    #[test]
    fn where_more_than_a_tenth_of_the_answers_hang_on_missing_verdicts_no_accuracy_is_told() {
        assert_eq!(
            right(Estimate::share(2, 8), Some(0.75)),
            "not stated: 25.0 to 75.0 % as the missing verdicts mean wrong or right"
        );
        assert!(right(Estimate::share(5, 10), Some(0.6)).starts_with("50.0 % (95 %: "));
        assert!(right(Estimate::share(5, 10), None).starts_with("50.0 %"));
    }

    #[test]
    fn a_part_of_a_published_set_is_not_comparable_and_the_whole_is_where_it_is_asked_as_published() {
        let config = |protocol| OpenConfig::new(Vec::new(), "data".into(), protocol);
        let words = |task, n, n_whole| TaskHead::new(task, n, n_whole, &config(Protocol::LmEval)).comparability;
        assert_eq!(words(OpenTask::Openmedqa, 891, 891), "not comparable: 891 of the published set's 1272 questions");
        assert_eq!(words(OpenTask::Openmedqa, 5, 1272), "not comparable: the first 5 of 1272 questions");
        assert_eq!(words(OpenTask::CareqaOpen, 2769, 2769), COMPARABLE);
        assert!(words(OpenTask::StarterOpen, 12, 12).contains("not clinically reviewed"));
        let whole = |config: &OpenConfig| TaskHead::new(OpenTask::CareqaOpen, 2769, 2769, config).comparability;
        assert_eq!(
            whole(&config(Protocol::Aloe)),
            "not comparable with published figures: answers in free text in the wording of aloe"
        );
        let (mut drawn, mut seeded) = (config(Protocol::LmEval), config(Protocol::LmEval));
        (drawn.sampling.temperature, seeded.sampling.seed) = (0.5, 7);
        assert!(
            whole(&drawn)
                .ends_with("greedy answers of 256 tokens at most: temperature 0.5, top_p 1, 256 tokens at most")
        );
        assert_eq!(whole(&seeded), COMPARABLE, "greedy answers have no seed");
    }
}
