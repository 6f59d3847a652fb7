//! The questions of a run as they were asked: `questions.jsonl`, a line each in the order of `samples.jsonl`. Samples hold no question
//! text, and the data files may have moved on when someone looks at a run. Written before the first answer, so that a run that still
//! grows knows what is to come.

use crate::{Result, report};
use aloe_task::{Question, Task};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name.
pub(crate) const FILE: &str = "questions.jsonl";

/// A question that was asked: a line of `questions.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskedQuestion {
    /// The task's name.
    pub task: String,
    /// The question's id.
    pub id: String,
    /// The question text.
    pub stem: String,
    /// PubMedQA's abstract.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context: Option<String>,
    /// The options in the source's order.
    pub choices: Vec<String>,
    /// Index of the right option.
    pub key: usize,
    /// Subject or category; empty where the set names none.
    pub subject: String,
}

impl AskedQuestion {
    fn of(task: Task, question: &Question) -> Self {
        Self {
            task: task.name(),
            id: question.id.clone(),
            stem: question.stem.clone(),
            context: question.context.clone(),
            choices: question.choices.clone(),
            key: question.key,
            subject: question.subject.clone(),
        }
    }
}

/// Reads the file of a run's folder.
pub fn read_asked(run: &Path) -> Result<Vec<AskedQuestion>> {
    crate::score::read_lines(&run.join(FILE))
}

/// Writes the file.
pub(crate) fn write(out: &Path, tasks: &[(Task, Vec<Question>, usize)]) -> Result<()> {
    let rows = |(task, questions, _): &(Task, Vec<Question>, usize)| {
        questions.iter().map(|question| AskedQuestion::of(*task, question)).collect::<Vec<_>>()
    };
    report::write_samples(&out.join(FILE), &tasks.iter().flat_map(rows).collect::<Vec<_>>())
}
