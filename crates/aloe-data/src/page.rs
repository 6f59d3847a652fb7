//! `report.html`: the account to read, with the shares of the mixture, the lengths of its rows, and flagged overlaps and duplicates
//! side by side. Holds texts of rows, unlike logs; it stays in the output folder.

use crate::decontaminate::Overlap;
use crate::dedup::Duplicate;
use crate::{DataReport, Item, MeaningReport, QualityReport};
use aloe_report::{Align, Bar, BarPlot, Page, Table};
use std::collections::BTreeMap;

/// How many overlaps and duplicates the page shows; the JSON lines beside it hold all.
pub(crate) const N_SHOWN: usize = 30;

/// Draws the page. `items` and `train` are the rows left and the training order.
pub(crate) fn draw(
    report: &DataReport,
    items: &[Item],
    train: &[usize],
    duplicates: &[Duplicate],
    overlaps: &[Overlap],
) -> Page {
    let mut page = Page::new("Training data");
    page.paragraph(&format!("Rows ({}): {}.", report.output, report.summary()));
    compared(&mut page, report);
    for notice in &report.notices {
        page.paragraph(&format!("Note: {notice}."));
    }
    page.heading("Sources");
    page.table(&sources(report));
    page.heading("Where every row went");
    page.paragraph("Read + made + repeated = training + held out + dropped (four columns) + over max_rows + by weight + quarantined.");
    page.table(&accounts(report));
    page.bar_plot(&BarPlot {
        title: "Share of each source in the training rows".into(),
        x_label: "rows".into(),
        bars: report.sources.iter().map(|source| bar(&source.name, source.n_train)).collect(),
        reference: None,
    });
    let tokens: Vec<Bar> =
        report.sources.iter().filter_map(|source| Some(bar(&source.name, source.n_tokens?))).collect();
    if !tokens.is_empty() {
        page.bar_plot(&BarPlot {
            title: "Share of each source in the training tokens".into(),
            x_label: "tokens, template included".into(),
            bars: tokens,
            reference: None,
        });
    }
    page.heading("Tasks and licences");
    page.table(&shares("task", &report.tasks, &report.tokens_by_task));
    page.table(&shares("licence", &report.licences, &report.tokens_by_licence));
    if report.sources.iter().any(|source| !source.synthetic.is_empty()) {
        page.heading("Synthetic rows");
        page.table(&synthetic(report));
    }
    page.heading("Rules");
    page.table(&rules(report));
    if report.sources.iter().any(|source| source.n_with_identifiers > 0) {
        page.heading("Identifiers");
        page.paragraph("Found by pattern, check digit and label; names by rule alone. This is no de-identification.");
        page.table(&identifiers(report));
    }
    page.heading("Lengths");
    page.bar_plot(&lengths(items, train));
    if !report.rows_by_tokens.is_empty() {
        page.bar_plot(&tokens_of_rows(report));
    }
    page.heading("Overlaps with evaluation questions");
    if let Some(found) = &report.meaning {
        page.paragraph(&meaning(found));
    }
    page.table(&overlap_table(overlaps));
    if let Some(found) = &report.quality {
        page.heading("Quality scores");
        page.paragraph(&quality(found));
    }
    page.heading("Duplicates");
    if !report.duplicate_clusters.is_empty() {
        page.bar_plot(&clusters(report));
    }
    page.table(&duplicate_table(duplicates));
    page
}

fn compared(page: &mut Page, report: &DataReport) {
    if report.n_held_apart_questions == 0 {
        return;
    }
    let of = match report.compared_with.as_slice() {
        [] => String::new(),
        names => format!(" (the recipe's {}, and files that the settings name)", names.join(", ")),
    };
    let n_dropped = report.n_overlaps - report.n_overlaps_kept;
    page.paragraph(&format!(
        "Compared with {} evaluation questions{of}: {} rows overlapped, {n_dropped} of them were dropped and {} kept by a reader's verdict.",
        report.n_held_apart_questions, report.n_overlaps, report.n_overlaps_kept
    ));
}

fn meaning(found: &MeaningReport) -> String {
    let judged = match found.judge.as_str() {
        "" => "without a judge".to_owned(),
        judge => format!(
            "the judge {judge} called {} pairs the same and {} different, and gave no verdict on {} (unjudged.jsonl)",
            found.n_same, found.n_different, found.n_unjudged
        ),
    };
    format!(
        "By meaning ({}): {} user messages compared, {} texts cut by the embedder, {} rows dropped; {judged}.",
        found.embedder, found.n_texts, found.n_cut, found.n_hits
    )
}

