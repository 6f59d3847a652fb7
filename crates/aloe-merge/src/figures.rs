//! From the figures of tensors to those of a merge: by model, in the order of the report's models whatever the order in a slice, and summed.
//!
//! Refuses to add up figures of tensors that merge different models: they then stand per tensor alone.

use crate::config::{MergeConfig, RescaleKind};
use crate::merge::MergeReport;
use crate::plan::{MergeOptions, MergePlan, PlannedTensor};
use crate::stats::TensorStats;

/// A report without figures.
pub(crate) fn report(config: &MergeConfig, plan: &MergePlan, options: &MergeOptions) -> MergeReport {
    MergeReport {
        name: config.name.clone(),
        method: config.method.name().into(),
        dtype: plan.dtype.name().into(),
        out_dtype: plan.out_dtype.name().into(),
        seed: options.seed,
        rescale: rescale(config, plan),
        base: config.base_name().map(str::to_owned),
        models: model_names(config),
        n_parameters: plan.n_parameters(),
        notes: plan.notes.clone(),
        ..MergeReport::default()
    }
}

fn model_names(config: &MergeConfig) -> Vec<String> {
    config.merged_models().iter().map(|model| model.name.clone()).collect()
}

/// How kept changes are scaled up; a method that drops none scales none.
fn rescale(config: &MergeConfig, plan: &MergePlan) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for tensor in plan.tensors.iter().filter(|_| config.method.sparsification().is_some()) {
        let kind = tensor.parameters.rescale().map_or("none", RescaleKind::name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    match &kinds[..] {
        [] => "none".into(),
        [only] => (*only).into(),
        several => format!("mixed: {}", several.join(", ")),
    }
}

/// The figures of a tensor in the order of the report's models. A slice that merges others keeps its own order and names them.
pub(crate) fn by_model(
    config: &MergeConfig,
    plan: &MergePlan,
    tensor: &PlannedTensor,
    stats: TensorStats,
) -> TensorStats {
    let slice = &plan.slices[tensor.slice];
    let others = (0..slice.models.len()).filter(|at| Some(*at) != slice.base);
    let found: Vec<&str> = others.map(|at| plan.models[slice.models[at]].name.as_str()).collect();
    in_order_of(&model_names(config), &found, stats)
}

/// `found` names the models of `stats` in its order, `wanted` those of the report.
fn in_order_of(wanted: &[String], found: &[&str], mut stats: TensorStats) -> TensorStats {
    let places: Vec<usize> = wanted.iter().filter_map(|name| found.iter().position(|known| known == name)).collect();
    if places.len() != wanted.len() || found.len() != wanted.len() || stats.norms.len() != found.len() {
        stats.models = found.iter().map(|name| (*name).to_owned()).collect();
        return stats;
    }
    stats.norms = places.iter().map(|place| stats.norms[*place]).collect();
    stats.n_kept = places.iter().map(|place| stats.n_kept[*place]).collect();
    stats
}

/// The figures over all tensors.
pub(crate) fn summarise(report: &mut MergeReport) {
    if report.tensors.is_empty() {
        return;
    }
    if report.tensors.iter().any(|tensor| !tensor.models.is_empty()) {
        report.notes.push("slices merge different models: figures stand per tensor alone".into());
        return;
    }
    let sum = |value: &dyn Fn(&TensorStats) -> f64| report.tensors.iter().map(value).sum::<f64>();
    let n_elements = sum(&|tensor| tensor.n_elements as f64);
    let base = sum(&|tensor| tensor.base_norm.powi(2)).sqrt();
    let models = 0..report.models.len();
    let norm = |model: usize| sum(&|tensor| tensor.norms[model].powi(2)).sqrt();
    // Nothing is relative to a base of zeros, and JSON has no infinity.
    let relative_norms = models.clone().filter(|_| base > 0.0).map(|model| norm(model) / base).collect();
    let kept_shares = models.map(|model| sum(&|tensor| tensor.n_kept[model] as f64) / n_elements).collect();
    let contested = sum(&|tensor| tensor.n_contested as f64);
    let agreeing = sum(&|tensor| tensor.n_agreeing as f64);
    report.relative_norms = relative_norms;
    report.kept_shares = kept_shares;
    report.sign_agreement = (contested > 0.0).then(|| agreeing / contested);
}

/// A ratio as text; a dash where there is nothing to divide by.
pub(crate) fn shown(ratio: f64, places: usize) -> String {
    if ratio.is_finite() { format!("{ratio:.places$}") } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> TensorStats {
        TensorStats { norms: vec![1.0, 2.0, 3.0], n_kept: vec![10, 20, 30], ..TensorStats::default() }
    }

    /// The slice has b, c, a; the report a, b, c.
    #[test]
    fn figures_follow_their_model_into_the_order_of_the_report() {
        let wanted = ["a", "b", "c"].map(str::to_owned);
        let found = in_order_of(&wanted, &["b", "c", "a"], stats());
        assert_eq!((found.norms, found.n_kept, found.models), (vec![3.0, 1.0, 2.0], vec![30, 10, 20], Vec::new()));
        let other = in_order_of(&wanted, &["b", "c", "d"], stats());
        assert_eq!((other.norms, other.models), (vec![1.0, 2.0, 3.0], ["b", "c", "d"].map(str::to_owned).to_vec()));
    }
}
