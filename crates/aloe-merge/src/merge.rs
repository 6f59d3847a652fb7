//! The spine: plan, then tensor by tensor from mapped inputs to the output folder, then the files beside the weights.
//!
//! Memory: one output tensor in f32 and a few tiles per thread, whatever the size of the models. The result depends on the
//! configuration, the inputs and the seed, not on threads. `out` is filled as it goes: the caller makes it appear whole (a stage's
//! partial folder, or [`merge_folder`]).

use crate::config::{MergeConfig, MergeDtype, TensorParameters};
use crate::consensus::{Consensus, TensorStats, consensus};
use crate::linear::linear;
use crate::plan::{MergeOptions, MergePlan, PlannedTensor, plan};
use crate::{Error, Result, card, tokenizer};
use aloe_model::CheckpointWriter;
use aloe_record::atomic::{self, OutputDir};
use aloe_record::{Cancel, Progress};
use aloe_tensor::Dtype;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a merge did: figures for the record and the card. Holds no time and no path beside the names of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// mergekit's name of the method.
    pub method: String,
    /// What was computed in.
    pub dtype: String,
    /// What `model/` holds.
    pub out_dtype: String,
    /// Seed of the masks.
    pub seed: u64,
    /// `density`, `l1` or `none`: how kept changes were scaled up (of the first tensor; the configuration has the rest).
    pub rescale: String,
    /// The base model.
    pub base: Option<String>,
    /// The other models, in order.
    pub models: Vec<String>,
    /// Elements of the result.
    pub n_parameters: u64,
    /// Per model: norm of its task vector over the norm of the base, over all tensors.
    pub relative_norms: Vec<f64>,
    /// Per model: share of its task vector that was kept.
    pub kept_shares: Vec<f64>,
    /// Of the elements that at least two models changed: share where all agree in direction. None if there are no such elements.
    pub sign_agreement: Option<f64>,
    /// The figures per tensor; empty for `linear`.
    pub tensors: Vec<TensorStats>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Merges into the folder `out`: `model/`, with `master/` where asked for, `merge.json` (the report) and `report.html`.
pub fn merge(
    config: &MergeConfig,
    out: &Path,
    options: &MergeOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let plan = plan(config, options)?;
    let mut report = report(config, &plan, options);
    let folders: Vec<(&str, &Path)> = plan.models.iter().map(|m| (m.name.as_str(), m.dir.as_path())).collect();
    let files = tokenizer::files(&folders, plan.tokenizer, config.chat_template.as_ref(), &mut report.notes)?;
    let mut model = CheckpointWriter::create_in(&out.join("model"), &plan.config, storage(plan.out_dtype))?;
    let mut master = match options.write_master {
        true => Some(CheckpointWriter::create_in(&out.join("master"), &plan.config, Dtype::F32)?),
        false => None,
    };
    progress.set_total(plan.n_parameters());
    for tensor in &plan.tensors {
        cancel.check()?;
        let (values, stats) = merge_tensor(config, &plan, tensor, options)?;
        model.add(&tensor.spec.hf_name, &values)?;
        if let Some(master) = &mut master {
            master.add(&tensor.spec.hf_name, &values)?;
        }
        report.tensors.extend(stats);
        progress.advance(values.len() as u64);
    }
    summarise(&mut report);
    let mut beside = files.clone();
    beside.push(("mergekit_config.yml".into(), config.text.clone().into_bytes()));
    beside.push(("README.md".into(), card::readme(config, &report).into_bytes()));
    model.finish(&beside)?;
    if let Some(master) = master {
        master.finish(&files)?;
    }
    atomic::write_json(&out.join("merge.json"), &report)?;
    crate::report::write(config, &report, &out.join("report.html"))?;
    Ok(report)
}

/// [`merge`] into a folder that appears when it is complete; an interrupted merge leaves a partial folder that the next one replaces.
pub fn merge_folder(
    config: &MergeConfig,
    out: &Path,
    options: &MergeOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let folder = OutputDir::fresh(out)?;
    let report = merge(config, folder.path(), options, progress, cancel)?;
    folder.commit()?;
    Ok(report)
}