fn quality(found: &QualityReport) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.3}"));
    format!(
        "Complexity by {}, quality by {}: {} rows scored (means of a turn {} and {}), {} could not be scored and were dropped, {} with the \
         lowest evol scores were dropped; the lowest kept is {}. scores.jsonl holds all.",
        found.complexity_scorer,
        found.quality_scorer,
        found.n_scored,
        number(found.mean_complexity),
        number(found.mean_quality),
        found.n_unscored,
        found.n_low,
        number(found.lowest_kept)
    )
}

fn bar(name: &str, value: usize) -> Bar {
    Bar { name: name.to_owned(), value: value as f64, interval: None }
}

fn sources(report: &DataReport) -> Table {
    let columns = ["read", "training", "characters", "tokens"];
    let mut head = vec![("source", Align::Left), ("licence", Align::Left)];
    head.extend(columns.map(|name| (name, Align::Right)));
    let mut table = Table::new(&head);
    for source in &report.sources {
        let tokens = source.n_tokens.map_or_else(|| "not counted".to_owned(), |n| n.to_string());
        let counts = [source.n_read, source.n_train, source.n_chars];
        let mut row = vec![source.name.clone(), source.licence.clone()];
        row.extend(counts.iter().map(ToString::to_string));
        row.push(tokens);
        table.row(row);
    }
    table
}

fn synthetic(report: &DataReport) -> Table {
    let mut table = Table::new(&[("source", Align::Left), ("made", Align::Left), ("training", Align::Right)]);
    for source in &report.sources {
        for (made, n) in &source.synthetic {
            table.row(vec![source.name.clone(), made.clone(), n.to_string()]);
        }
    }
    table
}

fn accounts(report: &DataReport) -> Table {
    let columns = [
        "read",
        "made",
        "repeated",
        "training",
        "held out",
        "overlap",
        "exact duplicate",
        "near duplicate",
        "rules",
        "over max_rows",
        "by weight",
        "quarantined",
    ];
    let mut head = vec![("source", Align::Left)];
    head.extend(columns.map(|name| (name, Align::Right)));
    let mut table = Table::new(&head);
    let sources = report.sources.iter().map(|source| (source.name.as_str(), &source.account));
    for (name, account) in sources.chain([("all", &report.account)]) {
        let counts = [
            account.n_read,
            account.n_made,
            account.n_repeated,
            account.n_train,
            account.n_held_out,
            account.n_overlap,
            account.n_exact_duplicate,
            account.n_near_duplicate,
            account.n_rules,
            account.n_over_cap,
            account.n_weighted_out,
            account.n_quarantined,
        ];
        let mut row = vec![name.to_owned()];
        row.extend(counts.iter().map(ToString::to_string));
        table.row(row);
    }
    table
}

fn rules(report: &DataReport) -> Table {
    let mut table = Table::new(&[
        ("source", Align::Left),
        ("rule", Align::Left),
        ("changed", Align::Right),
        ("dropped", Align::Right),
    ]);
    for source in &report.sources {
        let mut by_rule: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (rule, n) in &source.changed {
            by_rule.entry(rule).or_default().0 += n;
        }
        for (rule, n) in &source.dropped {
            by_rule.entry(rule).or_default().1 += n;
        }
        for (rule, (changed, dropped)) in by_rule {
            table.row(vec![source.name.clone(), rule.to_owned(), changed.to_string(), dropped.to_string()]);
        }
    }
    table
}

fn identifiers(report: &DataReport) -> Table {
    let mut table = Table::new(&[("source", Align::Left), ("kind", Align::Left), ("found", Align::Right)]);
    for source in &report.sources {
        for (kind, n_found) in &source.identifiers {
            table.row(vec![source.name.clone(), kind.clone(), n_found.to_string()]);
        }
    }
    table
}

/// Rows by length in doublings of 64 characters.
fn lengths(items: &[Item], train: &[usize]) -> BarPlot {
    let mut counts = [0usize; 12];
    for &row in train {
        let doublings = (items[row].n_chars() / 64).checked_ilog2().map_or(0, |log| log as usize + 1);
        counts[doublings.min(11)] += 1;
    }
    let last = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    let name = |i: usize| match i {
        0 => "below 64".to_owned(),
        11 => "65536 and more".to_owned(),
        _ => format!("{} to {}", 32usize << i, (64usize << i) - 1),
    };
    let bars = counts[..=last].iter().enumerate().map(|(i, n)| bar(&name(i), *n)).collect();
    BarPlot { title: "Training rows by length in characters".into(), x_label: "rows".into(), bars, reference: None }
}

