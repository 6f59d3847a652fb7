//! Runs of open answers on a page: the lines of their files, what an answer is counted and filtered by, and the table of what the judges
//! found.

use super::index::Lines;
use super::{Run, labelled, texts};
use crate::Sample;
use crate::metrics::Estimate;
use crate::open::labels::JudgeError;
use crate::open::overlap::Overlap;
use crate::open::panel::{PanelResult, is_tie};
use crate::open::report::{OpenResults, OpenTaskResult, hangs_on_missing, percent, right};
use crate::open::{JudgeReply, OpenSample, logged, paired};
use crate::report::COMPARABLE;
use crate::stats::wilson;
use aloe_record::digest;
use aloe_report::{
    Align, GroupedBarPlot, GroupedRow, Judged, OpenAnswerText, OpenQuestionText, Page, Table, VerdictText, pack_rows,
};
use aloe_task::wording::open::OpenVerdict;
use serde::{Deserialize, Serialize};

/// `samples.jsonl`.
pub(super) const SAMPLES: Lines<OpenSample, Light> =
    Lines { parse: texts::json, pack: pack_answers, light, is_growing: false };
/// The questions and references, which stand in `samples.jsonl` too.
pub(super) const QUESTIONS: Lines<OpenSample, (String, String)> =
    Lines { parse: texts::json, pack: pack_questions, light: task_and_id, is_growing: false };
/// The log of answers of a run under way.
pub(super) const ANSWERS: Lines<OpenSample, Light> =
    Lines { parse: logged, pack: pack_answers, light, is_growing: true };
/// The questions in it.
pub(super) const ASKED: Lines<OpenSample, (String, String)> =
    Lines { parse: logged, pack: pack_questions, light: task_and_id, is_growing: true };

/// What is open about a run.
pub(super) struct OpenRun {
    /// `results.json`; none of a run that is not finished.
    pub(super) results: Option<OpenResults>,
    /// What the judges made of each line of the file.
    pub(super) marks: Vec<Marks>,
}

/// An answer without its texts.
#[derive(Serialize, Deserialize)]
pub(super) struct Light {
    /// As paired tests take it: right or wrong.
    pub(super) sample: Sample,
    pub(super) marks: Marks,
}

/// What an answer is filtered by beside right and wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marks {
    n_judges: usize,
    n_right: usize,
    n_unparsed: usize,
    is_tie: bool,
    /// Whether there was a panel, which leaves empty answers out.
    is_judged: bool,
    /// Digest of question and reference: another run's answer is held against this one only where they are the same.
    pub(super) asked: String,
}

impl Marks {
    fn of(sample: &OpenSample) -> Self {
        let row: Vec<OpenVerdict> = sample.verdicts.iter().map(|reply| reply.verdict).collect();
        let count = |what| row.iter().filter(|&&verdict| verdict == what).count();
        let mut asked = digest::Hasher::default();
        [&sample.question, &sample.reference].into_iter().for_each(|text| asked.field(text.as_bytes()));
        Self {
            n_judges: row.len(),
            n_right: count(OpenVerdict::Right),
            n_unparsed: count(OpenVerdict::Unparsed),
            is_tie: !row.is_empty() && is_tie(&row),
            is_judged: sample.majority.is_some(),
            asked: asked.hex()[..16].to_owned(),
        }
    }

    /// The marks on an answer of the list.
    pub(super) fn put(&self, answered: &mut aloe_report::Answered) {
        (answered.n_votes, answered.n_agree, answered.is_tie) = (self.n_judges, self.n_right, self.is_tie);
        answered.judged = Some(Judged {
            is_unjudged: !self.is_judged,
            is_split: self.n_right > 0 && self.n_right + self.n_unparsed < self.n_judges,
            lacks_verdict: self.n_unparsed > 0,
        });
    }
}

fn light(sample: OpenSample) -> Light {
    Light { sample: Sample { refused: sample.refused.clone(), ..paired::sample(&sample) }, marks: Marks::of(&sample) }
}

fn task_and_id(sample: OpenSample) -> (String, String) {
    (sample.task, sample.id)
}

fn pack_questions(samples: &[OpenSample]) -> Vec<u8> {
    pack_rows(&samples.iter().map(question).collect::<Vec<_>>())
}

fn question(sample: &OpenSample) -> OpenQuestionText<'_> {
    OpenQuestionText { stem: &sample.question, reference: &sample.reference }
}

fn pack_answers(samples: &[OpenSample]) -> Vec<u8> {
    pack_rows(&samples.iter().map(answer).collect::<Vec<_>>())
}

