//! A page for looking at a run, or at two over the same questions: what was asked of which model, the table with intervals, plots, the
//! paired comparison, and every sample with its texts. Where in the walk: called by `aloe view`; reads run folders, changes nothing.
//!
//! Reading order: this file (the page, part by part), `run` (what is read), `figures` (what the plots show), `plots`.

mod figures;
mod plots;
mod run;

pub use figures::{Agreement, Bin, Calibration, agreement, calibration, confidence, positions};
pub use run::{Run, TaskRow};

use crate::compare::{ALPHA, Comparison, chance, compare};
use crate::metrics::Estimate;
use crate::stats::wilson;
use crate::{Result, Sample};
use aloe_engine::FinishReason;
use aloe_report::{Align, Answered, Asked, Page, QuestionText, SampleBrowser, Table, VoteText};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Writes the page of `run`, compared with `against` where there is one. `notes` stand at its top.
pub fn write(run: &Run, against: Option<&Run>, notes: &[String], path: &Path) -> Result<()> {
    let mut page = Page::new(&title(run, against));
    let runs: Vec<(&str, &Run)> = [("A", run)].into_iter().chain(against.map(|other| ("B", other))).collect();
    let unfinished: Vec<String> = runs.iter().filter_map(unfinished).collect();
    page.list(notes.iter().chain(&unfinished).map(String::as_str));
    page.link_to_samples(&format!("To the {} samples", run.samples.len()));
    page.heading("Results");
    page.table(&results_table(&runs));
    page.list(warnings(&runs).iter().map(String::as_str));
    if let Some(other) = against {
        page.heading("A against B, question by question");
        comparison(&mut page, run, other);
    }
    plots::add(&mut page, &runs);
    page.heading("Model and settings");
    page.table(&facts_table(&runs));
    Ok(page.write_with_samples(path, &mut browser(run, against))?)
}

fn title(run: &Run, against: Option<&Run>) -> String {
    match against {
        Some(other) => format!("Evaluation {} against {}", run.name, other.name),
        None => format!("Evaluation {}", run.name),
    }
}

/// `A: ` before the name where there are two.
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
    let interval = |acc: Estimate, n: usize| acc.interval.unwrap_or_else(|| wilson(acc.value, n as f64)).percent(2);
    for (task, of_runs) in by_task(runs) {
        for (letter, row) in of_runs {
            let counts = &row.counts;
            let figures = [counts.acc.value, counts.acc.stderr].map(percent);
            let mut cells = vec![task.to_owned(), counts.n.to_string()];
            cells.extend(figures);
            cells.push(interval(counts.acc, counts.n));
            cells.extend([counts.n_unparsed.to_string(), percent(counts.chance), row.comparability.clone()]);
            add(letter, cells);
        }
    }
    for (letter, run) in runs {
        for (name, n, acc, comparability) in &run.groups {
            let [value, stderr] = [acc.value, acc.stderr].map(percent);
            let none = String::new;
            add(
                letter,
                vec![name.clone(), n.to_string(), value, stderr, none(), none(), none(), comparability.clone()],
            );
        }
    }
    table
}

/// Tasks in the order of the first run, then those only the second has, each with its rows.
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

/// What may be said of `A - B`, over the questions that both hold.
fn comparison(page: &mut Page, run: &Run, other: &Run) {
    let key = |sample: &Sample| (sample.task.clone(), sample.id.clone());
    let common: BTreeSet<(String, String)> = {
        let of_other: BTreeSet<_> = other.samples.iter().map(key).collect();
        run.samples.iter().map(key).filter(|one| of_other.contains(one)).collect()
    };
    let both =
        |run: &Run| -> Vec<Sample> { run.samples.iter().filter(|one| common.contains(&key(one))).cloned().collect() };
    let words = format!(
        "{} of A's {} and B's {} questions are in both runs; differences are A minus B.",
        common.len(),
        run.samples.len(),
        other.samples.len()
    );
    page.paragraph(&words);
    // As `aloe eval --compare B` has it: the earlier run first, the difference is the later one's gain.
    match compare(&both(other), &both(run), 0) {
        Ok(rows) => {
            page.table(&comparison_table(&rows));
            let said = format!(
                "McNemar's exact test and the interval of a paired bootstrap must both speak at the {ALPHA} level for a difference to be \
                 concluded."
            );
            page.paragraph(&said);
            chance(rows.len()).iter().for_each(|words| page.paragraph(&format!("{words}.")));
        }
        Err(error) => page.paragraph(&error.to_string()),
    }
}

