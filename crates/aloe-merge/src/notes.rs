//! What a user should know about a plan beyond what it does: where a default differs from mergekit's of today, and rows of the template's
//! tokens that no model trained. Refuses nothing.

use crate::Result;
use crate::config::{MergeConfig, Parameter, RescaleKind, Setting, Sparsification};
use crate::plan::MergePlan;
use crate::untrained;

/// The notes.
pub(crate) fn of_plan(config: &MergeConfig, plan: &MergePlan) -> Result<Vec<String>> {
    let mut notes: Vec<String> = rescale(config, plan).into_iter().collect();
    notes.extend(untrained::notes(plan)?);
    Ok(notes)
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
