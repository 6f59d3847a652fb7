//! `search.json` (every point, byte-reproducible) and `search.html` (the same for a reader) of a merge search.

use super::Answers;
use super::verdict::{Row, Verdict};
use crate::recipe::search_stage::MergeSearchStage;
use aloe_eval::EvalConfig;
use aloe_merge::search::{KnobRange, Proposer, Searched, Space};
use aloe_record::atomic;
use aloe_report::{Bar, BarPlot, LinePlot, Page, Series};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Writes both files.
pub(super) fn write(
    stage: &MergeSearchStage,
    (space, config): (&Space, &EvalConfig),
    (found, verdict): (&Searched<Answers>, &Verdict),
    notes: &[String],
    folder: &Path,
) -> anyhow::Result<()> {
    let mut all = json!({"format": "aloe-merge-search/1", "search": stage.search, "space": knobs(space), "questions": questions(stage, config)});
    for (key, value) in figures(space, found, verdict) {
        all[key] = value;
    }
    all["notes"] = json!(notes);
    atomic::write_json(&folder.join("search.json"), &all)?;
    Ok(page(stage, space, (found, verdict), notes).write(&folder.join("search.html"))?)
}

/// Says in the card of the merge, which goes wherever the weights go, that it was chosen among others and what may be said of it.
pub(super) fn add_to_card(stage: &MergeSearchStage, verdict: &Verdict, folder: &Path) -> anyhow::Result<()> {
    let card = if stage.master { folder.join("model/README.md") } else { folder.join("README.md") };
    let text = std::fs::read_to_string(&card).map_err(aloe_record::Error::io("read", &card))?;
    let words: String = verdict.words.iter().map(|sentence| format!("- {sentence}\n")).collect();
    Ok(atomic::write(
        &card,
        format!("{text}\n## How the numbers were chosen\n\nBy a search (`aloe merge-search`).\n\n{words}").as_bytes(),
    )?)
}

/// What was found: the table and what may be said of the best.
pub(super) fn figures(space: &Space, found: &Searched<Answers>, verdict: &Verdict) -> Map<String, Value> {
    let answers = |row: &Row, answers: &Answers| {
        let mut entry = json!(row);
        entry["tasks"] = json!(answers.tasks);
        entry["weights_sha256"] = json!(answers.weights);
        entry
    };
    let points = found.points.iter().zip(&verdict.points).map(|(point, row)| {
        let values: Map<String, Value> =
            space.knobs.iter().zip(&point.values).map(|(knob, value)| (knob.name.clone(), json!(value))).collect();
        let mut entry = answers(row, &point.detail);
        entry["values"] = Value::Object(values);
        entry
    });
    let mut figures = Map::new();
    figures.insert("best".into(), json!(verdict.best + 1));
    figures.insert("tied_for_best".into(), json!(verdict.tied.iter().map(|at| at + 1).collect::<Vec<_>>()));
    figures.insert("verdict".into(), json!(verdict.words));
    figures.insert("points".into(), points.collect());
    if !found.refused.is_empty() {
        figures.insert("refused".into(), json!(found.refused));
    }
    figures.insert("inputs".into(), json!(verdict.inputs));
    figures.insert("n_asked".into(), json!(found.n_asked));
    figures.insert("ended".into(), json!(found.ended));
    figures
}

fn knobs(space: &Space) -> Value {
    let range = |range: &KnobRange| match range {
        KnobRange::Values(values) => json!({"values": values}),
        KnobRange::Between(from, to) => json!({"from": from, "to": to}),
    };
    let knob =
        |knob: &aloe_merge::search::Knob| json!({"name": knob.name, "paths": knob.paths, "range": range(&knob.range)});
    space.knobs.iter().map(knob).collect()
}

fn questions(stage: &MergeSearchStage, config: &EvalConfig) -> Value {
    let tasks: Vec<String> = config.tasks.iter().map(|task| task.name()).collect();
    json!({"tasks": tasks, "split": config.split, "protocol": stage.eval.protocol, "strategy": stage.eval.strategy, "shots": config.shots,
           "limit": config.limit, "seed": config.seed})
}