fn comparison_table(rows: &[Comparison]) -> Table {
    let right = |name: &'static str| (name, Align::Right);
    let mut table = Table::new(&[
        ("task", Align::Left),
        right("n"),
        right("A %"),
        right("B %"),
        right("A - B"),
        right("95 % interval"),
        right("only A right"),
        right("only B right"),
        right("p"),
        ("what may be said of A", Align::Left),
    ]);
    for row in rows {
        table.row(vec![
            row.task.clone(),
            row.n.to_string(),
            percent(row.second),
            percent(row.first),
            format!("{:+.2}", 100.0 * row.difference),
            row.interval.percent(2),
            row.n_only_second.to_string(),
            row.n_only_first.to_string(),
            format!("{:.4}", row.p_value),
            row.verdict.words().to_owned(),
        ]);
    }
    table
}

/// Model and settings, a line each; what differs between two runs is marked.
fn facts_table(runs: &[(&str, &Run)]) -> Table {
    let two = runs.len() > 1;
    let columns: Vec<(&str, Align)> = if two {
        vec![("", Align::Left), ("", Align::Left), ("A", Align::Left), ("B", Align::Left)]
    } else {
        vec![("", Align::Left), ("", Align::Left)]
    };
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
        let differs = two.then(|| if values[0] == values[1] { String::new() } else { "differs".into() });
        table.row([name.to_owned()].into_iter().chain(differs).chain(values).collect());
    }
    table
}

/// The samples of `run` with what the other run made of them.
fn browser(run: &Run, against: Option<&Run>) -> SampleBrowser {
    let n_runs = if against.is_some() { 2 } else { 1 };
    let names: Vec<String> = [("A", Some(run)), ("B", against)]
        .into_iter()
        .filter_map(|(letter, run)| Some(labelled(letter, run?, n_runs)))
        .collect();
    let mut browser = SampleBrowser::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let others: HashMap<(&str, &str), &Sample> = against
        .into_iter()
        .flat_map(|other| other.samples.iter().map(|one| ((one.task.as_str(), one.id.as_str()), one)))
        .collect();
    for sample in &run.samples {
        let key = (sample.task.clone(), sample.id.clone());
        let question = [Some(run), against].into_iter().flatten().find_map(|run| run.questions.get(&key));
        let text = question.map(|one| QuestionText {
            stem: &one.stem,
            context: one.context.as_deref(),
            choices: &one.choices,
        });
        let asked = Asked {
            task: &sample.task,
            id: &sample.id,
            subject: &sample.subject,
            n_choices: sample.n_choices,
            key: sample.key,
            text,
        };
        let first = answered(sample);
        let second = others.get(&(sample.task.as_str(), sample.id.as_str())).map(|one| answered(one));
        match n_runs {
            1 => browser.push(&asked, &[Some(&first)]),
            _ => browser.push(&asked, &[Some(&first), second.as_ref()]),
        }
    }
    browser
}

fn answered(sample: &Sample) -> Answered<'_> {
    Answered {
        predicted: sample.predicted,
        is_right: sample.correct,
        is_tie: sample.tie,
        refused: sample.refused.as_deref(),
        prompt_sha256: &sample.prompt_sha256,
        logps: sample.choices.iter().map(|choice| choice.logp).collect(),
        votes: sample.votes.iter().map(vote_text).collect(),
    }
}

fn vote_text(vote: &crate::Vote) -> VoteText<'_> {
    VoteText {
        order: &vote.order,
        answer: vote.answer,
        text: &vote.text,
        finish_reason: reason(vote.finish_reason),
        logp: vote.logp,
        shots: &vote.shots,
        reasoning_removed: vote.reasoning_removed,
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "a stop token or text",
        FinishReason::Length => "the limit of new tokens",
        FinishReason::Context => "the end of the model's context",
        FinishReason::Other => "another reason of the server",
    }
}

#[cfg(test)]
mod tests;
