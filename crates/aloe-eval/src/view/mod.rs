//! A page for looking at a run, or at several over the same questions: what was asked of which model, the table with intervals, plots, the
//! paired comparisons, and every sample with its texts. Where in the walk: called by `aloe view`; reads run folders, changes nothing.
//!
//! Reading order: this file (the page, part by part), `run` (what is read), `index` (how, and what is kept of it), `texts` (what of a line),
//! `paired` (the comparisons), `figures` (what the plots show), `plots`, `parts` (by subject, specialty and length); `open` (all of that for
//! answers in free text).

mod figures;
mod index;
mod open;
mod paired;
mod parts;
mod plots;
mod run;
mod texts;

pub use figures::{Agreement, Bin, Calibration, agreement, calibration, confidence, positions};
pub use parts::Parts;
pub use run::{Run, TaskRow, index_path, keep_index};

use crate::{Error, Result, Sample};
use aloe_report::{Align, Answered, Asked, Page, SampleBrowser, Table};
use std::collections::HashMap;
use std::path::Path;

/// What the runs of a page are called beside their names.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The most runs of a page.
pub const MOST_RUNS: usize = LETTERS.len();

/// Writes the page of `run`, compared with each of `against`; [`MOST_RUNS`] in all. `notes` stand at its top.
pub fn write(run: &Run, against: &[Run], notes: &[String], path: &Path) -> Result<()> {
    let runs: Vec<(&str, &Run)> =
        [run].into_iter().chain(against).enumerate().map(|(at, run)| (&LETTERS[at..=at], run)).collect();
    let is_open = are_open(&runs)?;
    let mut page = Page::new(&title(run, against));
    let unfinished: Vec<String> = runs.iter().filter_map(unfinished).collect();
    page.list(notes.iter().chain(&unfinished).map(String::as_str));
    page.link_to_samples(&format!("To the {} samples", run.samples.len()));
    page.heading("Results");
    if is_open {
        open::add_results(&mut page, &runs);
        paired::add(&mut page, &runs);
        open::add_plot(&mut page, &runs);
    } else {
        page.table(&results_table(&runs));
        page.list(warnings(&runs).iter().map(String::as_str));
        paired::add(&mut page, &runs);
        plots::add(&mut page, &runs);
        parts::add(&mut page, &runs);
    }
    page.heading("Model and settings");
    page.table(&facts_table(&runs));
    let names: Vec<String> = runs.iter().map(|(letter, run)| labelled(letter, run, runs.len())).collect();
    Ok(page.write_with_samples(path, &browser(&runs, &names))?)
}

/// Whether the questions are open; those of some runs and not of others are refused.
fn are_open(runs: &[(&str, &Run)]) -> Result<bool> {
    let (open, closed): (Vec<_>, Vec<_>) = runs.iter().partition(|(_, run)| run.open.is_some());
    match (open.first(), closed.first()) {
        (Some((_, open)), Some((_, closed))) => Err(Error::Unpaired(format!(
            "the questions of {} are open, and those of {} are not",
            open.name, closed.name
        ))),
        (open, _) => Ok(open.is_some()),
    }
}

fn title(run: &Run, against: &[Run]) -> String {
    let others: Vec<&str> = against.iter().map(|other| other.name.as_str()).collect();
    match others.is_empty() {
        true => format!("Evaluation {}", run.name),
        false => format!("Evaluation {} against {}", run.name, others.join(", ")),
    }
}

/// `A: ` before the name where there are several.
fn labelled(letter: &str, run: &Run, n_runs: usize) -> String {
    let strategy = run.strategy.as_ref().map_or_else(String::new, |strategy| format!(" ({strategy})"));
    if n_runs > 1 { format!("{letter}: {}{strategy}", run.name) } else { format!("{}{strategy}", run.name) }
}

fn unfinished((_, run): &(&str, &Run)) -> Option<String> {
    let of = run.unfinished.map(|all| all.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string()))?;
    Some(format!("{}: unfinished: {} of {of} questions", run.name, run.samples.len()))
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

fn results_table(runs: &[(&str, &Run)]) -> Table {
    let right = |name: &'static str| (name, Align::Right);
    let columns = [
        ("task", Align::Left),
        right("n"),
        right("acc %"),
        right("stderr"),
        right("95 % interval"),
        right("unparsed"),
        right("chance %"),
        ("beside published figures", Align::Left),
    ];
    let with_run: Vec<(&str, Align)> = if runs.len() > 1 { vec![("run", Align::Left)] } else { Vec::new() };
    let mut table = Table::new(&with_run.into_iter().chain(columns).collect::<Vec<_>>());
    let mut add = |letter: &str, cells: Vec<String>| {
        let first = (runs.len() > 1).then(|| letter.to_owned());
        table.row(first.into_iter().chain(cells).collect());
    };
    for (task, of_runs) in by_task(runs) {
        for (letter, row) in of_runs {
            let counts = &row.counts;
            let figures = [counts.acc.value, counts.acc.stderr].map(percent);
            let mut cells = vec![task.to_owned(), counts.n.to_string()];
            cells.extend(figures);
            cells.push(counts.acc.interval_of(counts.n).percent(2));
            cells.extend([counts.n_unparsed.to_string(), percent(counts.chance), row.comparability.clone()]);
            add(letter, cells);
            row.parts.apart.iter().for_each(|part| add(letter, parts::cells_apart(task, part)));
        }
    }
    for (letter, run) in runs {
        for (name, n, acc, comparability) in &run.groups {
            let [value, stderr] = [acc.value, acc.stderr].map(percent);
            let mut cells = vec![name.clone(), n.to_string(), value, stderr, acc.normal_words()];
            cells.extend([String::new(), String::new(), comparability.clone()]);
            add(letter, cells);
        }
    }
    table
}

