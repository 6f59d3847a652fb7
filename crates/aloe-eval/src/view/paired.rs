//! The paired comparisons of a page: the first run against each of the others, over the questions that both hold.

use super::open::OpenRun;
use super::{Run, percent};
use crate::compare::{ALPHA, Comparison, adjust, compare_pairs, not_the_same, of_runs};
use crate::open::paired::same_panel;
use crate::{Error, Result, Sample};
use aloe_report::{Align, Page, Table};

/// Adds what may be said of `A - B`, `A - C` and so on. Where more than one test is made, of several tasks or several runs, verdicts hold for
/// all of them together, as `aloe compare` has it.
pub(super) fn add(page: &mut Page, runs: &[(&str, &Run)]) {
    let Some((&(_, run), others)) = runs.split_first() else { return };
    let mut found: Vec<(usize, Result<Vec<Comparison>>)> =
        others.iter().map(|(_, other)| compared(run, other)).collect();
    let all: Vec<&mut Comparison> = found.iter_mut().filter_map(|(_, rows)| rows.as_mut().ok()).flatten().collect();
    let tests = adjust(all);
    for ((letter, other), (n_common, rows)) in others.iter().zip(&found) {
        page.heading(&format!("A against {letter}, question by question"));
        let words = format!(
            "{n_common} of A's {} and {letter}'s {} questions are in both runs; differences are A minus {letter}, and \
             `only A` and `only {letter}` are the questions that one of them alone has right.",
            run.samples.len(),
            other.samples.len()
        );
        page.paragraph(&words);
        match rows {
            Ok(rows) => page.table(&table(letter, rows)),
            Err(error) => page.paragraph(&error.to_string()),
        }
    }
    if found.iter().any(|(_, rows)| rows.is_ok()) {
        let said = format!(
            "McNemar's exact test and the interval of a paired bootstrap must both speak at the {ALPHA} level for a difference to be \
             concluded."
        );
        page.paragraph(&said);
        tests.iter().for_each(|words| page.paragraph(&format!("{words}.")));
    }
}

/// Questions in both runs, and the comparison over them. As `aloe eval --compare B` has it: the earlier run first, the difference is the
/// later one's gain.
fn compared(run: &Run, other: &Run) -> (usize, Result<Vec<Comparison>>) {
    let pair = |(at, one): (usize, &Sample)| other.place_of(&one.task, &one.id, at).map(|place| (place, at));
    let pairs: Vec<(usize, usize)> = run.samples.iter().enumerate().filter_map(pair).collect();
    let pairs: Vec<(&Sample, &Sample)> =
        pairs.into_iter().map(|(place, at)| (&other.samples[place], &run.samples[at])).collect();
    let n_common = pairs.len();
    if let (Some(open), Some(of_other)) = (&run.open, &other.open)
        && let Err(error) = held_against((other, of_other), (run, open))
    {
        return (n_common, Err(error));
    }
    let differing = pairs.iter().find_map(|(a, b)| Some(not_the_same(a, &a.other_question(b)?)));
    if let Some(error) = differing {
        return (n_common, Err(of_runs(error, &other.name, &run.name)));
    }
    let none = || Error::Unpaired("the runs hold 0 questions of each other".into());
    (n_common, if pairs.is_empty() { Err(none()) } else { Ok(compare_pairs(&pairs, 0)) })
}

/// Whether two runs of open answers can be paired: finished, judged by one panel, asked the same.
fn held_against((earlier, first): (&Run, &OpenRun), (later, second): (&Run, &OpenRun)) -> Result<()> {
    for (run, open) in [(earlier, first), (later, second)] {
        if open.results.as_ref().is_none_or(|results| results.judges.is_empty()) {
            return Err(Error::Unpaired(format!("no judge has read the answers of {}", run.name)));
        }
    }
    if let (Some(before), Some(after)) = (&first.results, &second.results) {
        same_panel((&earlier.name, before), (&later.name, after))?;
    }
    let asked = |(run, open): (&Run, &OpenRun), at: usize| open.marks[run.rows[at]].asked.clone();
    for (at, one) in later.samples.iter().enumerate() {
        let place = earlier.place_of(&one.task, &one.id, at);
        if place.is_some_and(|place| asked((earlier, first), place) != asked((later, second), at)) {
            let reason = format!("{}/{} has another question or reference answer in the second run", one.task, one.id);
            return Err(Error::Unpaired(reason));
        }
    }
    Ok(())
}

fn table(letter: &str, rows: &[Comparison]) -> Table {
    let right = |name: &'static str| (name, Align::Right);
    let [other, difference, only] = [format!("{letter} %"), format!("A - {letter}"), format!("only {letter}")];
    let is_adjusted = rows.iter().any(|row| row.p_holm.is_some());
    let mut columns = vec![
        ("task", Align::Left),
        right("n"),
        right("A %"),
        (other.as_str(), Align::Right),
        (difference.as_str(), Align::Right),
        right("95 % interval"),
        right("only A"),
        (only.as_str(), Align::Right),
        right("p"),
    ];
    columns.extend(is_adjusted.then(|| right("p (Holm)")));
    columns.push(("what may be said of A", Align::Left));
    let mut table = Table::new(&columns);
    for row in rows {
        let mut cells = vec![
            row.task.clone(),
            row.n.to_string(),
            percent(row.second),
            percent(row.first),
            format!("{:+.2}", 100.0 * row.difference),
            row.interval.percent(2),
            row.n_only_second.to_string(),
            row.n_only_first.to_string(),
            format!("{:.4}", row.p_value),
        ];
        cells.extend(row.p_holm.map(|p| format!("{p:.4}")));
        cells.push(row.verdict.words().to_owned());
        table.row(cells);
    }
    table
}