fn answer(sample: &OpenSample) -> OpenAnswerText<'_> {
    OpenAnswerText {
        refused: sample.refused.as_deref(),
        answer: &sample.answer,
        finish_reason: sample.finish_reason.map(texts::reason),
        reasoning_removed: sample.reasoning_removed,
        overlap: sample.overlap.map_or_else(Vec::new, measures),
        verdicts: sample.verdicts.iter().map(verdict).collect(),
    }
}

fn measures(of: Overlap) -> Vec<(&'static str, f64)> {
    let rouge = [("ROUGE-1", of.rouge1), ("ROUGE-2", of.rouge2), ("ROUGE-L", of.rouge_l)];
    rouge.into_iter().chain(of.bleu.map(|bleu| ("BLEU", bleu))).collect()
}

fn verdict(reply: &JudgeReply) -> VerdictText<'_> {
    let verdict = match (reply.verdict, &reply.refused) {
        (_, Some(_)) => "no verdict, the request was refused",
        (OpenVerdict::Right, _) => "right",
        (OpenVerdict::Wrong, _) => "wrong",
        (OpenVerdict::Unparsed, _) => "no verdict",
    };
    VerdictText { judge: &reply.judge, verdict, text: reply.refused.as_ref().unwrap_or(&reply.text) }
}

/// The judges as (what, value), beside model and settings.
pub(super) fn judge_facts(results: &OpenResults) -> Vec<(String, String)> {
    let fact = |judge: &crate::open::PanelJudge| {
        let (weights, version, most) = (&judge.model.weights, judge.prompt_version, judge.max_new_tokens);
        (format!("judge {}", judge.name), format!("weights {weights}, prompt version {version}, at most {most} tokens"))
    };
    results.judges.iter().map(fact).collect()
}

/// Adds the table, and which figures are not comparable.
pub(super) fn add_results(page: &mut Page, runs: &[(&str, &Run)]) {
    let table = results_table(runs);
    match table.is_empty() {
        true => page.paragraph("No figures yet: judges read the answers when all are there."),
        false => page.table(&table),
    }
    page.list(warnings(runs).iter().map(String::as_str));
}

/// Adds the plot of the verdicts where there are judges.
pub(super) fn add_plot(page: &mut Page, runs: &[(&str, &Run)]) {
    if let Some(plot) = verdicts_plot(runs) {
        page.heading("Plots");
        page.side_by_side(|page| page.grouped_bar_plot(&plot));
    }
}

/// Shares of right answers by task and by who says so (each judge, the majority, all of them), a bar a run.
fn verdicts_plot(runs: &[(&str, &Run)]) -> Option<GroupedBarPlot> {
    let mut rows: Vec<GroupedRow> = Vec::new();
    for (at, (_, run)) in runs.iter().enumerate() {
        for (name, share, n) in tasks(run).iter().flat_map(verdict_shares) {
            let place = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                rows.push(GroupedRow { name, bars: vec![None; runs.len()], mark: None });
                rows.len() - 1
            });
            let interval = share.interval.unwrap_or_else(|| wilson(share.value, n as f64));
            rows[place].bars[at] = Some((100.0 * share.value, Some((100.0 * interval.low, 100.0 * interval.high))));
        }
    }
    (!rows.is_empty()).then(|| GroupedBarPlot {
        title: "Answers judged right by task and judge, with 95 % intervals".into(),
        x_label: "% judged right; no verdict and no answer count as wrong".into(),
        groups: runs.iter().map(|(letter, run)| labelled(letter, run, runs.len())).collect(),
        rows,
        mark: None,
    })
}

/// Who says so of a task's answers, the share, and over how many; without shares that the table does not state either.
fn verdict_shares(task: &OpenTaskResult) -> Vec<(String, Estimate, usize)> {
    let Some(panel) = &task.panel else { return Vec::new() };
    let all = [("majority", panel.majority, panel.majority_at_most), ("all judges", panel.full_agreement, None)];
    let joint = all.into_iter().filter(|_| panel.judges.len() > 1);
    let each = panel.judges.iter().map(|judge| (judge.judge.as_str(), judge.accuracy, judge.at_most));
    let stated = joint.chain(each).filter(|(_, share, at_most)| hangs_on_missing(*share, *at_most).is_none());
    stated.map(|(who, share, _)| (format!("{}: {who}", task.head.task), share, panel.n)).collect()
}

/// A line a task that is not comparable.
fn warnings(runs: &[(&str, &Run)]) -> Vec<String> {
    let of_run = |(letter, run): &(&str, &Run)| {
        let letter = if runs.len() > 1 { format!("{letter}, ") } else { String::new() };
        let tasks = tasks(run).iter().filter(|task| task.head.comparability != COMPARABLE);
        tasks.map(move |task| format!("{letter}{}: {}", task.head.task, task.head.comparability)).collect::<Vec<_>>()
    };
    runs.iter().flat_map(of_run).collect()
}