/// One tensor of the result as f32 values of the merge dtype, and its figures: what `merge` writes, without writing.
pub fn merge_tensor(
    config: &MergeConfig,
    plan: &MergePlan,
    tensor: &PlannedTensor,
    options: &MergeOptions,
) -> Result<(Vec<f32>, Option<TensorStats>)> {
    let name = &tensor.spec.hf_name;
    let mut inputs = plan.bytes(&tensor.spec)?;
    let mut values = vec![0.0f32; tensor.spec.n_elements()];
    match (&tensor.parameters, plan.base) {
        (TensorParameters::Linear { weights, normalize }, _) => {
            linear(weights, *normalize, plan.dtype, &inputs, options.threads, &mut values);
            refuse_non_finite(plan, tensor, &values)?;
            Ok((values, None))
        }
        (TensorParameters::Consensus { weights, densities, normalize, lambda, rescale }, Some(base)) => {
            let base = inputs.remove(base);
            let parameters = Consensus {
                method: config.method,
                weights,
                densities,
                normalize: *normalize,
                lambda: *lambda,
                rescale: *rescale,
                dtype: plan.dtype,
                seed: options.seed,
            };
            let stats = consensus(&parameters, name, base, &inputs, options.threads, &mut values);
            if stats.non_finite.is_some() || !stats.base_norm.is_finite() {
                refuse_non_finite(plan, tensor, &[f32::NAN])?;
            }
            refuse_non_finite(plan, tensor, &values)?;
            Ok((values, Some(stats)))
        }
        (TensorParameters::Consensus { .. }, None) => unreachable!("the configuration was refused without a base"),
    }
}

/// Names the model whose weights are NaN or infinite, where the result is.
fn refuse_non_finite(plan: &MergePlan, tensor: &PlannedTensor, values: &[f32]) -> Result<()> {
    if aloe_model::float::first_non_finite(values).is_none() {
        return Ok(());
    }
    let inputs = plan.bytes(&tensor.spec)?;
    let mut read = vec![0.0f32; tensor.spec.n_elements()];
    for (model, input) in plan.models.iter().zip(inputs) {
        input.read(0, MergeDtype::Float32, &mut read);
        if let Some((index, value)) = aloe_model::float::first_non_finite(&read) {
            return Err(Error::tensor(&tensor.spec.hf_name, &model.name, format!("element {index} is {value}")));
        }
    }
    Err(Error::tensor(&tensor.spec.hf_name, "merged", "the weights are so large that the result overflows"))
}

fn storage(dtype: MergeDtype) -> Dtype {
    match dtype {
        MergeDtype::Bfloat16 => Dtype::Bf16,
        MergeDtype::Float32 => Dtype::F32,
    }
}

fn report(config: &MergeConfig, plan: &MergePlan, options: &MergeOptions) -> MergeReport {
    let rescale = match plan.tensors.first().map(|tensor| &tensor.parameters) {
        Some(TensorParameters::Consensus { rescale: Some(kind), .. }) => kind.name(),
        _ => "none",
    };
    let others = config.models.iter().enumerate().filter(|(index, _)| {
        // A linear merge has no base in the mathematical sense: all its models are merged.
        config.base != Some(*index) || !config.method.needs_base()
    });
    MergeReport {
        method: config.method.name().into(),
        dtype: plan.dtype.name().into(),
        out_dtype: plan.out_dtype.name().into(),
        seed: options.seed,
        rescale: rescale.into(),
        base: config.base_name().map(str::to_owned),
        models: others.map(|(_, model)| model.name.clone()).collect(),
        n_parameters: plan.n_parameters(),
        notes: plan.notes.clone(),
        ..MergeReport::default()
    }
}

/// The figures over all tensors.
fn summarise(report: &mut MergeReport) {
    if report.tensors.is_empty() {
        return;
    }
    let sum = |value: &dyn Fn(&TensorStats) -> f64| report.tensors.iter().map(value).sum::<f64>();
    let n_elements = sum(&|tensor| tensor.n_elements as f64);
    let base = sum(&|tensor| tensor.base_norm.powi(2)).sqrt();
    let n_models = report.models.len();
    let relative_norms = (0..n_models).map(|model| sum(&|tensor| tensor.norms[model].powi(2)).sqrt() / base).collect();
    let kept_shares = (0..n_models).map(|model| sum(&|tensor| tensor.n_kept[model] as f64) / n_elements).collect();
    let contested = sum(&|tensor| tensor.n_contested as f64);
    let agreeing = sum(&|tensor| tensor.n_agreeing as f64);
    report.relative_norms = relative_norms;
    report.kept_shares = kept_shares;
    report.sign_agreement = (contested > 0.0).then(|| agreeing / contested);
}

#[cfg(test)]
mod tests;
