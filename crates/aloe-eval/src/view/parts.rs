//! Accuracy in parts on a page: by subject, specialty and question length of each task, and the rows of questions that stand apart in the
//! table of results. Where in the walk: called by `view`; every number is that of `results.json`.

use super::{Run, by_task, percent};
use crate::parts::Part;
use crate::report::TaskResult;
use aloe_report::{Align, Page, Table};

/// The section's heading.
const HEADING: &str = "By subject, specialty and question length";

/// Tables of more rows are folded.
const MOST_UNFOLDED: usize = 12;

/// A task's questions in parts.
pub struct Parts {
    /// Of those that the training rows, or the example pool, hold and do not hold.
    pub apart: Vec<Part>,
    /// By what the questions are cut, and the groups.
    pub cuts: [(&'static str, Vec<Part>); 3],
}

impl Parts {
    /// Those of a finished task.
    pub(super) fn of(result: &TaskResult) -> Self {
        let (subject, specialty, length) = (&result.by_subject, &result.by_specialty, &result.by_length);
        Self {
            apart: result.apart().cloned().collect(),
            cuts: [("subject", subject), ("specialty", specialty), ("length", length)].map(|(by, of)| (by, of.clone())),
        }
    }

    /// None: of a task that is not finished.
    pub(super) fn none() -> Self {
        Self { apart: Vec::new(), cuts: ["subject", "specialty", "length"].map(|by| (by, Vec::new())) }
    }
}

/// A part's cells of the table of results: name, questions, accuracy, standard error, interval; unparsed and chance are not counted apart.
pub(super) fn cells_apart(task: &str, part: &Part) -> Vec<String> {
    let [value, stderr] = [part.acc.value, part.acc.stderr].map(percent);
    let interval = part.acc.interval_of(part.n).percent(2);
    let words = format!("not comparable: a part of the questions: {}", part.part);
    vec![part.name(task), part.n.to_string(), value, stderr, interval, String::new(), String::new(), words]
}

/// Adds a table for each task of which some run has groups; nothing where none has.
pub(super) fn add(page: &mut Page, runs: &[(&str, &Run)]) {
    let mut is_headed = false;
    for (task, of_runs) in by_task(runs) {
        let of_runs: Vec<(&str, &Parts)> = of_runs.into_iter().map(|(letter, row)| (letter, &row.parts)).collect();
        let (table, n_rows) = table(&of_runs, runs.len() > 1);
        if n_rows == 0 {
            continue;
        }
        if !is_headed {
            page.heading(HEADING);
            page.paragraph(
                "Each interval is that of its group alone: of many groups some differ by chance. Lengths are those of abstract, stem and \
                 options, cut into quarters.",
            );
            is_headed = true;
        }
        if n_rows > MOST_UNFOLDED {
            page.folded(&format!("{task}: {n_rows} rows"), |page| page.table(&table));
        } else {
            page.subheading(task);
            page.table(&table);
        }
    }
}

/// The groups of a task in the order of the first run, then those that only others have, each with its row of every run that has it; and the
/// number of rows.
fn table(runs: &[(&str, &Parts)], with_run: bool) -> (Table, usize) {
    let right = |name: &'static str| (name, Align::Right);
    let left = |name: &'static str| (name, Align::Left);
    let mut columns = vec![left("by"), left("group")];
    columns.extend(with_run.then(|| left("run")));
    columns.extend([right("n"), right("acc %"), right("95 % interval")]);
    let (mut table, mut n_rows) = (Table::new(&columns), 0);
    for cut in 0..3 {
        for group in groups(runs, cut) {
            for (letter, parts) in runs {
                let (by, of_run) = &parts.cuts[cut];
                let Some(part) = of_run.iter().find(|part| part.part == group) else { continue };
                let mut cells = vec![(*by).to_owned(), group.to_owned()];
                cells.extend(with_run.then(|| (*letter).to_owned()));
                let interval = part.acc.interval_of(part.n).percent(2);
                cells.extend([part.n.to_string(), percent(part.acc.value), interval]);
                table.row(cells);
                n_rows += 1;
            }
        }
    }
    (table, n_rows)
}

/// The names of a cut's groups, each once.
fn groups<'a>(runs: &[(&str, &'a Parts)], cut: usize) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for part in runs.iter().flat_map(|(_, parts)| &parts.cuts[cut].1) {
        if !names.contains(&part.part.as_str()) {
            names.push(&part.part);
        }
    }
    names
}