fn tasks(run: &Run) -> &[OpenTaskResult] {
    run.open.as_ref().and_then(|open| open.results.as_ref()).map_or(&[], |results| &results.tasks)
}

/// A line of the table: what, over how many, the figure.
type Figure = (String, usize, String);

/// All that `results.json` says of each task; empty of runs that are not finished.
fn results_table(runs: &[(&str, &Run)]) -> Table {
    let columns = [("task", Align::Left), ("figure", Align::Left), ("over", Align::Right), ("value", Align::Left)];
    let with_run = (runs.len() > 1).then_some(("run", Align::Left));
    let mut table = Table::new(&with_run.into_iter().chain(columns).collect::<Vec<_>>());
    for (letter, run) in runs {
        for task in tasks(run) {
            for (what, n, value) in figures(task) {
                let first = with_run.map(|_| (*letter).to_owned());
                let cells = [task.head.task.clone(), what, n.to_string(), value];
                table.row(first.into_iter().chain(cells).collect());
            }
        }
    }
    table
}

fn figures(task: &OpenTaskResult) -> Vec<Figure> {
    let mut rows = task.panel.as_ref().map_or_else(Vec::new, panel_figures);
    rows.extend(task.judge_errors.iter().flat_map(error_figures));
    if let Some(means) = &task.overlap {
        let named = [("ROUGE-1", means.rouge1), ("ROUGE-2", means.rouge2), ("ROUGE-L", means.rouge_l)];
        let named = named.into_iter().chain([("BLEU, the mean of single answers", means.bleu)]);
        rows.extend(named.map(|(name, mean)| (name.to_owned(), means.n, percent(mean))));
    }
    let counts = [
        ("empty answers, wrong and not judged", task.n_empty),
        ("questions refused by the model or its server", task.n_refused),
        ("answers cut at the limit of tokens", task.n_cut),
    ];
    rows.extend(counts.into_iter().filter(|(_, n)| *n > 0).map(|(what, n)| (what.to_owned(), task.n, n.to_string())));
    rows
}

fn panel_figures(panel: &PanelResult) -> Vec<Figure> {
    let n_judges = panel.judges.len();
    let mut rows = Vec::new();
    if n_judges > 1 {
        let majority = right(panel.majority, panel.majority_at_most);
        rows.push((format!("right by the majority of {n_judges} judges"), panel.n, majority));
        rows.push((format!("right by all {n_judges} judges"), panel.n, percent(panel.full_agreement)));
    }
    for judge in &panel.judges {
        let (name, n_judged) = (&judge.judge, panel.n_judged);
        rows.push((format!("right by judge {name}"), panel.n, right(judge.accuracy, judge.at_most)));
        if judge.n_unparsed > 0 {
            rows.push((
                format!("no verdict of judge {name}, counted as wrong"),
                n_judged,
                judge.n_unparsed.to_string(),
            ));
        }
        let alike = |share: Estimate| {
            let what = format!("verdicts of judge {name} that are the majority's");
            (what, n_judged - judge.n_unparsed, percent(share))
        };
        rows.extend(judge.with_majority.map(alike));
    }
    if panel.n_ties > 0 {
        let what = "as many judges for the answer as against it, counted as wrong";
        rows.push((what.to_owned(), panel.n_judged, panel.n_ties.to_string()));
    }
    let kappa =
        |found: Option<f64>| found.map_or_else(|| "undefined, all verdicts are alike".into(), |k| format!("{k:.3}"));
    rows.extend(panel.fleiss_kappa.map(|fleiss| ("Fleiss' kappa".to_owned(), fleiss.n, kappa(fleiss.kappa))));
    rows.extend(panel.cohens_kappa.iter().map(|pair| {
        (format!("Cohen's kappa of {} and {}", pair.first, pair.second), pair.kappa.n, kappa(pair.kappa.kappa))
    }));
    rows
}

fn error_figures(error: &JudgeError) -> Vec<Figure> {
    let who = if error.judge == "majority" { "the majority".to_owned() } else { format!("judge {}", error.judge) };
    let share = |found: Option<Estimate>| found.map_or_else(|| "not known".into(), percent);
    let corrected = match (&error.corrected, &error.not_corrected) {
        (Some(one), _) => format!("{:.1} % (95 %: {})", 100.0 * one.value, one.interval.percent(1)),
        (None, why) => format!("none: {}", why.as_deref().unwrap_or("not known")),
    };
    let (n, n_right) = (error.n_labelled, error.n_right);
    vec![
        (format!("sensitivity of {who}, by labels"), n_right, share(error.sensitivity)),
        (format!("specificity of {who}, by labels"), n - n_right, share(error.specificity)),
        (format!("right by {who}, its error taken out (Rogan-Gladen)"), n, corrected),
    ]
}
