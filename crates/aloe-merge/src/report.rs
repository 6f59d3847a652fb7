//! `report.html`: the task vectors by layer, so that density and weights are chosen by looking.

use crate::Result;
use crate::card::{kind_of, kinds};
use crate::config::MergeConfig;
use crate::figures::shown;
use crate::merge::MergeReport;
use crate::stats::TensorStats;
use aloe_report::{Align, Bar, BarPlot, LinePlot, Page, Series, Table};
use std::path::Path;

/// Writes the page. Where there are no task vectors (no base model, or a method that looks at none) it says so and holds the notes and
/// the configuration.
pub(crate) fn write(config: &MergeConfig, report: &MergeReport, path: &Path) -> Result<()> {
    let mut page = Page::new("Merge");
    page.paragraph(&format!(
        "{} of {} models, {} parameters, computed in {}, stored in {}, mask seed {}, rescale {}.",
        report.method,
        report.models.len(),
        report.n_parameters,
        report.dtype,
        report.out_dtype,
        report.seed,
        report.rescale
    ));
    page.list(report.notes.iter().map(String::as_str));
    figures(&mut page, report);
    for earlier in &report.earlier {
        page.heading(&format!("Earlier document {}", earlier.name.as_deref().unwrap_or("without a name")));
        page.paragraph(&format!("{} of {}.", earlier.method, earlier.models.join(", ")));
        figures(&mut page, earlier);
    }
    page.heading("Configuration");
    page.verbatim(&config.text);
    Ok(page.write(path)?)
}

/// Why a report holds no figures of task vectors; none where it does.
pub(crate) fn why_without(report: &MergeReport) -> Option<String> {
    if !report.relative_norms.is_empty() {
        return None;
    }
    let tensors = &report.tensors;
    Some(match (&report.base, tensors.is_empty()) {
        (_, false) if tensors.iter().all(|tensor| tensor.base_norm == 0.0) => {
            "The base is all zeros, so no change is relative to it; merge.json has the norms per tensor.".into()
        }
        (_, false) => {
            "The slices merge different models, so there are no figures by model; merge.json has those per tensor."
                .into()
        }
        (None, true) => "The configuration names no base_model: there are no task vectors to show figures of.".into(),
        (Some(_), true) => {
            format!("{} takes no differences to a base model: there are no task vectors.", report.method)
        }
    })
}

/// The figures of one merge: the sums, the plots by layer and what lies outside the layers, every tensor.
fn figures(page: &mut Page, report: &MergeReport) {
    if let Some(reason) = why_without(report) {
        page.paragraph(&reason);
        return;
    }
    overview(page, report);
    page.heading("By layer");
    for (model, name) in report.models.iter().enumerate() {
        page.line_plot(&norms_by_layer(report, model));
        page.line_plot(&by_layer(report, &format!("Share of the change of {name} that was kept"), "kept", |t| {
            t.n_kept[model] as f64 / t.n_elements as f64
        }));
    }
    page.line_plot(&by_layer(
        report,
        "Share of the elements changed by at least two models where all changes have one direction",
        "agreement",
        |t| t.n_agreeing as f64 / t.n_contested as f64,
    ));
    page.bar_plot(&outside_layers(report));
    page.heading("Every tensor");
    page.table(&every_tensor(report));
}

/// The norms of one model's changes.
pub(crate) fn norms_by_layer(report: &MergeReport, model: usize) -> LinePlot {
    let title = format!("Norm of the change of {} over that of the base", report.models[model]);
    by_layer(report, &title, "relative norm", |t| t.norms[model] / t.base_norm)
}

/// Embedding, head and last norm, which have no layer.
fn outside_layers(report: &MergeReport) -> BarPlot {
    let outside = report.tensors.iter().filter(|tensor| layer_of(&tensor.name).is_none());
    let bars = outside.flat_map(|tensor| {
        let of_model = |(name, norm): (&String, &f64)| Bar {
            name: format!("{} {name}", kind_of(&tensor.name)),
            value: norm / tensor.base_norm,
            interval: None,
        };
        report.models.iter().zip(&tensor.norms).map(of_model).collect::<Vec<_>>()
    });
    BarPlot {
        title: "Norm of the change over that of the base, outside the layers: embedding, head, last norm".into(),
        x_label: "relative norm".into(),
        bars: bars.filter(|bar| bar.value.is_finite()).collect(),
        reference: None,
    }
}

fn overview(page: &mut Page, report: &MergeReport) {
    let mut table = Table::new(&[("model", Align::Left), ("relative norm", Align::Right), ("kept", Align::Right)]);
    for ((name, norm), kept) in report.models.iter().zip(&report.relative_norms).zip(&report.kept_shares) {
        table.row(vec![name.clone(), format!("{norm:.5}"), format!("{kept:.4}")]);
    }
    page.table(&table);
    if let Some(share) = report.sign_agreement {
        page.paragraph(&format!(
            "Where at least two models change an element, they agree in direction in {:.1} %.",
            100.0 * share
        ));
    }
}

/// One line per kind of tensor over the layers; a value that is not finite (nothing to divide by) is left out.
fn by_layer(report: &MergeReport, title: &str, y_label: &str, value: impl Fn(&TensorStats) -> f64) -> LinePlot {
    let layered: Vec<&TensorStats> = report.tensors.iter().filter(|tensor| layer_of(&tensor.name).is_some()).collect();
    let names: Vec<String> = kinds(&report.tensors).into_iter().filter(|kind| !kind.contains("norm")).collect();
    let series = names.into_iter().map(|kind| {
        let of_kind = layered.iter().filter(|tensor| kind_of(&tensor.name) == kind);
        let points = of_kind.filter_map(|tensor| Some((layer_of(&tensor.name)? as f64, value(tensor)))).collect();
        Series { name: kind, points }
    });
    LinePlot {
        title: title.to_owned(),
        x_label: "layer".into(),
        y_label: y_label.to_owned(),
        series: series.filter(|series| !series.points.is_empty()).collect(),
        ..LinePlot::default()
    }
}

fn every_tensor(report: &MergeReport) -> Table {
    let mut columns = vec![("tensor".to_owned(), Align::Left)];
    for name in &report.models {
        columns.push((format!("norm {name}"), Align::Right));
        columns.push((format!("kept {name}"), Align::Right));
    }
    columns.push(("agreement".to_owned(), Align::Right));
    let columns: Vec<(&str, Align)> = columns.iter().map(|(name, align)| (name.as_str(), *align)).collect();
    let mut table = Table::new(&columns);
    for tensor in &report.tensors {
        let mut row = vec![tensor.name.clone()];
        for (norm, kept) in tensor.norms.iter().zip(&tensor.n_kept) {
            row.push(shown(norm / tensor.base_norm, 5));
            row.push(format!("{:.4}", *kept as f64 / tensor.n_elements as f64));
        }
        row.push(match tensor.n_contested {
            0 => "-".into(),
            contested => format!("{:.4}", tensor.n_agreeing as f64 / contested as f64),
        });
        table.row(row);
    }
    table
}

/// `model.layers.3.mlp.up_proj.weight` -> 3.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}
