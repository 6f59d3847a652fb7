//! What a user should know about a plan beyond what it does: where a default differs from mergekit's of today, and rows of the template's
//! tokens that no model trained. Refuses nothing.

use crate::Result;
use crate::config::{BaseUse, MergeConfig, Method, OutputSlice, Parameter, RescaleKind, Setting, Sparsification};
use crate::plan::MergePlan;
use crate::untrained;

/// The notes.
pub(crate) fn of_plan(config: &MergeConfig, plan: &MergePlan) -> Result<Vec<String>> {
    let mut notes: Vec<String> =
        [rescale(config, plan), without_effect(config), unequal_slices(config), base_alone(config)]
            .into_iter()
            .flatten()
            .collect();
    notes.extend(untrained::notes(plan)?);
    Ok(notes)
}

/// Parameters of sparsification in a merge that drops nothing.
fn without_effect(config: &MergeConfig) -> Option<String> {
    if config.method != Method::TaskArithmetic {
        return None;
    }
    let mut levels: Vec<&[(Parameter, Setting)]> = vec![&config.module_settings, &config.settings];
    for slice in &config.slices {
        levels.push(&slice.settings);
        levels.extend(slice.sources.iter().map(|source| &source.settings[..]));
    }
    let given = |parameter: &Parameter| levels.iter().any(|level| level.iter().any(|(known, _)| known == parameter));
    let idle = [Parameter::Density, Parameter::Rescale, Parameter::RescaleKind].into_iter().filter(given);
    let names = idle.map(Parameter::name).collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| {
        format!(
            "{names} has no effect: task_arithmetic merges every change whole (ties, dare_linear and others drop some)"
        )
    })
}

/// mergekit pairs the models of the last slice with as many weights as the first slice has sources.
fn unequal_slices(config: &MergeConfig) -> Option<String> {
    let n = |slice: Option<&OutputSlice>| slice.map_or(0, |slice| slice.sources.len());
    let (first, last) = (n(config.slices.first()), n(config.slices.last()));
    (first < last).then(|| {
        format!(
            "the first slice has {first} source{} and the last one {last}: mergekit 0.1.5 leaves the later ones out of the final norm and \
             the head; here all of them are merged",
            if first == 1 { "" } else { "s" }
        )
    })
}

/// Slices that merge no change into the base.
fn base_alone(config: &MergeConfig) -> Option<String> {
    let is_alone = |slice: &OutputSlice| slice.base.is_some() && slice.sources.len() == 1;
    let uses_base = config.method.base_use() != BaseUse::Ignored;
    let alone = config.slices.iter().enumerate().filter(|(_, slice)| uses_base && is_alone(slice));
    let places: Vec<String> = alone.map(|(at, _)| (at + 1).to_string()).collect();
    (!places.is_empty()).then(|| {
        format!(
            "slice {} has the base model alone: its layers are the base's, and no part of the figures of task vectors",
            places.join(", ")
        )
    })
}

/// A file that does not say how DARE rescales gets the paper's way, which is no longer mergekit's.
fn rescale(config: &MergeConfig, plan: &MergePlan) -> Option<String> {
    let is_dare = config.method.sparsification() == Some(Sparsification::Random);
    let says = |settings: &[(Parameter, Setting)]| settings.iter().any(|(known, _)| *known == Parameter::RescaleKind);
    let of_slices = config.slices.iter().any(|slice| says(&slice.settings));
    let drops = plan.tensors.iter().any(|tensor| {
        tensor.parameters.rescale() == Some(RescaleKind::Density)
            && tensor.parameters.inputs.iter().any(|values| {
                let density = values.iter().find(|(known, _)| *known == Parameter::Density);
                matches!(density, Some((_, crate::config::ParameterValue::Number(density))) if *density < 1.0)
            })
    });
    (is_dare && drops && !of_slices && !says(&config.module_settings) && !says(&config.settings)).then(|| {
        "rescale_kind is not given: kept changes are divided by their density, as in the DARE paper and in mergekit until February 2025; \
         mergekit since then scales them so that the sum of magnitudes stays (l1): `parameters: {rescale_kind: l1}` does that"
            .to_owned()
    })
}
