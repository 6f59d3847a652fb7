//! Accuracies that a run must have, stated before it: the published ones of a model that is run again, pass or fail.

use crate::metrics::Group;
use crate::report::TaskResult;
use aloe_task::{Subject, Task};
use serde::{Deserialize, Serialize};

/// What was expected and what came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// A task, or an average: `mmlu_medical`, `multimedqa`.
    pub name: String,
    /// Lowest accuracy that passes, in percent.
    pub low: f64,
    /// Highest accuracy that passes, in percent.
    pub high: f64,
    /// The accuracy, in percent.
    pub found: f64,
    /// Whether it lies between them and could be judged.
    pub passed: bool,
    /// Why it was not judged: questions of the published set were not asked, or refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_judged: Option<String>,
}

/// Whether the results of `tasks` have an entry of this name.
pub(crate) fn is_given(name: &str, tasks: &[Task]) -> bool {
    let has = |wanted: &[Task]| wanted.iter().all(|task| tasks.contains(task));
    match name {
        "mmlu_medical" => has(&Subject::ALL.map(Task::Mmlu)),
        "multimedqa" => Task::parse("multimedqa").is_ok_and(|nine| has(&nine)),
        _ => tasks.iter().any(|task| task.name() == name),
    }
}

/// Each expectation with what was found. An average's name is its first word.
pub(crate) fn check<'a>(
    expect: &[(String, f64, f64)],
    tasks: &[TaskResult],
    groups: impl Iterator<Item = &'a Group> + Clone,
) -> Vec<Expected> {
    let found = |name: &str| {
        let task = tasks.iter().find(|task| task.task == name).map(|task| task.counts.acc.value);
        let group =
            || groups.clone().find(|group| group.name.split(' ').next() == Some(name)).map(|group| group.acc.value);
        task.or_else(group)
    };
    let partial = |name: &str| {
        let of_group =
            groups.clone().find(|group| group.name.split(' ').next() == Some(name)).map(|group| &group.tasks);
        let belongs =
            |task: &&TaskResult| task.task == name || of_group.is_some_and(|tasks| tasks.contains(&task.task));
        tasks.iter().filter(belongs).find_map(TaskResult::partial)
    };
    let one = |(name, low, high): &(String, f64, f64)| {
        let (found, not_judged) = (100.0 * found(name)?, partial(name));
        let passed = not_judged.is_none() && *low <= found && found <= *high;
        Some(Expected { name: name.clone(), low: *low, high: *high, found, passed, not_judged })
    };
    expect.iter().filter_map(one).collect()
}

impl Expected {
    /// One line for a table.
    pub fn words(&self) -> String {
        let verdict = if self.passed { "pass" } else { "FAIL" };
        let why = self.not_judged.as_ref().map_or_else(String::new, |why| format!("; not judged: {why}"));
        format!("{:<36} {verdict}: {:.2}, expected {:.2} to {:.2}{why}", self.name, self.found, self.low, self.high)
    }
}
