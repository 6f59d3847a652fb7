//! `report.html`: the task vectors by layer, so that density and weights are chosen by looking.

use crate::Result;
use crate::card::{kind_of, kinds};
use crate::config::MergeConfig;
use crate::merge::MergeReport;
use crate::stats::TensorStats;
use aloe_report::{Align, LinePlot, Page, Series, Table};
use std::path::Path;

/// Writes the page. A `linear` merge has no task vectors; its page holds the configuration and the notes.
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
    // Empty where slices merge different models: columns by model would mean different models by row.
    if !report.relative_norms.is_empty() {
        overview(&mut page, report);
        page.heading("By layer");
        for model in 0..report.models.len() {
            page.line_plot(&by_layer(
                report,
                &format!("Norm of the change of {} over that of the base", report.models[model]),
                "relative norm",
                |tensors| ratio(tensors, &|t| t.norms[model].powi(2), &|t| t.base_norm.powi(2)).sqrt(),
            ));
        }
        page.line_plot(&by_layer(
            report,
            "Share of the elements changed by at least two models where all changes have one direction",
            "agreement",
            |tensors| ratio(tensors, &|t| t.n_agreeing as f64, &|t| t.n_contested as f64),
        ));
        page.heading("Every tensor");
        page.table(&every_tensor(report));
    }
    page.heading("Configuration");
    page.verbatim(&config.text);
    Ok(page.write(path)?)
}

/// Sum over sum; not a number where there is nothing to divide by, which a plot leaves out.
fn ratio(tensors: &[&TensorStats], over: &dyn Fn(&TensorStats) -> f64, under: &dyn Fn(&TensorStats) -> f64) -> f64 {
    tensors.iter().map(|t| over(t)).sum::<f64>() / tensors.iter().map(|t| under(t)).sum::<f64>()
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

/// One line per kind of tensor over the layers.
fn by_layer(report: &MergeReport, title: &str, y_label: &str, value: impl Fn(&[&TensorStats]) -> f64) -> LinePlot {
    let layered: Vec<&TensorStats> = report.tensors.iter().filter(|tensor| layer_of(&tensor.name).is_some()).collect();
    let names: Vec<String> = kinds(&report.tensors).into_iter().filter(|kind| !kind.contains("norm")).collect();
    let series = names.into_iter().map(|kind| {
        let of_kind = layered.iter().filter(|tensor| kind_of(&tensor.name) == kind);
        let points = of_kind.filter_map(|tensor| Some((layer_of(&tensor.name)? as f64, value(&[tensor])))).collect();
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
            row.push(format!("{:.5}", norm / tensor.base_norm));
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