/// Tasks in the order of the first run, then those only others have, each with its rows.
fn by_task<'a>(runs: &[(&'a str, &'a Run)]) -> Vec<(&'a str, Vec<(&'a str, &'a TaskRow)>)> {
    let mut tasks: Vec<(&str, Vec<(&str, &TaskRow)>)> = Vec::new();
    for &(letter, run) in runs {
        for row in &run.tasks {
            match tasks.iter_mut().find(|(task, _)| *task == row.task) {
                Some((_, rows)) => rows.push((letter, row)),
                None => tasks.push((&row.task, vec![(letter, row)])),
            }
        }
    }
    tasks
}

fn warnings(runs: &[(&str, &Run)]) -> Vec<String> {
    let of_run = |(letter, run): &(&str, &Run)| {
        let letter = if runs.len() > 1 { format!("{letter}, ") } else { String::new() };
        let of_task = |row: &TaskRow| {
            let say = |words: &String| format!("{letter}{}: {words}", row.task);
            row.warnings.iter().map(say).collect::<Vec<_>>()
        };
        run.tasks.iter().flat_map(of_task).collect::<Vec<_>>()
    };
    runs.iter().flat_map(of_run).collect()
}

/// Model and settings, a line each; what differs between the runs is marked.
fn facts_table(runs: &[(&str, &Run)]) -> Table {
    let several = runs.len() > 1;
    let letters = runs.iter().map(|(letter, _)| (if several { *letter } else { "" }, Align::Left));
    let columns: Vec<(&str, Align)> =
        [("", Align::Left)].into_iter().chain(several.then_some(("", Align::Left))).chain(letters).collect();
    let mut table = Table::new(&columns);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|(_, run)| &run.facts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        let value = |run: &Run| run.facts.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let values: Vec<String> = runs.iter().map(|(_, run)| value(run).unwrap_or_default()).collect();
        let is_same = values.iter().all(|value| *value == values[0]);
        let differs = several.then(|| if is_same { String::new() } else { "differs".into() });
        table.row([name.to_owned()].into_iter().chain(differs).chain(values).collect());
    }
    table
}

/// The samples of the first run with what the others made of them.
fn browser<'a>(runs: &[(&str, &'a Run)], names: &'a [String]) -> SampleBrowser<'a> {
    let run = runs[0].1;
    let questions = runs.iter().find_map(|(_, run)| run.questions.as_ref());
    let texts: Vec<_> = names.iter().map(String::as_str).zip(runs.iter().map(|(_, run)| &run.texts)).collect();
    let mut browser = SampleBrowser::new(&texts, questions.map(|found| &found.texts));
    let is_at = |row: usize, sample: &Sample| {
        let found = questions.and_then(|found| found.rows.get(row));
        found.is_some_and(|(task, id)| *task == sample.task && *id == sample.id)
    };
    // Only of a run whose questions stand in another order than its samples.
    let mut rows: Option<HashMap<(&str, &str), usize>> = None;
    for (at, sample) in run.samples.iter().enumerate() {
        let row = if is_at(at, sample) {
            Some(at)
        } else {
            let asked = questions.iter().flat_map(|found| found.rows.iter().enumerate());
            let rows = rows
                .get_or_insert_with(|| asked.map(|(row, (task, id))| ((task.as_str(), id.as_str()), row)).collect());
            rows.get(&(sample.task.as_str(), sample.id.as_str())).copied()
        };
        let asked = Asked {
            task: &sample.task,
            id: &sample.id,
            subject: &sample.subject,
            n_choices: sample.n_choices,
            key: sample.key,
            row,
        };
        let answers: Vec<Option<Answered>> = runs
            .iter()
            .map(|(_, run)| {
                let at = run.place_of(&sample.task, &sample.id, at)?;
                let mut found = answered(&run.samples[at], run.rows[at]);
                run.open.iter().for_each(|open| open.marks[run.rows[at]].put(&mut found));
                Some(found)
            })
            .collect();
        browser.push(&asked, &answers);
    }
    browser
}

fn answered(sample: &Sample, row: usize) -> Answered {
    let shown = sample.votes.iter().filter_map(|vote| {
        let answer = vote.answer?;
        vote.order.iter().position(|&option| option == answer)
    });
    Answered {
        predicted: sample.predicted,
        is_right: sample.correct,
        is_tie: sample.tie,
        is_refused: sample.refused.is_some(),
        n_votes: sample.votes.len(),
        n_agree: figures::n_agree(sample),
        shown: shown.fold(0, |bits, place| bits | 1u32.unbounded_shl(place as u32)),
        is_shuffled: sample.votes.iter().any(|vote| !vote.order.is_sorted()),
        judged: None,
        row,
    }
}

#[cfg(test)]
mod tests;