/// Training rows and tokens by what they share.
fn shares(what: &str, rows: &BTreeMap<String, usize>, tokens: &BTreeMap<String, usize>) -> Table {
    let mut table = Table::new(&[(what, Align::Left), ("training rows", Align::Right), ("tokens", Align::Right)]);
    for (name, n_rows) in rows {
        let tokens = tokens.get(name).map_or_else(|| "not counted".to_owned(), ToString::to_string);
        table.row(vec![name.clone(), n_rows.to_string(), tokens]);
    }
    table
}

/// Bars of counts by the least value of each; those between, which have none, stand too.
fn doublings(counts: &BTreeMap<usize, usize>, first: usize, name: impl Fn(usize) -> String) -> Vec<Bar> {
    let last = counts.keys().next_back().copied().unwrap_or(0);
    let steps = std::iter::successors(Some(first), |least| Some(least * 2)).take_while(|least| *least <= last);
    let steps: Vec<usize> = steps.collect();
    steps.into_iter().map(|least| bar(&name(least), counts.get(&least).copied().unwrap_or(0))).collect()
}

fn tokens_of_rows(report: &DataReport) -> BarPlot {
    let mut bars: Vec<Bar> = report.rows_by_tokens.get(&0).map(|n| bar("below 32", *n)).into_iter().collect();
    bars.extend(doublings(&report.rows_by_tokens, 32, |least| format!("{least} to {}", 2 * least - 1)));
    BarPlot { title: "Training rows by length in tokens".into(), x_label: "rows".into(), bars, reference: None }
}

/// Two, three to four, five to eight rows and so on.
fn clusters(report: &DataReport) -> BarPlot {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (n_rows, n_clusters) in &report.duplicate_clusters {
        *counts.entry(n_rows.next_power_of_two()).or_default() += n_clusters;
    }
    let name = |most: usize| if most == 2 { "2 rows".to_owned() } else { format!("{} to {most} rows", most / 2 + 1) };
    let bars = doublings(&counts, 2, name);
    BarPlot { title: "Clusters of duplicates by their rows".into(), x_label: "clusters".into(), bars, reference: None }
}

/// Characters of a duplicate that are shown.
const N_SHOWN_OF_DUPLICATE: usize = 400;
/// And of an overlap: options and numbers, by which a reader tells two questions apart, come last.
const N_SHOWN_OF_OVERLAP: usize = 2400;

fn cut(text: &str) -> String {
    cut_at(text, N_SHOWN_OF_DUPLICATE)
}

fn cut_at(text: &str, most: usize) -> String {
    match text.chars().count() <= most {
        true => text.to_owned(),
        false => text.chars().take(most - 3).chain("...".chars()).collect(),
    }
}

fn overlap_table(overlaps: &[Overlap]) -> Table {
    let names = ["row", "its text", "evaluation question", "its text", "test and score", "shared"];
    let mut table = Table::new(&names.map(|name| (name, Align::Left)));
    for overlap in overlaps.iter().take(N_SHOWN) {
        let evidence = &overlap.evidence;
        table.row(vec![
            overlap.row.clone(),
            cut_at(&overlap.row_text, N_SHOWN_OF_OVERLAP),
            overlap.question_at.clone(),
            cut_at(&overlap.question, N_SHOWN_OF_OVERLAP),
            format!("{} {}", evidence.test, evidence.score),
            cut(&evidence.shared),
        ]);
    }
    table
}

fn duplicate_table(duplicates: &[Duplicate]) -> Table {
    let names = ["dropped", "its text", "kept", "its text", "rule", "Jaccard similarity"];
    let mut table = Table::new(&names.map(|name| (name, Align::Left)));
    for found in duplicates.iter().take(N_SHOWN) {
        let (dropped, kept) = (cut(&found.texts.0), cut(&found.texts.1));
        let (rule, jaccard) = (found.rule.into(), found.jaccard.to_string());
        table.row(vec![found.dropped.clone(), dropped, found.kept.clone(), kept, rule, jaccard]);
    }
    table
}
