//! The result's `README.md`: what was merged, how, with the YAML and the figures of the task vectors. The stage's record has the rest.

use crate::config::{MergeConfig, Sparsification};
use crate::figures::shown;
use crate::merge::MergeReport;
use crate::stats::TensorStats;
use std::fmt::Write as _;

/// The card as Markdown with YAML metadata.
pub(crate) fn readme(config: &MergeConfig, report: &MergeReport) -> String {
    let mut text = String::from("---\nlibrary_name: transformers\ntags:\n- merge\n");
    let names: Vec<&str> =
        config.models.iter().map(|model| model.name.as_str()).filter(|name| is_hub_name(name)).collect();
    if !names.is_empty() {
        text += "base_model:\n";
        names.iter().for_each(|name| text += &format!("- {name}\n"));
    }
    text += "---\n# Merged model\n\n";
    let over = report.base.as_ref().map_or_else(String::new, |base| format!(" over `{base}`"));
    let _ = writeln!(
        text,
        "Merged with `{}`{over}, computed in {}, stored in {}, mask seed {}, rescale `{}`.\n",
        report.method, report.dtype, report.out_dtype, report.seed, report.rescale
    );
    text += "Models merged:\n\n";
    report.models.iter().for_each(|name| text += &format!("- `{name}`\n"));
    text += &masks(config);
    let fence = fence(&config.text);
    let _ = writeln!(text, "\n## Configuration\n\n{fence}yaml\n{}\n{fence}", config.text.trim_end());
    for merge in std::iter::once(report).chain(&report.earlier) {
        let of = merge.name.as_ref().filter(|_| merge != report);
        let of = of.map_or_else(String::new, |name| format!(" of the earlier document `{name}`"));
        let _ = write!(text, "\n## Task vectors{of}\n\n");
        text += &crate::report::why_without(merge).map_or_else(|| figures(merge), |reason| reason + "\n");
    }
    if !report.notes.is_empty() {
        text += "\n## Notes\n\n";
        report.notes.iter().for_each(|note| text += &format!("- {note}\n"));
    }
    text
}

/// What keys the random masks, for methods that have some, where that is not the models' names as written: who writes the paths otherwise gets
/// the same masks.
fn masks(config: &MergeConfig) -> String {
    let is_random = matches!(config.method.sparsification(), Some(Sparsification::Random | Sparsification::ByRank));
    let names = config.mask_names();
    let merged = config.merged_models();
    let keyed: Vec<_> = config.models.iter().zip(&names).filter(|(model, _)| merged.contains(model)).collect();
    if !is_random || keyed.iter().all(|(model, name)| model.name == **name) {
        return String::new();
    }
    let keys: Vec<String> = keyed.iter().map(|(_, name)| format!("`{name}`")).collect();
    let document = if config.name.is_some() { ", the name of the document" } else { "" };
    format!(
        "\nThe random masks depend on the seed, the tensor{document} and a model's name, which is the last component of its path (of a stage's `model`, \
         `master` or `adapter` the stage; more where two models share it): {}.\n",
        keys.join(", ")
    )
}

fn figures(report: &MergeReport) -> String {
    let mut text = String::from(
        "Norm: that of the model's change over that of the base. Kept: share of the change that was merged. Agreement: of \
         the elements that at least two models changed, the share where all changed in one direction.\n\n| Tensors |",
    );
    report.models.iter().for_each(|name| text += &format!(" norm `{name}` | kept |"));
    text += " agreement |\n|---|";
    report.models.iter().for_each(|_| text += "---|---|");
    text += "---|\n";
    for kind in kinds(&report.tensors) {
        let tensors: Vec<&TensorStats> = report.tensors.iter().filter(|tensor| kind_of(&tensor.name) == kind).collect();
        text += &row(&kind, &tensors, report.models.len());
    }
    text += &row("all", &report.tensors.iter().collect::<Vec<_>>(), report.models.len());
    text
}

fn row(title: &str, tensors: &[&TensorStats], n_models: usize) -> String {
    let sum = |value: &dyn Fn(&TensorStats) -> f64| tensors.iter().map(|tensor| value(tensor)).sum::<f64>();
    let mut text = format!("| {title} |");
    let base = sum(&|tensor| tensor.base_norm.powi(2)).sqrt();
    for model in 0..n_models {
        let norm = sum(&|tensor| tensor.norms[model].powi(2)).sqrt();
        let kept = sum(&|tensor| tensor.n_kept[model] as f64) / sum(&|tensor| tensor.n_elements as f64);
        let _ = write!(text, " {} | {kept:.4} |", shown(norm / base, 5));
    }
    let contested = sum(&|tensor| tensor.n_contested as f64);
    match contested > 0.0 {
        true => text += &format!(" {:.4} |\n", sum(&|tensor| tensor.n_agreeing as f64) / contested),
        false => text += " - |\n",
    }
    text
}

/// `model.layers.3.mlp.up_proj.weight` -> `mlp.up_proj`.
pub(crate) fn kind_of(name: &str) -> String {
    let inner = name.strip_prefix("model.").unwrap_or(name);
    let inner = match inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((_, part)) => part,
        None => inner,
    };
    inner.strip_suffix(".weight").unwrap_or(inner).to_owned()
}

/// The kinds in the order of the tensors.
pub(crate) fn kinds(tensors: &[TensorStats]) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for kind in tensors.iter().map(|tensor| kind_of(&tensor.name)) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// `owner/name`, the only form that the Hub's metadata takes.
fn is_hub_name(name: &str) -> bool {
    let mut parts = name.split('/');
    let is_plain = |part: Option<&str>| {
        part.is_some_and(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        })
    };
    let (owner, model) = (parts.next(), parts.next());
    is_plain(owner) && is_plain(model) && parts.next().is_none() && !name.starts_with('.')
}

/// A fence longer than any run of backticks in `text`.
fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat((longest + 1).max(3))
}
