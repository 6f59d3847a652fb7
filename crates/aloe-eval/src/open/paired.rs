//! Runs of open answers as paired tests take them: each question right or wrong, by the majority of the run's judges.
//!
//! Two panels do not measure the same, so runs of other judges are refused, as are runs without a judge and other questions or references.

use super::report::OpenResults;
use super::{OpenSample, PanelJudge};
use crate::compare::results_of;
use crate::{Error, Result, Sample, score};
use aloe_record::atomic;
use aloe_task::Question;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// A finished run of open answers.
pub(crate) struct JudgedRun {
    /// `results.json`.
    pub(crate) results: OpenResults,
    answers: Vec<OpenSample>,
}

/// Whether the questions of the finished run in `folder` are answered in free text.
pub(crate) fn is_open(folder: &Path) -> Result<bool> {
    let results: Value = atomic::read_json(&results_of(folder)?)?;
    Ok(results.get("answers_sha256").is_some())
}

/// Reads two runs that can be paired.
pub(crate) fn read_both(earlier: &Path, later: &Path) -> Result<(JudgedRun, JudgedRun)> {
    let (first, second) = (JudgedRun::read(earlier)?, JudgedRun::read(later)?);
    let named = |folder: &Path| folder.display().to_string();
    same_panel((&named(earlier), &first.results), (&named(later), &second.results))?;
    let known: HashMap<(&str, &str), &OpenSample> =
        first.answers.iter().map(|one| ((one.task.as_str(), one.id.as_str()), one)).collect();
    for one in &second.answers {
        let other = known.get(&(one.task.as_str(), one.id.as_str()));
        if other.is_some_and(|other| (&other.question, &other.reference) != (&one.question, &one.reference)) {
            let reason = format!("{}/{} has another question or reference answer in the second run", one.task, one.id);
            return Err(Error::Unpaired(reason));
        }
    }
    Ok((first, second))
}

/// Refuses two runs, each with its name, that other judges have read.
pub(crate) fn same_panel((a, first): (&str, &OpenResults), (b, second): (&str, &OpenResults)) -> Result<()> {
    let names = |run: &OpenResults| run.judges.iter().map(|judge| judge.name.as_str()).collect::<Vec<_>>().join(", ");
    match first.judges.iter().map(decisive).eq(second.judges.iter().map(decisive)) {
        true => Ok(()),
        false => Err(Error::Unpaired(format!(
            "{a} was judged by {} and {b} by {}, with other settings or weights where the names are alike: judge one of them anew \
             (aloe rejudge)",
            names(first),
            names(second)
        ))),
    }
}

/// What decides a verdict beside the answer; not where the judge ran.
fn decisive(judge: &PanelJudge) -> (&str, &str, u32, usize) {
    (&judge.model.name, &judge.model.weights, judge.prompt_version, judge.max_new_tokens)
}

impl JudgedRun {
    fn read(folder: &Path) -> Result<Self> {
        let results: OpenResults = atomic::read_json(&folder.join("results.json"))?;
        if results.judges.is_empty() {
            let folder = folder.display();
            return Err(Error::Unpaired(format!(
                "no judge has read the answers of {folder} (aloe rejudge {folder} --judge MODEL --out OUT)"
            )));
        }
        let answers = score::read_lines(&folder.join("samples.jsonl"))?;
        Ok(Self { results, answers })
    }

    /// By whom an answer is called right, in words.
    pub(crate) fn words(&self) -> String {
        match self.results.judges.as_slice() {
            [one] => format!("right by judge {}", one.name),
            several => format!("right by the majority of {} judges", several.len()),
        }
    }

    /// The answers as questions that are right or wrong.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.answers.iter().map(sample).collect()
    }
}

/// An answer as a question that is right or wrong.
pub(crate) fn sample(one: &OpenSample) -> Sample {
    let question = Question {
        id: one.id.clone(),
        stem: one.question.clone(),
        context: None,
        choices: Vec::new(),
        key: 0,
        subject: one.category.clone(),
        explanation: None,
        source: String::new(),
    };
    Sample { correct: one.majority == Some(true), ..Sample::unanswered(one.task.clone(), one.index, &question) }
}