fn page(
    stage: &MergeSearchStage,
    space: &Space,
    (found, verdict): (&Searched<Answers>, &Verdict),
    notes: &[String],
) -> Page {
    let mut page = Page::new("Merge search");
    page.list(verdict.words.iter().map(String::as_str));
    page.paragraph(&format!(
        "{}; {} points were asked for, {} of them distinct.",
        found.ended,
        found.n_asked,
        found.points.len()
    ));
    page.list(notes.iter().map(String::as_str));
    page.heading("Points, the best first");
    page.table(&verdict.table(space, found));
    if !verdict.inputs.is_empty() {
        page.heading("Unmerged inputs");
        page.table(&verdict.input_table());
    }
    page.heading("Scores with their 95 % intervals");
    page.bar_plot(&bars(verdict));
    page.line_plot(&in_order(found));
    for (index, knob) in space.knobs.iter().enumerate() {
        page.line_plot(&match stage.search.method {
            Proposer::Grid => by_value(&knob.name, index, found),
            Proposer::Cmaes => over_time(&knob.name, index, found),
        });
    }
    page.heading("YAML of the best");
    page.verbatim(&space.yaml(&found.points[verdict.best].values));
    page
}

/// The most bars: more are no longer read.
const MOST_BARS: usize = 40;

fn bars(verdict: &Verdict) -> BarPlot {
    let mut rows: Vec<&Row> = verdict.points.iter().collect();
    rows.sort_by(|a, b| b.acc.value.total_cmp(&a.acc.value));
    let n_left_out = rows.len().saturating_sub(MOST_BARS);
    rows.truncate(MOST_BARS);
    let bar = |row: &&Row| {
        let interval = row.acc.interval.map(|one| (100.0 * one.low, 100.0 * one.high));
        Bar { name: row.name.clone(), value: 100.0 * row.acc.value, interval }
    };
    let more = if n_left_out > 0 { format!(" ({n_left_out} lower ones are in the table)") } else { String::new() };
    let best = verdict.inputs.iter().max_by(|a, b| a.acc.value.total_cmp(&b.acc.value));
    BarPlot {
        title: format!("Right answers by point{more}"),
        x_label: "% right".into(),
        bars: rows.iter().map(bar).collect(),
        reference: best.map(|row| (format!("best input, {}", row.name), 100.0 * row.acc.value)),
    }
}

fn in_order(found: &Searched<Answers>) -> LinePlot {
    let scores = || found.points.iter().enumerate().map(|(at, point)| ((at + 1) as f64, 100.0 * point.score));
    let mut best = f64::NEG_INFINITY;
    let so_far = scores().map(|(at, score)| {
        best = best.max(score);
        (at, best)
    });
    LinePlot {
        title: "Right answers in the order of the points".into(),
        x_label: "point".into(),
        y_label: "% right".into(),
        series: vec![
            Series { name: "point".into(), points: scores().collect() },
            Series { name: "best so far".into(), points: so_far.collect() },
        ],
        ..LinePlot::default()
    }
}

/// Mean and best over the points that share a value of a knob.
fn by_value(name: &str, knob: usize, found: &Searched<Answers>) -> LinePlot {
    let mut values: Vec<f64> = found.points.iter().map(|point| point.values[knob]).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let of = |value: f64| {
        found.points.iter().filter(move |point| point.values[knob] == value).map(|point| 100.0 * point.score)
    };
    let mean = |value: f64| of(value).sum::<f64>() / of(value).count() as f64;
    LinePlot {
        title: format!("Right answers by {name}, over all values of the other knobs"),
        x_label: name.to_owned(),
        y_label: "% right".into(),
        series: vec![
            Series { name: "mean".into(), points: values.iter().map(|&value| (value, mean(value))).collect() },
            Series {
                name: "best".into(),
                points: values.iter().map(|&value| (value, of(value).fold(0.0, f64::max))).collect(),
            },
        ],
        ..LinePlot::default()
    }
}

/// Where CMA-ES looked.
fn over_time(name: &str, knob: usize, found: &Searched<Answers>) -> LinePlot {
    let points = found.points.iter().enumerate().map(|(at, point)| ((at + 1) as f64, point.values[knob])).collect();
    LinePlot {
        title: format!("{name} in the order of the points"),
        x_label: "point".into(),
        y_label: name.to_owned(),
        series: vec![Series { name: name.to_owned(), points }],
        ..LinePlot::default()
    }
}
